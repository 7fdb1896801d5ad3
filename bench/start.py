"""From the request to the program: a shim of the zygote beside ``crun run``.

    scripts/sandbox .venv/bin/python -m bench.start WORK COUNT [--filter]

Both start the same bundle, in turn, after 50 ms of idleness; the program is there when it
opens a file of its root, which inotify tells. Ours begins with the request to the zygote
(fork, connection, Create, Start: what carreld's ``start`` does), crun's with a line to a
shell that waits inside the peers' root. ``--filter`` adds Docker's default seccomp profile.
Prints the milliseconds as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.engines import IN_PEERS
from bench.measure import IDLE
from carrel.oci import seccomp_default
from carrel.runtime import template
from carrel.shim.schema import SCHEMAS
from carrel.shim.service import METHODS, SERVICES
from carrel.shim.ttrpc import REQUEST, frame
from carrel.shim.wire import encode
from tests.shim.kit import Machine, machine_in, wait_until

_IN_OPEN = 0x20
_WARMUP = 3
#: crun refuses a hybrid hierarchy whose v2 side still holds a controller
_SHELL = """mount -t cgroup -o hugetlb cgroup /mnt 2>/dev/null || :
while read -r name; do crun --root WORK/crun run --bundle WORK/bundle "$name" </dev/null; echo; done
"""


class Watch:
    """Tells when somebody opens a file."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def wait(self) -> None:
        os.read(self._fd, 4096)


def make_bundle(work: Path, with_filter: bool) -> tuple[Path, Path]:
    """(bundle, the file that its program opens)."""
    root = work / "bundle" / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "cat").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "cat").chmod(0o755)
    (root / "seen").touch()
    spec: dict[str, Any] = template.default_spec()
    spec["root"] = {"path": str(root)}
    spec["process"].update(terminal=False, args=["/bin/cat", "/seen"])
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] == "network":  # made by the engine beforehand, for either
            namespace["path"] = f"/proc/{os.getpid()}/ns/net"
    if with_filter:
        spec["linux"]["seccomp"] = seccomp_default.profile(
            set(spec["process"]["capabilities"]["bounding"]))
    (work / "bundle" / "config.json").write_text(json.dumps(spec))
    return work / "bundle", root / "seen"


def _frame(stream: int, method: str, message: dict[str, Any]) -> bytes:
    request = {"service": SERVICES[0], "method": method, "timeout_nano": 0, "metadata": [],
               "payload": encode(METHODS[method][0], message)}
    return frame(stream, REQUEST, encode(SCHEMAS["Request"], request))


def ours(machine: Machine, bundle: Path, name: str, watch: Watch) -> float:
    folder = machine.folder / "io.containerd.runtime.v2.task" / "test" / name
    folder.mkdir(parents=True)
    (folder / "rootfs").mkdir()
    spec = json.loads((bundle / "config.json").read_bytes())
    root = {"type": "bind", "source": spec["root"]["path"], "options": ["rbind", "rw"]}
    (folder / "config.json").write_text(json.dumps(spec | {"root": {"path": "rootfs"}}))
    # what a daemon sends is made ready: it is the shim that is measured
    path = str(machine.folder / f"{name}.s")
    request = {"op": "start", "namespace": "test", "id": name, "bundle": str(folder),
               "socket": path, "publish": ""}
    init = {"id": name, "exec_id": ""}
    create = _frame(1, "Create", {"id": name, "bundle": str(folder), "rootfs": [root]})
    start = _frame(3, "Start", init)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)

    def call(packet: bytes) -> None:
        client.sendall(packet)
        answer = client.recv(65536)
        if b"OCI runtime" in answer:
            raise RuntimeError(answer.decode(errors="replace"))

    begin = time.perf_counter()
    answer = machine.zygote.ask(request)
    client.connect(path)
    call(create)
    call(start)
    watch.wait()
    seconds = time.perf_counter() - begin
    call(_frame(5, "Wait", init))
    call(_frame(7, "Delete", init))
    call(_frame(9, "Shutdown", {"id": name}))
    client.close()
    wait_until(lambda: not os.path.exists(f"/proc/{answer['pid']}"))
    return seconds


def theirs(shell: subprocess.Popen[bytes], name: str, watch: Watch) -> float:
    assert shell.stdin is not None and shell.stdout is not None
    begin = time.perf_counter()
    os.write(shell.stdin.fileno(), name.encode() + b"\n")
    watch.wait()
    seconds = time.perf_counter() - begin
    shell.stdout.readline()
    return seconds


def main() -> None:
    work, count = Path(sys.argv[1]), int(sys.argv[2])
    bundle, seen = make_bundle(work, "--filter" in sys.argv)
    watch = Watch(seen)
    times: dict[str, list[float]] = {"ours": [], "crun": []}
    with machine_in(work) as machine, subprocess.Popen(
            [IN_PEERS, "/bin/sh", "-c", _SHELL.replace("WORK", str(work))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        for n in range(count + _WARMUP):
            time.sleep(IDLE)
            mine = ours(machine, bundle, f"bench-start-{n}", watch)
            time.sleep(IDLE)
            other = theirs(shell, f"bench-crun-start-{n}", watch)
            if n >= _WARMUP:
                times["ours"].append(mine * 1000)
                times["crun"].append(other * 1000)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
