"""Bundles to run: busybox in a folder, and a small configuration."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.runtime import template
from tests.conftest import BIN
from tests.leakcheck import cgroup_parent

CGROUP_PARENT = cgroup_parent("runtime")
APPLETS = ("cat", "echo", "env", "false", "grep", "head", "hostname", "id", "ls", "mount", "ps",
           "readlink", "sh", "sleep", "stat", "stty", "test", "touch", "true", "tty", "umount",
           "wc", "yes")


class Bundle:
    """A bundle folder, its configuration, a runtime root of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.root = str(folder / "state")
        self.spec: dict[str, Any] = template.default_spec()
        process = self.spec["process"]
        process["terminal"] = False
        process["env"] = ["PATH=/bin"]
        process.pop("rlimits")
        self.id = f"t{os.getpid()}-{folder.name}"
        self.spec["linux"]["cgroupsPath"] = f"{CGROUP_PARENT}/{self.id}"
        (self.rootfs / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", self.rootfs / "bin/busybox")
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")

    def args(self, *words: str) -> Bundle:
        self.spec["process"]["args"] = list(words)
        return self

    def write(self) -> str:
        (self.folder / "config.json").write_text(json.dumps(self.spec))
        return str(self.folder)

    def copy_spec(self) -> dict[str, Any]:
        return copy.deepcopy(self.spec)

    def cli(self, *words: str, timeout: float = 20, **more: Any
            ) -> subprocess.CompletedProcess[str]:
        """carrel-runtime in the bundle's folder."""
        return subprocess.run([str(BIN / "carrel-runtime"), "--root", self.root, *words],
                              cwd=self.folder, text=True, timeout=timeout, check=False,
                              **{"capture_output": True, "stdin": subprocess.DEVNULL, **more})

    def run(self, *words: str) -> str:
        """What ``words`` print in a container."""
        self.args(*words).write()
        done = self.cli("run", self.id)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path)
    yield made
    made.cli("delete", "--force", made.id)
    _remove_parent()


def _remove_parent() -> None:
    """The cgroup parent of the tests, when this was its last container."""
    root = Path("/sys/fs/cgroup")
    for top in [root, *root.iterdir()]:
        try:
            (top / CGROUP_PARENT.strip("/")).rmdir()
        except OSError:
            continue
