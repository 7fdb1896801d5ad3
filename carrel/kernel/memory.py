"""The process's own memory."""

from __future__ import annotations

from ctypes import c_ulong

from carrel.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.kernel.libc import Function


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
