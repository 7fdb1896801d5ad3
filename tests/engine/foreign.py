"""A real containerd of the peers' root for tests, run on this machine: its programs need
nothing of that root but runc's C library, and Debian 12's runc does with ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.engine.stack import ROOT


def _peers(suite: str) -> Path:
    done = subprocess.run([str(ROOT / "scripts" / "peers"), "--path"], capture_output=True,
                          text=True, check=False, env={**os.environ, "PEERS_SUITE": suite})
    path = Path(done.stdout.strip())
    if done.returncode or not (path / "usr/sbin/runc").exists():
        pytest.skip(f"the peers' root {suite} is not built (scripts/peers)")
    return path


class Containerd:
    """One containerd on folders of its own, with its own shim and ours."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cd-", dir="/run"))
        self.sock = f"{self.folder}/c.sock"
        self.root = tmp_path / "containerd"
        self.log = tmp_path / "containerd.log"
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        peers, old = _peers("sid"), _peers("bookworm")
        for program in ("containerd", "containerd-shim-runc-v2"):
            os.symlink(peers / "usr/bin" / program, bin_folder / program)
        os.symlink(old / "usr/sbin/runc", bin_folder / "runc")
        ours = "containerd-shim-carrel-v1"
        os.symlink(ROOT / ".venv" / "bin" / ours, bin_folder / ours)
        config = tmp_path / "containerd.toml"
        config.write_text(
            f'version = 3\nroot = "{self.root}"\nstate = "{self.folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
            '"io.containerd.cri.v1.runtime"]\n'
            f'[grpc]\naddress = "{self.sock}"\n[ttrpc]\naddress = "{self.folder}/t.sock"\n')
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [str(bin_folder / "containerd"), "-c", str(config)], stdout=log, stderr=log,
                env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"})
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(self.sock)
            return True
        return False

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)
