"""Daemons die, containers live."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images, leakcheck
from tests.e2e.engine import BIN, Stack


@pytest.fixture(params=["embedded", "process"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
        ) -> Iterator[Stack]:
    """A stack of its own for each test: it will be broken on purpose, and still
    leaves nothing behind."""
    before = leakcheck.take()
    running = Stack(tmp_path_factory.mktemp("own"), f"--containerd={request.param}")
    running.start()
    archive = running.work / "busybox.tar"
    images.busybox_archive(archive)
    running.cli(str(BIN / "carrel")).ok("load", "-q", "-i", str(archive))
    try:
        yield running
    finally:
        running.stop()
    leaks = leakcheck.wait_until_clean(before, 30)
    assert not leaks, f"left behind: {leaks}"


def _wait(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _gone(pid: int) -> None:
    _wait(lambda: not os.path.exists(f"/proc/{pid}"))


def test_kill_9_of_carreld(own: Stack) -> None:
    cli = own.cli(str(BIN / "carrel"))
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    cli.ok("run", "-d", "--name", "alive", "busybox", "sh", "-c", script)
    cli.ok("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 2; exit 7")
    pid = cli.inspect("alive")["State"]["Pid"]
    ends = cli.inspect("ends")["State"]["Pid"]
    own.kill()
    os.kill(pid, 0)
    _gone(ends)     # it ends while nobody looks
    own.start()
    assert cli.inspect("alive")["State"]["Pid"] == pid
    state = cli.inspect("ends")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    lines = [int(n) for n in cli.ok("logs", "alive").split()]
    assert lines == list(range(1, len(lines) + 1))  # not one byte lost or doubled
    assert cli.ok("exec", "alive", "echo", "still").strip() == "still"
    cli.ok("rm", "-f", "alive", "ends")


def test_always_over_a_killed_carreld(own: Stack) -> None:
    """It dies while nobody is there to start it again: the next carreld does."""
    cli = own.cli(str(BIN / "carrel"))
    cli.ok("run", "-d", "--name", "always", "--restart", "always", "busybox", "sh", "-c",
           "echo life; sleep 1000")
    cli.ok("run", "-d", "--name", "never", "--restart", "no", "busybox", "sleep", "1000")
    pids = [cli.inspect(name)["State"]["Pid"] for name in ("always", "never")]
    assert cli.inspect("always")["RestartCount"] == 0
    own.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        _gone(pid)
    own.start()
    _wait(lambda: cli.inspect("always")["State"]["Status"] == "running")
    state = cli.inspect("always")["State"]
    assert state["Pid"] not in (0, *pids)
    _wait(lambda: cli.ok("logs", "always") == "life\nlife\n")
    ended = cli.inspect("never")["State"]
    assert (ended["Status"], ended["ExitCode"]) == ("exited", 137)
    # and the policy still holds
    os.kill(state["Pid"], signal.SIGKILL)
    _wait(lambda: cli.ok("logs", "always") == "life\n" * 3)
    cli.ok("rm", "-f", "always", "never")


@pytest.mark.parametrize("own", ["process"], indirect=True)
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
    for layer in own.pids("carrel-containerd") or own.pids("carreld"):
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


@contextlib.contextmanager
def small_disk(place: Path, kind: str) -> Iterator[None]:
    """A file system of its own below ``place``, of 40 or 64 MiB."""
    if kind == "tmpfs":
        mount = ["-t", "tmpfs", "-o", "size=40m", "tmpfs"]
    else:
        image = place.parent / "disk.img"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        # blocks of a page, as any disk of today has: SQLite's shared index is mapped
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "4096", str(image)], check=True)
        mount = ["-o", "loop", str(image)]
    if subprocess.run(["mount", *mount, str(place)], capture_output=True, check=False).returncode:
        pytest.skip(f"no {kind} can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _fill(place: Path) -> None:
    """Until not one byte fits."""
    for size in (1 << 20, 4096, 1):
        with contextlib.suppress(OSError), (place / f"ballast{size}").open("ab", 0) as file:
            while True:
                file.write(b"x" * size)


@pytest.mark.parametrize("disk", ["tmpfs", "ext4"])
def test_a_full_disk_can_be_emptied(tmp_path_factory: pytest.TempPathFactory, disk: str) -> None:
    """Not one block is left: containers are stopped, started and removed all the same, also by
    a daemon that was started on the full disk."""
    work = tmp_path_factory.mktemp("brim")
    data = work / "data"
    data.mkdir()
    with small_disk(data, disk):
        stack = Stack(work)
        stack.start()
        try:
            cli = stack.cli(str(BIN / "carrel"))
            images.busybox_archive(work / "busybox.tar")
            cli.ok("load", "-q", "-i", str(work / "busybox.tar"))
            script = "head -c 100000 /dev/zero > /big; while :; do echo line; sleep 0.1; done"
            for number in range(6):
                cli.ok("run", "-d", "--stop-timeout", "0", "--name", f"c{number}", "busybox",
                       "sh", "-c", script)
            _wait(lambda: cli.run("exec", "c5", "test", "-s", "/big").code == 0)
            _fill(data)
            cli.ok("stop", "-t", "0", "c0")
            cli.ok("start", "c0")
            cli.ok("restart", "-t", "0", "c1")
            assert cli.inspect("c0")["State"]["Running"]
            for name in ("c2", "c3"):
                _fill(data)     # what the last removal made room for
                cli.ok("rm", "-f", name)
            stack.stop()
            _fill(data)
            stack.start()
            cli = stack.cli(str(BIN / "carrel"))
            for name in ("c0", "c4"):
                _fill(data)
                cli.ok("rm", "-f", name)
            _fill(data)
            stack.kill()
            stack.start()
            cli.ok("rm", "-f", "c1", "c5")
            assert cli.ok("ps", "-aq") == ""
            # what they had is free again
            _wait(lambda: cli.run("run", "--rm", "busybox", "echo", "room").out == "room\n")
        finally:
            stack.stop()


def test_disk_full(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A data root without room: each command ends, with one clear line; with a little room
    again, rm and prune make more."""
    work = tmp_path_factory.mktemp("full")
    data = work / "data"
    data.mkdir()
    stack = Stack(work)
    with small_disk(data, "tmpfs"), contextlib.ExitStack() as undo:
        stack.start()
        undo.callback(stack.stop)
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
