"""A real engine for the integration tests: dockerd from the peers' root, or our own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leakcheck import cgroup_parent

ROOT = Path(__file__).resolve().parents[2]
CARREL = str(ROOT / ".venv" / "bin" / "carrel")
BUSYBOX = "/bin/busybox"
IMAGE = "busybox:latest"
CGROUP_PARENT = cgroup_parent("cli").strip("/")


class Live:
    """An engine and the command line that talks to it."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host = host
        self.folder = folder
        (folder / "config").mkdir(exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "DOCKER_HOST": host,
            "DOCKER_CONFIG": str(folder / "config"), "TERM": "xterm"}

    def run(self, *argv: str, stdin: bytes = b"", timeout: float = 60,
            ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([CARREL, *argv], env=self.environment, input=stdin,
                              capture_output=True, timeout=timeout, check=False, cwd=self.folder)

    def out(self, *argv: str, stdin: bytes = b"") -> str:
        """Standard output of a command that must succeed."""
        result = self.run(*argv, stdin=stdin)
        assert result.returncode == 0, (argv, result.stdout, result.stderr)
        return result.stdout.decode()

    def start(self, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [CARREL, *argv], env=self.environment, cwd=self.folder, **options)


def root_file_system() -> bytes:
    """A tar of a root with busybox in it."""
    out = io.BytesIO()
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True,
                           check=True).stdout.split()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        tar.add(BUSYBOX, "bin/busybox")
        for name in names:
            if name != "busybox":
                member = tarfile.TarInfo(f"bin/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(member)
        for name, text in (("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
                           ("etc/group", "root:x:0:\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def _dockerd(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    path = folder / "docker.sock"
    log = open(folder / "dockerd.log", "wb")  # noqa: SIM115  (the daemon's, as long as it lives)
    # in a network namespace of its own: where it turns forwarding on it also has the kernel drop
    # what others forward (the policy of iptables' FORWARD), and leaves that behind
    process = subprocess.Popen(
        [str(ROOT / "scripts" / "sandbox"), str(ROOT / "scripts" / "in-peers"), "dockerd", "-H", f"unix://{path}",
         "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
         "--pidfile", str(folder / "pid"), "--cgroup-parent", f"/{CGROUP_PARENT}"],
        stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 30
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail("dockerd did not start: "
                        + (folder / "dockerd.log").read_text(errors="replace")[-2000:])
        time.sleep(0.05)
    return process, f"unix://{path}"


def _remove_cgroups() -> None:
    """dockerd leaves the parent of its containers' cgroups behind."""
    for top in [*Path("/sys/fs/cgroup").glob(f"*/{CGROUP_PARENT}"),
                Path("/sys/fs/cgroup", CGROUP_PARENT)]:
        for base, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(base)


def engine(kind: str) -> Iterator[Live]:
    """The body of a fixture: the engine ("dockerd", "carreld") lives as long as the
    generator."""
    with tempfile.TemporaryDirectory(prefix="carrel-cli-", dir="/tmp") as name:
        folder = Path(name)
        if kind == "dockerd":
            if not _peers_are_built():
                pytest.skip("the peers' root is not built (scripts/peers)")
            process, host = _dockerd(folder)

            def stop() -> None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
                _remove_cgroups()
        else:
            from tests.engine.stack import clean, start_stack
            stack = start_stack(folder)
            host = stack.host

            def stop() -> None:
                clean(stack)
        live = Live(host, folder)
        try:
            live.out("import", "-c", 'CMD ["sh"]', "-", IMAGE, stdin=root_file_system())
            yield live
        finally:
            ids = live.run("ps", "-aq").stdout.decode().split()
            if ids:
                live.run("rm", "-f", "-v", *ids)
            stop()


def _peers_are_built() -> bool:
    path = subprocess.run([str(ROOT / "scripts" / "peers"), "--path"], capture_output=True,
                          text=True, check=True).stdout.strip()
    return (Path(path) / ".complete").exists()
