"""The systemd driver: its D-Bus, its arithmetic, and a real systemd where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errdefs import InvalidParameter
from carrel.kernel import cgroup, cgroup_systemd, dbus

SYSTEMD = os.path.exists(cgroup_systemd.SOCKET) and os.path.isdir("/run/systemd/system")


# --- D-Bus -------------------------------------------------------------------------
VALUES: list[tuple[str, list[Any]]] = [
    ("s", ["hello"]), ("ybnqiuxt", [1, 1, -2, 3, -4, 5, -6, 1 << 63]), ("d", [1.5]),
    ("as", [["a", "bc", ""]]), ("a(sv)", [[("X", ("t", 7)), ("Y", ("as", ["q"]))]]),
    ("ssa(sv)a(sa(sv))", ["u", "replace", [("PIDs", ("au", [4, 5]))], []]),
    ("ay", [[1, 2, 255]]), ("yt", [1, 2]), ("aat", [[[1], [2, 3]]]), ("g", ["a{sv}"])]


@pytest.mark.parametrize(("signature", "values"), VALUES, ids=[v[0] for v in VALUES])
def test_marshalling_round_trip(signature: str, values: list[Any]) -> None:
    data = bytes(dbus.marshal(signature, values))
    assert dbus.unmarshal(signature, data) == (values, len(data))


def test_marshalling_is_that_of_the_specification() -> None:
    assert bytes(dbus.marshal("yu", [1, 2])) == b"\1\0\0\0\2\0\0\0"
    assert bytes(dbus.marshal("s", ["foo"])) == b"\3\0\0\0foo\0"
    # an empty array of structures still aligns its first element
    assert bytes(dbus.marshal("a(s)", [[]])) == b"\0\0\0\0\0\0\0\0"


def test_signatures_are_split() -> None:
    assert dbus.split("sa(sv)ua{s(ii)}t") == ["s", "a(sv)", "u", "a{s(ii)}", "t"]


# --- names and numbers ------------------------------------------------------------------
@pytest.mark.parametrize(("name", "path"), [
    ("system.slice", "/system.slice"), ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
    ("-.slice", "/")])
def test_slices(name: str, path: str) -> None:
    assert cgroup_systemd.expand_slice(name) == path


@pytest.mark.parametrize("name", ["a", "a--b.slice", "-a.slice", "a/b.slice", ""])
def test_bad_slices(name: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid slice name"):
        cgroup_systemd.expand_slice(name)


def test_units() -> None:
    unit = cgroup_systemd.Unit("machine-x.slice:carrel:abc", "")
    assert unit.name == "carrel-abc.scope"
    assert unit.group == "/machine.slice/machine-x.slice/carrel-abc.scope"
    assert cgroup_systemd.Unit("", "abc").group == "/system.slice/carrel-abc.scope"
    assert cgroup_systemd.Unit("::pod.slice", "").name == "pod.slice"
    for bad in ("/a/b", "a:b", "s.slice:p:a/b", "s.slice:p:"):
        with pytest.raises(InvalidParameter):
            cgroup_systemd.Unit(bad, "x")


@given(st.sets(st.integers(0, 200), min_size=1))
def test_cpu_masks(numbers: set[int]) -> None:
    data = cgroup_systemd.bits(",".join(str(n) for n in sorted(numbers)), "cpus")
    assert {n for n in range(256) if n // 8 < len(data) and data[n // 8] >> n % 8 & 1} == numbers


def test_a_huge_cpu_range_is_refused_at_once() -> None:
    with pytest.raises(InvalidParameter):
        cgroup_systemd.bits("0-1000000000", "cpus")


@pytest.mark.parametrize(("resources", "expected"), [
    ({"memory": {"limit": 100, "swap": 150}}, {"MemoryMax": 100, "MemorySwapMax": 50}),
    ({"memory": {"limit": -1}}, {"MemoryMax": (1 << 64) - 1, "MemorySwapMax": (1 << 64) - 1}),
    ({"cpu": {"quota": 50000}}, {"CPUQuotaPerSecUSec": 500_000}),
    ({"cpu": {"quota": 1001, "period": 100_000}},
     {"CPUQuotaPeriodUSec": 100_000, "CPUQuotaPerSecUSec": 20_000}),
    ({"cpu": {"quota": -1, "period": 5000}},
     {"CPUQuotaPeriodUSec": 5000, "CPUQuotaPerSecUSec": (1 << 64) - 1}),
    ({"cpu": {"shares": 1024, "cpus": "0,3"}}, {"CPUWeight": 100, "AllowedCPUs": [9]}),
    ({"pids": {"limit": 0}}, {"TasksMax": 1}),
    ({"pids": {"limit": -1}}, {"TasksMax": (1 << 64) - 1}),
    ({"blockIO": {"weight": 10}}, {"IOWeight": 1})])
def test_properties(resources: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {k: v[1] for k, v in cgroup_systemd.properties_v2(resources)} == expected


def test_annotations() -> None:
    parse = cgroup_systemd.parse_annotation
    prefix = "org.systemd.property."
    assert parse(prefix + "TimeoutStopUSec", "uint64 123") == ("TimeoutStopUSec", ("t", 123))
    assert parse(prefix + "TimeoutStopSec", "5") == ("TimeoutStopUSec", ("t", 5_000_000))
    assert parse(prefix + "CollectMode", "'inactive-or-failed'") == (
        "CollectMode", ("s", "inactive-or-failed"))
    assert parse(prefix + "Delegate", "true") == ("Delegate", ("b", True))
    for key, value in (("bad name", "1"), ("lower", "1"), ("Good", "[1, 2]")):
        with pytest.raises(InvalidParameter):
            parse(prefix + key, value)


# --- a real systemd ------------------------------------------------------------------------
@pytest.fixture
def manager() -> Iterator[cgroup.Manager]:
    found = cgroup.open_manager(f"carrel-test.slice:carrel:t{os.getpid()}", systemd=True,
                                annotations={"org.systemd.property.CollectMode":
                                             "'inactive-or-failed'"})
    yield found
    found.delete()
    subprocess.run(["systemctl", "stop", "carrel-test.slice"], check=False)


def show(unit: str, name: str) -> str:
    return subprocess.run(["systemctl", "show", "-P", name, unit], check=True,
                          capture_output=True, text=True).stdout.strip()


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.skipif(not SYSTEMD, reason="systemd is not PID 1 here")
def test_a_scope_lives_and_ends(manager: cgroup.Manager) -> None:
    manager.create({"memory": {"limit": 64 << 20}, "pids": {"limit": 20},
                    "cpu": {"quota": 50000, "shares": 512}})
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        manager.join_self()
        os.write(write, b"1")
        os.closerange(3, 1000)  # as a runtime's child does
        time.sleep(600)
        os._exit(0)
    os.read(read, 1)
    manager.close()
    again = cgroup.Manager.from_state(manager.to_state())
    deadline = time.monotonic() + 60
    while again.pids() != [pid] and time.monotonic() < deadline:
        time.sleep(0.05)  # the placeholder leaves
    assert again.pids() == [pid]
    assert show(manager.unit, "ActiveState") == "active"
    assert show(manager.unit, "MemoryMax") == str(64 << 20)
    assert show(manager.unit, "TasksMax") == "20"
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert again.stats()["memory"]["usage"]["limit"] == 64 << 20
    again.update({"memory": {"limit": 96 << 20}, "pids": {"limit": 30}})
    assert show(manager.unit, "MemoryMax") == str(96 << 20)
    assert again.stats()["memory"]["usage"]["limit"] == 96 << 20
    assert again.stats()["pids"]["limit"] == 30
    again.kill_all(signal.SIGKILL)
    os.waitpid(pid, 0)
    again.delete()
    again.delete()
    assert show(manager.unit, "LoadState") == "not-found"
    assert not manager.exists()


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.skipif(not SYSTEMD, reason="systemd is not PID 1 here")
def test_a_bad_limit_leaves_no_unit(manager: cgroup.Manager) -> None:
    with pytest.raises(OSError):
        manager.create({"rdma": {"none": {"hcaHandles": 1}}})
    assert show(manager.unit, "LoadState") == "not-found"
