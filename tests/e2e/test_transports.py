"""A day's work, over each way to the containerd layer: inside carreld, carrel-containerd by
gRPC, and a real containerd 2.1 with its own shim and runc."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import DOCKER_NEW
from tests.e2e.engine import Cli, OverContainerd, Stack
from tests.leakcheck import cgroups_are_plain

pytestmark = pytest.mark.transports
COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_run_and_its_streams(docker: Cli) -> None:
    done = docker.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    text = "".join(f"line {n}\n" for n in range(20000))
    assert docker.ok("run", "--rm", "-i", "busybox", "cat", stdin=text) == text
    assert docker.run("run", "--rm", "busybox", "no-such").code == 127
    assert docker.run("run", "--rm", "busybox", "/etc").code == 126
    assert docker.ok("run", "--rm", "-t", "busybox", "tty").strip() == "/dev/pts/0"


def measured(stack: Stack) -> bool:
    """Does the shim of this stack know of its container's cgroup?"""
    return cgroups_are_plain() or not isinstance(stack, OverContainerd)


def test_logs_exec_and_the_end(stack: Stack, docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "d1", "busybox", "sh", "-c",
              "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    until(lambda: docker.ok("logs", "d1") == "ready\n")
    assert docker.ok("exec", "-i", "d1", "cat", stdin="typed\n") == "typed\n"
    assert docker.run("exec", "d1", "sh", "-c", "exit 9").code == 9
    assert docker.run("exec", "d1", "no-such").code == 127
    assert docker.ok("exec", "-t", "d1", "tty").strip().startswith("/dev/pts/")
    assert "sleep" in docker.ok("top", "d1")
    docker.ok("pause", "d1")
    assert docker.inspect("d1")["State"]["Status"] == "paused"
    docker.ok("unpause", "d1")
    if measured(stack):
        stats = json.loads(docker.ok("stats", "--no-stream", "--format", "{{json .}}", "d1"))
        assert int(stats["PIDs"]) >= 1
    docker.ok("update", "--memory", "64m", "--memory-swap", "64m", "d1")
    docker.ok("stop", "d1")
    assert docker.inspect("d1")["State"]["ExitCode"] == 5
    docker.ok("start", "d1")
    docker.ok("kill", "d1")
    assert docker.ok("wait", "d1").strip() == "137"
    docker.ok("rm", "d1")


def test_files_and_images(docker: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("content\n")
    docker.ok("run", "-d", "--name", "f1", "-v", "vol:/bin/data", "busybox", "sleep", "1000")
    docker.ok("cp", str(tmp_path / "in"), "f1:/there")
    assert docker.ok("exec", "f1", "cat", "/there") == "content\n"
    assert "A /there" in docker.ok("diff", "f1")
    docker.ok("commit", "-c", "CMD cat /there", "f1", "made:1")
    assert docker.ok("run", "--rm", "made:1") == "content\n"
    docker.ok("save", "-o", str(tmp_path / "made.tar"), "made:1")
    docker.ok("rmi", "made:1")
    docker.ok("load", "-i", str(tmp_path / "made.tar"))
    assert docker.ok("run", "--rm", "made:1") == "content\n"
    docker.ok("rmi", "made:1")
    docker.ok("rm", "-f", "-v", "f1")
    docker.ok("volume", "rm", "-f", "vol")


def test_network(docker: Cli) -> None:
    server = "mkdir -p /www; echo page > /www/index.html; httpd -f -p 80 -h /www"
    docker.ok("network", "create", "n1")
    docker.ok("run", "-d", "--name", "web", "--network", "n1", "-p", "127.0.0.1:18081:80",
              "busybox", "sh", "-c", server)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            return bool(opener.open("http://127.0.0.1:18081/", timeout=3).read() == b"page\n")
        except OSError:
            return False
    until(answers)
    assert docker.ok("run", "--rm", "--network", "n1", "busybox", "wget", "-qO-", "http://web/"
                     ) == "page\n"
    docker.ok("rm", "-f", "web")
    docker.ok("network", "rm", "n1")


def test_limits(stack: Stack, docker: Cli) -> None:
    done = docker.run("run", "--name", "eater", "-m", "16m", "--memory-swap", "16m", "busybox",
                      "sh", "-c", "x=$(head -c 64000000 /dev/zero | tr '\\0' a)")
    assert done.code == 137
    if measured(stack):     # the event may come behind the exit's
        until(lambda: docker.inspect("eater")["State"]["OOMKilled"] is True)
    out = docker.ok("run", "--rm", "--read-only", "--cap-drop", "ALL", "--pids-limit", "50",
                    "-u", "1000:1000", "busybox", "sh", "-c",
                    "id -u; grep CapBnd /proc/self/status | cut -f2; grep Seccomp: "
                    "/proc/self/status | cut -f2; touch /x 2>&1 | grep -c Read-only")
    assert out.split() == ["1000", "0" * 16, "2", "1"]


def test_restart_policy_and_health(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox",
              "sh", "-c", "exit 1")
    docker.ok("run", "-d", "--name", "well", "--health-cmd", "true", "--health-interval", "100ms",
              "busybox", "sleep", "1000")
    until(lambda: docker.inspect("well")["State"]["Health"]["Status"] == "healthy")
    until(lambda: (docker.inspect("again")["RestartCount"],
                   docker.inspect("again")["State"]["Status"]) == (2, "exited"))


def test_carreld_is_replaced(stack: Stack) -> None:
    """kill -9, and a new one: containers, their logs, execs and exits go on."""
    docker = stack.cli(DOCKER_NEW[1]())
    docker.ok("run", "-d", "--name", "alive", "busybox", "sh", "-c", COUNTER)
    docker.ok("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 2; exit 7")
    pid = docker.inspect("alive")["State"]["Pid"]
    ends = docker.inspect("ends")["State"]["Pid"]
    stack.kill()
    until(lambda: not os.path.exists(f"/proc/{ends}"))
    stack.start()
    # runc's shim has reaped it before it says so
    until(lambda: docker.inspect("ends")["State"]["Status"] != "running")
    assert docker.inspect("alive")["State"]["Pid"] == pid
    state = docker.inspect("ends")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    assert docker.ok("exec", "alive", "echo", "here") == "here\n"
    before = docker.ok("logs", "alive").split()
    until(lambda: len(docker.ok("logs", "alive").split()) > len(before))
    lines = [int(n) for n in docker.ok("logs", "alive").split()]
    assert lines == list(range(1, len(lines) + 1))
    docker.ok("rm", "-f", "alive", "ends")
