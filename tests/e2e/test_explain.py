"""``carrel run --explain``: the seven steps, with the calls that were really made."""

from __future__ import annotations

import json

from tests.e2e.engine import BIN, Cli, Stack


def _carrel(stack: Stack) -> Cli:
    return stack.cli(str(BIN / "carrel"))


def test_the_seven_steps(stack: Stack) -> None:
    cli = _carrel(stack)
    out = cli.ok("run", "--rm", "--explain", "busybox", "echo", "said")
    assert "said\n" in out
    for n in range(1, 8):
        assert f"─ {n} " in out, f"step {n} is missing"
    for call in ("POST /containers/create", "Tasks.Create", "pivot_root", "clone", "netlink",
                 "cgroup", "seccomp"):
        assert call in out, f"{call} is missing"


def test_the_record_afterwards(stack: Stack) -> None:
    cli = _carrel(stack)
    try:
        cli.ok("run", "-d", "--name", "told", "--explain", "busybox", "sleep", "1000")
        record = json.loads(cli.ok("explain", "--format", "json", "told"))
        calls = [call for step in record["steps"] for call in step["calls"]]
        assert record["dropped"] == 0
        assert all(call["start_ns"] > 0 and call["ns"] >= 0 for call in calls)
        mounts = [call["args"] for call in calls if call["call"] == "mount"]
        assert any("overlay" in args for args in mounts)
        cli.ok("run", "-d", "--name", "untold", "busybox", "sleep", "1000")
        assert "was not started with --explain" in cli.fails("explain", "untold").err
        assert "No such container" in cli.fails("explain", "nobody").err
    finally:
        cli.run("rm", "-f", "told", "untold")
