"""Calls about a file system as a whole."""

from __future__ import annotations

from carrel.kernel import libc, syscalls
from carrel.kernel.cdata import c_int

_syncfs = libc.function("syncfs", c_int)
#: ioctl_iflags(2); both take a pointer to int, whatever the number's size field says
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_TOPDIR_FL = 0x00020000


def syncfs(fd: int) -> None:
    """Bring everything of the file system of ``fd`` to the disk."""
    _syncfs(fd)


def set_topdir(fd: int, on: bool) -> bool:
    """chattr(1)'s ``T``: directories made in this one have nothing to do with each other, so
    ext4 gives each a block group of its own.  False where the file system knows no such thing.
    """
    try:
        flags = int.from_bytes(syscalls.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))[:4], "little")
        wanted = flags | _FS_TOPDIR_FL if on else flags & ~_FS_TOPDIR_FL
        if wanted != flags:
            syscalls.ioctl(fd, _FS_IOC_SETFLAGS, wanted.to_bytes(8, "little"))
    except OSError:
        return False
    return True
