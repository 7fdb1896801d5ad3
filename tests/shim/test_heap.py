"""What the zygote does to its heap, and what a shim does before there is one. Each in a
process of its own: both are for the life of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

_COPIED = """
import ctypes, os
from carrel.kernel import memory
from carrel.shim import heap
ours = bytearray(64 * memory.PAGE)
ours[:] = b"x" * len(ours)
page = ctypes.addressof(ctypes.c_char.from_buffer(ours)) // memory.PAGE + 32
def write(): ours[32 * memory.PAGE] = 1
print(page in heap.copied_pages(write), page in heap.copied_pages(lambda: ours[32 * memory.PAGE]),
      heap.copied_pages(lambda: os.close(1 << 20)))
"""

_ROOM = """
from carrel.kernel import memory
from carrel.shim import heap
holes = [bytes(100) for _ in range(20000)]
del holes[::2]
heap.fill_holes()
filled = len(heap._filling)
print(filled, heap.leave_room(list) > 0, filled - len(heap._filling))
"""

_REHEARSED = """
import os, signal
from carrel.shim import rehearse
from carrel.shim.zygote import be_shim
def traces():
    return (sorted(os.listdir("/proc/self/fd")), open("/proc/self/mounts").read(), os.getcwd(),
            [signal.getsignal(n) for n in (signal.SIGCHLD, signal.SIGTERM)], os.getpgrp())
rehearse.rehearse(be_shim)
before = traces()
rehearse.rehearse(be_shim, (rehearse.rehearse,))
print(before == traces())
pid = os.fork()
if pid == 0:
    rehearse.run_container()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def _run(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True,
                          text=True)
    return done.stdout.split()


def test_the_pages_that_a_clone_copies_are_those_it_writes_to() -> None:
    assert _run(_COPIED) == ["True", "False", "set()"]     # the last one: of work that fails


def test_room_is_left_where_a_clone_writes_and_nowhere_else() -> None:
    filled, some, taken_out = _run(_ROOM)
    assert int(filled) > 10_000      # every hole
    assert some == "True"
    assert 0 < int(taken_out) < int(filled) // 2


def test_a_rehearsed_shim_leaves_nothing() -> None:
    assert _run(_REHEARSED) == ["True", "7"]
