"""Each step of a start fails once: nothing is left behind, the error says where."""

from __future__ import annotations

import os
from typing import Any

import pytest

from carrel.kernel import syscalls
from carrel.kernel.fake import FailingKernel, FakeKernel
from carrel.kernel.plan import run as run_plan
from carrel.runtime import api, planner, template
from carrel.runtime.view import View
from tests.runtime.conftest import Bundle


class SilentReport:
    """Where the child's messages go when there is no parent."""

    def ask(self, kind: bytes) -> None: ...

    def send_terminal(self, master: int) -> None: ...


def plan(spec: dict[str, Any]) -> tuple[list[Any], View]:
    view = View()
    view.report = SilentReport()
    first, second = planner.plan_mounts(spec, view, "/bundle/rootfs", None, "/bundle", lambda: [])
    before, after, _ = planner.plan_identity(spec["process"], view, [b"HOME=/"])
    return [*first, *second, *before, *after], view


def without_limits() -> dict[str, Any]:
    spec = template.default_spec()
    spec["process"]["terminal"] = False
    return spec


def test_planning_makes_no_call_and_describes_itself() -> None:
    operations, _ = plan(without_limits())
    for operation in operations:
        assert operation.describe()
        assert operation.describe()[0].islower()
        operation.shell()
    assert len(operations) > 20


def test_the_plan_runs_without_root_and_in_the_order_of_the_design() -> None:
    kernel = FakeKernel()
    operations, _ = plan(without_limits())
    run_plan([o for o in operations if type(o).__name__ != "OwnStdio"], kernel)
    names = kernel.names()
    for earlier, later in (("move_mount", "pivot_root"), ("pivot_root", "setsid"),
                           ("setsid", "setrlimit"), ("setrlimit", "setgroups"),
                           ("setgroups", "setresgid"), ("setresgid", "setresuid")):
        assert names.index(earlier) < names.index(later), (earlier, later)
    assert "mount" not in names, "a path-based mount on the container's side"
    # everything that resolved a path of the container did it inside its root
    for name, args in kernel.calls:
        if name == "openat2" and args[1] not in ("1/oom_score_adj",):
            assert args[3] == syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


def test_paths_that_are_not_there_are_not_masked() -> None:
    spec = without_limits()
    spec["linux"]["maskedPaths"] = ["/proc/acpi", "/proc/kcore"]
    kernel = FakeKernel(missing=("/proc/acpi",), stats={"proc/kcore": (0o100400, 0)})
    operations, view = plan(spec)
    view.null_fd = 3
    for operation in operations:
        if type(operation).__name__ == "MaskPaths":
            operation.execute(kernel)
    assert [a[0] for n, a in kernel.calls if n == "open_tree"] == [3]
    assert kernel.names().count("move_mount") == 1


def test_every_call_of_the_plan_can_fail_and_says_so() -> None:
    operations, _ = plan(without_limits())
    runnable = [o for o in operations if type(o).__name__ not in ("OwnStdio", "FindHome")]
    counter = FakeKernel()
    run_plan(runnable, counter)
    total = sum(n not in ("close", "fstat", "lstatat", "fstatfs_type", "getcwd")
                for n in counter.names())
    failed = 0
    for number in range(1, total + 1):
        operations, _ = plan(without_limits())
        runnable = [o for o in operations if type(o).__name__ not in ("OwnStdio", "FindHome")]
        try:
            run_plan(runnable, FakeKernel(fail_at=number, error=12))
        except OSError as error:
            assert error.errno == 12
            assert getattr(error, "carrel_step", "")
            failed += 1
    assert failed == total


def children() -> str:
    """Of this thread, dead ones that nobody waited for included."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        return file.read()


@pytest.mark.root
def test_a_real_start_that_fails_anywhere_leaves_nothing(bundle: Bundle, leak_check: None) -> None:
    bundle.args("true").write()
    folder = str(bundle.folder)
    fds = set(os.listdir("/proc/self/fd"))
    others = children()
    number, failures = 1, 0
    while True:
        kernel = FailingKernel(number)
        try:
            made = api.create(bundle.id, folder, bundle.root, kernel=kernel,
                              stdio=(-1, -1, -1))
        except OSError as error:
            failures += 1
            assert error.errno == 5, error
            assert not os.path.exists(f"{bundle.root}/{bundle.id}"), number
            assert children() == others
            number += 1 + number // 12  # all of the first, then a sample
            continue
        try:
            made.start()
        except OSError as error:  # one of the last steps, after the wait for start
            assert number < 1000 and error.errno == 5
        os.waitpid(made.pid, 0)
        made.delete()
        if number > 1000:
            break
        number = 1001 if number > 400 else number + 5
    assert failures > 25
    assert len(set(os.listdir("/proc/self/fd")) - fds) == 0
