"""Calls about a file system as a whole."""

from __future__ import annotations

from ctypes import c_int

from carrel.kernel import libc

_syncfs = libc.function("syncfs", c_int)


def syncfs(fd: int) -> None:
    """Bring everything of the file system of ``fd`` to the disk."""
    _syncfs(fd)
