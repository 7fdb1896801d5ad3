"""Daemons die, containers live."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests import images, leakcheck
from tests.e2e.engine import BIN, Stack


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own for each test: it will be broken on purpose, and still
    leaves nothing behind."""
    before = leakcheck.take()
    running = Stack(tmp_path_factory.mktemp("own"))
    running.start()
    archive = running.work / "busybox.tar"
    images.busybox_archive(archive)
    running.cli(str(BIN / "carrel")).ok("load", "-q", "-i", str(archive))
    try:
        yield running
    finally:
        running.stop()
    leaks = leakcheck.wait_until_clean(before, 10)
    assert not leaks, f"left behind: {leaks}"


def _wait(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kill_9_of_carreld(own: Stack) -> None:
    cli = own.cli(str(BIN / "carrel"))
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    cli.ok("run", "-d", "--name", "alive", "busybox", "sh", "-c", script)
    cli.ok("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 1; exit 7")
    pid = cli.inspect("alive")["State"]["Pid"]
    own.kill()
    os.kill(pid, 0)
    time.sleep(1.2)  # "ends" ends while nobody looks
    own.start()
    assert cli.inspect("alive")["State"]["Pid"] == pid
    state = cli.inspect("ends")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    lines = [int(n) for n in cli.ok("logs", "alive").split()]
    assert lines == list(range(1, len(lines) + 1))  # not one byte lost or doubled
    assert cli.ok("exec", "alive", "echo", "still").strip() == "still"
    cli.ok("rm", "-f", "alive", "ends")


def test_kill_9_of_the_containerd_layer(own: Stack) -> None:
    cli = own.cli(str(BIN / "carrel"))
    cli.ok("run", "-d", "--name", "alive2", "busybox", "sleep", "1000")
    pid = cli.inspect("alive2")["State"]["Pid"]
    for victim in own.pids("carrel-containerd"):
        os.kill(victim, signal.SIGKILL)
    _wait(lambda: cli.run("exec", "alive2", "true").code == 0)
    assert cli.inspect("alive2")["State"]["Pid"] == pid
    assert cli.ok("run", "--rm", "busybox", "echo", "new").strip() == "new"
    cli.ok("rm", "-f", "alive2")


def test_kill_9_of_the_zygote(own: Stack) -> None:
    cli = own.cli(str(BIN / "carrel"))
    cli.ok("run", "-d", "--name", "alive3", "busybox", "sleep", "1000")
    killed = 0
    for layer in own.pids("carrel-containerd"):
        with open(f"/proc/{layer}/task/{layer}/children", encoding="ascii") as f:
            children = [int(pid) for pid in f.read().split()]
        for child in children:
            with open(f"/proc/{child}/cmdline", "rb") as f:
                if b"zygote" in f.read():
                    os.kill(child, signal.SIGKILL)
                    killed += 1
    assert killed == 1
    assert cli.ok("run", "--rm", "busybox", "echo", "new").strip() == "new"
    assert cli.ok("exec", "alive3", "echo", "here").strip() == "here"
    cli.ok("rm", "-f", "alive3")


def test_kill_9_of_carreld_in_the_middle_of_twenty_starts(own: Stack) -> None:
    """Whatever each start had reached: after it the names are free and nothing is left."""
    cli = own.cli(str(BIN / "carrel"))
    names = [f"mid-{n}" for n in range(20)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        starts = [pool.submit(cli.run, "run", "-d", "--name", n, "busybox", "sleep", "1000")
                  for n in names]
        _wait(lambda: sum(s.done() for s in starts) >= 4)
        own.kill()
        concurrent.futures.wait(starts)
    assert any(s.result().code for s in starts)     # some were under way
    own.start()
    states = {name: cli.run("inspect", "-f", "{{.State.Status}}", name).out.strip()
              for name in names}
    assert set(states.values()) <= {"running", "created", "exited", ""}
    running = [name for name, state in states.items() if state == "running"]
    assert len(running) >= 4
    for name in running:
        assert cli.ok("exec", name, "echo", "alive") == "alive\n"
    cli.run("rm", "-f", *[name for name, state in states.items() if state])
    assert cli.ok("ps", "-aq") == ""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda n: cli.ok("run", "--rm", "--name", n, "busybox", "echo", n),
                              names))
    assert again == [f"{name}\n" for name in names]


def test_disk_full(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A data root without room: each command ends, with one clear line; with a little room
    again, rm and prune make more."""
    work = tmp_path_factory.mktemp("full")
    data = work / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(data)], check=True)
    stack = Stack(work)
    try:
        stack.start()
        cli = stack.cli(str(BIN / "carrel"))
        images.busybox_archive(work / "busybox.tar")
        cli.ok("load", "-q", "-i", str(work / "busybox.tar"))
        (data / "ballast").write_bytes(bytes(2 << 20))
        done = cli.run("run", "--name", "filler", "busybox", "dd", "if=/dev/zero", "of=/big",
                       "bs=1M")
        assert done.code == 1 and "No space left on device" in done.err
        for argv in (("load", "-i", str(work / "busybox.tar")), ("ps", "-a"),
                     ("create", "--name", "next", "busybox"), ("volume", "create", "vol")):
            refused = cli.run(*argv)
            assert "Traceback" not in refused.err and len(refused.err.splitlines()) < 4
            assert refused.code == 0 or "space" in refused.err.lower() or (
                "full" in refused.err.lower()), refused.err
        (data / "ballast").unlink()
        cli.ok("rm", "-f", "filler")
        cli.ok("container", "prune", "-f")
        assert cli.ok("run", "--rm", "busybox", "echo", "room") == "room\n"
    finally:
        stack.stop()
        subprocess.run(["umount", str(data)], check=True)
