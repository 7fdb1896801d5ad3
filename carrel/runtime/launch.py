"""The parent's part of a start, as operations with their undo."""

from __future__ import annotations

import os
from _thread import _count
from errno import (
    EACCES,
    EBUSY,
    ECHILD,
    ECONNRESET,
    ENOSYS,
    EOPNOTSUPP,
    EPIPE,
    ESRCH,
)

from carrel.errdefs import AlreadyExists, SystemFailure
from carrel.kernel import record, syscalls, terminal
from carrel.kernel.plan import Operation
from carrel.runtime import child as child_module
from carrel.runtime import report, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from typing import Any

    from carrel.runtime.child import Child


class Launch:
    """What the operations of one launch share."""

    __slots__ = ("cgroup", "cgroup_made", "cgroup_mount", "child", "cradle", "fifo_path",
                 "folder", "id", "pid", "pid_namespace", "pidfd", "root", "socket")

    def __init__(self, id: str, root: str, cradle: Cradle | None = None) -> None:
        self.id = id
        self.root = root
        #: where the process is cloned, if not here
        self.cradle = cradle
        self.folder = state.directory(root, id)
        self.fifo_path = f"{self.folder}/{state.FIFO}"
        self.pid = 0
        self.pidfd = -1
        self.cgroup: Any = None
        self.cgroup_made = False
        #: the child's operation that mounts cgroups, where they are made late
        self.cgroup_mount: Any = None
        self.child: Child | None = None
        self.socket: Socket | None = None
        self.pid_namespace = -1  # one to be born into, or -1


class Cradle:
    """Another process, whose child the container's process is to be."""

    def bear(self, launch: Launch, flags: int, told: Socket) -> tuple[int, int]:
        """Clone there; what runs is ``launch.child``, which reports over ``told``.
        (pid, pidfd)"""
        raise NotImplementedError


class MakeStateFolder(Operation):
    __slots__ = ("launch",)
    step = "state"

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def describe(self) -> str:
        return f"make state folder {self.launch.folder}"

    def execute(self, kernel: Any) -> None:
        try:
            kernel.mkdir(self.launch.folder, 0o700)
        except FileExistsError:
            raise AlreadyExists("container with given ID already exists") from None
        except FileNotFoundError:
            os.makedirs(self.launch.root, mode=0o711, exist_ok=True)
            kernel.mkdir(self.launch.folder, 0o700)

    def undo(self, kernel: Any) -> None:
        state.remove(self.launch.root, self.launch.id)


class KeepConfig(Operation):
    """The configuration that the container is made from; it goes with the folder."""

    __slots__ = ("config", "launch")
    step = "state"

    def __init__(self, launch: Launch, config: bytes) -> None:
        self.launch, self.config = launch, config

    def describe(self) -> str:
        return f"write {self.launch.folder}/{state.CONFIG}"

    def execute(self, kernel: Any) -> None:
        state.write(self.launch.folder, state.CONFIG, self.config)


class MakeCgroup(Operation):
    """All of the cgroup, or what clone needs of it: see :class:`FinishCgroup`."""

    __slots__ = ("launch", "resources")
    step = "cgroup"

    def __init__(self, launch: Launch, resources: dict[str, Any] | None) -> None:
        self.launch, self.resources = launch, resources

    def describe(self) -> str:
        return "make the cgroup and write its limits"

    def execute(self, kernel: Any) -> None:
        launch = self.launch
        assert launch.child is not None
        if launch.child.joins_late:
            launch.cgroup.begin()
            return
        launch.cgroup.create(self.resources)
        launch.cgroup_made = True
        # the child moves itself by descriptors that were opened here
        launch.child.keep_fds += [fd for g in launch.cgroup.groups
                                  for fd in (g.procs_fd, g.fd) if fd >= 0]

    def undo(self, kernel: Any) -> None:
        if self.launch.cgroup_made:
            self.launch.cgroup.delete()
        else:
            self.launch.cgroup.undo_begin()

    def shell(self) -> str:
        lines = []
        for path in sorted(set(self.launch.cgroup.paths.values())):
            lines.append(f"mkdir -p {path}")
        return "\n".join(lines)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


class FinishCgroup(Operation):
    """The hierarchies of cgroup v1, made while the child is at work: there are ten, and
    it needs none before it mounts them. It is sent their files, and waits for them.
    :class:`MakeCgroup` takes them back, when the child is dead."""

    __slots__ = ("launch", "resources")
    step = "cgroup"

    def __init__(self, launch: Launch, resources: dict[str, Any] | None) -> None:
        self.launch, self.resources = launch, resources

    def describe(self) -> str:
        return "make the cgroups of version 1 and write their limits"

    def execute(self, kernel: Any) -> None:
        launch = self.launch
        assert launch.socket is not None and launch.child is not None
        launch.cgroup.create(self.resources)
        launch.cgroup_made = True
        files = launch.cgroup.late_fds
        trees: list[int] = []
        try:
            if launch.cgroup_mount is not None:
                launch.cgroup_mount.bind_all(kernel, trees)
            tell(launch.socket, b"C%d" % len(files), [launch.child.fifo_fd, *files, *trees])
            _close_all(trees)
        except BaseException:
            _close_all(trees)
            raise


class MakeFifo(Operation):
    """The fifo that holds the process back until ``start``."""

    __slots__ = ("launch",)
    step = "state"

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def describe(self) -> str:
        return f"make {self.launch.fifo_path}"

    def execute(self, kernel: Any) -> None:
        # Open to a user namespace's root, which is somebody else to the file
        # system, but in a folder that only we can enter.
        kernel.mkfifo(self.launch.fifo_path, 0o600)
        os.chmod(self.launch.fifo_path, 0o622)
        assert self.launch.child is not None
        self.launch.child.fifo_fd = os.open(self.launch.fifo_path,
                                            os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)

    def undo(self, kernel: Any) -> None:
        close_fifo(self.launch)
        _unlink(self.launch.fifo_path)

    def shell(self) -> str:
        return f"mkfifo {self.launch.fifo_path}"


class SendRequest(Operation):
    """To a child that was made ahead: see ``childplan.AwaitRequest``."""

    __slots__ = ("_launch", "_mounts", "_stdio")
    step = "clone"

    def __init__(self, launch: Launch, mounts: bytes, stdio: tuple[int, int, int] | None) -> None:
        self._launch, self._mounts, self._stdio = launch, mounts, stdio

    def describe(self) -> str:
        return "tell the process its root and its streams"

    def execute(self, kernel: Any) -> None:
        assert self._launch.socket is not None
        tell(self._launch.socket, b"B" + self._mounts, list(self._stdio or ()))


def tell(socket: Socket, packet: bytes, fds: list[int]) -> None:
    """Something that the child has not asked for. If it has failed: what it said of that
    is there to be read."""
    try:
        terminal.send_descriptors(socket, packet, fds)
    except OSError as error:
        if error.errno not in (EPIPE, ECONNRESET):
            raise


class StartProcess(Operation):
    """clone(2) with the namespaces that are made at once."""

    __slots__ = ("flags", "launch")
    step = "clone"

    def __init__(self, launch: Launch, flags: int) -> None:
        self.launch, self.flags = launch, flags

    def describe(self) -> str:
        return f"clone a process with namespaces {self.flags:#x}"

    def execute(self, kernel: Any) -> None:
        launch = self.launch
        assert launch.child is not None
        ours, theirs = report.pair()
        try:
            launch.socket = ours
            try:
                if launch.cradle is not None:
                    launch.pid, launch.pidfd = launch.cradle.bear(launch, self.flags, theirs)
                else:
                    self._clone(kernel, theirs)
            finally:
                theirs.close()
        except BaseException:
            kill_and_reap(launch)
            raise

    def _clone(self, kernel: Any, theirs: Socket) -> None:
        launch = self.launch
        child = launch.child
        assert child is not None
        launch.pid, launch.pidfd, child.born_in_cgroup = clone_into(
            kernel, self.flags, child.clone_fd, launch.pid_namespace)
        if launch.pid == 0:
            child_module.run(child, report.Report(theirs))

    def undo(self, kernel: Any) -> None:
        kill_and_reap(self.launch)

    def shell(self) -> str:
        return "unshare --fork ..."


def clone_into(kernel: Any, flags: int, cgroup_fd: int, pid_namespace: int
               ) -> tuple[int, int, bool]:
    """Into a pid namespace, or -1, and if possible into a cgroup (v2), or -1.
    (pid, pidfd, was it born in the cgroup?)"""
    with born_into(kernel, pid_namespace) as there:
        pid, pidfd, inside = clone_here(kernel, flags, cgroup_fd)
        if pid == 0:
            there.stay()
    return pid, pidfd, inside


def clone_here(kernel: Any, flags: int, cgroup_fd: int) -> tuple[int, int, bool]:
    """:func:`clone_into` our own pid namespace."""
    if cgroup_fd >= 0:
        try:
            return (*clone_single_threaded(kernel, flags, cgroup_fd), True)
        except OSError as error:
            # no clone3 (a container runtime's filter), or a group that takes
            # no process this way: the child joins by itself
            if error.errno not in (ENOSYS, EOPNOTSUPP, EBUSY, EACCES):
                raise
    return (*clone_single_threaded(kernel, flags), False)


def clone_single_threaded(kernel: Any, flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone, after making sure that its safety argument holds (see syscalls.clone)."""
    if _count():  # threads that Python started, beside the main one
        raise SystemFailure("cannot start a container's process from a program with threads")
    pid, pidfd = kernel.clone(flags, cgroup_fd)
    return int(pid), int(pidfd)


class born_into:  # noqa: N801  (reads as a statement)
    """The next child is born into the pid namespace ``fd`` (-1: our own). This
    process itself stays where it is; setns(CLONE_NEWPID) acts on children only."""

    __slots__ = ("fd", "kernel", "own")

    def __init__(self, kernel: Any, fd: int) -> None:
        self.kernel, self.fd, self.own = kernel, fd, -1

    def __enter__(self) -> born_into:
        if self.fd >= 0:
            self.own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            self.kernel.setns(self.fd, syscalls.CLONE_NEWPID)
        return self

    def stay(self) -> None:
        """In the child, which cannot come back."""
        self.own = -1

    def __exit__(self, *_: object) -> None:
        if self.own >= 0:
            self.kernel.setns(self.own, syscalls.CLONE_NEWPID)
            os.close(self.own)


def kill_and_reap(launch: Launch) -> None:
    """Take back a clone; "already gone" is success."""
    if launch.socket is not None:
        launch.socket.close()
        launch.socket = None
    if launch.pid <= 0:
        return
    try:
        syscalls.pidfd_send_signal(launch.pidfd, 9)
    except OSError as error:
        if error.errno != ESRCH:
            raise
    try:
        os.waitpid(launch.pid, 0)
    except OSError as error:
        if error.errno != ECHILD:
            raise
    os.close(launch.pidfd)
    launch.pid, launch.pidfd = 0, -1


def close_fifo(launch: Launch) -> None:
    """Our descriptor of it; the child has its own since the clone."""
    if launch.child is not None and launch.child.fifo_fd >= 0:
        os.close(launch.child.fifo_fd)
        launch.child.fifo_fd = -1


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    record.note("unlink", (path,))
