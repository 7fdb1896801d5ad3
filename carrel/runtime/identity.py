"""Operations on the process itself: limits, ids, rights (run in the child)."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ENOENT, ENOTDIR, EPERM, EROFS
from stat import S_ISREG

from carrel.kernel import capability, paths, syscalls, terminal
from carrel.kernel.plan import Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.view import View


class SetRlimits(Operation):
    __slots__ = ("limits",)
    step = "rlimits"

    def __init__(self, limits: list[tuple[str, int, int, int]]) -> None:
        self.limits = limits  # (name, number, soft, hard)

    def describe(self) -> str:
        return "set " + ", ".join(f"{n}={s}:{h}" for n, _, s, h in self.limits)

    def execute(self, kernel: Any) -> None:
        for name, number, soft, hard in self.limits:
            try:
                kernel.setrlimit(number, _signed(soft), _signed(hard))
            except OSError as error:
                error.strerror = f"error setting rlimits: {name} {soft}:{hard}: " \
                                 f"{(error.strerror or '').lower()}"
                raise

    def shell(self) -> str:
        return "\n".join(f"prlimit --pid $$ --{n[7:].lower()}={s}:{h}"
                         for n, _, s, h in self.limits)


def _signed(value: int) -> int:
    return -1 if value >= 1 << 63 else value


class JoinKeyring(Operation):
    __slots__ = ("name",)
    step = "keyring"

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> str:
        return "make a session keyring"

    def execute(self, kernel: Any) -> None:
        try:
            kernel.join_session_keyring(self.name)
        except OSError as error:
            if error.errno not in (38, 122):  # ENOSYS; EDQUOT: per-uid quota, see E30
                raise


class SetSchedule(Operation):
    """Scheduler, I/O priority, memory policy, personality: whatever was asked for."""

    __slots__ = ("calls",)
    step = "scheduling"

    def __init__(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.calls = calls

    def describe(self) -> str:
        return ", ".join(name for name, _ in self.calls)

    def execute(self, kernel: Any) -> None:
        for name, args in self.calls:
            getattr(kernel, name)(*args)


class MakeWorkingDirectory(Operation):
    """``process.cwd`` where the image lacks it."""

    __slots__ = ("path", "view")
    step = "working directory"

    def __init__(self, view: View, path: str) -> None:
        self.view, self.path = view, path

    def describe(self) -> str:
        return f"make sure that {self.path} exists"

    def execute(self, kernel: Any) -> None:
        try:
            kernel.close(paths.make_directory(kernel, self.view.root_fd, self.path))
        except OSError as error:
            # What is wrong with it the change of directory will tell.
            if error.errno not in (EACCES, EPERM, EROFS, ENOTDIR, ENOENT):
                raise

    def shell(self) -> str:
        return f"mkdir -p ./{self.path.lstrip('/')}"


class FindHome(Operation):
    """HOME from the container's own passwd file, where the caller sets none."""

    __slots__ = ("env", "uid", "view")
    step = "identity"

    def __init__(self, view: View, env: list[bytes], uid: int) -> None:
        self.view, self.env, self.uid = view, env, uid

    def describe(self) -> str:
        return f"find the home directory of user {self.uid}"

    def execute(self, kernel: Any) -> None:
        self.env[:] = [e for e in self.env if e != b"HOME="]
        self.env.append(b"HOME=" + (home_of(kernel, self.view.root_fd, self.uid) or b"/"))


#: more than any passwd file; a hostile image may hold 10 GB or a fifo there
_PASSWD_LIMIT = 10 << 20


def home_of(kernel: Any, root_fd: int, uid: int) -> bytes:
    """The sixth field of the first line with this uid; b"" if there is none."""
    try:
        fd = paths.open_in_root(kernel, root_fd, "/etc/passwd",
                                os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        if not S_ISREG(kernel.fstat(fd).st_mode):
            return b""
        wanted, text = b"%d" % uid, b""
        while len(text) < _PASSWD_LIMIT:
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            text += chunk
    except OSError:
        return b""
    finally:
        kernel.close(fd)
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == wanted:
            return fields[5]
    return b""


class DropBounding(Operation):
    __slots__ = ("keep",)
    step = "capabilities"

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def describe(self) -> str:
        return f"drop the bounding set to {self.keep:#x}"

    def execute(self, kernel: Any) -> None:
        capability.drop_bounding(kernel, self.keep)

    def shell(self) -> str:
        return f"# capsh --drop to {self.keep:#x}"


class NoNewPrivileges(Operation):
    __slots__ = ()
    step = "capabilities"

    def describe(self) -> str:
        return "set no_new_privs"

    def execute(self, kernel: Any) -> None:
        kernel.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

    def shell(self) -> str:
        return "setpriv --no-new-privs"


class ChangeDirectory(Operation):
    """To ``process.cwd``; refused when that leads out of the container's root."""

    __slots__ = ("path", "tolerant", "view")
    step = "working directory"

    def __init__(self, view: View, path: str, *, tolerant: bool) -> None:
        self.view = view
        self.path = path
        self.tolerant = tolerant

    def describe(self) -> str:
        return f"change to {self.path}"

    def execute(self, kernel: Any) -> None:
        if self.view.in_directory:
            return
        try:
            kernel.chdir(self.path)
        except OSError as error:
            if self.tolerant and error.errno in (EACCES, EPERM):
                return  # the user may have the access that root lacks: tried again later
            error.strerror = f'chdir to cwd ("{self.path}") set in config.json failed: ' \
                             f"{(error.strerror or '').lower()}"
            error.filename = None
            raise
        check_working_directory(kernel)
        self.view.in_directory = True

    def shell(self) -> str:
        return f"cd {self.path}"


def check_working_directory(kernel: Any) -> None:
    """The raw answer of getcwd(2): a directory outside the root is "(unreachable)"
    (a descriptor of the host that leaked, CVE-2024-21626)."""
    try:
        here = kernel.getcwd()
    except OSError as error:
        if error.errno != ENOENT:
            raise
        here = ""
    if not here.startswith("/"):
        raise OSError(ENOENT, "current working directory is outside of container mount "
                              "namespace root -- possible container breakout detected")


class SetIdentity(Operation):
    """Groups, group, user: by number, capabilities kept for the last step."""

    __slots__ = ("gid", "groups", "uid", "umask")
    step = "identity"

    def __init__(self, uid: int, gid: int, groups: list[int] | None, umask: int | None) -> None:
        self.uid, self.gid, self.groups, self.umask = uid, gid, groups, umask

    def describe(self) -> str:
        return f"become user {self.uid}, group {self.gid}, groups {self.groups or []}"

    def execute(self, kernel: Any) -> None:
        if self.umask is not None:
            kernel.umask(self.umask)
        if self.groups is not None:
            kernel.setgroups(self.groups)
        kernel.setresgid(self.gid)
        if self.uid:
            kernel.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        kernel.setresuid(self.uid)
        if self.uid:
            kernel.prctl(syscalls.PR_SET_KEEPCAPS, 0)
        if self.uid or self.gid:  # with fs.suid_dumpable=1 a change of ids makes us dumpable
            kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)

    def shell(self) -> str:
        groups = ",".join(map(str, self.groups)) if self.groups else ""
        extra = f"--groups {groups}" if groups else "--clear-groups"
        return f"setpriv --reuid {self.uid} --regid {self.gid} {extra} CMD"


class SetCapabilities(Operation):
    __slots__ = ("ambient", "effective", "inheritable", "permitted")
    step = "capabilities"

    def __init__(self, effective: int, permitted: int, inheritable: int, ambient: int) -> None:
        self.effective, self.permitted = effective, permitted
        self.inheritable, self.ambient = inheritable, ambient

    def describe(self) -> str:
        return f"keep capabilities {self.permitted:#x}"

    def execute(self, kernel: Any) -> None:
        kernel.capset(self.effective, self.permitted, self.inheritable)
        capability.set_ambient(kernel, self.ambient)

    def with_admin(self) -> SetCapabilities:
        """The same plus what installing a filter takes where no_new_privs is off."""
        bit = 1 << capability.NUMBERS["CAP_SYS_ADMIN"]
        return SetCapabilities(self.effective | bit, self.permitted | bit, self.inheritable, 0)

    def shell(self) -> str:
        return f"# capset effective={self.effective:#x} permitted={self.permitted:#x}"


class NewSession(Operation):
    """A session of its own: the caller's terminal is not the container's
    (TIOCSTI). With a terminal of the container, that one controls it."""

    __slots__ = ("view",)
    step = "terminal"

    def __init__(self, view: View) -> None:
        self.view = view

    def describe(self) -> str:
        return "start a new session"

    def execute(self, kernel: Any) -> None:
        kernel.setsid()
        slave = self.view.terminal_fd
        if slave < 0:
            return
        terminal.make_controlling(slave)
        for fd in (0, 1, 2):
            kernel.dup2(slave, fd)
        if slave > 2:
            kernel.close(slave)

    def shell(self) -> str:
        return "setsid"


class OwnStdio(Operation):
    """Give the process's user its own stdio, as it may want to open /dev/stdout."""

    __slots__ = ("uid", "view")
    step = "stdio"

    def __init__(self, view: View, uid: int) -> None:
        self.view, self.uid = view, uid

    def describe(self) -> str:
        return f"give stdio to user {self.uid}"

    def execute(self, kernel: Any) -> None:
        null = os.makedev(1, 3)
        for fd in (0, 1, 2):
            try:
                found = kernel.fstat(fd)
            except OSError:
                continue
            if found.st_uid == self.uid or found.st_rdev == null:
                continue
            try:
                kernel.fchown(fd, self.uid, -1)
            except OSError as error:
                # a file whose owner is not mapped here, or of a read-only file system
                if error.errno not in (EINVAL, EPERM, EROFS):
                    raise
