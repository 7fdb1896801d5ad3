"""Make the heap of the zygote a good one to share.

After the imports and the rehearsal CPython's allocator has holes everywhere:
blocks that were freed between others that live on.  It fills holes first, so a
child's new objects would be spread over hundreds of pages of the zygote's, and
each of these pages would be copied.  Here the holes are filled once, before
the first clone, with objects that nobody uses: what a child allocates then lies
together, in pages of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: CPython's small-object allocator: sizes by 16 up to 512, in pools of at most 16 KiB
_STEP, _LARGEST, _POOL = 16, 512, 16384
#: a bytes object is this much longer than what it holds (header, hash, final NUL)
_BYTES_OVERHEAD = 33
#: never more than this of one size, whatever the allocator is like
_LIMIT_BYTES = 1 << 20

_filling: list[Any] = []


def fill_holes() -> int:
    """Gives the number of bytes that the filling takes."""
    total = 0
    for size in range(48, _LARGEST + 1, _STEP):
        total += _fill(size)
    return total


def _fill(size: int) -> int:
    """Allocate blocks of one size until a whole pool of them came in a row, which
    means that the allocator had no hole left and took a fresh pool."""
    per_pool = _POOL // size
    row = 1
    before = 0
    for count in range(_LIMIT_BYTES // size):
        block = bytes(size - _BYTES_OVERHEAD)
        _filling.append(block)
        row = row + 1 if id(block) - before == size else 1
        before = id(block)
        if row >= per_pool - 1:
            return count * size
    return _LIMIT_BYTES
