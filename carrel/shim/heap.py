"""Make the heap of the zygote a good one to share.

After the imports and the rehearsal CPython's allocator has holes everywhere:
blocks that were freed between others that live on.  It fills holes first, so a
child's new objects would be spread over hundreds of pages of the zygote's, and
each of these pages would be copied.  Here the holes are filled once, before
the first clone, with objects that nobody uses.  Then the filling is taken out
where a child copies the page in any case, because it writes to something else on
it: its new objects go there first, and what does not fit lies together.
"""

from __future__ import annotations

import os
import sys
from itertools import repeat
from time import monotonic

from carrel.kernel import memory
from carrel.kernel import syscalls as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: CPython's small-object allocator: sizes by 16 up to 512, in pools of at most 16 KiB
_STEP, _SMALLEST, _LARGEST, _POOL = 16, 32, 512, 16384
#: a bytes object is this much longer than what it holds (header, hash, final NUL)
_BYTES_OVERHEAD = 33
#: never more than this of one size, whatever the allocator is like
_LIMIT_BYTES = 1 << 20

_filling: list[Any] = []


def fill_holes() -> None:
    for size in range(_SMALLEST, _LARGEST + 1, _STEP):
        _fill(size)


def _fill(size: int) -> None:
    """Allocate blocks of one size until a whole pool of them came in a row, which means that
    the allocator had no hole left and took a fresh pool; then until that one is full, too."""
    # in the smallest pools lie the numbers that are used here, between the blocks
    step = size if size > _SMALLEST else 4 * size
    per_pool = _POOL // step
    row = 1
    before = 0
    for _ in repeat(None, _LIMIT_BYTES // size):
        block: Any = bytes(size - _BYTES_OVERHEAD) if size > _SMALLEST else monotonic()
        here = id(block)
        if 0 < here - before <= step:
            row += 1
        elif row >= per_pool - 1:
            break       # the first of another pool, which is empty again now
        else:
            row = 1
        before = here
        _filling.append(block)


def leave_room(work: Callable[[], object]) -> int:
    """Take the filling out of those pages that a clone copies anyhow when it does ``work``:
    there its new objects take no page of their own. Gives the number of pages."""
    pages = copied_pages(work)

    def is_copied(block: Any) -> bool:
        here = id(block)
        return (here // _POOL * _POOL // memory.PAGE in pages and here // memory.PAGE in pages
                and (here + sys.getsizeof(block) - 1) // memory.PAGE in pages)

    _filling[:] = [block for block in _filling if not is_copied(block)]
    return len(pages)


def copied_pages(work: Callable[[], object]) -> set[int]:
    """The numbers of the pages that are a clone's own after ``work``; none if it fails."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = k.clone(0)
    if pid == 0:
        try:
            work()
            os.write(theirs, b" ".join(b"%d" % page for page in memory.own_pages()))
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(pidfd)
    pages = {int(page) for page in memory.read_all(ours).split()}
    os.close(ours)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass    # where nobody wants to know of children's ends
    return pages
