"""Limits of a container as its processes meet them: on cgroup v1 here, on v2 and
with systemd in the guest of ``make vm-test``."""

from __future__ import annotations

import json
import os
import time

import pytest

from tests.runtime.conftest import Bundle

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SYSTEMD = os.path.isdir("/run/systemd/system")
SLOW = 300 if os.environ.get("CARREL_IN_VM") else 20
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(900)]

LIMITS = {"memory": {"limit": 64 << 20}, "pids": {"limit": 40},
          "cpu": {"quota": 50000, "period": 100000, "shares": 512},
          "devices": [{"allow": False, "access": "rwm"}]}
FILES = (("memory.max", "cpu.max", "cpu.weight", "pids.max"),
         ("memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us", "cpu/cpu.shares",
          "pids/pids.max"))
VALUES = (["67108864", "50000 100000", "59", "40"], ["67108864", "50000", "512", "40"])


def own_cgroups(bundle: Bundle) -> None:
    """A cgroup namespace, so that /sys/fs/cgroup shows the container's own groups."""
    spaces = bundle.spec["linux"]["namespaces"]
    if {"type": "cgroup"} not in spaces:
        spaces.append({"type": "cgroup"})


def test_limits_are_seen_inside(bundle: Bundle) -> None:
    own_cgroups(bundle)
    bundle.spec["linux"]["resources"] = LIMITS
    names = [f"/sys/fs/cgroup/{name}" for name in FILES[0 if V2 else 1]]
    bundle.args("cat", *names).write()
    done = bundle.cli("run", bundle.id, timeout=SLOW)
    assert done.stdout.splitlines() == VALUES[0 if V2 else 1], done.stderr


def test_out_of_memory_is_exit_137(bundle: Bundle) -> None:
    bundle.spec["linux"]["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20},
                                         "devices": LIMITS["devices"]}
    bundle.args("sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done").write()
    assert bundle.cli("run", bundle.id, timeout=SLOW).returncode == 137


def test_devices_that_are_not_listed(bundle: Bundle) -> None:
    bundle.spec["linux"]["devices"] = [{"path": "/dev/log2", "type": "c", "major": 1, "minor": 11}]
    bundle.spec["linux"]["resources"] = LIMITS
    bundle.args("sh", "-c", "head -c0 /dev/zero && echo zero; head -c0 /dev/log2 && echo log"
                ).write()
    done = bundle.cli("run", bundle.id, timeout=SLOW)
    assert done.stdout == "zero\n"
    assert "Operation not permitted" in done.stderr


def _life(bundle: Bundle, *options: str) -> None:
    bundle.spec["linux"]["resources"] = LIMITS
    bundle.args("sleep", "3000").write()

    def call(*words: str) -> str:
        done = bundle.cli(*options, *words, timeout=SLOW)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # the container would hold our pipe
    assert bundle.cli(*options, "run", "-d", bundle.id, timeout=SLOW, capture_output=False
                      ).returncode == 0
    stats = json.loads(call("events", "--stats", bundle.id))["data"]
    assert stats["pids"]["limit"] == 40
    assert stats["memory"]["usage"]["limit"] == 64 << 20
    call("pause", bundle.id)
    assert json.loads(call("state", bundle.id))["status"] == "paused"
    call("resume", bundle.id)
    call("update", "--memory", "96M", "--pids-limit", "60", bundle.id)
    stats = json.loads(call("events", "--stats", bundle.id))["data"]
    assert stats["pids"]["limit"] == 60
    assert stats["memory"]["usage"]["limit"] == 96 << 20
    assert call("exec", bundle.id, "echo", "inside") == "inside\n"
    deadline = time.monotonic() + SLOW
    while len(call("ps", "-f", "json", bundle.id).split(",")) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(json.loads(call("ps", "-f", "json", bundle.id))) == 1
    call("kill", bundle.id, "KILL")
    while json.loads(call("state", bundle.id))["status"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    call("delete", bundle.id)


def test_life_with_limits(bundle: Bundle) -> None:
    _life(bundle)


@pytest.mark.skipif(not SYSTEMD, reason="systemd is not PID 1 here")
def test_life_in_a_systemd_scope(bundle: Bundle) -> None:
    bundle.spec["linux"]["cgroupsPath"] = f"carrel-test.slice:carrel:{bundle.id}"
    _life(bundle, "--systemd-cgroup")
    assert not os.path.exists(
        f"/sys/fs/cgroup/carrel.slice/carrel-test.slice/carrel-{bundle.id}.scope")
