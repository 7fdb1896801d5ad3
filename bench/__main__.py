"""Run every case and print the table; ``--quick`` takes fewer runs.

    make bench        or:  .venv/bin/python -m bench [--quick] [--only WORD]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
from pathlib import Path

from bench import cases, engines
from bench.measure import Row


def debian_archive(work: Path) -> Path:
    """A Debian-sized docker archive, made once and kept in the cache."""
    cache = engines.peers_root().parent / "bench-debian.tar"
    if not cache.exists():
        from tests import images

        print("bench: making a Debian image (once)")
        root = work / "debian.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=important", "bookworm", str(root),
                        os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")],
                       check=True)
        images.docker_archive(
            cache, {"bench-debian:latest": images.Image([root.read_bytes()], {})})
        root.unlink()
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="",
                        help="runtimes, start, runs, many, load, memory or ways")
    options = parser.parse_args()
    count = 7 if options.quick else 21
    rounds = 1 if options.quick else 3
    rows: list[Row] = []

    def wanted(name: str) -> bool:
        return options.only in ("", name)

    def take(produced: object) -> None:
        for row in produced:  # type: ignore[attr-defined]
            print(row.markdown(), flush=True)
            rows.append(row)

    print("| work | Carrel | peer | ratio | goal |\n|---|---|---|---|---|")
    with engines.workspace() as work:
        if wanted("runtimes"):
            take(cases.runtimes(work, count))
        if wanted("start"):
            take(cases.starts(work, count))
        if options.only not in ("runtimes", "start", "ways"):
            busybox = work / "busybox.tar"
            engines.busybox_archive(busybox)
            with engines.docker(work) as peer, engines.carrel(work) as ours:
                for engine in (ours, peer):
                    engine.docker("load", "-q", "-i", str(busybox))
                if wanted("memory"):
                    take(cases.memory(ours, peer))
                if wanted("runs"):
                    take(cases.runs(ours, peer, count))
                if wanted("many"):
                    take(cases.many(ours, peer, rounds))
                if wanted("load"):
                    take(cases.load(ours, peer, debian_archive(work), rounds))
        if wanted("ways"):
            busybox = work / "busybox.tar"
            engines.busybox_archive(busybox)
            with engines.carrel(work, "over-grpc", "--containerd", "process") as process, \
                    engines.carrel(work) as ours:
                for engine in (ours, process):
                    engine.docker("load", "-q", "-i", str(busybox))
                take(cases.ways(ours, process, count))
    results = engines.ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%S")
    (results / f"{stamp}.json").write_text(json.dumps(
        [{**row.__dict__, "ratio": row.ratio} for row in rows], indent=1))


if __name__ == "__main__":
    main()
