"""What a user waits for, as pairs of ours and the peer's."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.engines import (
    IN_PEERS,
    ROOT,
    SANDBOX,
    Engine,
    command_of,
    docker_client,
    pss_kib,
)
from bench.measure import Row, paired, spawn

PEER = "Docker 28.5"


def _client(engine: Engine, *argv: str) -> float:
    return spawn([docker_client(), *argv], engine.environment)


def runs(ours: Engine, peer: Engine, count: int) -> Iterator[Row]:
    """``docker run --rm busybox true`` on each kind of network, and ``docker exec``."""
    yield paired("the client alone (docker --version)", lambda: _client(ours, "--version"),
                 lambda: _client(peer, "--version"), "same client", count)
    for network, goal in (("bridge", 0.15), ("none", 0.22), ("host", 0.22)):
        argv = ("run", "--rm", "--network", network, "busybox", "true")
        yield paired(f"run --rm busybox true, --network {network}",
                     lambda a=argv: _client(ours, *a),  # type: ignore[misc]
                     lambda a=argv: _client(peer, *a),  # type: ignore[misc]
                     PEER, count, goal)
    for engine in (ours, peer):
        engine.docker("run", "-d", "--name", "exec-here", "busybox", "sleep", "1000")
    yield paired("exec C true", lambda: _client(ours, "exec", "exec-here", "true"),
                 lambda: _client(peer, "exec", "exec-here", "true"), PEER, count, 0.4)
    for engine in (ours, peer):
        engine.docker("rm", "-f", "exec-here")


def _many(engine: Engine, argvs: Sequence[tuple[str, ...]]) -> float:
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda argv: _client(engine, *argv), argvs))
    return time.perf_counter() - begin


def many(ours: Engine, peer: Engine, rounds: int) -> Iterator[Row]:
    """40 x ``run -d`` 8 at a time, then 40 x ``rm -f`` 8 at a time."""
    names = [f"many-{n}" for n in range(40)]
    start = [("run", "-d", "--name", n, "busybox", "sleep", "1000") for n in names]
    remove = [("rm", "-f", n) for n in names]
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for engine in (ours, peer):
            samples.setdefault((engine.name, "start"), []).append(_many(engine, start))
            samples.setdefault((engine.name, "remove"), []).append(_many(engine, remove))
    for what, verb in (("start", "run -d"), ("remove", "rm -f")):
        text = f"40 x {verb}, 8 at a time"
        yield Row(text, "ms", 1000 * min(samples[ours.name, what]),
                  1000 * min(samples[peer.name, what]), PEER, 0.25)


def ways(ours: Engine, process: Engine, count: int) -> Iterator[Row]:
    """Our engine with the containerd layer in its process, beside the same over gRPC."""
    for network in ("bridge", "none"):
        argv = ("run", "--rm", "--network", network, "busybox", "true")
        yield paired(f"run --rm busybox true, --network {network}",
                     lambda a=argv: _client(ours, *a),  # type: ignore[misc]
                     lambda a=argv: _client(process, *a),  # type: ignore[misc]
                     "ours over gRPC", count)


def load(ours: Engine, peer: Engine, archive: Path, rounds: int) -> Iterator[Row]:
    """``docker load`` of a Debian-sized image."""

    def once(engine: Engine) -> float:
        seconds = _client(engine, "load", "-q", "-i", str(archive))
        engine.docker("rmi", "-f", "bench-debian")
        return seconds

    megabytes = archive.stat().st_size >> 20
    yield paired(f"load of a {megabytes} MB image", lambda: once(ours), lambda: once(peer), PEER,
                 rounds, 0.2, warmup=0)


def _parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rsplit(")", 1)[1].split()[1])


def memory(ours: Engine, peer: Engine) -> Iterator[Row]:
    """PSS of the idle daemons, and of one container's shim (the parent of its init)."""

    def daemons(engine: Engine, wanted: tuple[str, ...]) -> float:
        pids = [p for p in _all_of(engine) if any(w in command_of(p) for w in wanted)]
        return sum(pss_kib(p) for p in pids) / 1024

    names = [f"idle-{n}" for n in range(10)]
    shims: dict[str, float] = {}
    for engine in (ours, peer):
        for name in names:
            engine.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
        time.sleep(2)
        pids = engine.docker("inspect", "-f", "{{.State.Pid}}", *names).stdout.split()
        shims[engine.name] = sum(pss_kib(_parent_of(int(p))) for p in pids) / 1024 / len(names)
        engine.docker("rm", "-f", *names)
    time.sleep(3)
    yield Row("PSS of the idle daemons", "MiB",
              daemons(ours, ("carreld", "carrel-containerd", "zygote")),
              daemons(peer, ("dockerd", "containerd ")), PEER, 0.7)
    yield Row("PSS of one shim, 10 containers", "MiB", shims[ours.name], shims[peer.name], PEER,
              0.4)


def _all_of(engine: Engine) -> list[int]:
    """Every process in the engine's network namespace (shims leave the process tree)."""
    wanted = None
    for pid in engine.processes():
        if any(w in command_of(pid) for w in ("carreld", "dockerd")):
            wanted = os.readlink(f"/proc/{pid}/ns/net")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/ns/net") == wanted:
                    found.append(int(entry))
            except OSError:
                continue
    return found


def _bundle(work: Path) -> Path:
    """A bundle that runs busybox true, with the default spec of runc."""
    bundle = work / "bundle"
    root = bundle / "rootfs" / "bin"
    root.mkdir(parents=True)
    busybox = Path("/bin/busybox").read_bytes()
    for name in ("busybox", "true"):
        (root / name).write_bytes(busybox)
        (root / name).chmod(0o755)
    subprocess.run([str(ROOT / ".venv" / "bin" / "carrel-runtime"), "spec", "--bundle",
                    str(bundle)], check=True)
    config = bundle / "config.json"
    spec = json.loads(config.read_text())
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["/bin/true"]
    config.write_text(json.dumps(spec))
    return bundle


#: runs a runtime ``n`` times on one bundle and prints the nanoseconds of all of it; crun refuses a
#: hybrid hierarchy whose v2 side still holds a controller, so hugetlb is taken from it
_LOOP = """
mount -t cgroup -o hugetlb cgroup /mnt 2>/dev/null || :
n=0; start=$(date +%s%N)
while [ $n -lt COUNT ]; do
    RUNTIME --root WORK/root-NAME run --bundle WORK/bundle bench-NAME-$n || exit 1
    n=$((n + 1))
done
end=$(date +%s%N); echo $((end - start))
"""


def _looped(where: list[str], name: str, runtime: str, work: Path, count: int) -> float:
    """Seconds of one run, out of ``count`` in a row."""
    script = _LOOP
    for word, value in (("RUNTIME", runtime), ("NAME", name), ("WORK", str(work)),
                        ("COUNT", str(count))):
        script = script.replace(word, value)
    done = subprocess.run([*where, "/bin/sh", "-c", script], capture_output=True, text=True,
                          check=False, stdin=subprocess.DEVNULL, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return int(done.stdout.split()[-1]) / 1e9 / count


def runtimes(work: Path, count: int) -> Iterator[Row]:
    """The OCI runtime alone, cold, run by the same shell loop: ours on this machine, runc
    and crun inside the peers' root (they need its libraries)."""
    _bundle(work)
    each = 10
    program = str(ROOT / ".venv" / "bin" / "carrel-runtime")
    for name, version, goal in (("runc", "runc 1.3.6", 1.0), ("crun", "crun 1.28", None)):

        def peer(name: str = name) -> float:
            return _looped([SANDBOX, IN_PEERS], name, name, work, each)

        try:
            peer()
        except RuntimeError as error:
            print(f"bench: {name} does not run here: {error}")
            continue
        try:
            yield paired("carrel-runtime run true, cold",
                         lambda: _looped([SANDBOX], "carrel", program, work, each),
                         peer, version, max(3, count // 4), goal, warmup=1)
        finally:
            _sweep()


def starts(work: Path, count: int) -> Iterator[Row]:
    """From the request to the program: a shim of the zygote, and crun (bench/start.py)."""
    for what, flags in (("", []), (", Docker's filter", ["--filter"])):
        folder = work / f"start{len(flags)}"
        folder.mkdir()
        done = subprocess.run(
            [SANDBOX, str(ROOT / ".venv" / "bin" / "python"), "-m", "bench.start", str(folder),
             str(count), *flags], cwd=ROOT, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=300)
        _sweep()
        if done.returncode:
            print(f"bench: bench.start: {done.stderr.strip()[-300:]}")  # ours, or crun
            return
        times = json.loads(done.stdout.splitlines()[-1])
        yield Row(f"zygote, request to program{what}", "ms", statistics.median(times["ours"]),
                  statistics.median(times["crun"]), "crun 1.28", 0.6)


def _sweep() -> None:
    """crun makes plain folders where the machine's hierarchy is not mounted, and leaves them."""
    hierarchies = Path("/sys/fs/cgroup")
    if (hierarchies / "cgroup.controllers").exists():
        return  # cgroup v2: all of it is the kernel's
    for folder in hierarchies.glob("*/bench-crun-*"):
        if not os.path.ismount(folder.parent):
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
