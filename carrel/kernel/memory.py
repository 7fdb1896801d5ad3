"""The process's own memory."""

from __future__ import annotations

import gc

from carrel.kernel import libc
from carrel.kernel.cdata import c_ulong

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


def settle() -> None:
    """A daemon has started: what was imported and made so far stays until the end.

    The collector need not look at it again (a full collection stops the loop for a tenth of
    a second otherwise), and what importing needed goes back to the kernel.
    """
    gc.collect()
    gc.freeze()
    trim()
