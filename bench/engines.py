"""Start an engine for a benchmark: ours, or the peers' dockerd, each in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANDBOX = str(ROOT / "scripts" / "sandbox")
IN_PEERS = str(ROOT / "scripts" / "in-peers")


def peers_root() -> Path:
    """The peers' root; built if missing."""
    out = subprocess.run([str(ROOT / "scripts" / "peers")], check=True, capture_output=True,
                         text=True)
    return Path(out.stdout.strip().splitlines()[-1])


def docker_client() -> str:
    """The docker CLI that drives both engines: ``BENCH_CLIENT``, or the peers' newest.

    Its own start is in every figure of both sides: Debian's build takes 35 ms, Docker's
    static one 10, so the same engine looks different behind them.
    """
    return os.environ.get("BENCH_CLIENT") or str(peers_root() / "usr" / "bin" / "docker")


@dataclass
class Engine:
    """A running engine: where it listens, which processes belong to it."""

    name: str
    host: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    def docker(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI against this engine."""
        return subprocess.run([docker_client(), *argv], env=self.environment, check=check,
                              capture_output=True, text=True, timeout=300)

    def processes(self) -> list[int]:
        """All processes below the one that was started."""
        return descendants(self.process.pid)


def descendants(top: int) -> list[int]:
    """Pids of all processes whose ancestors include ``top``."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parent = int(text.rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    todo = [top]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return found


def command_of(pid: int) -> str:
    """The command line of a process, "" if it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def pss_kib(pid: int) -> int:
    """Proportional set size of a process in KiB, 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def busybox_archive(path: Path) -> None:
    """Write a docker archive with busybox as its only file."""
    from tests import images

    images.busybox_archive(path)


def _wait_until_answering(engine: Engine, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while engine.docker("version", check=False).returncode:
        if engine.process.poll() is not None:
            raise SystemExit(f"bench: {engine.name} ended with {engine.process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {engine.name} does not answer on {engine.host}")
        time.sleep(0.1)


def _stop(engine: Engine) -> None:
    pids = engine.processes()
    # the sandbox's shell exec'ed the daemon, or is its parent: the daemon gets the signal
    for pid in pids:
        if any(word in command_of(pid) for word in ("carreld", "dockerd")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    try:
        engine.process.wait(30)
    except subprocess.TimeoutExpired:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        engine.process.wait(10)


@contextlib.contextmanager
def _running(name: str, argv: list[str], work: Path) -> Iterator[Engine]:
    host = f"unix://{work}/{name}.sock"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_HOST": host,
                   "HOME": str(work), "DOCKER_CONFIG": str(work / "config")}
    with (work / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    engine = Engine(name, host, process, environment)
    try:
        _wait_until_answering(engine)
        yield engine
    finally:
        _stop(engine)


@contextlib.contextmanager
def carrel(work: Path, name: str = "carrel", *flags: str) -> Iterator[Engine]:
    """Our engine."""
    argv = [SANDBOX, str(ROOT / ".venv" / "bin" / "carreld"), "-H", f"unix://{work}/{name}.sock",
            "--data-root", str(work / f"{name}-data"), "--exec-root", "/run/carrel",
            "--pidfile", "/run/carrel.pid", "--cgroup-parent", "/carrel-bench", *flags]
    with _running(name, argv, work) as engine:
        yield engine
    for parent in Path("/sys/fs/cgroup").glob("**/carrel-bench"):
        with contextlib.suppress(OSError):
            parent.rmdir()


@contextlib.contextmanager
def docker(work: Path) -> Iterator[Engine]:
    """The peers' dockerd with its own containerd."""
    argv = [SANDBOX, IN_PEERS, "dockerd", "-H", f"unix://{work}/docker.sock",
            "--data-root", str(work / "docker-data"), "--exec-root", "/run/docker",
            "--pidfile", str(work / "docker.pid")]
    with _running("docker", argv, work) as engine:
        yield engine


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder under /tmp (the peers' root sees /tmp) that is removed at the end.

    An ext4 without a journal, which test machines have and users do not, looks through all
    files that were deleted within the last half minute whenever it makes one: what ran before
    would be measured. There the folder is an ext4 as Debian makes it, in an image.
    """
    work = Path(tempfile.mkdtemp(prefix="carrel-bench-", dir="/tmp"))
    image = Path(f"{work}.img")
    try:
        if _lacks_journal(work):
            with image.open("wb") as file:
                file.truncate(16 << 30)
            subprocess.run([
                "mkfs.ext4", "-qF", "-N", "131072", "-E",
                "lazy_itable_init=0,lazy_journal_init=0", str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(work)], check=True)
        yield work
    finally:
        if work.is_mount():
            subprocess.run(["umount", "--lazy", str(work)], check=True)
        shutil.rmtree(work, ignore_errors=True)
        image.unlink(missing_ok=True)


def _lacks_journal(folder: Path) -> bool:
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            kind, source = line.split(" - ", 1)[1].split()[:2]
            name = os.path.basename(os.path.realpath(source))
            return kind == "ext4" and not list(Path("/proc/fs/jbd2").glob(f"{name}-*"))
    return False
