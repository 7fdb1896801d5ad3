"""A whole engine for a test: carreld with its own carrel-containerd, on folders of its own.

    stack = start_stack(tmp_path)            # flags: data_root="...", live_restore=True, ...
    stack.docker("run", "--rm", IMAGE, "true")
    stack.stop()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests import images
from tests.leakcheck import cgroup_parent

ROOT = Path(__file__).resolve().parent.parent.parent
CARRELD = ROOT / ".venv" / "bin" / "carreld"
IMAGE = "busybox:latest"
_READY = 60.0


class Stack:
    """One running daemon; started again by :meth:`restart` on the same folders."""

    def __init__(self, data_root: Path, exec_root: Path, flags: list[str]) -> None:
        self.data_root, self.exec_root = data_root, exec_root
        self.flags = flags
        self.sock = f"{exec_root}/carrel.sock"
        self.log_path = data_root.parent / "carreld.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.sock}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        command = [str(CARRELD), "--data-root", str(self.data_root), "--exec-root",
                   str(self.exec_root), "--containerd", "process", *self.flags]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)
        deadline = time.monotonic() + _READY
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"carreld did not start:\n{self.log()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.sock)
            except OSError:
                return False
        return True

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit status of the daemon."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"carreld did not stop:\n{self.log()}") from None

    def kill(self) -> None:
        """As a crash: nothing is cleaned."""
        self.stop(signal.SIGKILL)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def docker(self, *arguments: str, check: bool = True, stdin: str | None = None,
               timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """The docker CLI against this daemon."""
        result = subprocess.run(
            ["docker", "-H", self.host, *arguments], capture_output=True, text=True,
            timeout=timeout, input=stdin if stdin is not None else "", check=False,
            env={**os.environ, "DOCKER_CONFIG": str(self.data_root.parent / "docker")})
        if check and result.returncode:
            raise AssertionError(f"docker {' '.join(arguments)}: exit code {result.returncode}\n"
                                 f"{result.stdout}{result.stderr}\n{self.log()[-4000:]}")
        return result

    def out(self, *arguments: str, stdin: str | None = None) -> str:
        return self.docker(*arguments, stdin=stdin).stdout.strip()

    def load(self, name: str = IMAGE) -> None:
        path = self.data_root.parent / "image.tar"
        images.docker_archive(path, {name: images.busybox()})
        self.docker("load", "-q", "-i", str(path))


def start_stack(tmp_path: Path, *, load: bool = True, **flags: str | bool | list[str]) -> Stack:
    """Start it and give it a busybox image. ``live_restore=True`` is ``--live-restore``.

    Sockets have short paths only, so the exec root is a folder of its own in /run.
    """
    exec_root = Path(tempfile.mkdtemp(prefix="ct-", dir="/run"))
    options = {"cgroup_parent": cgroup_parent(exec_root.name), "debug": True, **flags}
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            for item in value:
                words += [flag, item]
        else:
            words += [flag, value]
    data_root = tmp_path / "data"
    data_root.mkdir(parents=True, exist_ok=True)
    stack = Stack(data_root, exec_root, words)
    stack.start()
    if load:
        try:
            stack.load()
        except BaseException:
            stack.stop()
            raise
    return stack


def clean(stack: Stack) -> None:
    """Stop it and take its folders and cgroups off."""
    with contextlib.suppress(AssertionError):
        ids = stack.out("ps", "-aq").split()
        if ids:
            stack.docker("rm", "-f", *ids, check=False)
    stack.stop()
    shutil.rmtree(stack.exec_root, ignore_errors=True)
    parent = cgroup_parent(stack.exec_root.name).strip("/")
    for path in (*Path("/sys/fs/cgroup").glob(f"*/{parent}"), Path("/sys/fs/cgroup") / parent):
        with contextlib.suppress(OSError):
            path.rmdir()
