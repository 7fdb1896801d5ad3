"""Start and stop the whole stack; run clients against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.leakcheck import READY_SHIMS, cgroup_parent

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = ROOT / ".venv" / "bin"
CGROUP_PARENT = cgroup_parent("e2e")
#: what is made ahead, and how much of it at most: the links of network namespaces
#: (carrel.network.pool), shims and their workers (carrel.shim.zygote)
READY_MADE = {*(f"veth {n}" for n in range(1, 9)), *READY_SHIMS}
#: in the guest of make vm-test; it is emulated, 40 times slower than any machine
IN_GUEST = bool(os.environ.get("CARREL_IN_VM"))
PATIENCE = 10 if IN_GUEST else 1


def peers(suite: str) -> Path:
    """The root with the peers' programs of one Debian suite; built if missing."""
    out = subprocess.run([str(ROOT / "scripts" / "peers")], check=True, capture_output=True,
                         text=True, env={**os.environ, "PEERS_SUITE": suite})
    return Path(out.stdout.strip().splitlines()[-1])


def newest_client() -> str:
    """docker 28.5 of the peers; in the guest, which has no peers, the client of ours."""
    return str(BIN / "carrel" if IN_GUEST else peers("sid") / "usr/bin/docker")


@dataclass
class Done:
    """A finished client command."""

    code: int
    out: str
    err: str


class Cli:
    """A docker-compatible command line bound to one engine."""

    def __init__(self, program: str, host: str, home: Path) -> None:
        self.program = program
        self.host = host
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_HOST": host,
                    "HOME": str(home), "DOCKER_CONFIG": str(home / "config")}

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60) -> Done:
        """Run it; never raises for an exit code."""
        done = subprocess.run([self.program, *argv], env=self.env, input=stdin, text=True,
                              capture_output=True, timeout=timeout * PATIENCE, check=False,
                              stdin=subprocess.DEVNULL if stdin is None else None)
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *argv: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run it; it must succeed; its standard output."""
        done = self.run(*argv, stdin=stdin, timeout=timeout)
        assert done.code == 0, f"{' '.join(argv)}: exit {done.code}\n{done.out}\n{done.err}"
        return done.out

    def fails(self, *argv: str, stdin: str | None = None) -> Done:
        """Run it; it must fail."""
        done = self.run(*argv, stdin=stdin)
        assert done.code != 0, f"{' '.join(argv)} succeeded: {done.out}"
        return done

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.ok("inspect", name))
        return found[0]

    def popen(self, *argv: str, **keywords: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self.program, *argv], env=self.env, **keywords)


class Stack:
    """carreld with everything below it, in its own folders."""

    def __init__(self, work: Path, *flags: str) -> None:
        self.work = work
        self.exec_root = Path("/run") / f"carrel-{work.name}"
        self.host = f"unix://{self.exec_root}/carrel.sock"
        self.flags = flags
        self.process: subprocess.Popen[bytes] | None = None

    def _argv(self) -> list[str]:
        if os.environ.get("CARREL_E2E_ENGINE") == "docker":  # the tests, tested on the original
            self.host = f"unix://{self.work}/docker.sock"
            return [str(ROOT / "scripts" / "in-peers"), "dockerd", "-H", self.host, "--data-root",
                    str(self.work / "data"), "--exec-root", str(self.work / "exec"),
                    "--pidfile", str(self.work / "pid")]
        return [str(BIN / "carreld"), "-H", self.host, "--data-root", str(self.work / "data"),
                "--exec-root", str(self.exec_root), "--pidfile", str(self.exec_root / "pid"),
                "--cgroup-parent", CGROUP_PARENT, *self.flags]

    def start(self) -> None:
        log = (self.work / "carreld.log").open("ab")
        self.process = subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL, stdout=log,
                                        stderr=log)
        log.close()
        client = self.cli(newest_client())
        deadline = time.monotonic() + 30 * PATIENCE
        while client.run("version").code:
            assert self.process.poll() is None, f"carreld ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"carreld does not answer: {self.log()[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as a service manager would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60 * PATIENCE)

    def kill(self) -> None:
        """kill -9 of carreld alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def pids(self, word: str) -> list[int]:
        """Processes of this stack whose command line contains a word."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    line = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if word in line and str(self.exec_root) in line:
                    found.append(int(entry))
        return found

    def cli(self, program: str) -> Cli:
        home = self.work / "home"
        (home / "config").mkdir(parents=True, exist_ok=True)
        return Cli(program, self.host, home)

    def log(self) -> str:
        return (self.work / "carreld.log").read_text(errors="replace")

    def is_pool(self, fact: str) -> bool:
        """Is this one of the bounded, ready-made things that the engine keeps?"""
        return "pool" in fact or fact in READY_MADE


class OverContainerd(Stack):
    """carreld over a containerd 2.1 with io.containerd.runc.v2 and runc, none of them ours."""

    def __init__(self, work: Path, *flags: str) -> None:
        self.socket = work / "c.sock"
        super().__init__(work, "--containerd", str(self.socket), *flags)
        self.containerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.containerd is None:
            self._start_containerd()
        super().start()

    def _start_containerd(self) -> None:
        programs = self.work / "bin"
        programs.mkdir(exist_ok=True)
        sid = peers("sid") / "usr/bin"
        for name, path in (("containerd-shim-runc-v2", sid / "containerd-shim-runc-v2"),
                           ("runc", peers("bookworm") / "usr/sbin/runc")):
            if not (programs / name).exists():
                (programs / name).symlink_to(path)
        config = self.work / "containerd.toml"
        config.write_text(f"""version = 2
root = "{self.work}/c-root"
state = "{self.work}/c-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime"]
[grpc]
address = "{self.socket}"
""")
        with (self.work / "containerd.log").open("ab") as log:
            self.containerd = subprocess.Popen(
                [str(sid / "containerd"), "--config", str(config)], stdout=log, stderr=log,
                env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            assert self.containerd.poll() is None, (self.work / "containerd.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        super().stop()
        assert self.containerd is not None
        self.containerd.terminate()
        self.containerd.wait(20)
