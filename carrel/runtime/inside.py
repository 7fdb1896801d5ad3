"""Operations on devices, names and settings inside the container (run in the child)."""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT, EPERM
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_ISCHR

from carrel.kernel import paths, syscalls, terminal
from carrel.kernel.plan import Operation
from carrel.runtime.mounts import MountOperation, new_filesystem
from carrel.runtime.view import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.view import View

DEVICE_TYPES = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}

#: (path, type, major, minor) of what every container has
DEFAULT_DEVICES = (
    ("/dev/null", "c", 1, 3), ("/dev/zero", "c", 1, 5), ("/dev/full", "c", 1, 7),
    ("/dev/random", "c", 1, 8), ("/dev/urandom", "c", 1, 9), ("/dev/tty", "c", 5, 0),
)


def default_devices() -> list[tuple[str, str, int, int, int, int, int]]:
    return [(path, kind, major, minor, 0o666, 0, 0)
            for path, kind, major, minor in DEFAULT_DEVICES]


_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
          ("stderr", "/proc/self/fd/2"))


class OpenProcfs(Operation):
    """Mount a procfs of this pid namespace nowhere, for our own writes."""

    __slots__ = ("view",)
    step = "namespaces"

    def __init__(self, view: View) -> None:
        self.view = view

    def describe(self) -> str:
        return "open a private procfs"

    def execute(self, kernel: Any) -> None:
        try:
            fd = new_filesystem(kernel, "proc", "", (), (), 0xE)  # nosuid, nodev, noexec
        except OSError as error:
            if error.errno != EPERM:
                raise
            # In a user namespace without a pid namespace of its own the kernel
            # refuses a new procfs; the host's is still the one at /proc here.
            fd = kernel.open_tree(syscalls.AT_FDCWD, "/proc", syscalls.OPEN_TREE_CLONE)
        if kernel.fstatfs_type(fd) != syscalls.PROC_SUPER_MAGIC:
            raise OSError(EPERM, "/proc is not a procfs")
        self.view.proc_fd = fd


class OpenNull(Operation):
    """The host's /dev/null as seen in our mount namespace, to mask files with:
    a mount can be cloned only from the namespace it is in."""

    __slots__ = ("view",)
    step = "namespaces"

    def __init__(self, view: View) -> None:
        self.view = view

    def describe(self) -> str:
        return "open /dev/null of the host"

    def execute(self, kernel: Any) -> None:
        self.view.null_fd = open_null(kernel)


class MakeTimeNamespace(Operation):
    """A time namespace has to get its offsets before anybody is in it."""

    __slots__ = ("by_parent", "offsets", "view")
    step = "namespaces"

    def __init__(self, view: View, offsets: str, *, by_parent: bool) -> None:
        self.view, self.offsets = view, offsets
        #: in a user namespace the file is not ours, because we are not dumpable
        self.by_parent = by_parent

    def describe(self) -> str:
        return "make the time namespace"

    def execute(self, kernel: Any) -> None:
        kernel.unshare(syscalls.CLONE_NEWTIME)
        me = os.getpid()
        if self.offsets and self.by_parent:
            self.view.report.ask(b"O" + self.offsets.encode())
        elif self.offsets:
            write_file(kernel, self.view.proc_fd, f"{me}/timens_offsets", self.offsets.encode())
        fd = kernel.openat(self.view.proc_fd, f"{me}/ns/time_for_children", os.O_RDONLY)
        kernel.setns(fd, syscalls.CLONE_NEWTIME)
        kernel.close(fd)

    def shell(self) -> str:
        return "unshare --time ..."


class WriteProc(Operation):
    """Write a file of procfs: a sysctl, an attribute of this process."""

    __slots__ = ("_step", "data", "path", "view")

    def __init__(self, view: View, path: str, data: str, step: str) -> None:
        self.view, self.path, self.data, self._step = view, path, data, step

    @property
    def step(self) -> str:  # type: ignore[override]
        return self._step

    def describe(self) -> str:
        return f"write {self.data!r} to /proc/{self.path}"

    def execute(self, kernel: Any) -> None:
        path = self.path
        if path.startswith("self/"):  # "self" is a symlink: resolved by number, links refused
            path = f"{os.getpid()}/{path[5:]}"
        try:
            write_file(kernel, self.view.proc_fd, path, self.data.encode())
        except OSError as error:
            error.filename = "/proc/" + self.path
            raise

    def shell(self) -> str:
        return f"echo '{self.data}' > /proc/{self.path}"


class ApplyProfile(WriteProc):
    """From its execve on, the process is confined by an AppArmor profile."""

    __slots__ = ()

    def __init__(self, view: View, profile: str) -> None:
        super().__init__(view, "self/attr/apparmor/exec", f"exec {profile}", "apparmor")

    def execute(self, kernel: Any) -> None:
        try:
            super().execute(kernel)
        except OSError as error:
            # runc's words; ENOENT is the kernel's way to say that no such profile is loaded
            number = error.errno or 0
            raise OSError(number, "unable to apply apparmor profile: apparmor failed to apply "
                          "profile: write /proc/thread-self/attr/apparmor/exec: "
                          + os.strerror(number).lower()) from None


class SetHostname(Operation):
    __slots__ = ("name",)
    step = "hostname"

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> str:
        return f"set hostname {self.name}"

    def execute(self, kernel: Any) -> None:
        kernel.sethostname(self.name)

    def shell(self) -> str:
        return f"hostname {self.name}"


class SetDomainname(SetHostname):
    __slots__ = ()

    def describe(self) -> str:
        return f"set domainname {self.name}"

    def execute(self, kernel: Any) -> None:
        kernel.setdomainname(self.name)

    def shell(self) -> str:
        return f"domainname {self.name}"


class MakeDevices(MountOperation):
    """Device nodes in /dev and wherever linux.devices wants them."""

    __slots__ = ("bind", "devices")
    step = "devices"

    def __init__(self, view: View, devices: list[tuple[str, str, int, int, int, int, int]], *,
                 bind: bool) -> None:
        super().__init__(view, "/dev")
        #: (path, type, major, minor, mode, uid, gid)
        self.devices = devices
        self.bind = bind

    def describe(self) -> str:
        return "make devices " + ", ".join(d[0] for d in self.devices)

    def execute(self, kernel: Any) -> None:
        previous = os.umask(0)
        try:
            for device in self.devices:
                self._make(kernel, device)
        finally:
            os.umask(previous)

    def _make(self, kernel: Any, device: tuple[str, str, int, int, int, int, int]) -> None:
        path, kind, major, minor, mode, uid, gid = device
        if self.bind:
            self._bind(kernel, path)
            return
        directory, _, name = path.rpartition("/")
        parent = self.view.dev_fd
        own = directory != "/dev" or parent < 0
        if own:
            parent, name = paths.make_parent(kernel, self.view.root_fd, path)
        try:
            number = os.makedev(major, minor) if kind != "p" else 0
            try:
                kernel.mknodat(parent, name, DEVICE_TYPES[kind] | mode, number)
            except OSError as error:
                if error.errno == EEXIST:
                    self._same_or_fail(kernel, parent, name, kind, number, path)
                elif error.errno == EPERM:
                    self._bind(kernel, path)
                    return
                else:
                    raise
            if uid or gid:
                kernel.lchownat(parent, name, uid, gid)
        finally:
            if own:
                kernel.close(parent)

    @staticmethod
    def _same_or_fail(kernel: Any, parent: int, name: str, kind: str, number: int,
                      path: str) -> None:
        found = kernel.lstatat(parent, name)
        if (found.st_mode & 0o170000) != DEVICE_TYPES[kind] or (
                kind != "p" and found.st_rdev != number):
            raise OSError(EEXIST, "container image has a different file where a device belongs",
                          path)

    def _bind(self, kernel: Any, path: str) -> None:
        """Where mknod is not ours (user namespace): the host's own node."""
        tree = kernel.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        target = paths.make_file(kernel, self.view.root_fd, path, 0o666)
        kernel.move_mount(tree, target, path)
        kernel.close(target)
        kernel.close(tree)

    def shell(self) -> str:
        lines = []
        for path, kind, major, minor, mode, _, _ in self.devices:
            numbers = "" if kind == "p" else f" {major} {minor}"
            lines.append(f"mknod -m {mode:o} .{path} {kind}{numbers}")
        return "\n".join(lines)


class MakeDevLinks(MountOperation):
    """/dev/fd and friends, /dev/ptmx."""

    __slots__ = ()
    step = "devices"

    def __init__(self, view: View) -> None:
        super().__init__(view, "/dev")

    def describe(self) -> str:
        return "link /dev/fd, stdin, stdout, stderr, ptmx"

    def execute(self, kernel: Any) -> None:
        dev = self.view.dev_fd
        own = dev < 0
        if own:
            dev = paths.make_directory(kernel, self.view.root_fd, "/dev")
        try:
            for name, target in _LINKS:
                _link(kernel, target, dev, name)
            if kcore_exists():
                _link(kernel, "/proc/kcore", dev, "core")
            # A ptmx of the image would be that of another devpts instance.
            try:
                kernel.unlinkat(dev, "ptmx")
            except FileNotFoundError:
                pass
            kernel.symlinkat("pts/ptmx", dev, "ptmx")
        finally:
            if own:
                kernel.close(dev)

    def shell(self) -> str:
        return "\n".join(f"ln -s {t} dev/{n}" for n, t in (*_LINKS, ("ptmx", "pts/ptmx")))


_kcore: bool | None = None


def kcore_exists() -> bool:
    """Asked once per process, on the host (runtime.warm asks ahead)."""
    global _kcore
    if _kcore is None:
        _kcore = os.path.exists("/proc/kcore")
    return _kcore


def _link(kernel: Any, target: str, dirfd: int, name: str) -> None:
    try:
        kernel.symlinkat(target, dirfd, name)
    except OSError as error:
        if error.errno != EEXIST:
            raise


class OpenConsole(MountOperation):
    """A terminal from the container's own devpts, sent out, and bound on /dev/console."""

    __slots__ = ()
    step = "terminal"

    def __init__(self, view: View) -> None:
        super().__init__(view, "/dev/console")

    def describe(self) -> str:
        return "open a terminal and bind it on /dev/console"

    def execute(self, kernel: Any) -> None:
        slave = open_terminal(kernel, self.view)
        tree = kernel.open_tree(slave, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        target = self._console_file(kernel)
        kernel.move_mount(tree, target, self.destination)
        kernel.close(tree)
        kernel.close(target)

    def _console_file(self, kernel: Any) -> int:
        """/dev/console as a plain file of ours: never through a link of the image."""
        dev = self.view.dev_fd
        own = dev < 0
        if own:
            dev = paths.make_directory(kernel, self.view.root_fd, "/dev")
        try:
            try:
                kernel.close(kernel.openat(dev, "console", os.O_CREAT | os.O_EXCL | os.O_WRONLY
                                           | os.O_NOFOLLOW, 0o666))
            except FileExistsError:
                pass
            return int(kernel.openat(dev, "console", os.O_PATH | os.O_NOFOLLOW))
        finally:
            if own:
                kernel.close(dev)

    def shell(self) -> str:
        return "touch dev/console"


def open_terminal(kernel: Any, view: View) -> int:
    """A terminal of the container's devpts: its master goes to the parent."""
    devpts = paths.open_in_root(kernel, view.root_fd, "/dev/pts", os.O_RDONLY | os.O_DIRECTORY)
    master, slave = terminal.open_pair(kernel, devpts)
    kernel.close(devpts)
    if view.console_size is not None:
        terminal.set_size(master, *view.console_size)
    view.report.send_terminal(master)
    kernel.close(master)
    view.terminal_fd = slave
    return slave


class OpenTerminal(MountOperation):
    """The terminal of a further process: no /dev/console for it."""

    __slots__ = ()
    step = "terminal"

    def __init__(self, view: View) -> None:
        super().__init__(view, "/dev/pts")

    def describe(self) -> str:
        return "open a terminal"

    def execute(self, kernel: Any) -> None:
        open_terminal(kernel, self.view)


def open_null(kernel: Any) -> int:
    """The host's /dev/null, verified to be it: what masks a file must not be a
    symlink or a plain file that somebody put there."""
    fd = kernel.openat(syscalls.AT_FDCWD, "/dev/null", os.O_RDWR | os.O_NOFOLLOW)
    found = kernel.fstat(fd)
    if not S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        kernel.close(fd)
        raise OSError(ENOENT, "/dev/null is not the null device (char 1:3)", "/dev/null")
    return int(fd)
