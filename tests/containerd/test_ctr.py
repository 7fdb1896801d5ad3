"""The real ctr, of containerd 2.1 and of 1.6, against the daemon."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.containerd.events import pack_event
from carrel.proto import task_events_pb2
from tests.containerd.harness import (
    PROGRAM,
    Daemon,
    daemon,
    eventually,
    present,
    subscription,
    wait_for,
)
from tests.containerd.test_tasks import CGROUP, path_with, remove_cgroups
from tests.images import busybox_archive
from tests.leakcheck import cgroups_are_plain

pytestmark = [pytest.mark.root, pytest.mark.peers]

HELLO = b"hello\n"
DIGEST = "sha256:" + hashlib.sha256(HELLO).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def cgroup_parent() -> Iterator[None]:
    yield
    remove_cgroups()


@pytest.fixture(params=["sid", "bookworm"])
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, leak_check: None) -> Iterator[Daemon]:
    directory = tmp_path / "bin"
    directory.mkdir()
    with daemon(path=path_with("sid", directory)) as made:
        yield made


def test_objects(server: Daemon, suite: str) -> None:
    def ctr(*arguments: str, stdin: bytes = b"") -> str:
        return server.ctr(*arguments, suite=suite, stdin=stdin).stdout

    assert "2.1.0+carrel" in ctr("version")
    ctr("namespaces", "create", "n", "a=b")
    assert "n    a=b" in ctr("namespaces", "ls")
    ctr("content", "ingest", "--expected-digest", DIGEST, "x", stdin=HELLO)
    assert ctr("content", "get", DIGEST) == "hello\n"
    ctr("content", "label", DIGEST, "k=v")
    assert "k=v" in ctr("content", "ls")
    ctr("snapshots", "prepare", "k")
    again = server.ctr("snapshots", "prepare", "k", suite=suite, check=False)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        1, 'ctr: snapshot "k": already exists')
    ctr("snapshots", "commit", "K", "k")
    assert "upperdir=" in ctr("snapshots", "prepare", "--mounts", "z", "K") + ctr(
        "snapshots", "mounts", "/mnt", "z")
    assert ctr("snapshots", "tree").split() == ["K", "\\_", "z"]
    assert "overlayfs" in ctr("plugins", "ls")
    ctr("leases", "create", "--id", "l")
    assert "l " in ctr("leases", "ls")
    ctr("leases", "rm", "l")
    ctr("snapshots", "rm", "z")
    ctr("snapshots", "rm", "K")
    ctr("content", "rm", DIGEST)
    assert DIGEST not in ctr("content", "ls")
    ctr("namespaces", "rm", "n")


def test_run_exec_and_events(server: Daemon, suite: str, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp", "run"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin")

    def run(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return server.ctr("run", "--rootfs", "--fifo-dir", server.fifos, "--cgroup",
                          f"{CGROUP}/{name}", *arguments, suite=suite, check=check)

    # the sleep: ctr gives up opening its FIFOs when a container ends before it came to it
    done = run("a", "--rm", str(rootfs), "a", "/bin/busybox", "sh", "-c", "echo hello; sleep 1")
    assert done.stdout == "hello\n"
    assert run("b", "--rm", str(rootfs), "b", "/bin/busybox", "sh", "-c", "exit 9",
               check=False).returncode == 9
    run("c", "-d", str(rootfs), "c", "/bin/busybox", "sleep", "100")
    assert "RUNNING" in server.ctr("tasks", "ls", suite=suite).stdout
    done = server.ctr("tasks", "exec", "--exec-id", "e", "--fifo-dir", server.fifos, "c",
                      "/bin/busybox", "sh", "-c", "echo exec; sleep 1", suite=suite)
    assert done.stdout == "exec\n"
    server.ctr("tasks", "pause", "c", suite=suite)
    assert "PAUSED" in server.ctr("tasks", "ls", suite=suite).stdout
    server.ctr("tasks", "resume", "c", suite=suite)
    if cgroups_are_plain():
        assert "memory" in server.ctr("tasks", "metrics", "c", suite=suite).stdout
    server.ctr("tasks", "kill", "-s", "KILL", "c", suite=suite)
    wait_for(lambda: "STOPPED" in server.ctr("tasks", "ls", suite=suite).stdout, 30)
    server.ctr("tasks", "rm", "c", suite=suite, check=False)  # exits with the task's 137
    server.ctr("containers", "rm", "c", suite=suite)
    assert server.ctr("containers", "ls", "-q", suite=suite).stdout == ""


def test_second_daemon_on_the_same_root(server: Daemon) -> None:
    done = subprocess.run([PROGRAM, "--address", f"{server.top}/other.sock", "--root", server.root,
                           "--state", f"{server.top}/other"], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 1
    assert "in use by another carrel-containerd" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sockets(server: Daemon) -> None:
    assert os.stat(server.address).st_mode & 0o777 == 0o660
    assert os.stat(f"{server.address}.ttrpc").st_mode & 0o777 == 0o600
    assert os.stat(f"{server.root}/meta.db").st_mode & 0o777 == 0o600
    assert os.stat(server.state).st_mode & 0o077 in (0o11, 0)


def test_zygote_is_started_again(server: Daemon) -> None:
    def zygote() -> int:
        assert server.process is not None
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        for pid in map(int, children.read_text().split()):
            if b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0

    wait_for(lambda: zygote() > 0, 30)
    first = zygote()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: zygote() not in (0, first), 30)
    second = zygote()
    assert server.stop() == 0
    wait_for(lambda: not os.path.exists(f"/proc/{second}"), 30)


def test_configuration(tmp_path: Path, leak_check: None) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'''
        version = 3
        root = "{tmp_path}/root"
        state = "{tmp_path}/state"
        unknown = 1
        [grpc]
        address = "{tmp_path}/c.sock"
        [plugins.x]
        y = 1
    ''')
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(f"{tmp_path}/notify")
    notify.settimeout(60)
    process = subprocess.Popen([PROGRAM, "--config", config], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/notify"})
    try:
        assert notify.recv(100) == b"READY=1"
        assert os.path.exists(tmp_path / "c.sock")
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
        notify.close()
    assert process.returncode == 0
    assert "configuration key unknown is not known" in log
    assert "configuration key plugins.x.y is not known" in log


async def test_publish_for_shims_without_ttrpc(server: Daemon) -> None:
    """``-publish-binary ... publish``: the event on standard input."""
    async with server.clients() as clients:
        event = pack_event(task_events_pb2.TaskOOM(container_id="c"))
        async with subscription(clients) as seen:
            publisher = await asyncio.create_subprocess_exec(
                PROGRAM, "-address", server.address, "publish", "-topic", "/tasks/oom",
                "-namespace", "n", stdin=asyncio.subprocess.PIPE)
            await publisher.communicate(event.SerializeToString())
            assert publisher.returncode == 0
            await eventually(lambda: bool(seen))
        envelope = seen[0]
        assert (envelope.namespace, envelope.topic) == ("n", "/tasks/oom")
        assert envelope.event == event


@pytest.mark.parametrize(("arguments", "text"), [
    (["--config", "/nonexistent.toml"], "does not exist"),
    (["--root", "relative"], "must be an absolute path"),
])
def test_bad_configuration(arguments: list[str], text: str) -> None:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False,
                          timeout=60)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_images(server: Daemon, suite: str) -> None:
    """Import both ways (transfer service; classic client with Diff), run, export, remove."""
    archive = f"{server.top}/image.tar"
    name = "docker.io/library/busybox:latest"
    busybox_archive(archive, name)

    def ctr(*arguments: str) -> str:
        return server.ctr(*arguments, suite=suite).stdout

    # ctr 1.6 knows only the classic way
    for way in ([[], ["--local"]] if suite == "sid" else [[]]):
        ctr("images", "import", *way, archive)
        assert ctr("images", "ls", "-q").split() == [name]
        assert "complete (2/2)" in ctr("images", "check")
        for runtime in ("io.containerd.carrel.v1", "io.containerd.runc.v2"):
            out = ctr("run", "--rm", "--fifo-dir", server.fifos, "--cgroup", f"{CGROUP}/i",
                      "--runtime", runtime, name, "i", "sh", "-c",
                      "echo from the image; sleep 1")
            assert out == "from the image\n"
        ctr("images", "export", *way, f"{server.top}/out.tar", name)
        with tarfile.open(f"{server.top}/out.tar") as made:
            assert {"index.json", "manifest.json", "oci-layout"} <= set(made.getnames())
        ctr("images", "rm", "--sync", name)
        assert "sha256" not in ctr("content", "ls")
        assert "sha256" not in ctr("snapshots", "ls")
        assert present(f"{server.root}/snapshots") == []
