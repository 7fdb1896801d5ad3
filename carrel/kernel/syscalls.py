"""System calls under the names of their man pages, and nothing more.

This module *is* the real kernel that operations run against (see ``plan.py``);
``fake.FakeKernel`` offers the same names.  Policy, path walking and anything
that makes two calls lives above, in the modules beside this one.

File descriptors are plain integers here; all that are made by these wrappers
are close-on-exec.
"""

from __future__ import annotations

import os
from _struct import pack
from errno import ENOENT, ENOTDIR
from fcntl import ioctl as _ioctl
from time import monotonic_ns

from carrel.kernel import record
from carrel.kernel.cdata import (
    Structure,
    addressof,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_long,
    c_uint,
    c_uint32,
    c_uint64,
    c_ulong,
    c_void_p,
    get_errno,
)
from carrel.kernel.libc import encode, fail, function, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
CLONE_INTO_CGROUP = 0x200000000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
CLONE_PARENT = 0x00008000
CLONE_PIDFD = 0x00001000
CLOSE_RANGE_CLOEXEC = 4
FSCONFIG_CMD_CREATE = 6
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
MNT_DETACH = 2
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MS_MOVE = 0x2000
MS_PRIVATE = 1 << 18
MS_REC = 0x4000
MS_SHARED = 1 << 20
MS_SLAVE = 1 << 19
MS_UNBINDABLE = 1 << 17
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
OPEN_TREE_CLONE = 1
O_PATH = os.O_PATH
PR_CAPBSET_DROP = 24
PR_CAPBSET_READ = 23
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_CAP_AMBIENT_RAISE = 2
PR_SET_CHILD_SUBREAPER = 36
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_SET_PDEATHSIG = 1
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_NO_XDEV = 0x01
SIGCHLD = 17
SIGNALFD_SIGINFO = 128  # bytes that are read for each signal; the first four are its number

#: what openat2 answers where a path leads nowhere
_MISSING = (ENOENT, ENOTDIR)

PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572

#: name -> (x86-64, the generic table of arm64 and riscv)
_NUMBERS = {
    "clone": (56, 220), "clone3": (435, 435), "ioprio_set": (251, 30),
    "keyctl": (250, 219), "pidfd_getfd": (438, 438),
    "openat2": (437, 437), "sched_setattr": (314, 274), "set_mempolicy": (238, 237),
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149),
    "capset": (126, 91), "pivot_root": (155, 41), "execveat": (322, 281), "getcwd": (79, 17),
    "pidfd_send_signal": (424, 424), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "close_range": (436, 436), "mount_setattr": (442, 442), "rt_sigaction": (13, 134),
}
_COLUMN = 0 if os.uname().machine == "x86_64" else 1


def _raw(name: str, *types: Any) -> Any:
    return syscall(name, _NUMBERS[name][_COLUMN], *types)


class OpenHow(Structure):
    _fields_ = [("flags", c_uint64), ("mode", c_uint64),
                ("resolve", c_uint64)]


class MountAttr(Structure):
    _fields_ = [("attr_set", c_uint64), ("attr_clr", c_uint64),
                ("propagation", c_uint64), ("userns_fd", c_uint64)]


#: struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
#: set_tid, set_tid_size, cgroup. (Packed: the names of a structure's fields are memory that a
#: shim, which clones once, would have to itself.)
_CLONE_ARGS = "11Q"


class SchedAttr(Structure):
    _fields_ = [("size", c_uint32), ("sched_policy", c_uint32),
                ("sched_flags", c_uint64), ("sched_nice", c_int32),
                ("sched_priority", c_uint32), ("sched_runtime", c_uint64),
                ("sched_deadline", c_uint64), ("sched_period", c_uint64)]


# Raw numbers where glibc would add something of its own (signals to other
# threads in setgroups, setresuid) or lacks the symbol on Debian 12.
_capset = _raw("capset", c_void_p, c_void_p)
_clone = _raw("clone", c_ulong, c_ulong, c_void_p, c_void_p, c_ulong)
_clone3 = _raw("clone3", c_char_p, c_ulong)
_close_range = _raw("close_range", c_uint, c_uint, c_uint)
_execveat = _raw("execveat", c_int, c_char_p, c_void_p, c_void_p, c_int)
_fsconfig = _raw("fsconfig", c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = _raw("fsmount", c_int, c_uint, c_uint)
_fsopen = _raw("fsopen", c_char_p, c_uint)
_getcwd = _raw("getcwd", c_char_p, c_ulong)
_ioprio_set = _raw("ioprio_set", c_int, c_int, c_int)
_keyctl = _raw("keyctl", c_int, c_char_p, c_long)
_mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_void_p)
_mount_setattr = _raw("mount_setattr", c_int, c_char_p, c_uint, c_void_p, c_ulong)
_move_mount = _raw("move_mount", c_int, c_char_p, c_int, c_char_p, c_uint)
_open_tree = _raw("open_tree", c_int, c_char_p, c_uint)
_openat2 = _raw("openat2", c_int, c_char_p, c_void_p, c_ulong)
_personality = function("personality", c_ulong)
_pidfd_getfd = _raw("pidfd_getfd", c_int, c_int, c_uint)
_pidfd_send_signal = _raw("pidfd_send_signal", c_int, c_int, c_void_p, c_uint)
_pivot_root = _raw("pivot_root", c_char_p, c_char_p)
_prctl = function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_sched_setattr = _raw("sched_setattr", c_int, c_void_p, c_uint)
_set_mempolicy = _raw("set_mempolicy", c_int, c_void_p, c_ulong)
_setdomainname = function("setdomainname", c_char_p, c_ulong)
_rt_sigaction = _raw("rt_sigaction", c_int, c_char_p, c_void_p, c_ulong)
_setgroups = _raw("setgroups", c_int, c_void_p)
_sethostname = function("sethostname", c_char_p, c_ulong)
_setns = function("setns", c_int, c_int)
_setresgid = _raw("setresgid", c_uint, c_uint, c_uint)
_setresuid = _raw("setresuid", c_uint, c_uint, c_uint)
_umount2 = function("umount2", c_char_p, c_int)
_unshare = function("unshare", c_int)
_signalfd = function("signalfd", c_int, c_char_p, c_int)
_statfs = function("fstatfs", c_int, c_void_p)

# Made once: to make an array type takes longer than most calls, and these are needed in
# children whose every written page is copied first. (No two threads use them at once.)
_statfs_buffer = (c_long * 32)()
_cwd_buffer = (c_char * 4096)()
_CAP_HEADER = c_uint32 * 2
_CAP_DATA = c_uint32 * 6
_ONE_GROUP = c_uint32 * 1


# ---- mounts ---------------------------------------------------------------

def open_tree(dirfd: int, path: str, flags: int) -> int:
    return int(_open_tree(dirfd, encode(path), flags | OPEN_TREE_CLOEXEC, paths=(path,)))


def move_mount(from_fd: int, to_fd: int, what: str = "") -> None:
    """Attach the (detached) mount ``from_fd`` on the very directory or file ``to_fd``."""
    _move_mount(from_fd, b"", to_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
                paths=(what,) if what else ())


def mount_setattr(fd: int, flags: int, set_: int = 0, clear: int = 0, propagation: int = 0,
                  userns_fd: int = 0) -> None:
    attr = MountAttr(set_, clear, propagation, userns_fd)
    _mount_setattr(fd, b"", flags | AT_EMPTY_PATH, byref(attr), 32)


def fsopen(fstype: str) -> int:
    return int(_fsopen(encode(fstype), 1, paths=(fstype,)))


def fsconfig_string(fd: int, key: str, value: str) -> None:
    _fsconfig(fd, FSCONFIG_SET_STRING, encode(key), encode(value), 0)


def fsconfig_flag(fd: int, key: str) -> None:
    _fsconfig(fd, FSCONFIG_SET_FLAG, encode(key), None, 0)


def fsconfig_create(fd: int) -> None:
    _fsconfig(fd, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int = 0) -> int:
    return int(_fsmount(fd, 1, attributes))


def mount(source: str | None, target: str, fstype: str | None, flags: int,
          data: str | None = None) -> None:
    """The old call; only for the host's side and for propagation of "/"."""
    _mount(None if source is None else encode(source), encode(target),
           None if fstype is None else encode(fstype), flags,
           None if data is None else encode(data), paths=(target,))


def umount2(target: str, flags: int = 0) -> None:
    _umount2(encode(target), flags, paths=(target,))


def pivot_root(new_root: str, put_old: str) -> None:
    _pivot_root(encode(new_root), encode(put_old), paths=(new_root,))


def fstatfs_type(fd: int) -> int:
    """The ``f_type`` of the file system behind ``fd``."""
    _statfs(fd, _statfs_buffer)
    return _statfs_buffer[0]


# ---- paths ----------------------------------------------------------------

def openat2(dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return int(_openat2(dirfd, encode(path), byref(how), 24, paths=(path,)))


def find2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2 of what need not be there: -1 when it is not."""
    how = OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return int(_openat2.attempt(_MISSING, dirfd, encode(path), byref(how), 24, paths=(path,)))


def mkdirat(dirfd: int, name: str, mode: int) -> None:
    _recorded("mkdirat", (dirfd, name, mode), os.mkdir, name, mode, dir_fd=dirfd)


def mknodat(dirfd: int, name: str, mode: int, device: int) -> None:
    _recorded("mknodat", (dirfd, name, mode, device), os.mknod, name, mode, device, dir_fd=dirfd)


def symlinkat(target: str, dirfd: int, name: str) -> None:
    _recorded("symlinkat", (target, dirfd, name), os.symlink, target, name, dir_fd=dirfd)


def mkdir(path: str, mode: int) -> None:
    _recorded("mkdir", (path, mode), os.mkdir, path, mode)


def mkfifo(path: str, mode: int) -> None:
    _recorded("mkfifo", (path, mode), os.mkfifo, path, mode)


def openat(dirfd: int, name: str, flags: int, mode: int = 0o600) -> int:
    return int(_recorded("openat", (dirfd, name, flags), os.open, name, flags | os.O_CLOEXEC,
                         mode, dir_fd=None if dirfd == AT_FDCWD else dirfd))


def fchown(fd: int, uid: int, gid: int) -> None:
    _recorded("fchown", (fd, uid, gid), os.fchown, fd, uid, gid)


def fstat(fd: int) -> os.stat_result:
    return os.fstat(fd)


def lstatat(dirfd: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=dirfd, follow_symlinks=False)


def readlinkat(dirfd: int, name: str) -> str:
    return os.readlink(name, dir_fd=dirfd)


def unlinkat(dirfd: int, name: str) -> None:
    _recorded("unlinkat", (dirfd, name), os.unlink, name, dir_fd=dirfd)


def lchownat(dirfd: int, name: str, uid: int, gid: int) -> None:
    _recorded("fchownat", (dirfd, name, uid, gid), os.chown, name, uid, gid, dir_fd=dirfd,
              follow_symlinks=False)


def chdir(path: str) -> None:
    _recorded("chdir", (path,), os.chdir, path)


def dup2(fd: int, number: int) -> None:
    os.dup2(fd, number)


def ioctl(fd: int, request: int, argument: Any = 0) -> Any:
    return _recorded("ioctl", (fd, request), _ioctl, fd, request, argument)


def fchdir(fd: int) -> None:
    _recorded("fchdir", (fd,), os.fchdir, fd)


def chroot(path: str) -> None:
    _recorded("chroot", (path,), os.chroot, path)


def write(fd: int, data: bytes) -> int:
    return int(_recorded("write", (fd, data), os.write, fd, data))


def close(fd: int) -> None:
    os.close(fd)


def getcwd() -> str:
    """The kernel's own answer: ``(unreachable)/...`` when outside the root."""
    _getcwd(_cwd_buffer, 4096)
    return os.fsdecode(_cwd_buffer.value)


def _recorded(name: str, args: tuple[object, ...], call: Any, *values: Any, **named: Any) -> Any:
    """A call of Python's ``os``, recorded like the others."""
    recorder = record.active
    if recorder is None:
        return call(*values, **named)
    begin = monotonic_ns()
    try:
        result = call(*values, **named)
    except OSError as error:
        record.note(name, args, None, error.errno or 0, begin)
        raise
    record.note(name, args, result, 0, begin)
    return result


# ---- processes ------------------------------------------------------------

def clone(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """``clone(2)`` without shared memory: ``(pid, pidfd)``, ``(0, -1)`` in the child.

    ``os.fork`` would run at-fork handlers and reset locks of threads that do
    not exist here; this saves half of its time.  It is safe only in a
    single-threaded process (the callers check), and the child must end in
    ``execve`` or ``_exit``: no finalizer and no at-exit handler may run there.

    ``cgroup_fd``: a cgroup v2 directory to be born in, which costs 4 us where
    joining it afterwards may wait 5 ms for an RCU grace period.
    """
    pidfd = c_int(-1)
    if cgroup_fd >= 0:
        args = pack(_CLONE_ARGS, flags | CLONE_PIDFD | CLONE_INTO_CGROUP, addressof(pidfd), 0, 0,
                    0 if flags & CLONE_PARENT else SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd)
        pid = int(_clone3(args, len(args)))
    else:
        pid = int(_clone(flags | CLONE_PIDFD | SIGCHLD, 0, byref(pidfd), None, 0))
    return pid, pidfd.value if pid else -1


def clone_at_each(bell: int) -> bool:
    """:func:`clone` for each byte that can be read: True in a clone, False at the end.

    For a process that shares its memory with many clones: each page that it writes to between
    two of them is shared by nobody any more, so a turn is nothing but two calls."""
    read, call, number, flags = os.read, _clone.c, _NUMBERS["clone"][_COLUMN], SIGCHLD
    while read(bell, 1):
        pid = call(number, flags, 0, None, None, 0)
        if pid <= 0:
            if pid < 0:
                fail(get_errno(), "clone")
            return True
    return False


def setns(fd: int, kinds: int) -> None:
    _setns(fd, kinds)


def unshare(flags: int) -> None:
    _unshare(flags)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return int(_prctl(option, arg2, arg3, arg4, arg5))


def rt_sigaction_default(number: int) -> None:
    """SIG_DFL, also for the two signals that glibc keeps to itself and refuses."""
    _rt_sigaction(number, bytes(32), None, 8)


def close_range(first: int, last: int, flags: int = 0) -> None:
    _close_range(first, last, flags)


def execveat(fd: int, path: str, argv: list[bytes], env: list[bytes], flags: int) -> None:
    _execveat(fd, encode(path), _vector(argv), _vector(env), flags, paths=(path,))


def execve(path: bytes, argv: list[bytes], env: list[bytes]) -> None:
    _execveat(AT_FDCWD, path, _vector(argv), _vector(env), 0, paths=(path,))


def _vector(strings: list[bytes]) -> Any:
    for text in strings:
        if b"\0" in text:
            raise ValueError("argument or environment contains a NUL byte")
    return (c_char_p * (len(strings) + 1))(*strings, None)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    header = _CAP_HEADER(0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = _CAP_DATA(
        effective & low, permitted & low, inheritable & low,
        effective >> high, permitted >> high, inheritable >> high)
    _capset(header, data)


def setgroups(groups: list[int]) -> None:
    for group in groups:
        _id(group)
    _setgroups(len(groups), (c_uint32 * max(1, len(groups)))(*groups))


def setresuid(uid: int) -> None:
    _setresuid(_id(uid), uid, uid)


def setresgid(gid: int) -> None:
    _setresgid(_id(gid), gid, gid)


def _id(number: int) -> int:
    # 2**32-1 means "leave as it is" to the kernel: never to be reached from outside
    if not 0 <= number < 0xFFFFFFFF:
        raise OverflowError(f"user or group id {number} is out of range")
    return number


def sethostname(name: str) -> None:
    raw = encode(name)
    _sethostname(raw, len(raw))


def setdomainname(name: str) -> None:
    raw = encode(name)
    _setdomainname(raw, len(raw))


def personality(persona: int) -> None:
    _personality(persona)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    _pidfd_send_signal(pidfd, signal, None, 0)


def pidfd_open(pid: int) -> int:
    return int(_recorded("pidfd_open", (pid,), os.pidfd_open, pid))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    return int(_pidfd_getfd(pidfd, fd, 0))


def join_session_keyring(name: str) -> None:
    _keyctl(1, encode(name), 0)


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor that gives the (blocked) ``signals`` that came; non-blocking."""
    bits = sum(1 << (n - 1) for n in signals)
    return int(_signalfd(-1, bits.to_bytes(128, "little"), os.O_NONBLOCK | os.O_CLOEXEC))


def ioprio_set(priority: int) -> None:
    _ioprio_set(1, 0, priority)


def sched_setattr(policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int,
                  period: int) -> None:
    # the fields of a structure are masked by ctypes as silently as arguments are
    for value, low, bits in ((policy, 0, 32), (flags, 0, 64), (nice, -(1 << 31), 31),
                             (priority, 0, 32), (runtime, 0, 64), (deadline, 0, 64),
                             (period, 0, 64)):
        if not low <= value < 1 << bits:
            raise OverflowError(f"sched_setattr: {value} is out of range")
    attr = SchedAttr(48, policy, flags, nice, priority, runtime, deadline, period)
    _sched_setattr(0, byref(attr), 0)


def sched_setaffinity(cpus: list[int]) -> None:
    _recorded("sched_setaffinity", (0, tuple(cpus)), os.sched_setaffinity, 0, cpus)


def set_mempolicy(mode: int, nodes: list[int]) -> None:
    if not nodes:
        _set_mempolicy(mode, None, 0)
        return
    words = (c_ulong * (max(nodes) // 64 + 1))()
    for node in nodes:
        words[node // 64] |= 1 << (node % 64)
    _set_mempolicy(mode, words, len(words) * 64 + 1)


def setrlimit(resource: int, soft: int, hard: int) -> None:
    from resource import setrlimit as call  # a built-in or preloaded C module, see runtime.warm
    try:
        _recorded("setrlimit", (resource, soft, hard), call, resource, (soft, hard))
    except ValueError:  # what Python makes of EPERM and of EINVAL here
        fail(1, "setrlimit", (resource, soft, hard))


def setsid() -> None:
    _recorded("setsid", (), os.setsid)


def umask(mask: int) -> None:
    os.umask(mask)
