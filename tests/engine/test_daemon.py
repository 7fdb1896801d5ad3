"""The daemon's life: crashes, restarts, two of them, and what containers notice of it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    own.docker("run", "-d", "--name", "dies", IMAGE, "sh", "-c", "sleep 0.5; exit 7")
    own.docker("run", "-d", "--rm", "--name", "goes", IMAGE, "sleep", "0.5")
    pid = own.out("inspect", "-f", "{{.State.Pid}}", "lives")
    own.kill()
    time.sleep(1.0)
    own.start()
    assert own.out("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "lives") == (
        f"{pid} running")
    assert own.out("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "dies") == "7 exited"
    deadline = time.monotonic() + 5
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
        deadline = time.monotonic() + 10
        while set(stack.out("ps", "--format", "{{.Names}}").split()) != {"ever", "unless"}:
            assert time.monotonic() < deadline, stack.out("ps", "-a")
            time.sleep(0.05)
        assert stack.out("inspect", "-f", "{{.State.Status}}", "no") == "exited"
    finally:
        clean(stack)


def test_a_second_daemon_is_refused(own: Stack) -> None:
    done = subprocess.run([str(CARRELD), "--data-root", str(own.data_root), "--exec-root",
                           "/run/other"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "another carreld works on" in done.stderr
    assert own.out("info", "-f", "{{.ID}}")


def test_containerd_layer_comes_back(own: Stack) -> None:
    own.docker("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    pids = subprocess.run(["pgrep", "-P", str(own.pid), "-f", "carrel-containerd"], text=True,
                          capture_output=True, check=True).stdout.split()
    subprocess.run(["kill", "-9", pids[0]], check=True)
    deadline = time.monotonic() + 15
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
                              timeout=20, check=False)
        return done.returncode, done.stderr

    code, text = run("-H", "tcp://127.0.0.1:23755")
    assert code == 1 and "without TLS" in text and "--allow-insecure-tcp" in text
    code, text = run("--no-such-flag")
    assert code == 125 and "--no-such-flag" in text
    code, text = run("--log-driver", "fluentd")
    assert code == 1 and "no log driver named 'fluentd'" in text
    assert run("--validate")[0] == 0


def test_reload(own: Stack) -> None:
    own.stop()
    file = own.data_root.parent / "daemon.json"
    file.write_text(json.dumps({"labels": ["a=1"]}))
    own.flags = [*own.flags, "--config-file", str(file)]
    own.start()
    assert own.out("info", "-f", "{{.Labels}}") == "[a=1]"
    file.write_text(json.dumps({"labels": ["a=2"]}))
    subprocess.run(["kill", f"-{int(signal.SIGHUP)}", str(own.pid)], check=True)
    deadline = time.monotonic() + 5
    while own.out("info", "-f", "{{.Labels}}") != "[a=2]":
        assert time.monotonic() < deadline
