"""Under real containerds, 2.1 and 1.6, with their own ``ctr``: started cold, found again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import busybox_archive
from tests.shim.kit import CGROUP_PARENT, ROOT, wait_until

pytestmark = [pytest.mark.root, pytest.mark.peers, pytest.mark.usefixtures("leak_check")]
SHIM = "containerd-shim-carrel-v1"
IMAGE = "docker.io/library/busybox:latest"


def peers_root(suite: str) -> Path:
    found = subprocess.run([ROOT / "scripts/peers"], env={**os.environ, "PEERS_SUITE": suite},
                           stdout=subprocess.PIPE, text=True, check=True).stdout
    return Path(found.strip())


class Containerd:
    """A real containerd from the peers' root, as a program of this machine."""

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        self.programs = peers_root(suite) / "usr/bin"
        self.address = folder / "c.sock"
        self.wrapper("bin", SHIM)
        # ctr gives options only to the name it knows; behind it is our shim again
        self.wrapper("bin", "containerd-shim-runc-v2")
        (folder / "config.toml").write_text(f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime"]
[grpc]
address = "{self.address}"
""")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def wrapper(self, folder: str, name: str) -> None:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable} -ISB\nimport sys\nsys.path[:0] = [{str(ROOT)!r}]\n"
                        "from carrel.shim.main import main\nsys.exit(main())\n")
        path.chmod(0o755)

    def start(self) -> None:
        environment = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        with open(self.folder / "containerd.log", "ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "containerd", "--config", self.folder / "config.toml"],
                env=environment, stdout=log, stderr=log)
        wait_until(lambda: self.address.exists() and self.run("version").returncode == 0, 60)

    def run(self, *arguments: str, stdin: str = "",
            timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.programs / "ctr", "-a", self.address, *arguments],
                              input=stdin, capture_output=True, text=True, timeout=timeout,
                              check=False)

    def ok(self, *arguments: str, **options: str) -> str:
        done = self.run(*arguments, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout

    def launch(self, name: str, *command: str, flags: tuple[str, ...] = (),
               runtime: str = "io.containerd.carrel.v1") -> subprocess.CompletedProcess[str]:
        cgroup = f"{CGROUP_PARENT}/{os.getpid()}-{name}"
        return self.run("run", "--runtime", runtime, "--cgroup", cgroup, *flags, IMAGE, name,
                        *command)

    def log(self) -> str:
        lines = (self.folder / "containerd.log").read_text().splitlines()
        return "\n".join(line for line in lines if "level=info" not in line)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for name in self.run("task", "ls", "-q").stdout.split():
            self.run("task", "rm", "-f", name)
        for name in self.run("container", "ls", "-q").stdout.split():
            self.run("container", "rm", name)
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(params=["sid", "bookworm"])
def containerd(request: pytest.FixtureRequest, leak_check: None) -> Iterator[Containerd]:
    with tempfile.TemporaryDirectory(prefix="shimc-") as folder:
        made = Containerd(Path(folder), request.param)
        try:
            archive = Path(folder) / "busybox.tar"
            busybox_archive(archive)
            made.ok("images", "import", str(archive))
            yield made
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.close()


# The sleeps after what is written: ctr gives its FIFOs up, and what is in them, when a process
# ends before it came to open them.

def test_run_exec_pause_kill(containerd: Containerd) -> None:
    done = containerd.launch("one", "sh", "-c", "echo out; echo err >&2; sleep 1; exit 7",
                             flags=("--rm",))
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n"), containerd.log()

    script = "trap 'exit 5' TERM; while :; do sleep 0.05; done"
    done = containerd.launch("two", "sh", "-c", script, flags=("-d", "--null-io"))
    assert done.returncode == 0, done.stderr + containerd.log()
    done = containerd.run("task", "exec", "--exec-id", "e", "two", "sh", "-c",
                          "echo hi; sleep 1; exit 3")
    assert (done.returncode, done.stdout) == (3, "hi\n"), done.stderr
    assert "pids.current" in containerd.ok("task", "metrics", "two")
    containerd.ok("task", "pause", "two")
    assert "PAUSED" in containerd.ok("task", "ls")
    containerd.ok("task", "resume", "two")
    assert "RUNNING" in containerd.ok("task", "ls")
    assert len(containerd.ok("task", "ps", "two").splitlines()) >= 2
    done = containerd.run("task", "rm", "two")
    assert done.returncode != 0
    containerd.ok("task", "kill", "-s", "TERM", "two")
    wait_until(lambda: "STOPPED" in containerd.ok("task", "ls"))
    assert "exit code 5" in containerd.run("task", "rm", "two").stderr
    containerd.ok("container", "rm", "two")
    assert "no such file" in containerd.launch("bad", "/none").stderr


def test_terminal(containerd: Containerd) -> None:
    """ctr wants a terminal of its own: script(1) lends one."""
    cgroup = f"{CGROUP_PARENT}/{os.getpid()}-t"
    command = (f"{containerd.programs}/ctr -a {containerd.address} run -t --rm --runtime "
               f"io.containerd.carrel.v1 --cgroup {cgroup} {IMAGE} t "
               "sh -c 'test -t 0 && test -t 1 && echo terminal; exit 4'")
    done = subprocess.run(["/usr/bin/script", "-qec", command, "/dev/null"], capture_output=True,
                          text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 4, done.stdout + containerd.log()
    assert "terminal" in done.stdout


def test_a_killed_containerd_finds_its_container_again(containerd: Containerd) -> None:
    done = containerd.launch("c", "sleep", "1000", flags=("-d", "--null-io"))
    assert done.returncode == 0, done.stderr
    before = containerd.ok("task", "ls")
    containerd.kill()
    containerd.start()
    assert containerd.ok("task", "ls") == before
    done = containerd.run("task", "exec", "--exec-id", "e", "c", "sh", "-c",
                          "echo still here; sleep 1")
    assert done.stdout == "still here\n", done.stderr
    containerd.ok("task", "kill", "-s", "KILL", "c")
    wait_until(lambda: "STOPPED" in containerd.ok("task", "ls"))
    containerd.run("task", "rm", "c")


def test_an_exit_while_containerd_is_away(containerd: Containerd) -> None:
    done = containerd.launch("c", "sh", "-c", "sleep 2; exit 9", flags=("-d", "--null-io"))
    assert done.returncode == 0, done.stderr
    init = int(containerd.ok("task", "ls").splitlines()[1].split()[1])
    containerd.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{init}"))
    containerd.start()
    if "sid" in str(containerd.programs):
        # containerd 2 takes a shim without processes for a leaked one and deletes it
        bundle = containerd.folder / "state/io.containerd.runtime.v2.task/default/c"
        wait_until(lambda: not bundle.exists())
        return
    wait_until(lambda: "STOPPED" in containerd.ok("task", "ls"))
    assert "exit code 9" in containerd.run("task", "rm", "c").stderr


def test_a_killed_shim_is_cleaned_up(containerd: Containerd) -> None:
    done = containerd.launch("c", "sleep", "1000", flags=("-d", "--null-io"))
    assert done.returncode == 0, done.stderr
    init = int(containerd.ok("task", "ls").splitlines()[1].split()[1])
    bundle = containerd.folder / "state/io.containerd.runtime.v2.task/default/c"
    os.kill(int((bundle / "shim.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{init}"))
    wait_until(lambda: "c" not in containerd.run("task", "ls", "-q").stdout.split()
               or "STOPPED" in containerd.ok("task", "ls"))
    wait_until(lambda: not bundle.exists())


def test_runc_under_our_shim(containerd: Containerd) -> None:
    runc = peers_root("bookworm") / "usr/sbin/runc"  # linked against this machine's libraries
    flags = ("--runc-binary", str(runc))
    done = containerd.launch("r", "sh", "-c", "echo out; sleep 1; exit 7", flags=("--rm", *flags),
                             runtime="io.containerd.runc.v2")
    assert (done.returncode, done.stdout) == (7, "out\n"), done.stderr + containerd.log()
    done = containerd.launch("d", "sleep", "1000", flags=("-d", "--null-io", *flags),
                             runtime="io.containerd.runc.v2")
    assert done.returncode == 0, done.stderr + containerd.log()
    done = containerd.run("task", "exec", "--exec-id", "e", "d", "sh", "-c",
                          "echo hi; sleep 1; exit 3")
    assert (done.returncode, done.stdout) == (3, "hi\n"), done.stderr
    containerd.ok("task", "pause", "d")
    containerd.ok("task", "resume", "d")
    containerd.ok("task", "kill", "-s", "KILL", "d")
    wait_until(lambda: "STOPPED" in containerd.ok("task", "ls"))
    assert "exit code 137" in containerd.run("task", "rm", "d").stderr
    containerd.ok("container", "rm", "d")
    done = containerd.launch("bad", "/none", flags=flags, runtime="io.containerd.runc.v2")
    assert "OCI runtime create failed" in done.stderr
    assert "no such file or directory" in done.stderr
