"""cgroup v1 (legacy or hybrid): limits that are seen to act, on the real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from carrel.errdefs import Conflict, InvalidParameter
from carrel.kernel import cgroup, record
from tests.leakcheck import cgroup_parent

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
                       reason="this machine has cgroup v2 only"),
]
PARENT = cgroup_parent("v1")
#: children of the test that runs
STARTED: list[int] = []


@pytest.fixture
def manager() -> Iterator[cgroup.Manager]:
    manager = cgroup.open_manager(f"{PARENT}/c1")
    yield manager
    manager.kill_all(signal.SIGKILL)
    while STARTED:
        with contextlib.suppress(ChildProcessError):  # the test waited for it
            os.waitpid(STARTED.pop(), 0)
    manager.delete()
    cgroup.open_manager(PARENT).delete()


def child(manager: cgroup.Manager, work: Callable[[], int]) -> int:
    """A forked process that has joined, and then works; its pid."""
    joined, ready = os.pipe()
    pid = os.fork()
    STARTED.append(pid)
    if pid == 0:
        code = 99
        try:
            manager.join_self()
            os.write(ready, b"1")
            code = work()
        except OSError as error:
            code = error.errno or 98
        finally:
            os._exit(code)
    os.close(ready)
    os.read(joined, 1)
    os.close(joined)
    return pid


def sleeping(manager: cgroup.Manager) -> int:
    def work() -> int:
        time.sleep(60)
        return 0
    return child(manager, work)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_joins_every_hierarchy(manager: cgroup.Manager) -> None:
    manager.create()
    pid = sleeping(manager)
    with open(f"/proc/{pid}/cgroup") as file:
        rows = [line.strip().split(":", 2) for line in file]
    # a hierarchy that is mounted in another mount namespace only is not ours to join
    paths = {path for _, names, path in rows if names.split(",")[0] in manager.paths}
    assert paths == {f"{PARENT}/c1"}
    assert manager.pids() == [pid]


def test_memory_limit_kills(manager: cgroup.Manager) -> None:
    manager.create({"memory": {"limit": 16 << 20}})
    event = manager.oom_fd()
    assert not select.select([event], [], [], 0)[0]
    pid = child(manager, lambda: len(bytearray(b"x") * (64 << 20)) & 1)
    assert wait(pid) == -signal.SIGKILL
    assert manager.oom_count() == 1
    assert select.select([event], [], [], 5)[0]
    os.close(event)
    stats = manager.stats()
    assert stats["memory"]["usage"]["limit"] == 16 << 20
    assert stats["memory"]["usage"]["failcnt"] > 0
    assert stats["oom"]["oom_kill"] == 1


def test_pids_limit_refuses_fork(manager: cgroup.Manager) -> None:
    manager.create({"pids": {"limit": 2}})

    def work() -> int:
        if os.fork() == 0:
            time.sleep(0.3)
            os._exit(0)
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError as error:
            return error.errno or 0
        return 0

    assert wait(child(manager, work)) == errno.EAGAIN


def test_cpu_quota_throttles(manager: cgroup.Manager) -> None:
    manager.create({"cpu": {"quota": 5000, "period": 50000, "shares": 512}})

    def work() -> int:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        return 0

    assert wait(child(manager, work)) == 0
    stats = manager.stats()
    assert stats["cpu"]["throttling"]["throttledPeriods"] >= 2
    assert stats["cpu"]["throttling"]["throttledTime"] > 0
    assert 0 < stats["cpu"]["usage"]["total"] < 200_000_000
    assert len(stats["cpu"]["usage"]["percpu"]) >= os.cpu_count()  # type: ignore[operator]


def test_devices_are_denied_and_updated(manager: cgroup.Manager) -> None:
    manager.create({"devices": [{"allow": False, "access": "rwm"}]})

    def can(path: str) -> int:
        def work() -> int:
            os.close(os.open(path, os.O_RDONLY))
            return 0
        return wait(child(manager, work))

    assert can("/dev/zero") == 0
    assert can("/dev/kmsg") == errno.EPERM  # c 1:11
    kmsg = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    writes = record.start()
    manager.update({"devices": [{"allow": False, "access": "rwm"}, kmsg]})
    record.stop()
    # only the difference: nothing that was allowed is denied for a moment
    assert [w[2][1] for w in writes.records if w[1] == "write"] == ["c 1:11 r"]
    assert can("/dev/kmsg") == 0
    manager.update({"devices": [{"allow": False, "access": "rwm"}]})
    assert can("/dev/kmsg") == errno.EPERM
    manager.update({"devices": [{"allow": True, "access": "rwm"}]})
    assert can("/dev/kmsg") == 0


def test_freeze_and_thaw(manager: cgroup.Manager) -> None:
    manager.create()
    pid = sleeping(manager)
    manager.freeze()
    assert manager.frozen()
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.02)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    manager.thaw()
    assert not manager.frozen()
    assert wait(pid) == -signal.SIGTERM


def test_kill_all_reaches_groups_below_and_forkers(manager: cgroup.Manager) -> None:
    manager.create({"pids": {"limit": 30}})

    def bomb() -> int:
        while True:
            try:
                os.fork()
            except OSError:
                pass
    pid = child(manager, bomb)
    deep = sleeping(manager)
    for group in manager.groups:
        os.mkdir(f"{group.path}/below")
    for group in manager.groups:
        if group is manager.main_group:
            with open(f"{group.path}/below/cgroup.procs", "w") as file:
                file.write(str(deep))
    assert deep in manager.pids() and deep not in manager.pids(all=False)
    manager.kill_all(signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL and wait(deep) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while manager.pids() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert manager.pids() == []


def test_signal_is_what_was_asked(manager: cgroup.Manager) -> None:
    manager.create()
    pid = sleeping(manager)
    manager.kill_all(signal.SIGTERM)
    assert wait(pid) == -signal.SIGTERM


def test_update_moves_memory_and_swap_in_the_order_the_kernel_wants(
        manager: cgroup.Manager) -> None:
    manager.create({"memory": {"limit": 20 << 20, "swap": 40 << 20}})
    for limit, swap in ((60 << 20, 80 << 20), (30 << 20, 30 << 20), (90 << 20, -1), (-1, 0)):
        manager.update({"memory": {"limit": limit, "swap": swap}})
        memory = manager.stats()["memory"]
        if limit > 0:
            assert memory["usage"]["limit"] == limit
        else:
            assert memory["usage"]["limit"] > 1 << 60 and memory["swap"]["limit"] > 1 << 60


def test_update_below_the_usage_is_explained(manager: cgroup.Manager) -> None:
    manager.create({"memory": {"limit": 64 << 20}})

    def hold() -> int:
        data = bytearray(b"x") * (32 << 20)
        time.sleep(60)
        return len(data)
    child(manager, hold)
    deadline = time.monotonic() + 30
    while manager.stats()["memory"]["usage"]["usage"] < 32 << 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    # anonymous memory without swap cannot be reclaimed
    try:
        manager.update({"memory": {"limit": 1 << 20}})
    except InvalidParameter as error:
        assert "unable to set memory limit to 1048576 (current usage: " in str(error)
    else:
        assert manager.stats()["memory"]["usage"]["limit"] == 1 << 20  # there was swap


@pytest.mark.parametrize(("resources", "text"), [
    ({"unified": {"memory.max": "1"}}, "cannot use unified on cgroup v1"),
    ({"memory": {"swappiness": 101}}, "invalid memory swappiness"),
    ({"cpu": {"cpus": "1-a"}}, "invalid cpuset"),
    ({"cpu": {"shares": 1}}, "minimum allowed cpu-shares is 2"),
    ({"cpu": {"shares": 1 << 30}}, "maximum allowed cpu-shares is 262144"),
    ({"rdma": {"mlx": {"hcaHandles": 1}}}, "cannot set rdma limit"),
    ({"devices": [{"allow": True, "type": "c"}]}, "access at 0 field cannot be empty"),
])
def test_a_bad_request_leaves_nothing(resources: dict[str, Any], text: str) -> None:
    manager = cgroup.open_manager(f"{PARENT}/bad")
    with pytest.raises(InvalidParameter, match=text):
        manager.create(resources)
    assert not [p for p in manager.paths.values() if os.path.exists(p)]
    cgroup.open_manager(PARENT).delete()


def test_kernel_refusal_carries_the_file_and_leaves_nothing() -> None:
    manager = cgroup.open_manager(f"{PARENT}/bad")
    with pytest.raises(OSError) as caught:
        manager.create({"cpu": {"cpus": "100000"}})
    assert caught.value.filename == f"/sys/fs/cgroup/cpuset{PARENT}/bad/cpuset.cpus"
    assert not [p for p in manager.paths.values() if os.path.exists(p)]
    cgroup.open_manager(PARENT).delete()


def test_huge_range_costs_no_memory(manager: cgroup.Manager) -> None:
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with pytest.raises(OSError):
        manager.create({"cpu": {"cpus": "0-1000000000"}})
    assert time.process_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024


def test_used_group_is_refused(manager: cgroup.Manager) -> None:
    manager.create()
    sleeping(manager)
    with pytest.raises(Conflict, match=r"container's cgroup is not empty: 1 process\(es\) found"):
        cgroup.open_manager(f"{PARENT}/c1").create()


def test_frozen_group_is_refused(manager: cgroup.Manager) -> None:
    manager.create()
    manager.freeze()
    with pytest.raises(Conflict, match="container's cgroup unexpectedly frozen"):
        cgroup.open_manager(f"{PARENT}/c1").create()
    manager.thaw()


def test_prepared_group_is_adopted(manager: cgroup.Manager) -> None:
    """What a pool does: directories and fds first, limits when a container comes."""
    manager.prepare()
    calls = record.start()
    manager.create({"pids": {"limit": 7}})
    record.stop()
    assert not [c for c in calls.records if c[1] == "mkdir"]
    assert manager.stats()["pids"]["limit"] == 7


def test_state_round_trip(manager: cgroup.Manager) -> None:
    manager.create()
    again = cgroup.Manager.from_state(manager.to_state())
    assert again.paths == manager.paths
    again.delete()
    again.delete()  # idempotent
    assert not manager.exists()


def test_start_costs_no_more_system_calls_than_known(manager: cgroup.Manager) -> None:
    """A guard: a probe on the path of a start shows here."""
    cgroup.open_manager(f"{PARENT}/warm").create()
    calls = record.start()
    manager.create({"memory": {"limit": 1 << 26}, "pids": {"limit": 5}})
    record.stop()
    names = [c[1] for c in calls.records]
    assert names.count("mkdir") == len(manager.groups)
    # memory, pids, and the device list: "deny a" and one line a device
    assert names.count("write") == 2 + 1 + 11
    cgroup.open_manager(f"{PARENT}/warm").delete()


def test_relative_path_is_below_our_own_group() -> None:
    own = cgroup.own_cgroups()["memory"]
    manager = cgroup.open_manager("carrel-rel/x")
    assert manager.paths["memory"] == os.path.normpath(f"/sys/fs/cgroup/memory{own}/carrel-rel/x")
    assert cgroup.open_manager("../../../x/../../etc").paths["memory"].endswith(
        os.path.normpath(f"/memory{own}/etc"))
    assert cgroup.open_manager("/../../etc").paths["memory"] == "/sys/fs/cgroup/memory/etc"


def test_mounts_name_every_v1_hierarchy(manager: cgroup.Manager) -> None:
    mounts = manager.mounts()
    assert {m["destination"] for m in mounts} >= {"memory", "cpu", "devices", "pids", "systemd"}
    assert all(m["type"] == "cgroup" for m in mounts)
    assert next(m for m in mounts if m["destination"] == "systemd")["data"] == "name=systemd"
