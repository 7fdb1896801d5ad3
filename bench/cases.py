"""What a user waits for, as pairs of ours and the peer's."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.engines import ROOT, Engine, command_of, docker_client, peers_root, pss_kib
from bench.measure import Row, paired, spawn

PEER = "Docker 28.5"


def _client(engine: Engine, *argv: str) -> float:
    return spawn([docker_client(), *argv], engine.environment)


def runs(ours: Engine, peer: Engine, count: int) -> Iterator[Row]:
    """``docker run --rm busybox true`` on each kind of network, and ``docker exec``."""
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


def load(ours: Engine, peer: Engine, archive: Path, rounds: int) -> Iterator[Row]:
    """``docker load`` of a Debian-sized image."""

    def once(engine: Engine) -> float:
        seconds = _client(engine, "load", "-q", "-i", str(archive))
        engine.docker("rmi", "-f", "bench-debian")
        return seconds

    megabytes = archive.stat().st_size >> 20
    yield paired(f"load of a {megabytes} MB image", lambda: once(ours), lambda: once(peer), PEER,
                 rounds, 0.25, warmup=0)


def memory(ours: Engine, peer: Engine) -> Iterator[Row]:
    """PSS of the idle daemons, and of one container's shim."""

    def total(engine: Engine, wanted: tuple[str, ...], per: int = 1) -> float:
        pids = [p for p in _all_of(engine) if any(w in command_of(p) for w in wanted)]
        return sum(pss_kib(p) for p in pids) / 1024 / per

    time.sleep(3)
    shims = ("containerd-shim",)
    for engine in (ours, peer):
        for n in range(10):
            engine.docker("run", "-d", "--name", f"idle-{n}", "busybox", "sleep", "1000")
    time.sleep(2)
    mine = total(ours, shims)
    zygote = sum(pss_kib(p) for p in _all_of(ours) if "zygote" in command_of(p)) / 1024
    row = Row("PSS of one shim", "MiB", max(mine - zygote, 0) / 10, total(peer, shims) / 10,
              PEER, 0.4)
    for engine in (ours, peer):
        engine.docker("rm", "-f", *[f"idle-{n}" for n in range(10)])
    time.sleep(3)
    yield Row("PSS of the idle daemons", "MiB",
              total(ours, ("carreld", "carrel-containerd", "zygote")),
              total(peer, ("dockerd", "containerd ")), PEER, 0.7)
    yield row


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


def runtimes(work: Path, count: int) -> Iterator[Row]:
    """The OCI runtime alone, cold: ours, runc, crun; each runs the same bundle.

    runc and crun need the newer libc of the peers' root, so they are started
    through its dynamic loader, which costs nothing that could be measured.
    """
    bundle = _bundle(work)
    root = peers_root()
    loader = [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path",
              f"{root}/usr/lib/x86_64-linux-gnu"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    counter = iter(range(1_000_000))

    def once(runtime: list[str]) -> float:
        return spawn([*runtime, "--root", str(work / "runtime-root"), "run", "--bundle",
                      str(bundle), f"bench-{next(counter)}"], environment)

    ours = [str(ROOT / ".venv" / "bin" / "carrel-runtime")]
    for name, version, goal in (("runc", "runc 1.3.6", 1.0), ("crun", "crun 1.28", None)):
        peer = [*loader, str(root / "usr" / "bin" / name)]
        try:
            once(peer)
        except RuntimeError as error:
            print(f"bench: {name} does not run here: {error}")
            continue
        yield paired("carrel-runtime run true, cold", lambda: once(ours),
                     lambda p=peer: once(p), version, count, goal)  # type: ignore[misc]
