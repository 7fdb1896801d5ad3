"""What is written to cgroup files, in which order, and how they are read: no root, no kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errdefs import InvalidParameter
from carrel.kernel import cgroup, cgroup_stats, cgroup_v1_limits, cgroup_v2_limits, ebpf, record
from carrel.kernel.cgroup_base import Group, clean_path
from carrel.kernel.cgroup_devices import DeviceState, build, parse_list, transition
from tests.kernel import bpf

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""


def fake(tmp_path: Path, *names: str) -> Group:
    for name in names:
        (tmp_path / name).write_text("")
    return Group(str(tmp_path), str(tmp_path))


def writes(group: Group, work: Any) -> list[tuple[str, str]]:
    recorder = record.start()
    try:
        work()
    finally:
        record.stop()
    return [(os.path.basename(str(r[2][0])), str(r[2][1])) for r in recorder.records
            if r[1] == "write"]


# --- where groups are ------------------------------------------------------------------
def test_layouts() -> None:
    hybrid = cgroup.parse_mountinfo(HYBRID)
    assert hybrid.mode == "hybrid"
    assert [h.controllers for h in hybrid.v1] == [("cpu", "cpuacct"), ("memory",),
                                                  ("name=systemd",)]
    legacy = cgroup.parse_mountinfo("\n".join(HYBRID.splitlines()[:4]))
    assert legacy.mode == "legacy"
    pure = cgroup.parse_mountinfo("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    assert pure.mode == "unified" and pure.unified is not None
    # what a later mount covers is not there
    covered = cgroup.parse_mountinfo(HYBRID + "50 23 0:60 / /sys/fs/cgroup rw - tmpfs t rw\n")
    assert covered.mode == "none"


def test_co_mounted_controllers_share_a_group() -> None:
    manager = cgroup.open_manager("/c/1", layout_=cgroup.parse_mountinfo(HYBRID))
    assert manager.paths["cpu"] == manager.paths["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/c/1"
    assert len(manager.groups) == 4
    mounts = {m["destination"]: m for m in manager.mounts()}
    assert mounts["cpu,cpuacct"]["links"] == ["cpu", "cpuacct"]
    assert mounts["cpu,cpuacct"]["data"] == "cpu,cpuacct"


def test_relative_paths_inside_a_container() -> None:
    inside = cgroup.Hierarchy("/sys/fs/cgroup/memory", "/docker/abc", ("memory",))
    assert cgroup.directory(inside, "x", "/docker/abc/d") == "/sys/fs/cgroup/memory/d/x"
    assert cgroup.directory(inside, "/x", "/docker/abc") == "/sys/fs/cgroup/memory/x"


@given(st.text(alphabet="./ab"))
def test_no_path_leaves_the_hierarchy(path: str) -> None:
    cleaned = clean_path(path)
    assert ".." not in cleaned.split("/")
    assert cleaned.startswith("/") == path.startswith("/")


def test_systemd_path_needs_the_systemd_driver() -> None:
    with pytest.raises(InvalidParameter, match="cgroup driver is cgroupfs"):
        cgroup.open_manager("system.slice:docker:abc",
                            layout_=cgroup.parse_mountinfo(HYBRID))


# --- v2 files --------------------------------------------------------------------------
V2_FILES = ("memory.max", "memory.swap.max", "memory.low", "cpu.max", "cpu.max.burst",
            "cpu.weight", "cpu.idle", "cpuset.cpus", "cpuset.mems", "pids.max", "io.max",
            "io.weight", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "rdma.max")

V2_CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"memory": {"limit": 100, "swap": 300}}, [("memory.swap.max", "200"), ("memory.max", "100")]),
    ({"memory": {"limit": 100, "swap": 100}}, [("memory.swap.max", "0"), ("memory.max", "100")]),
    ({"memory": {"limit": 100}}, [("memory.max", "100")]),
    ({"memory": {"limit": -1}}, [("memory.swap.max", "max"), ("memory.max", "max")]),
    ({"memory": {"limit": 100, "swap": -1}}, [("memory.swap.max", "max"), ("memory.max", "100")]),
    ({"memory": {"reservation": 50}}, [("memory.low", "50")]),
    ({"memory": {"reservation": -1}}, [("memory.low", "max")]),
    ({"memory": {"kernel": 5, "swappiness": 10}}, []),
    ({"cpu": {"quota": 50000}}, [("cpu.max", "50000 100000")]),
    ({"cpu": {"quota": -1, "period": 20000}}, [("cpu.max", "max 20000")]),
    ({"cpu": {"period": 20000}}, [("cpu.max", "max 20000")]),
    ({"cpu": {"shares": 1024}}, [("cpu.weight", "100")]),
    ({"cpu": {"idle": 1, "shares": 1024}}, [("cpu.idle", "1")]),
    ({"cpu": {"burst": 500, "quota": 1000}}, [("cpu.max.burst", "500"),
                                              ("cpu.max", "1000 100000")]),
    ({"cpu": {"cpus": "0-2,5", "mems": "0"}}, [("cpuset.cpus", "0-2,5"), ("cpuset.mems", "0")]),
    ({"pids": {"limit": -1}}, [("pids.max", "max")]),
    ({"pids": {"limit": 0}}, [("pids.max", "1")]),
    ({"pids": {"limit": 7}}, [("pids.max", "7")]),
    ({"blockIO": {"weight": 500}}, [("io.weight", "4950")]),
    ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 99}],
                  "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 0}]}},
     [("io.max", "8:0 rbps=99"), ("io.max", "8:1 wiops=max")]),
    ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
     [("hugetlb.2MB.max", "0"), ("hugetlb.2MB.rsvd.max", "0")]),
    ({"hugepageLimits": [{"pagesize": "2MB", "limit": 9}]},
     [("hugetlb.2MB.max", "9"), ("hugetlb.2MB.rsvd.max", "9")]),
    ({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}}},
     [("rdma.max", "mlx5_1 hca_handle=3 hca_object=4")]),
]


@pytest.mark.parametrize(("resources", "expected"), V2_CASES, ids=[str(c[0]) for c in V2_CASES])
def test_v2_files(tmp_path: Path, resources: dict[str, Any],
                  expected: list[tuple[str, str]]) -> None:
    group = fake(tmp_path, *V2_FILES)
    assert writes(group, lambda: cgroup_v2_limits.apply(group, resources)) == expected


def test_v2_bfq_is_preferred_and_knows_devices(tmp_path: Path) -> None:
    group = fake(tmp_path, "io.weight")
    (tmp_path / "io.bfq.weight").write_text("default 100\n")
    done = writes(group, lambda: cgroup_v2_limits.io(group, {
        "weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 300}]}))
    assert done == [("io.bfq.weight", "500"), ("io.bfq.weight", "8:0 300")]


def test_v2_without_swap_accounting(tmp_path: Path) -> None:
    group = fake(tmp_path, "memory.max")
    cgroup_v2_limits.memory(group, {"limit": 100, "swap": -1})
    cgroup_v2_limits.memory(group, {"limit": 100, "swap": 100})
    with pytest.raises(FileNotFoundError):
        cgroup_v2_limits.memory(group, {"limit": 100, "swap": 150})


@pytest.mark.parametrize(("limit", "swap", "text"), [
    (0, 100, "unable to set swap limit without memory limit"),
    (-2, 100, "invalid memory value: -2"), (100, 50, "should be >= memory limit")])
def test_v2_swap_arithmetic_errors(limit: int, swap: int, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        cgroup_v2_limits.swap_limit(limit, swap)


def test_conversions_hit_the_documented_points() -> None:
    assert [cgroup_v2_limits.cpu_weight(s) for s in (0, 1, 2, 1024, 262144, 1 << 40)] == [
        0, 1, 1, 100, 10000, 10000]
    weights = [cgroup_v2_limits.cpu_weight(s) for s in range(2, 4096)]
    assert weights == sorted(weights)
    assert [cgroup_v2_limits.io_weight(w) for w in (0, 10, 1000)] == [0, 1, 10000]


def test_v2_check_before_update(tmp_path: Path) -> None:
    group = fake(tmp_path, "memory.max")
    (tmp_path / "memory.current").write_text("5000\n")
    with pytest.raises(InvalidParameter, match="rejecting memory limit 100"):
        cgroup_v2_limits.memory(group, {"limit": 100, "checkBeforeUpdate": True})


@pytest.mark.parametrize(("name", "text"), [
    ("../x", "no slashes"), ("nonsense", "CONTROLLER.PARAMETER"),
    ("rdma.max", "controller 'rdma' not available")])
def test_unified_errors(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        cgroup_v2_limits.unified(fake(tmp_path), {name: "1"}, ["memory"])


def test_unified_writes_line_by_line(tmp_path: Path) -> None:
    group = fake(tmp_path, "io.max")
    done = writes(group, lambda: cgroup_v2_limits.unified(
        group, {"io.max": "8:0 rbps=1\n8:1 rbps=2\n"}, ["io"]))
    assert done == [("io.max", "8:0 rbps=1"), ("io.max", "8:1 rbps=2")]


# --- v1 files --------------------------------------------------------------------------
def test_v1_growing_swap_goes_first(tmp_path: Path) -> None:
    group = fake(tmp_path, "memory.memsw.limit_in_bytes")
    (tmp_path / "memory.limit_in_bytes").write_text("100\n")
    grow = writes(group, lambda: cgroup_v1_limits.memory(group, {"limit": 200, "swap": 400},
                                                         False))
    assert [w[0] for w in grow] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    (tmp_path / "memory.limit_in_bytes").write_text("500\n")
    shrink = writes(group, lambda: cgroup_v1_limits.memory(group, {"limit": 200, "swap": 400},
                                                           False))
    assert [w[0] for w in shrink] == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def test_v1_blkio_names(tmp_path: Path) -> None:
    asked = {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 20}],
             "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}
    group = fake(tmp_path, "blkio.bfq.weight", "blkio.bfq.weight_device",
                 "blkio.throttle.write_bps_device")
    assert writes(group, lambda: cgroup_v1_limits.blkio(group, asked, True)) == [
        ("blkio.bfq.weight", "10"), ("blkio.bfq.weight_device", "8:0 20"),
        ("blkio.throttle.write_bps_device", "8:0 5")]


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,7,9-10", " 0-1,4"])
def test_good_ranges(text: str) -> None:
    assert cgroup_v1_limits.check_ranges(text, "cpus") == text


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1--2", "0," * 5, "1" * 30])
def test_bad_ranges(text: str) -> None:
    with pytest.raises(InvalidParameter):
        cgroup_v1_limits.check_ranges(text, "cpus")


# --- reading ---------------------------------------------------------------------------
def test_v2_stats(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\n"
                    "throttled_usec 9\n",
        "memory.stat": "anon 5\nfile 7\n", "memory.current": "12\n", "memory.max": "100\n",
        "memory.peak": "20\n", "memory.swap.current": "3\n", "memory.swap.max": "max\n",
        "memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n",
        "pids.current": "2\n", "pids.max": "max\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n",
        "hugetlb.2MB.current": "8\n", "hugetlb.2MB.events": "max 6\n",
        "cpuset.cpus.effective": "0-1\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    stats = cgroup_stats.v2(Group(str(tmp_path), str(tmp_path)))
    assert stats["cpu"]["usage"]["total"] == 10_000
    assert stats["cpu"]["throttling"] == {"periods": 3, "throttledPeriods": 2,
                                          "throttledTime": 9000}
    assert stats["memory"]["usage"] == {"limit": 100, "usage": 12, "max": 20, "failcnt": 4}
    assert stats["memory"]["swap"]["usage"] == 15
    assert stats["memory"]["cache"] == 7 and stats["memory"]["raw"]["anon"] == 5
    assert stats["oom"]["oom_kill"] == 1
    assert stats["pids"] == {"current": 2, "limit": 0}
    assert stats["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 1},
        {"major": 8, "minor": 0, "op": "Write", "value": 2}]
    assert stats["hugetlb"]["2MB"] == {"usage": 8, "max": 0, "failcnt": 6}
    assert stats["cpuset"]["cpus"] == [0, 1]
    assert stats["cpu"]["psi"]["some"]["avg10"] == 1.5


def test_an_empty_group_has_zeros(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("5\n6\n")
    stats = cgroup_stats.v2(Group(str(tmp_path), str(tmp_path)))
    assert stats["pids"] == {"current": 2, "limit": 0}
    assert stats["memory"]["usage"]["usage"] == 0


def test_expanding_ranges_is_bounded() -> None:
    assert cgroup_stats.expand("0-2,5\n") == [0, 1, 2, 5]
    with pytest.raises(ValueError):
        cgroup_stats.expand("0-1000000000")


# --- device lists ------------------------------------------------------------------------
KINDS = st.sampled_from("bc")
NUMBERS = st.sampled_from([-1, 0, 1, 5, 136, 4095])
ACCESS = st.sampled_from(["r", "w", "m", "rw", "rwm", "rm"])
RULES = st.lists(st.fixed_dictionaries({
    "allow": st.booleans(), "type": st.sampled_from("bca"), "major": NUMBERS, "minor": NUMBERS,
    "access": ACCESS}), max_size=8)


def permits(state: DeviceState, kind: str, access: str, major: int, minor: int) -> bool:
    """The meaning of a device list, said plainly."""
    matching = [a for (k, ma, mi), a in state.rules.items()
                if k == kind and ma in (-1, major) and mi in (-1, minor)]
    if state.allow:
        return not any(set(a) & set(access) for a in matching)
    return any(set(access) <= set(a) for a in matching)


@given(RULES, KINDS, st.sampled_from([0, 1, 5, 136, 4095, 7]), st.sampled_from([0, 1, 5, 9]),
       ACCESS)
def test_program_means_the_list(rules: list[dict[str, Any]], kind: str, major: int, minor: int,
                                access: str) -> None:
    try:
        state = build(rules, defaults=False)
    except InvalidParameter:
        return  # a hole in a wildcard, which v1 cannot have either
    program = ebpf.device_program(state)
    bits = sum({"m": 1, "r": 2, "w": 4}[a] for a in access)
    assert bpf.device(program, {"b": 1, "c": 2}[kind], bits, major, minor) == permits(
        state, kind, access, major, minor)


def test_docker_list() -> None:
    state = build([{"allow": False, "access": "rwm"},
                   {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                   {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"}])
    assert not state.allow
    assert permits(state, "c", "rw", 1, 5) and permits(state, "b", "m", 8, 0)
    assert not permits(state, "b", "r", 8, 0) and not permits(state, "c", "r", 10, 229)


def test_privileged_list_is_everything() -> None:
    state = build([{"allow": True, "access": "rwm"}])
    assert state == DeviceState(allow=True)
    assert permits(state, "b", "rwm", 8, 0)


def test_hole_in_a_wildcard_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="hole in the wider rule"):
        build([{"allow": True, "type": "c", "major": 10, "access": "rw"},
               {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "r"}])


@given(RULES, RULES)
def test_transition_reaches_the_target(before: list[dict[str, Any]],
                                       after: list[dict[str, Any]]) -> None:
    try:
        current, target = build(before, defaults=False), build(after, defaults=False)
    except InvalidParameter:
        return
    seen = DeviceState(current.allow, {} if current.allow else dict(current.rules))
    state = DeviceState(current.allow, dict(current.rules))
    for name, line in transition(seen, target):
        if line == "a":
            state = DeviceState(name == "devices.allow")
            continue
        kind, numbers, access = line.split()
        major, minor = (-1 if n == "*" else int(n) for n in numbers.split(":"))
        if (name == "devices.allow") != state.allow:
            key = (kind, major, minor)
            state.rules[key] = "".join(a for a in "rwm"
                                       if a in state.rules.get(key, "") + access)
        else:
            left = "".join(a for a in state.rules.pop((kind, major, minor)) if a not in access)
            if left:
                state.rules[kind, major, minor] = left
    assert state == target


def test_kernel_list_is_read() -> None:
    assert parse_list("c 1:3 rwm\nb *:* m\n") == DeviceState(
        False, {("c", 1, 3): "rwm", ("b", -1, -1): "m"})
    assert parse_list("a *:* rwm\n") == DeviceState(True)
