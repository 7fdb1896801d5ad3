"""inotify(7), as far as watching a kernel file needs it."""

from __future__ import annotations

import os

from carrel.kernel import libc
from carrel.kernel.cdata import c_char_p, c_int, c_uint

IN_MODIFY = 0x2
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC

_inotify_init1 = libc.function("inotify_init1", c_int)
_inotify_add_watch = libc.function("inotify_add_watch", c_int, c_char_p, c_uint)


def watch(path: str, mask: int) -> int:
    """A non-blocking fd, readable when ``path`` saw an event of ``mask``."""
    fd = _inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    try:
        _inotify_add_watch(fd, libc.encode(path), mask, paths=(path,))
    except BaseException:
        os.close(fd)
        raise
    return fd
