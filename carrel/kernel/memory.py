"""The process's own memory."""

from __future__ import annotations

import gc
import os

from carrel.kernel import libc
from carrel.kernel.cdata import c_ulong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from carrel.kernel.libc import Function

PAGE = os.sysconf("SC_PAGE_SIZE")


def _find() -> Function | None:
    try:
        return libc.function("malloc_trim", c_ulong)
    except AttributeError:
        return None     # another libc than glibc


_malloc_trim = _find()


def trim() -> None:
    """Give free memory of all of malloc's arenas back to the kernel."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def read_all(fd: int) -> bytes:
    """Up to the end of a pipe or a file of /proc."""
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def own_pages() -> Iterator[int]:
    """The numbers of the writable pages that no other process shares (pagemap(5): bit 63 says
    that a page is present, bit 56 that it is mapped once)."""
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        rows = [line.split(None, 2) for line in read_all(maps).decode().splitlines()]
    finally:
        os.close(maps)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for where, rights, _ in rows:
            if "w" not in rights:
                continue
            first, last = (int(end, 16) // PAGE for end in where.split("-"))
            flags = memoryview(os.pread(pagemap, (last - first) * 8, first * 8)).cast("Q")
            for number, flag in enumerate(flags, first):
                if flag >> 63 and flag >> 56 & 1:
                    yield number
    finally:
        os.close(pagemap)


def settle() -> None:
    """A daemon has started: what was imported and made so far stays until the end.

    The collector need not look at it again (a full collection stops the loop for a tenth of
    a second otherwise), and what importing needed goes back to the kernel.
    """
    gc.collect()
    gc.freeze()
    trim()
