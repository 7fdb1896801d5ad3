"""The transfer service as containerd's own client uses it: streams, progress, plain HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import images
from tests.registry.conftest import ROOT, Registry

pytestmark = [pytest.mark.root, pytest.mark.peers]
Ctr = Callable[..., str]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below /tmp, which the peers' root sees too."""
    path = Path(f"/tmp/carrel-test-ctr-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def ctr(folder: Path) -> Iterator[Ctr]:
    socket = folder / "c.sock"
    with open(folder / "log", "wb") as log:
        daemon = subprocess.Popen(
            [str(ROOT / ".venv/bin/carrel-containerd"), "--address", str(socket), "--root",
             str(folder / "root"), "--state", str(folder / "state")], stdout=log, stderr=log)
    deadline = time.monotonic() + 30
    while not socket.exists():
        assert daemon.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)

    def run(*argv: str) -> str:
        done = subprocess.run(
            [str(ROOT / "scripts/in-peers"), "timeout", "30", "ctr", "-a", str(socket), "image",
             *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    daemon.terminate()
    daemon.wait(20)


def test_import_push_pull_export(ctr: Ctr, folder: Path, registry: Registry) -> None:
    name = f"{registry.address}/ctr/busybox:1"
    images.oci_layout(folder / "in.tar", {name: images.busybox()})
    out = ctr("import", str(folder / "in.tar"))
    assert "extracting" in out
    assert ctr("ls", "-q").split() == [name]
    assert "complete (2/2)" in ctr("check")
    ctr("push", "--plain-http", name)
    ctr("rm", "--sync", name)
    assert ctr("ls", "-q").split() == []
    out = ctr("pull", "--plain-http", name)
    # the client does not wait for the end of the progress stream: only its begin is sure
    assert "resolved" in out and ctr("ls", "-q").split() == [name]
    ctr("export", str(folder / "out.tar"), name)
    ctr("rm", "--sync", name)
    # the client's own code for the same, through content, snapshots and diff
    ctr("import", "--local", str(folder / "out.tar"))
    assert ctr("ls", "-q").split() == [name]
    ctr("rm", "--sync", name)
    ctr("pull", "--local", "--plain-http", name)
    assert "complete (2/2)" in ctr("check")
