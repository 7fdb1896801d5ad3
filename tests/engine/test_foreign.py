"""carreld over a real containerd, with runc's shim and with ours: the same engine, by protocol
only."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.foreign import Containerd
from tests.engine.stack import IMAGE, Stack, clean, start_stack
from tests.leakcheck import cgroups_are_plain

pytestmark = [pytest.mark.root, pytest.mark.peers]


@pytest.fixture(scope="module", params=["runc", "carrel"])
def runtime(request: pytest.FixtureRequest) -> str:
    """io.containerd.runc.v2 with runc, which is the default; io.containerd.carrel.v1, which
    that containerd starts cold."""
    return str(request.param)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("foreign")
    layer = Containerd(folder)
    try:
        if runtime == "runc":   # and nothing said
            stack = start_stack(folder, containerd=layer.sock, live_restore=True)
        else:
            stack = start_stack(folder, containerd=layer.sock, live_restore=True,
                                default_runtime=runtime)
        try:
            yield stack
        finally:
            clean(stack)
    finally:
        layer.close()


@pytest.fixture
def stack(foreign: Stack) -> Iterator[Stack]:
    yield foreign
    ids = foreign.out("ps", "-aq").split()
    if ids:
        foreign.docker("rm", "-f", "-v", *ids)


def test_load_and_save(stack: Stack, runtime: str, tmp_path: Path) -> None:
    assert stack.out("images", "--format", "{{.Repository}}:{{.Tag}}") == IMAGE
    assert stack.out("info", "-f", "{{.DefaultRuntime}}") == runtime
    path = tmp_path / "saved.tar"
    stack.docker("save", "-o", str(path), IMAGE)
    with tarfile.open(path) as archive:
        assert {"index.json", "oci-layout"} <= set(archive.getnames())
    stack.docker("tag", IMAGE, "other:1")
    stack.docker("rmi", "other:1")
    assert f"Loaded image: {IMAGE}" in stack.out("load", "-i", str(path))


def test_a_broken_archive_is_told(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "broken.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("x")
        info.size = 3 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    done = stack.docker("load", "-i", str(path), check=False)
    assert done.returncode == 1 and done.stderr.strip()
    assert stack.out("run", "--rm", IMAGE, "echo", "fine") == "fine"


def test_run_exec_logs(stack: Stack) -> None:
    done = stack.docker("run", "--name", "one", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 3",
                        check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert stack.out("logs", "one") == "out"
    stack.docker("run", "-d", "--name", "box", "-e", "A=b", "-m", "64m", IMAGE, "sleep", "100")
    assert stack.out("exec", "box", "sh", "-c", "echo $A; hostname").split() == [
        "b", stack.out("inspect", "-f", "{{.Config.Hostname}}", "box")]
    assert stack.docker("exec", "box", "sh", "-c", "exit 4", check=False).returncode == 4
    assert stack.out("exec", "-i", "box", "cat", stdin="through") == "through"
    assert stack.out("run", "--rm", "-i", IMAGE, "cat", stdin="hello") == "hello"
    missing = stack.docker("run", "--rm", IMAGE, "/no/such", check=False)
    assert missing.returncode == 127 and "no such file or directory" in missing.stderr
    stack.docker("cp", "box:/etc/passwd", "-")
    stack.docker("pause", "box")
    stack.docker("unpause", "box")
    stack.docker("stop", "-t", "0", "box")
    assert stack.out("inspect", "-f", "{{.State.ExitCode}}", "box") == "137"
    stack.docker("start", "box")
    assert stack.out("exec", "box", "echo", "again") == "again"


def test_terminal_limits_and_health(stack: Stack, runtime: str) -> None:
    assert stack.out("run", "--rm", "-t", IMAGE, "tty") == "/dev/pts/0"
    done = stack.docker("run", "--name", "eater", "-m", "16m", "--memory-swap", "16m", IMAGE,
                        "sh", "-c", "x=$(head -c 64000000 /dev/zero | tr '\\0' a)", check=False)
    assert done.returncode == 137
    measured = runtime == "carrel" or cgroups_are_plain()
    if measured:    # the event may come behind the exit's
        _until(lambda: stack.out("inspect", "-f", "{{.State.OOMKilled}}", "eater") == "true")
    stack.docker("run", "-d", "--name", "well", "--health-cmd", "true", "--health-interval",
                 "100ms", "-p", "127.0.0.1::80", IMAGE, "sleep", "1000")
    _until(lambda: stack.out("inspect", "-f", "{{.State.Health.Status}}", "well") == "healthy")
    assert "sleep 1000" in stack.out("top", "well")
    if measured:
        # between two health checks
        _until(lambda: stack.out("stats", "--no-stream", "--format", "{{.PIDs}}", "well") == "1")
    stack.docker("update", "--memory", "64m", "--memory-swap", "64m", "well")
    stack.docker("run", "-d", "--name", "again", "--restart", "on-failure:2", IMAGE, "false")
    _until(lambda: stack.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again")
           == "2 exited")


def test_whose_shim_it_is(stack: Stack, runtime: str) -> None:
    pid = stack.out("run", "-d", IMAGE, "sleep", "1000")
    pid = stack.out("inspect", "-f", "{{.State.Pid}}", pid)
    parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    shim = Path(f"/proc/{parent}/cmdline").read_bytes()
    assert f"containerd-shim-{'runc-v2' if runtime == 'runc' else 'carrel-v1'}".encode() in shim


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_daemon_that_crashed_adopts(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "lives", IMAGE, "sh", "-c",
                 "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")
    stack.docker("run", "-d", "--name", "dies", IMAGE, "sh", "-c", "sleep 2; exit 7")
    pid = stack.out("inspect", "-f", "{{.State.Pid}}", "lives")
    ends = stack.out("inspect", "-f", "{{.State.Pid}}", "dies")
    stack.kill()
    _until(lambda: not os.path.exists(f"/proc/{ends}"))
    stack.start()
    assert stack.out("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "lives") == (
        f"{pid} running")
    # runc's shim has reaped it before it says so
    _until(lambda: stack.out("inspect", "-f", "{{.State.Status}}", "dies") == "exited")
    assert stack.out("inspect", "-f", "{{.State.ExitCode}}", "dies") == "7"
    assert stack.out("exec", "lives", "echo", "still") == "still"
    before = len(stack.out("logs", "lives").split())
    _until(lambda: len(stack.out("logs", "lives").split()) > before)
    stack.restart(signal.SIGTERM)
    assert stack.out("inspect", "-f", "{{.State.Pid}}", "lives") == pid
    stack.docker("kill", "lives")
    assert stack.out("wait", "lives") == "137"
    assert subprocess.run(["ps", "-o", "pid=", "-p", pid], capture_output=True,
                          check=False).stdout == b""
