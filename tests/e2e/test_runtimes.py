"""Other OCI runtimes under Carrel's shim: ``--add-runtime``, ``docker run --runtime``."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images, leakcheck
from tests.e2e.engine import IN_GUEST, PATIENCE, Cli, Stack, newest_client, peers

RUNTIMES = ("runc", "crun", "runsc")
#: who makes the cgroups: the runtime alone, or with systemd
DRIVERS = ("cgroupfs", "systemd") if IN_GUEST else ("cgroupfs",)


def _program(folder: Path, name: str) -> str:
    """The machine's own, as in the guest; else the peers'."""
    path = folder / name
    own = shutil.which(name)
    if own is None and os.uname().machine != "x86_64":
        pytest.skip("the peers' loader is known for x86-64 only")
    if name == "runsc":
        program = own or peers("trixie") / "usr/bin/runsc"
        # with its own network stack, the one of Debian takes every namespace for the machine's
        # where net.core.rmem_default is seen in all of them (Linux 6.11 and later)
        path.write_text(f"#!/bin/sh\nexec {program} --network=host \"$@\"\n")
    elif own is not None:
        return own
    elif name == "runc":  # starts itself again by /proc/self/exe: bookworm's, with any libc
        return str(peers("bookworm") / "usr/sbin/runc")
    else:  # with the libc that it was built for
        root = peers("sid")
        path.write_text(f"#!/bin/sh\nexec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path "
                        f"{root}/usr/lib/x86_64-linux-gnu {root}/usr/bin/{name} \"$@\"\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module", params=RUNTIMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runtime(name: str, driver: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    if name == "crun" and not leakcheck.cgroups_are_plain():
        pytest.skip("crun makes folders for a hierarchy that is not mounted, and leaves them")
    work = tmp_path_factory.mktemp(name)
    path = _program(work, name)
    before = leakcheck.take()
    flags = ["--add-runtime", f"other={path}", "--default-runtime", "other"]
    if driver == "systemd":
        flags += ["--exec-opt", "native.cgroupdriver=systemd", "--cgroup-parent", "system.slice"]
    stack = Stack(work, *flags)
    stack.start()
    try:
        archive = work / "busybox.tar"
        images.busybox_archive(archive)
        client = stack.cli(newest_client())
        client.ok("load", "-q", "-i", str(archive))
        first = client.run("run", "--rm", "busybox", "true")
        if "cgroups in hybrid mode not supported" in first.err:
            pytest.skip(f"{name}: {first.err.splitlines()[0].rpartition(': ')[2]}")
        yield client
        left = client.ok("ps", "-aq").split()
        if left:
            client.run("rm", "-f", *left)
    finally:
        stack.stop()
        shutil.rmtree(work / "data", ignore_errors=True)
    assert not (leaks := leakcheck.wait_until_clean(before, 30 * PATIENCE)), f"left behind: {leaks}"


def test_run(runtime: Cli, name: str) -> None:
    done = runtime.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert runtime.ok("run", "--rm", "-i", "busybox", "cat", stdin="typed\n") == "typed\n"
    shown = runtime.run("run", "--rm", "-t", "busybox", "sh", "-c", "test -t 0 && tty; exit 4")
    # gVisor's terminal has no name in the container
    assert (shown.code, shown.out.strip()) == (4, "not a tty" if name == "runsc" else "/dev/pts/0")
    assert runtime.ok("run", "--rm", "--runtime", "carrel", "busybox", "echo", "ours") == "ours\n"


def test_missing_program(runtime: Cli, name: str) -> None:
    words = ("no such file or directory",) if name == "runsc" else ("executable file", "not found")
    done = runtime.fails("run", "--rm", "busybox", "no-such-program")
    assert done.code == 127
    assert all(word in done.err for word in ("no-such-program", *words))
    # a start that failed leaves nothing in the way of the next, or of removal
    runtime.ok("create", "--name", "m1", "busybox", "no-such-program")
    for _ in range(2):
        failed = runtime.fails("start", "m1")
        assert all(word in failed.err for word in words), failed.err
    state = runtime.inspect("m1")["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 127)
    runtime.ok("rm", "m1")


def _memory_limit(found: dict[str, Any], driver: str) -> int:
    """What is written for a container, in the group where it has to be."""
    with open(f"/proc/{found['State']['Pid']}/cgroup", encoding="ascii") as file:
        group = file.read().strip().removeprefix("0::")
    last = f"carrel-{found['Id']}.scope" if driver == "systemd" else found["Id"]
    assert group.partition("/")[2].split("/")[1] == last, group
    return int(Path(f"/sys/fs/cgroup{group}/memory.max").read_text(encoding="ascii"))


def test_life(runtime: Cli, name: str, driver: str) -> None:
    runtime.ok("run", "-d", "--name", "l1", "-m", "64m", "busybox", "sh", "-c",
               "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    found = runtime.inspect("l1")
    assert found["HostConfig"]["Runtime"] == "other"
    if IN_GUEST:
        assert _memory_limit(found, driver) == 64 << 20
    assert runtime.ok("exec", "-i", "l1", "cat", stdin="typed\n") == "typed\n"
    assert runtime.run("exec", "l1", "sh", "-c", "exit 9").code == 9
    assert runtime.run("exec", "-t", "l1", "test", "-t", "0").code == 0
    assert runtime.run("exec", "l1", "no-such-program").code == 127
    runtime.ok("pause", "l1")
    runtime.ok("unpause", "l1")
    processes = runtime.ok("top", "l1").splitlines()[1:]
    updated = runtime.run("update", "--memory", "96m", "--memory-swap", "96m", "l1")
    if name == "runsc":  # a process of the machine is only the sandbox; Debian's has no update
        assert len(processes) == 1 and "runsc-sandbox" in processes[0]
        assert updated.code == 0 or "has no command 'update'" in updated.err
    else:
        assert any("sleep" in one for one in processes)
        assert all("sleep" in one or "trap" in one for one in processes)
        assert updated.code == 0, updated.err
        if IN_GUEST:
            assert _memory_limit(found, driver) == 96 << 20
    runtime.ok("stop", "l1")
    assert runtime.inspect("l1")["State"]["ExitCode"] == 5
    runtime.ok("start", "l1")
    runtime.ok("kill", "l1")
    assert runtime.ok("wait", "l1").strip() == "137"
    runtime.ok("rm", "l1")


def test_paused(runtime: Cli) -> None:
    """A signal waits for the thaw, the last one does not."""
    runtime.ok("run", "-d", "--name", "p1", "busybox", "sh", "-c",
               "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.05; done")
    while runtime.run("exec", "p1", "test", "-e", "/ready").code:
        time.sleep(0.05)
    runtime.ok("pause", "p1")
    runtime.ok("kill", "-s", "TERM", "p1")
    assert runtime.inspect("p1")["State"]["Paused"]
    runtime.ok("unpause", "p1")
    assert runtime.ok("wait", "p1").strip() == "5"
    runtime.ok("start", "p1")
    runtime.ok("pause", "p1")
    runtime.ok("kill", "p1")
    assert runtime.ok("wait", "p1").strip() == "137"
    runtime.ok("start", "p1")
    runtime.ok("pause", "p1")
    runtime.ok("rm", "-f", "p1")


def test_unknown_runtime(runtime: Cli) -> None:
    done = runtime.fails("run", "--rm", "--runtime", "nothing", "busybox", "true")
    assert "unknown or invalid runtime name: nothing" in done.err
