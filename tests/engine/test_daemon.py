"""The daemon's life: crashes, restarts, two of them, and what containers notice of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carrel.engine.events import HISTORY, EventBus
from carrel.engine.filters import Filters
from tests.engine.rawhttp import call
from tests.engine.stack import CARRELD, IMAGE, Stack, clean, start_stack

pytestmark = pytest.mark.root


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    stack = start_stack(tmp_path, live_restore=True)
    yield stack
    clean(stack)


def test_containers_survive_a_crash(own: Stack) -> None:
    own.docker("run", "-d", "--name", "lives", IMAGE, "sh", "-c",
               "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")
    own.docker("run", "-d", "--name", "dies", IMAGE, "sh", "-c", "sleep 2; exit 7")
    own.docker("run", "-d", "--rm", "--name", "goes", IMAGE, "sleep", "2")
    pid = own.out("inspect", "-f", "{{.State.Pid}}", "lives")
    ends = [own.out("inspect", "-f", "{{.State.Pid}}", name) for name in ("dies", "goes")]
    own.kill()
    _until(lambda: not any(os.path.exists(f"/proc/{ended}") for ended in ends), own)
    own.start()
    assert own.out("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "lives") == (
        f"{pid} running")
    assert own.out("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "dies") == "7 exited"
    deadline = time.monotonic() + 30
    while "goes" in own.out("ps", "-a", "--format", "{{.Names}}"):
        assert time.monotonic() < deadline
    assert own.out("exec", "lives", "echo", "still") == "still"
    own.docker("stop", "-t", "0", "lives")
    numbers = [int(n) for n in own.out("logs", "lives").split()]
    assert numbers == list(range(1, len(numbers) + 1))  # no line lost, none twice
    died = own.out("events", "--since", "1h", "--until", str(time.time()), "--filter", "event=die",
                   "--filter", "container=dies", "--format", "{{.Action}}")
    assert died == "die"


def test_stop_takes_containers_down_and_policies_bring_them_back(tmp_path: Path) -> None:
    stack = start_stack(tmp_path)
    try:
        for name, policy in (("ever", "always"), ("unless", "unless-stopped"), ("no", "no")):
            stack.docker("run", "-d", "--name", name, "--restart", policy, "--stop-timeout", "0",
                         IMAGE, "sleep", "1000")
        stack.docker("run", "-d", "--name", "stopped", "--restart", "unless-stopped", IMAGE,
                     "sleep", "1000")
        stack.docker("stop", "-t", "0", "stopped")
        assert stack.stop() == 0
        stack.start()
        deadline = time.monotonic() + 30
        while set(stack.out("ps", "--format", "{{.Names}}").split()) != {"ever", "unless"}:
            assert time.monotonic() < deadline, stack.out("ps", "-a")
            time.sleep(0.05)
        assert stack.out("inspect", "-f", "{{.State.Status}}", "no") == "exited"
    finally:
        clean(stack)


def test_a_second_daemon_is_refused(own: Stack) -> None:
    done = subprocess.run([str(CARRELD), "--data-root", str(own.data_root), "--exec-root",
                           "/run/other"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "another carreld works on" in done.stderr
    assert own.out("info", "-f", "{{.ID}}")


def test_containerd_layer_comes_back(own: Stack) -> None:
    own.docker("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    pids = subprocess.run(["pgrep", "-P", str(own.pid), "-f", "carrel-containerd"], text=True,
                          capture_output=True, check=True).stdout.split()
    subprocess.run(["kill", "-9", pids[0]], check=True)
    deadline = time.monotonic() + 30
    while own.docker("exec", "box", "true", check=False).returncode:
        assert time.monotonic() < deadline, own.log()[-2000:]
        time.sleep(0.1)
    assert own.out("run", "--rm", IMAGE, "echo", "new") == "new"
    own.docker("kill", "box")
    assert own.out("wait", "box") == "137"


def test_refused_settings(tmp_path: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        done = subprocess.run([str(CARRELD), "--data-root", str(tmp_path / "d"), "--exec-root",
                               "/run/refused", *flags], capture_output=True, text=True,
                              timeout=60, check=False)
        return done.returncode, done.stderr

    code, text = run("-H", "tcp://127.0.0.1:23755")
    assert code == 1 and "without TLS" in text and "--allow-insecure-tcp" in text
    code, text = run("--no-such-flag")
    assert code == 125 and "--no-such-flag" in text
    code, text = run("--log-driver", "fluentd")
    assert code == 1 and "no log driver named 'fluentd'" in text
    assert run("--validate")[0] == 0


def _until(condition: Callable[[], bool], stack: Stack, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, stack.log()[-3000:]
        time.sleep(0.05)


def _hang_up(stack: Stack) -> None:
    subprocess.run(["kill", f"-{int(signal.SIGHUP)}", str(stack.pid)], check=True)


def test_reload(own: Stack) -> None:
    own.stop()
    file = own.data_root.parent / "daemon.json"
    file.write_text(json.dumps({"labels": ["a=1"]}))
    own.flags = [*own.flags, "--config-file", str(file)]
    own.start()
    assert own.out("info", "-f", "{{.Labels}}") == "[a=1]"
    file.write_text(json.dumps({"labels": ["a=2"], "default-shm-size": "8m", "mtu": 1400}))
    _hang_up(own)
    _until(lambda: own.out("info", "-f", "{{.Labels}}") == "[a=2]", own)
    assert own.out("run", "--rm", IMAGE, "sh", "-c", "df -k /dev/shm | tail -1 | awk '{print $2}'"
                   ) == "8192"
    assert "mtu has changed, which takes effect at the next start" in own.log()
    file.write_text("{}")  # what is no longer said is as it was
    _hang_up(own)
    _until(lambda: own.out("info", "-f", "{{.Labels}}") == "[]", own)
    file.write_text(json.dumps({"labels": ["a=3"], "bogus": 1}))
    _hang_up(own)
    _until(lambda: "bogus" in own.log(), own)
    assert own.out("info", "-f", "{{.Labels}}") == "[]"


def test_stopping_gives_each_container_its_time(tmp_path: Path) -> None:
    """In parallel; not less than it asked for, whatever --shutdown-timeout says."""
    stack = start_stack(tmp_path, shutdown_timeout="1")
    try:
        for name, timeout, script in (
                ("patient", "5", "trap 'sleep 2; echo bye; exit 0' TERM; "),
                ("deaf1", "1", "trap '' TERM; "), ("deaf2", "1", "trap '' TERM; ")):
            stack.docker("run", "-d", "--name", name, "--stop-timeout", timeout, "--restart",
                         "on-failure", IMAGE, "sh", "-c",
                         f"{script}echo ready; while :; do sleep 0.1; done")
            _until(lambda name=name: "ready" in stack.out("logs", name), stack)  # type: ignore[misc]
        stack.docker("pause", "deaf2")
        began = time.monotonic()
        assert stack.stop() == 0
        assert 1.9 < time.monotonic() - began < 20
        stack.start()
        assert stack.out("logs", "patient").split() == ["ready", "bye"]
        assert stack.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "patient") == (
            "exited 0")
        # killed is a failure: the policy has them started again
        _until(lambda: set(stack.out("ps", "--format", "{{.Names}}").split()) == {
            "deaf1", "deaf2"}, stack)
    finally:
        clean(stack)


def test_live_restore_leaves_containers_alone(own: Stack) -> None:
    own.docker("run", "-d", "--name", "box", "--restart", "always", IMAGE, "sh", "-c",
               "trap 'exit 9' TERM; while :; do sleep 0.1; done")
    pid = own.out("inspect", "-f", "{{.State.Pid}}", "box")
    assert own.stop() == 0
    assert Path(f"/proc/{pid}").exists()
    own.start()
    assert own.out("inspect", "-f", "{{.State.Pid}} {{.RestartCount}}", "box") == f"{pid} 0"


def test_health_checks_go_on_after_a_restart(own: Stack) -> None:
    own.docker("run", "-d", "--name", "box", "--health-cmd", "test ! -e /sick && echo well",
               "--health-interval", "100ms", "--health-retries", "1", IMAGE, "sleep", "1000")

    def status() -> str:
        return own.out("inspect", "-f", "{{.State.Health.Status}}", "box")

    _until(lambda: status() == "healthy", own)
    own.kill()
    own.start()
    assert status() == "healthy"  # not "starting" again
    own.docker("exec", "box", "touch", "/sick")
    _until(lambda: status() == "unhealthy", own)
    own.docker("exec", "box", "rm", "/sick")
    _until(lambda: status() == "healthy", own)


def test_events_of_the_past(own: Stack) -> None:
    own.docker("create", "--name", "n0", IMAGE)
    call(own.sock, "POST", "/containers/n0/rename?name=n1")
    for since in ("0", "10m", str(time.time() - 100)):
        events = own.out("events", "--since", since, "--until", str(time.time()), "--format",
                         "{{.Type}} {{.Action}}", "--filter", "container=n1").splitlines()
        assert "container rename" in events
    assert "container create" in own.out(
        "events", "--since", "0", "--until", str(time.time()), "--format", "{{.Type}} {{.Action}}")


def test_history_of_events_is_bounded() -> None:
    bus = EventBus()
    for number in range(HISTORY + 500):
        bus.publish("container", "create", str(number))

    async def past() -> list[str]:
        return [e["Actor"]["ID"] async for e in bus.listen(Filters(), 0, time.time_ns())]

    assert asyncio.run(past()) == [str(n) for n in range(500, HISTORY + 500)]
