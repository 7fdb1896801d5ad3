"""Network namespaces of the calling **thread**.

``unshare`` and ``setns`` change the thread that calls them, never the process.  Only
``carrel.network.nsthread`` may call :func:`enter`, :func:`create` and :func:`leave`; everything
else gets sockets that were opened inside, and a socket keeps its namespace for life.
"""

from __future__ import annotations

import os
from errno import EBUSY, EINVAL, ENOENT

from carrel.kernel import libc
from carrel.kernel.cdata import c_char_p, c_int, c_ulong

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_unshare = libc.function("unshare", c_int)
_setns = libc.function("setns", c_int, c_int)
_mount = libc.function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = libc.function("umount2", c_char_p, c_int)


def current() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def open_path(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def enter(fd: int) -> None:
    """Move the calling thread into the namespace."""
    _setns(fd, CLONE_NEWNET)


def create() -> int:
    """Move the calling thread into a new namespace; its descriptor."""
    _unshare(CLONE_NEWNET)
    return current()


def bind(fd: int, path: str) -> None:
    """Keep the namespace alive at ``path``, a file that this call makes."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        _mount(f"/proc/self/fd/{fd}".encode(), libc.encode(path), None, MS_BIND, None,
               paths=(path,))
    except OSError:
        os.unlink(path)
        raise


def unbind(path: str) -> None:
    """Take :func:`bind` back; what is gone already is fine."""
    try:
        _umount2(libc.encode(path), MNT_DETACH | UMOUNT_NOFOLLOW, paths=(path,))
    except OSError as error:
        if error.errno not in (EINVAL, ENOENT):
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != EBUSY:  # mounted in another mount namespace too (kernels before 3.18)
            raise


def identity(path: str) -> tuple[int, int] | None:
    """(device, inode) of the namespace bound at ``path``; None if there is none."""
    try:
        found = os.stat(path)
        plain = os.stat(os.path.dirname(path))
    except OSError:
        return None
    # a file that nothing is bound on lies on the device of its folder
    return None if found.st_dev == plain.st_dev else (found.st_dev, found.st_ino)
