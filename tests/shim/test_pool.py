"""How many shims and starters wait for a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shim.kit import Machine, waiting

pytestmark = pytest.mark.root


def _shims(zygote: int) -> set[int]:
    return waiting(zygote)[0]


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_waits_and_two_while_starts_follow_each_other(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    zygote = machine.zygote.pid
    try:
        _until(lambda: len(_shims(zygote)) == 1)
        first = _shims(zygote)
        shims = [machine.start_shim("one", ["/bin/busybox", "true"])]
        assert shims[0].pid in first    # the one that waited
        shims.append(machine.start_shim("two", ["/bin/busybox", "true"]))
        _until(lambda: len(_shims(zygote)) == 2)
        two = _shims(zygote)
        _until(lambda: len(_shims(zygote)) == 1)    # calm again
        assert _shims(zygote) < two
    finally:
        machine.close()
