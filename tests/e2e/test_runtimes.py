"""Other OCI runtimes under Carrel's shim: ``--add-runtime``, ``docker run --runtime``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images, leakcheck
from tests.e2e.conftest import DOCKER_NEW
from tests.e2e.engine import Cli, Stack, peers

RUNTIMES = ("runc", "crun", "runsc")


def _program(folder: Path, name: str) -> str:
    """A program of the peers' root, started with the libc that it was built for."""
    path = folder / name
    if name == "runc":  # starts itself again by /proc/self/exe: bookworm's, with any libc
        path.symlink_to(peers("bookworm") / "usr/sbin/runc")
        return str(path)
    root = peers("sid")
    found = next((p for p in (root / "usr/bin" / name, root / "usr/sbin" / name) if p.exists()),
                 None)
    if found is None:
        return ""
    path.write_text(f"#!/bin/sh\nexec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path "
                    f"{root}/usr/lib/x86_64-linux-gnu {found} \"$@\"\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
            ) -> Iterator[Cli]:
    name = request.param
    if os.uname().machine != "x86_64":
        pytest.skip("the peers' loader is known for x86-64 only")
    work = tmp_path_factory.mktemp(name)
    path = _program(work, name)
    if not path:
        pytest.skip(f"no Debian package has {name}")
    if name == "crun" and not leakcheck.cgroups_are_plain():
        pytest.skip("crun makes folders for a hierarchy that is not mounted, and leaves them")
    before = leakcheck.take()
    stack = Stack(work, "--add-runtime", f"other={path}", "--default-runtime", "other")
    stack.start()
    try:
        archive = work / "busybox.tar"
        images.busybox_archive(archive)
        client = stack.cli(DOCKER_NEW[1]())
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
    assert not (leaks := leakcheck.wait_until_clean(before, 30)), f"left behind: {leaks}"


def test_run(runtime: Cli) -> None:
    done = runtime.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert runtime.ok("run", "--rm", "-i", "busybox", "cat", stdin="typed\n") == "typed\n"
    assert runtime.ok("run", "--rm", "-t", "busybox", "tty").strip() == "/dev/pts/0"
    done = runtime.fails("run", "--rm", "busybox", "no-such-program")
    assert done.code == 127
    assert "executable file" in done.err and "not found" in done.err
    assert runtime.ok("run", "--rm", "--runtime", "carrel", "busybox", "echo", "ours") == "ours\n"


def test_life(runtime: Cli) -> None:
    runtime.ok("run", "-d", "--name", "l1", "-m", "64m", "busybox", "sh", "-c",
               "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    assert runtime.inspect("l1")["HostConfig"]["Runtime"] == "other"
    assert runtime.ok("exec", "-i", "l1", "cat", stdin="typed\n") == "typed\n"
    assert runtime.run("exec", "l1", "sh", "-c", "exit 9").code == 9
    runtime.ok("pause", "l1")
    runtime.ok("unpause", "l1")
    assert "sleep" in runtime.ok("top", "l1")
    runtime.ok("update", "--memory", "96m", "--memory-swap", "96m", "l1")
    runtime.ok("stop", "l1")
    assert runtime.inspect("l1")["State"]["ExitCode"] == 5
    runtime.ok("start", "l1")
    runtime.ok("kill", "l1")
    assert runtime.ok("wait", "l1").strip() == "137"
    runtime.ok("rm", "l1")


def test_unknown_runtime(runtime: Cli) -> None:
    done = runtime.fails("run", "--rm", "--runtime", "nothing", "busybox", "true")
    assert "unknown or invalid runtime name: nothing" in done.err
