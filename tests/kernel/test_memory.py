"""A daemon's memory after its start."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc
from carrel.kernel import memory
keep, drop = [], []
for _ in range(2000):   # small blocks in between keep the heap's top from shrinking by itself
    drop.append(bytes(16 << 10))
    keep.append(bytes(600))
del drop
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
before, tracked = resident(), len(gc.get_objects())
memory.settle()
print(before - resident(), tracked, gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_settling_freezes_and_gives_back() -> None:
    """In a process of its own: what is frozen stays so."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], check=True, capture_output=True,
                          text=True)
    given, tracked, frozen, left = map(int, done.stdout.split())
    assert given > 16 << 10      # of the 32 MiB that were freed
    assert frozen > tracked // 2
    assert left < 100
