"""cgroup v2 on the real kernel: all of it in the guest of ``make vm-test``, and on
a hybrid machine what belongs to the hierarchy itself."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from carrel.errdefs import Conflict
from carrel.kernel import cgroup, ebpf
from carrel.kernel.cgroup_v2 import ManagerV2
from tests.leakcheck import cgroup_parent

ROOT = next((p for p in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
             if os.path.exists(f"{p}/cgroup.controllers")), "")
PARENT = cgroup_parent("v2")
#: children of the test that runs
STARTED: list[int] = []
pytestmark = [pytest.mark.root, pytest.mark.vm,
              pytest.mark.skipif(not ROOT, reason="no cgroup v2 hierarchy is mounted")]


def controllers() -> set[str]:
    if not ROOT:
        return set()
    with open(f"{ROOT}/cgroup.controllers") as file:
        return set(file.read().split())


def needs(*names: str) -> pytest.MarkDecorator:
    missing = set(names) - controllers()
    return pytest.mark.skipif(bool(missing), reason=f"cgroup v2 has no {', '.join(missing)} here")


@pytest.fixture
def manager() -> Iterator[ManagerV2]:
    with open(f"{ROOT}/cgroup.subtree_control") as file:
        enabled = set(file.read().split())
    manager = ManagerV2(f"{PARENT}/c1", f"{ROOT}{PARENT}/c1", ROOT)
    yield manager
    manager.kill_all(signal.SIGKILL)
    while STARTED:
        with contextlib.suppress(ChildProcessError):  # the test waited for it
            os.waitpid(STARTED.pop(), 0)
    manager.delete()
    ManagerV2(PARENT, f"{ROOT}{PARENT}", ROOT).delete()
    if ROOT.endswith("unified"):  # give back what v1 may want
        for name in controllers() - enabled:
            with open(f"{ROOT}/cgroup.subtree_control", "w") as control:
                control.write(f"-{name}")


def child(manager: ManagerV2, work: Callable[[], int]) -> int:
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


def sleeping(manager: ManagerV2) -> int:
    def work() -> int:
        time.sleep(60)
        return 0
    return child(manager, work)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_joins(manager: ManagerV2) -> None:
    manager.create()
    pid = sleeping(manager)
    with open(f"/proc/{pid}/cgroup") as file:
        assert f"0::{PARENT}/c1" in file.read().splitlines()
    assert manager.pids() == [pid]
    assert manager.stats()["pids"]["current"] == 1


@pytest.mark.skipif(ROOT != "/sys/fs/cgroup", reason="not a pure cgroup v2 machine")
def test_open_manager_chooses_v2() -> None:
    manager = cgroup.open_manager(f"{PARENT}/c1")
    assert isinstance(manager, ManagerV2)
    assert manager.paths == {"": f"{ROOT}{PARENT}/c1"}
    own = cgroup.own_cgroups()[""]
    relative = cgroup.open_manager("x")
    assert relative.paths[""] == os.path.normpath(f"{ROOT}/{os.path.dirname(own)}/x")


def test_clone_into(manager: ManagerV2) -> None:
    """clone3 with CLONE_INTO_CGROUP by the manager's fd."""
    import ctypes
    manager.create()
    arguments = (ctypes.c_uint64 * 11)(0x200000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0,
                                       manager.clone_fd)
    pid = ctypes.CDLL(None).syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        manager.join_self(cloned=True)
        time.sleep(60)
        os._exit(0)
    assert manager.pids() == [pid]


def test_freeze_and_thaw(manager: ManagerV2) -> None:
    manager.create()
    beat, pulse = os.pipe()
    os.set_blocking(beat, False)

    def work() -> int:
        while True:
            os.write(pulse, b".")
            time.sleep(0.002)
    child(manager, work)
    assert select.select([beat], [], [], 5)[0]
    manager.freeze()
    assert manager.frozen()
    os.read(beat, 65536)
    assert not select.select([beat], [], [], 0.05)[0]
    manager.thaw()
    assert not manager.frozen()
    assert select.select([beat], [], [], 5)[0]
    os.close(beat)
    os.close(pulse)


def test_kill_reaches_groups_below(manager: ManagerV2) -> None:
    manager.create()
    pid, deep = sleeping(manager), sleeping(manager)
    os.mkdir(f"{manager.paths['']}/below")
    manager.add(deep, "below")
    assert set(manager.pids()) == {pid, deep}
    assert manager.pids(all=False) == [pid]
    manager.kill_all(signal.SIGKILL)
    assert wait(pid) == wait(deep) == -signal.SIGKILL
    assert not manager.populated()


def test_signal_is_what_was_asked(manager: ManagerV2) -> None:
    manager.create()
    pid = sleeping(manager)
    manager.kill_all(signal.SIGTERM)
    assert wait(pid) == -signal.SIGTERM


def test_devices_by_ebpf(manager: ManagerV2) -> None:
    manager.create({"devices": [{"allow": False, "access": "rwm"}]})

    def can(path: str, flags: int = os.O_RDONLY) -> int:
        def work() -> int:
            os.close(os.open(path, flags))
            return 0
        return wait(child(manager, work))

    assert can("/dev/zero") == 0
    assert can("/dev/kmsg") == errno.EPERM
    kmsg = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    manager.update({"devices": [{"allow": False, "access": "rwm"}, kmsg]})
    assert can("/dev/kmsg") == 0
    assert can("/dev/kmsg", os.O_RDWR) == errno.EPERM
    manager.update({"devices": [{"allow": True, "access": "rwm"}, {**kmsg, "allow": False}]})
    assert can("/dev/kmsg") == errno.EPERM
    manager.update({"devices": [{"allow": True, "access": "rwm"}]})
    assert can("/dev/kmsg", os.O_RDWR) == 0
    fd = os.open(manager.paths[""], os.O_RDONLY)
    try:
        assert len(ebpf.attached(fd)) == 1
    finally:
        os.close(fd)


def test_used_and_frozen_groups_are_refused(manager: ManagerV2) -> None:
    manager.create()
    pid = sleeping(manager)
    again = ManagerV2(manager.path, manager.paths[""], ROOT)
    with pytest.raises(Conflict, match=r"not empty: 1 process\(es\) found"):
        again.create()
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    manager.freeze()
    with pytest.raises(Conflict, match="unexpectedly frozen"):
        again.create()
    manager.thaw()
    assert manager.exists()


def test_state_round_trip_and_idempotent_delete(manager: ManagerV2) -> None:
    manager.create()
    again = cgroup.Manager.from_state(manager.to_state())
    assert again.paths == manager.paths
    again.delete()
    again.delete()
    assert not manager.exists()


def test_missing_controller_is_named(manager: ManagerV2) -> None:
    with pytest.raises(OSError) as caught:
        manager.create({"rdma": {"no-such-card": {"hcaHandles": 3}}})
    assert "rdma.max" in str(caught.value)
    assert not manager.exists()


@needs("hugetlb")
def test_hugetlb(manager: ManagerV2) -> None:
    manager.create({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
    with open(f"{manager.paths['']}/hugetlb.2MB.max") as file:
        assert int(file.read()) == 4 << 20
    assert manager.stats()["hugetlb"]["2MB"]["usage"] == 0


@needs("memory")
def test_memory_limit_kills(manager: ManagerV2) -> None:
    manager.create({"memory": {"limit": 16 << 20, "swap": 16 << 20, "reservation": 8 << 20}})
    event = manager.oom_fd()
    assert not select.select([event], [], [], 0)[0]
    pid = child(manager, lambda: len(bytearray(b"x") * (64 << 20)) & 1)
    assert wait(pid) == -signal.SIGKILL
    assert manager.oom_count() == 1
    assert select.select([event], [], [], 5)[0]
    os.close(event)
    stats = manager.stats()
    assert stats["memory"]["usage"]["limit"] == 16 << 20
    assert stats["oom"]["oom_kill"] == 1 and stats["memory"]["usage"]["failcnt"] > 0
    with open(f"{manager.paths['']}/memory.swap.max") as file:
        assert file.read().strip() == "0"


@needs("pids")
def test_pids_limit_refuses_fork(manager: ManagerV2) -> None:
    manager.create({"pids": {"limit": 1}})

    def work() -> int:
        if os.fork() == 0:
            os._exit(0)
        return 0
    assert wait(child(manager, work)) == errno.EAGAIN
    manager.update({"pids": {"limit": -1}})
    assert manager.stats()["pids"]["limit"] == 0


@needs("cpu")
def test_cpu_quota_throttles(manager: ManagerV2) -> None:
    manager.create({"cpu": {"quota": 5000, "period": 50000, "shares": 512}})

    def work() -> int:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        return 0
    assert wait(child(manager, work)) == 0
    assert manager.stats()["cpu"]["throttling"]["throttledPeriods"] >= 2
    with open(f"{manager.paths['']}/cpu.weight") as file:
        assert file.read().strip() == "59"


@needs("cpuset")
def test_cpuset(manager: ManagerV2) -> None:
    manager.create({"cpu": {"cpus": "0", "mems": "0"}})
    assert wait(child(manager, lambda: 10 + len(os.sched_getaffinity(0)))) == 11
    assert manager.stats()["cpuset"]["cpus"] == [0]


@needs("memory")
def test_unified(manager: ManagerV2) -> None:
    manager.create({"unified": {"memory.high": "10485760", "pids.max": "44"}})
    with open(f"{manager.paths['']}/memory.high") as file:
        assert file.read().strip() == "10485760"
    assert manager.stats()["pids"]["limit"] == 44
