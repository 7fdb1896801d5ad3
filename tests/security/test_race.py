"""Somebody swaps directories for links while containers are made on them (E09, E34, subpaths)."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from carrel.kernel import paths
from carrel.runtime import planner
from tests.runtime.conftest import Bundle
from tests.security.conftest import Canary, contain

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]

STARTS = 200
_RENAMEAT2, _EXCHANGE = (316 if os.uname().machine == "x86_64" else 276), 2


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Another process exchanges the two names as fast as it can."""
    libc = ctypes.CDLL(None)
    one, two = os.fsencode(first), os.fsencode(second)
    pid = os.fork()
    if pid == 0:
        try:
            parent = os.getppid()
            while os.getppid() == parent:
                for _ in range(201):  # odd: while it sleeps, they are exchanged half of the time
                    libc.syscall(_RENAMEAT2, -100, one, -100, two, _EXCHANGE)
                time.sleep(0.002)  # the starts want the processors, too
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _mounts() -> list[str]:
    """Of the host, without the counters that change."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return sorted(line.split()[4] for line in file)


@pytest.fixture
def shared(bundle: Bundle, tmp_path: Path, canary: Canary) -> Path:
    """A volume with a folder and a link to the host, and a container that mounts below it."""
    volume = tmp_path / "volume"
    (volume / "dir").mkdir(parents=True)
    (volume / "link").symlink_to("../" * 12 + str(canary.folder).lstrip("/"))
    (tmp_path / "data").mkdir()
    (bundle.rootfs / "v").mkdir()
    bundle.spec["mounts"] += [
        {"destination": "/v", "type": "bind", "source": str(volume), "options": ["rbind"]},
        {"destination": "/v/dir/data", "type": "bind", "source": str(tmp_path / "data"),
         "options": ["bind"]},
        {"destination": "/v/dir/tmpfs", "type": "tmpfs", "source": "tmpfs"}]
    bundle.spec["linux"]["devices"] = [
        {"path": "/v/dir/device", "type": "c", "major": 1, "minor": 3}]
    bundle.spec["process"]["cwd"] = "/v/dir/working"
    bundle.spec["root"]["readonly"] = False
    return volume


def test_200_starts_while_mount_parents_are_swapped(bundle: Bundle, shared: Path, canary: Canary
                                                    ) -> None:
    before = _mounts()
    done = 0
    bundle.args("sh", "-c", "cat /proc/self/mountinfo; ls -a /v/dir/ /v/link/ . ..")
    with swapping(shared / "dir", shared / "link"):
        for _ in range(STARTS):
            found = contain(bundle)
            done += not found.error
            # a mount point of that name inside is right: where the link leads, as seen there
            sources = [line.split()[3] for line in found.text.splitlines() if " - " in line]
            assert not any("host-canary" in source for source in sources)
            assert "secret" not in found.text
            assert "temporarily unavailable" not in found.error
    canary.check()
    assert _mounts() == before
    assert done > STARTS // 4, "hardly one was started: nothing was tried"


def test_the_race_would_be_seen(bundle: Bundle, shared: Path, canary: Canary,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "IN_ROOT", 0)
    bundle.args("true")
    with swapping(shared / "dir", shared / "link"):
        for _ in range(STARTS):
            contain(bundle)
            if canary.changes():
                return
    raise AssertionError("not one of the starts was misled")


@pytest.fixture
def subpath(bundle: Bundle, tmp_path: Path, canary: Canary) -> Path:
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    (volume / "link").symlink_to(canary.folder)
    bundle.spec["mounts"].append({"destination": "/x", "type": "bind",
                                  "source": f"{volume}/sub", "options": ["rbind"]})
    bundle.spec["annotations"] = {planner.BENEATH + "/x": str(volume)}
    bundle.spec["root"]["readonly"] = False
    bundle.args("sh", "-c", "cat /x/secret")
    return volume


def test_a_subpath_that_is_swapped_leads_nowhere(bundle: Bundle, subpath: Path) -> None:
    """CVE-2017-1002101: the engine looked, the runtime mounted something else."""
    outcomes = set()
    with swapping(subpath / "sub", subpath / "link"):
        for _ in range(60):
            found = contain(bundle)
            assert "of the host" not in found.text
            outcomes.add(bool(found.error))
    assert outcomes == {True, False}


def test_without_the_annotation_the_swap_would_win(bundle: Bundle, subpath: Path) -> None:
    del bundle.spec["annotations"]
    with swapping(subpath / "sub", subpath / "link"):
        assert any("of the host" in contain(bundle).text for _ in range(60))
