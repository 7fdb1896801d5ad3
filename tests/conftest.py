"""Fixtures that every test area shares."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import leakcheck  # noqa: E402

BIN = ROOT / ".venv" / "bin"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped, by name, for anybody else."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No collection while a failure is described: Python before 3.11.5 (Debian 12's) loses the
    report, and the run, when a finalizer has a source parsed in the middle of another parse
    (cpython issue 106905)."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_sessionfinish() -> None:
    """Cgroups outlive processes and namespaces: none of ours may stay."""
    if os.geteuid() == 0:
        kept = leakcheck.sweep_cgroups()
        if kept:
            print(f"\ncgroups that could not be removed: {kept}")


@pytest.fixture
def leak_check() -> Iterator[None]:
    """After the test the machine is as it was before: mounts, links, cgroups,
    processes, nft rules."""
    before = leakcheck.take()
    # an engine that runs beside the tests (the guest's service) makes them when it likes
    if any("(carreld)" in one for one in before.facts["processes"]):
        before.facts["links"] |= leakcheck.ready_pairs(before)
    before.facts["processes"] |= leakcheck.READY_SHIMS
    yield
    leaks = leakcheck.wait_until_clean(before)
    assert not leaks, f"left behind: {leaks}"
