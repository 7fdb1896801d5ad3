"""native.cgroupdriver=systemd: each container is a scope that systemd knows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import BIN
from tests.vm.conftest import CGROUPS, LIVE, Machine, unit_property, wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def systemd(service: Machine) -> Iterator[Machine]:
    service.remove_all()
    service.restart({**LIVE, "exec-opts": ["native.cgroupdriver=systemd"]})
    yield service
    service.remove_all()
    service.restart(LIVE)


def _scope(ident: str, slice_: str = "system.slice") -> Path:
    return CGROUPS / slice_ / f"carrel-{ident}.scope"


def test_a_container_is_a_scope(systemd: Machine) -> None:
    assert systemd.call("GET", "/info")["CgroupDriver"] == "systemd"
    ident = systemd.start("sleep", "1000", host={
        "Memory": 64 * MIB, "PidsLimit": 40, "NanoCpus": 500_000_000, "CpusetCpus": "1"})
    unit = f"carrel-{ident}.scope"
    assert unit_property(unit, "ActiveState") == "active"
    for name, value in (("MemoryMax", str(64 * MIB)), ("TasksMax", "40"), ("Delegate", "yes"),
                        ("CPUQuotaPerSecUSec", "500ms"), ("AllowedCPUs", "1")):
        assert unit_property(unit, name) == value, name
    group = _scope(ident)
    assert (group / "memory.max").read_text().strip() == str(64 * MIB)
    code, text = systemd.exec(ident, "cat", "/proc/self/cgroup", "/sys/fs/cgroup/pids.max")
    assert (code, text) == (0, "0::/\n40\n")
    shown = systemd.call("GET", f"/containers/{ident}/stats?stream=0&one-shot=1")
    assert shown["memory_stats"]["limit"] == 64 * MIB
    _changed(systemd, ident, unit)
    systemd.call("POST", f"/containers/{ident}/kill")
    wait_for(lambda: systemd.inspect(ident)["State"]["Status"] == "exited")
    wait_for(lambda: not group.exists())
    assert unit_property(unit, "LoadState") == "not-found"


def _changed(systemd: Machine, ident: str, unit: str) -> None:
    """An update is told to systemd too, so that its reload keeps it; so do restarts."""
    systemd.call("POST", f"/containers/{ident}/update",
                 {"Memory": 96 * MIB, "MemorySwap": 96 * MIB})
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=120)
    assert unit_property(unit, "MemoryMax") == str(96 * MIB)
    assert (_scope(ident) / "memory.max").read_text().strip() == str(96 * MIB)
    systemd.restart()
    assert systemd.inspect(ident)["State"]["Status"] == "running"
    for verb, status in (("pause", "paused"), ("unpause", "running")):
        systemd.call("POST", f"/containers/{ident}/{verb}")
        assert systemd.inspect(ident)["State"]["Status"] == status


def test_a_slice_of_ones_own(systemd: Machine) -> None:
    ident = systemd.start("sleep", "1000", host={"CgroupParent": "tests-inner.slice"})
    assert _scope(ident, "tests.slice/tests-inner.slice").is_dir()
    answer = systemd.call("POST", "/containers/create", {
        "Image": "busybox", "HostConfig": {"CgroupParent": "/not/a/slice"}}, expect=(400,))
    assert answer["message"] == ('cgroup-parent for systemd cgroup should be a valid slice named '
                                 'as "xxx.slice"')


@pytest.mark.parametrize(("option", "words"), [
    ("native.cgroupdriver=none", "native.cgroupdriver option none not supported"),
    ("native.umask=normal", "Unknown option (native.umask)"),
    ("native", "invalid exec option")])
def test_what_is_not_known_is_refused_by_name(systemd: Machine, tmp_path: Path, option: str,
                                              words: str) -> None:
    settings = tmp_path / "daemon.json"
    settings.write_text(json.dumps({"exec-opts": [option]}))
    done = subprocess.run([str(BIN / "carreld"), "--validate", "--config-file", str(settings)],
                          capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert words in done.stderr
