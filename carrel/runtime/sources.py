"""Bind sources that the container's own root cannot reach, and id maps of mounts.

With a user namespace the child is nobody on the host: it can neither walk to
``/root/data`` nor clone a tree there.  So the parent keeps a helper process that
has the child's mount namespace (mounts made earlier in the plan count as
sources) and the host's rights; it sends detached mounts as descriptors.
"""

from __future__ import annotations

import gc
import os

from carrel.kernel import syscalls, terminal
from carrel.runtime import launch, report
from carrel.runtime.child import close_all_but
from carrel.runtime.mounts import clone_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from typing import Any, NoReturn

    Spec = dict[str, Any]


class Helper:
    """A process in the mount namespace of ``pidfd``'s process."""

    __slots__ = ("kernel", "pid", "pidfd", "socket")

    def __init__(self, kernel: Any, init_pidfd: int, map_fds: list[int]) -> None:
        self.kernel = kernel
        ours, theirs = report.pair()
        self.pid, self.pidfd = launch.clone_single_threaded(kernel, 0)
        if self.pid == 0:
            _serve(kernel, theirs, init_pidfd, map_fds)
        theirs.close()
        self.socket = ours

    def open_tree(self, source: str, recursive: bool, map_fd: int, map_recursive: bool,
                  beneath: str = "") -> int:
        """The detached mount; the helper's error otherwise."""
        fields = (source, str(int(recursive)), str(map_fd), str(int(map_recursive)), beneath)
        self.socket.send("\0".join(fields).encode("utf-8", "surrogateescape"))
        packet, fds = report.receive(self.socket)
        if packet[:1] == b"E" or not fds:
            number, _, text, _ = report.unpack_error(packet or b"E5\0\0helper died")
            raise OSError(number, text or os.strerror(number), source)
        return fds[0]

    def close(self) -> None:
        self.socket.close()
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def _serve(kernel: Any, socket: Socket, init_pidfd: int, map_fds: list[int]) -> NoReturn:
    """The helper's whole life: ends when the parent closes its end."""
    try:
        gc.disable()
        close_all_but(kernel, [socket.fileno(), init_pidfd, *map_fds], 0)
        kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)
        kernel.setns(init_pidfd, syscalls.CLONE_NEWNS)
        while True:
            packet = socket.recv(8192)
            if not packet:
                break
            try:
                source, recursive, map_fd, map_recursive, beneath = packet.decode(
                    "utf-8", "surrogateescape").split("\0")
                tree = clone_source(kernel, source, recursive == "1", beneath)
                if int(map_fd) >= 0:
                    apply_map(kernel, tree, int(map_fd), map_recursive == "1")
                terminal.send_descriptors(socket, b"G", [tree])
                os.close(tree)
            except Exception as error:
                socket.send(report.pack_error(error, "mounts"))
    finally:
        os._exit(0)


def apply_map(kernel: Any, tree: int, map_fd: int, recursive: bool) -> None:
    kernel.mount_setattr(tree, syscalls.AT_RECURSIVE if recursive else 0,
                         syscalls.MOUNT_ATTR_IDMAP, userns_fd=map_fd)


def map_namespace(kernel: Any, uid_rows: list[Spec], gid_rows: list[Spec]) -> int:
    """A descriptor of a user namespace with these maps; nobody lives in it."""
    ours, theirs = report.pair()
    pid, pidfd = launch.clone_single_threaded(kernel, syscalls.CLONE_NEWUSER)
    if pid == 0:
        try:
            ours.close()
            theirs.recv(1)  # until the parent is done
        finally:
            os._exit(0)
    try:
        for name, rows in (("gid_map", gid_rows), ("uid_map", uid_rows)):
            text = "".join(f"{r['containerID']} {r['hostID']} {r['size']}\n" for r in rows)
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        ours.close()
        theirs.close()
        syscalls.pidfd_send_signal(pidfd, 9)
        os.waitpid(pid, 0)
        os.close(pidfd)
