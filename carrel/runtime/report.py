"""What a child tells its parent, over one SOCK_SEQPACKET pair.

    child -> parent   E errno NUL step NUL text NUL file name    failed; the child exits
                      H                                          run the host's hooks now
                      M                                          write the id maps
                      O offsets                                  write the time offsets
                      P pid                                      that one takes my place
                      S index                                    open a bind source for me
                      I                                          what is my pid?
                      T   (+ one descriptor)                     the terminal's master
                      N number                                   take my seccomp listener
                      L rows                                     rows of the record
                      R                                          ready, waiting for start
    parent -> child   B mounts (+ stdio)                         what the request told; unasked, to
                                                                 a child that was made before it
                      C n (+ descriptors)                        the fifo, n cgroups' files to join
                                                                 by, their mounts; unasked, once
                      G [pid]                                    go on
                  G (+ one descriptor), or E ...             the answer to S

After ``R`` the parent may go away (another process will call start).  From then
on the child reports through the exec fifo: ``0`` when it was let go, then
nothing until execve closes the fifo, or one ``E`` packet.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

from carrel.kernel import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812

    from carrel.kernel.plan import Operation

#: an error packet; the text of one is cut to this
_LIMIT = 8192
#: any packet: rows of the record are the longest
_PACKET = 1 << 18
#: what a parent says: the mounts of a root of 128 layers are the longest
_ANSWER = 1 << 16
#: the hierarchies of cgroup v1 are the most that is sent at once
_FDS_MAX = 64


class Report:
    """The child's end."""

    __slots__ = ("_kept", "answer", "fd", "socket")

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.fd = socket.fileno()
        self.answer = b""
        self._kept: dict[bytes, tuple[bytes, list[int]]] = {}

    def send(self, kind: bytes) -> None:
        self.socket.send(kind)

    def ask(self, kind: bytes) -> None:
        """Send and wait for ``G``; a parent that went away is the end."""
        self.socket.send(kind)
        self.wait()

    def wait(self) -> None:
        answer, _ = self._next()
        if answer[:1] != b"G":
            os._exit(1)
        self.answer = answer[1:]

    def _next(self) -> tuple[bytes, list[int]]:
        """The parent's answer; ``B`` and ``C`` may come before it, and are kept."""
        while True:
            packet, fds = receive(self.socket, _ANSWER)
            if packet[:1] not in (b"B", b"C"):
                return packet, fds
            self._kept[packet[:1]] = packet, fds

    def _unasked(self, kind: bytes) -> tuple[bytes, list[int]]:
        packet, fds = self._kept.pop(kind) if kind in self._kept else receive(
            self.socket, _ANSWER)
        if packet[:1] != kind:
            os._exit(1)  # without a parent there is nothing to go on for
        return packet[1:], fds

    def wait_for_request(self) -> tuple[bytes, list[int]]:
        """(the mounts of the root as JSON, stdio or nothing)"""
        return self._unasked(b"B")

    def wait_for_cgroups(self) -> tuple[int, list[int], list[int]]:
        """(fifo, files by which to join, mounts of them)"""
        packet, fds = self._unasked(b"C")
        end = 1 + int(packet)
        return fds[0], fds[1:end], fds[end:]

    def ask_tree(self, index: int) -> int:
        """The mount that is the source of ``mounts[index]``."""
        self.socket.send(b"S%d" % index)
        packet, fds = self._next()
        if packet[:1] == b"E":
            number, _, text, name = unpack_error(packet)
            raise OSError(number, text, name)
        if not fds:
            os._exit(1)
        return fds[0]

    def send_terminal(self, master: int) -> None:
        terminal.send_descriptors(self.socket, b"T", [master])


def pack_error(error: BaseException, step: str, operation: Operation | None = None) -> bytes:
    """One packet without formatting a traceback: that would open source files
    by path, and the paths are the container's by now."""
    number, text, name = 0, "", ""
    if isinstance(error, OSError):
        number = error.errno or 0
        text = error.strerror or ""
        if isinstance(error.filename, (str, bytes)):
            name = os.fsdecode(error.filename)
    else:
        text = f"{type(error).__name__}: {error.args[0] if error.args else ''}"
    if operation is not None and (not text or text == os.strerror(number)):
        text = f"{operation.describe()}: {text.lower()}"
    fields = (str(number), step, text, name)
    return b"E" + "\0".join(fields).encode("utf-8", "surrogateescape")[:_LIMIT - 1]


def unpack_error(packet: bytes) -> tuple[int, str, str, str]:
    """(errno, step, text, file name)"""
    fields = packet[1:].decode("utf-8", "surrogateescape").split("\0")
    fields += [""] * (4 - len(fields))
    return int(fields[0] or 0), fields[1], fields[2], fields[3]


def pair() -> tuple[Socket, Socket]:
    """(parent's, child's); both close-on-exec."""
    return socketpair(AF_UNIX, SOCK_SEQPACKET)


def receive(socket: Socket, size: int = _PACKET) -> tuple[bytes, list[int]]:
    """One packet; ``(b"", [])`` when the other side is gone."""
    try:
        return terminal.receive_descriptors(socket, size, _FDS_MAX)
    except ConnectionResetError:
        pass  # it left without reading all; what it said before is still there
    try:
        return terminal.receive_descriptors(socket, size, _FDS_MAX)
    except ConnectionResetError:
        return b"", []
