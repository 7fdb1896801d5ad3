"""The daemon as a process, with the real ctr and real shims, over crashes and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from carrel import errdefs
from carrel.containerd import service
from carrel.containerd.task_manager import Task
from carrel.proto import (
    containers_pb2,
    mount_pb2,
    rpc,
    snapshots_pb2,
    task_events_pb2,
    task_pb2,
    tasks_pb2,
)
from tests.containerd.harness import (
    REPOSITORY,
    Clients,
    Daemon,
    daemon,
    eventually,
    peers,
    refused,
    subscription,
)
from tests.leakcheck import cgroup_parent, cgroups_are_plain

pytestmark = [pytest.mark.root, pytest.mark.peers]

RUNC, CARREL = "io.containerd.runc.v2", "io.containerd.carrel.v1"
COLD = str(REPOSITORY / ".venv" / "bin" / "containerd-shim-carrel-v1")
#: cgroups are the machine's: two runs at once must not meet
CGROUP = cgroup_parent("containerd")


@pytest.fixture(scope="module", autouse=True)
def cgroups_go() -> Iterator[None]:
    yield
    remove_cgroups()


def remove_cgroups() -> None:
    for top in Path("/sys/fs/cgroup").glob(f"*{CGROUP}"):
        top.rmdir()
    for top in Path("/sys/fs/cgroup").glob(CGROUP[1:]):
        top.rmdir()


@pytest.fixture(params=["carrel", "sid"])
def kind(request: pytest.FixtureRequest) -> str:
    """Our own shim from the zygote, or containerd-shim-runc-v2 of containerd 2.1."""
    return str(request.param)


#: ... and that of containerd 1.6, and ours from its program, as without a zygote
EVERY_SHIM = pytest.mark.parametrize("kind", ["carrel", "cold", "sid", "bookworm"])


def path_with(suite: str, directory: Path) -> str:
    """PATH with that suite's shim, and Debian 12's runc, which runs on any of our machines."""
    shutil.copy(f"{peers(suite)}/usr/bin/containerd-shim-runc-v2", directory)
    shutil.copy(f"{peers('bookworm')}/usr/sbin/runc", directory)
    return f"{directory}:{os.environ['PATH']}"


async def _remove_all(server: Daemon) -> None:
    """What a failed test left, so that the next one is not blamed for it."""
    async with server.clients() as clients:
        for task in (await clients.tasks.List(tasks_pb2.ListTasksRequest())).tasks:
            with contextlib.suppress(errdefs.CarrelError):
                await kill(clients, task.id)
            await eventually(functools.partial(stopped, clients, task.id))
            await clients.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=task.id))


@pytest.fixture
def server(kind: str, tmp_path: Path, leak_check: None) -> Iterator[Daemon]:
    path = ""
    if kind in ("sid", "bookworm"):
        directory = tmp_path / "bin"
        directory.mkdir()
        path = path_with(kind, directory)
    with daemon(path=path) as made:
        made.runtime = {"carrel": CARREL, "cold": COLD}.get(kind, RUNC)
        yield made
        print(f"--- daemon\n{made.log()}")  # shown where the test failed
        asyncio.run(_remove_all(made))


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    top = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp"):
        (top / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", top / "bin")
    return top


def spec(*arguments: str, name: str) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/busybox", *arguments], "cwd": "/", "env": ["PATH=/bin"],
                    "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
        "linux": {"cgroupsPath": f"{CGROUP}/{name}",
                  "namespaces": [{"type": t} for t in ("pid", "mount", "ipc", "uts")]},
    }


async def create(server: Daemon | type[_Embedded], clients: Clients, name: str, rootfs: Path,
                 *arguments: str, output: str = "",
                 mounts: list[mount_pb2.Mount] | None = None) -> int:
    await clients.containers.Create(containers_pb2.CreateContainerRequest(
        container=containers_pb2.Container(
            id=name, runtime=containers_pb2.Container.Runtime(name=server.runtime),
            spec=AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec",
                            value=json.dumps(spec(*arguments, name=name)).encode()))))
    answer = await clients.tasks.Create(tasks_pb2.CreateTaskRequest(
        container_id=name, stdout=output, stderr=output, rootfs=mounts or [mount_pb2.Mount(
            type="bind", source=str(rootfs), options=["rbind", "ro"])]))
    return int(answer.pid)


async def start(clients: Clients, name: str, exec_id: str = "") -> int:
    answer = await clients.tasks.Start(
        tasks_pb2.StartRequest(container_id=name, exec_id=exec_id))
    return int(answer.pid)


async def state(clients: Clients, name: str) -> task_pb2.Process:
    answer = await clients.tasks.Get(tasks_pb2.GetRequest(container_id=name))
    result: task_pb2.Process = answer.process
    return result


async def stopped(clients: Clients, name: str) -> bool:
    return (await state(clients, name)).status == task_pb2.STOPPED


async def kill(clients: Clients, name: str, number: int = signal.SIGKILL) -> None:
    await clients.tasks.Kill(tasks_pb2.KillRequest(container_id=name, signal=number))


async def remove(clients: Clients, name: str) -> int:
    answer = await clients.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=name))
    await clients.containers.Delete(containers_pb2.DeleteContainerRequest(id=name))
    return int(answer.exit_status)


@contextlib.asynccontextmanager
async def events(clients: Clients) -> AsyncIterator[list[Any]]:
    """The envelopes of the tasks."""
    async with subscription(clients, "topic~=/tasks/") as seen:
        yield seen


def topics(seen: list[Any]) -> list[str]:
    return [envelope.topic for envelope in seen]


def bundles(server: Daemon) -> list[str]:
    top = Path(server.state, "io.containerd.runtime.v2.task", "default")
    return sorted(p.name for p in top.iterdir()) if top.exists() else []


@EVERY_SHIM
async def test_life_of_a_task(server: Daemon, rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with server.clients() as clients, events(clients) as seen:
        pid = await create(server, clients, "c", rootfs, "sh", "-c", "echo hello; exit 7",
                           output=f"file://{out}")
        assert (await state(clients, "c")).status == task_pb2.CREATED
        assert bundles(server) == ["c"]
        with refused(errdefs.AlreadyExists, "task c"):
            await clients.tasks.Create(tasks_pb2.CreateTaskRequest(container_id="c"))
        waiting = asyncio.ensure_future(clients.tasks.Wait(
            tasks_pb2.WaitRequest(container_id="c")))
        assert await start(clients, "c") == pid
        assert (await waiting).exit_status == 7
        final = await state(clients, "c")
        assert (final.status, final.exit_status, final.pid) == (task_pb2.STOPPED, 7, pid)
        # runc's shim copies the output beside the exit's report: it may come a moment later
        await eventually(lambda: out.read_text() == "hello\n")
        assert await remove(clients, "c") == 7
        await eventually(lambda: "/tasks/delete" in topics(seen))
        assert topics(seen) == [
            "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        assert task_events_pb2.TaskExit.FromString(seen[2].event.value).exit_status == 7
        assert bundles(server) == []
        with refused(errdefs.NotFound):
            await state(clients, "c")
    kept = Path(server.root, "io.containerd.runtime.v2.task/default")  # for foreign shims only
    assert not kept.exists() or not list(kept.iterdir())


@EVERY_SHIM
async def test_exec_pause_kill_metrics(server: Daemon, rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with server.clients() as clients:
        pid = await create(server, clients, "c", rootfs, "sleep", "100")
        await start(clients, "c")
        process = spec("sh", "-c", "echo exec; exit 3", name="c")["process"]
        await clients.tasks.Exec(tasks_pb2.ExecProcessRequest(
            container_id="c", exec_id="e", stdout=f"file://{out}", stderr=f"file://{out}",
            spec=AnyMessage(
                type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
                value=json.dumps(process).encode())))
        waiting = asyncio.ensure_future(clients.tasks.Wait(
            tasks_pb2.WaitRequest(container_id="c", exec_id="e")))
        await start(clients, "c", "e")
        assert (await waiting).exit_status == 3
        deleted = await clients.tasks.DeleteProcess(
            tasks_pb2.DeleteProcessRequest(container_id="c", exec_id="e"))
        assert (deleted.id, deleted.exit_status) == ("e", 3)
        assert out.read_text() == "exec\n"
        await clients.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id="c"))
        assert (await state(clients, "c")).status == task_pb2.PAUSED
        await clients.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id="c"))
        pids = await clients.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id="c"))
        assert pid in [p.pid for p in pids.processes]
        metrics = await clients.tasks.Metrics(tasks_pb2.MetricsRequest(filters=["id==c"]))
        if cgroups_are_plain():
            assert [m.id for m in metrics.metrics] == ["c"]
            assert metrics.metrics[0].data.value
        with refused(errdefs.NotFound):
            await clients.tasks.Start(tasks_pb2.StartRequest(container_id="c", exec_id="none"))
        await kill(clients, "c", signal.SIGKILL)
        await eventually(lambda: stopped(clients, "c"))
        with refused(errdefs.NotFound, "process already finished"):
            await kill(clients, "c")
        assert await remove(clients, "c") == 137


@EVERY_SHIM
async def test_failed_create_leaves_nothing(server: Daemon, rootfs: Path) -> None:
    (rootfs / "bin" / "busybox").unlink()
    async with server.clients() as clients:
        with pytest.raises(errdefs.CarrelError, match="busybox"):
            await create(server, clients, "c", rootfs, "true")
        assert bundles(server) == []
        # the same id can be used at once
        shutil.copy("/bin/busybox", rootfs / "bin")
        await clients.containers.Delete(containers_pb2.DeleteContainerRequest(id="c"))
        await create(server, clients, "c", rootfs, "true")
        await start(clients, "c")
        await eventually(lambda: stopped(clients, "c"))
        assert await remove(clients, "c") == 0


@EVERY_SHIM
async def test_crash_of_the_daemon(server: Daemon, rootfs: Path) -> None:
    """kill -9: containers run on, are found again, and what ended meanwhile is known."""
    async with server.clients() as clients:
        runs = await create(server, clients, "runs", rootfs, "sleep", "100")
        await start(clients, "runs")
        ends = await create(server, clients, "ends", rootfs, "sh", "-c", "sleep 0.4; exit 5")
        await start(clients, "ends")
    server.kill()
    await eventually(lambda: not os.path.exists(f"/proc/{ends}"))
    os.kill(runs, 0)
    server.start()
    async with server.clients() as clients:
        assert (await state(clients, "runs")).status == task_pb2.RUNNING
        # reaped is not yet reported, with runc's shim
        await eventually(lambda: stopped(clients, "ends"))
        ended = await state(clients, "ends")
        assert (ended.status, ended.exit_status) == (task_pb2.STOPPED, 5)
        assert await remove(clients, "ends") == 5
        # and its events arrive at the new daemon
        async with events(clients) as seen:
            await kill(clients, "runs")
            await eventually(lambda: "/tasks/exit" in topics(seen))
        # that event may have been the one of "ends", which waited for a daemon
        await eventually(lambda: stopped(clients, "runs"))
        assert await remove(clients, "runs") == 137


async def test_clean_stop_leaves_containers_running(server: Daemon, rootfs: Path) -> None:
    async with server.clients() as clients:
        pid = await create(server, clients, "c", rootfs, "sleep", "100")
        await start(clients, "c")
    assert server.stop() == 0
    assert not os.path.exists(server.address)
    os.kill(pid, 0)
    server.start()
    async with server.clients() as clients:
        assert (await state(clients, "c")).status == task_pb2.RUNNING
        await kill(clients, "c")
        await eventually(lambda: stopped(clients, "c"))
        assert await remove(clients, "c") == 137


def shim_of(pid: int) -> int:
    """The parent of a container's init."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    raise AssertionError(pid)


@EVERY_SHIM
async def test_death_of_a_shim(server: Daemon, rootfs: Path) -> None:
    async with server.clients() as clients, events(clients) as seen:
        pid = await create(server, clients, "c", rootfs, "sleep", "100")
        await start(clients, "c")
        waiting = asyncio.ensure_future(clients.tasks.Wait(
            tasks_pb2.WaitRequest(container_id="c")))
        await asyncio.sleep(0.1)
        os.kill(shim_of(pid), signal.SIGKILL)
        await eventually(lambda: "/tasks/delete" in topics(seen), 30)
        ends = [task_events_pb2.TaskExit.FromString(e.event.value) for e in seen
                if e.topic == "/tasks/exit"]
        assert [(e.id, e.exit_status) for e in ends] == [("c", 137)]
        assert (await waiting).exit_status == 137
        final = await state(clients, "c")
        assert (final.status, final.exit_status) == (task_pb2.STOPPED, 137)
        # what the shim left was cleaned up: the container's process, too
        await eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        assert bundles(server) == []
        assert await remove(clients, "c") == 137
        with refused(errdefs.NotFound):
            await state(clients, "c")


async def test_shim_died_while_the_daemon_was_away(server: Daemon, rootfs: Path) -> None:
    async with server.clients() as clients:
        pid = await create(server, clients, "c", rootfs, "sleep", "100")
        await start(clients, "c")
    server.kill()
    os.kill(shim_of(pid), signal.SIGKILL)
    server.start()
    async with server.clients() as clients:
        await eventually(lambda: stopped(clients, "c"))
        assert (await state(clients, "c")).exit_status == 137
        await eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        assert await remove(clients, "c") == 137
    assert bundles(server) == []


async def test_a_shim_that_hangs_holds_nobody_up(server: Daemon, rootfs: Path) -> None:
    async with server.clients() as clients:
        pid = await create(server, clients, "hangs", rootfs, "sleep", "100")
        await start(clients, "hangs")
        await create(server, clients, "fine", rootfs, "sleep", "100")
        await start(clients, "fine")
        shim = shim_of(pid)
        os.kill(shim, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            listed = await clients.tasks.List(tasks_pb2.ListTasksRequest())
            assert time.monotonic() - begin < 20
            assert {t.id: t.status for t in listed.tasks} == {
                "hangs": task_pb2.UNKNOWN, "fine": task_pb2.RUNNING}
            with refused(errdefs.DeadlineExceeded, "State"):
                await state(clients, "hangs")
        finally:
            os.kill(shim, signal.SIGCONT)
        for name in ("hangs", "fine"):
            await kill(clients, name)
            await eventually(functools.partial(stopped, clients, name))
            await remove(clients, name)


@pytest.mark.parametrize("patience", [0.002, 0.01, 0.03, 0.08])
async def test_client_goes_away_during_create(server: Daemon, rootfs: Path,
                                              patience: float) -> None:
    """No bundle and no shim is left (the leak check counts processes), and the id is free."""
    async with server.clients() as clients:
        await create(server, clients, "other", rootfs, "sleep", "100")
        await clients.containers.Create(containers_pb2.CreateContainerRequest(
            container=containers_pb2.Container(
                id="c", runtime=containers_pb2.Container.Runtime(name=server.runtime),
                spec=AnyMessage(value=json.dumps(spec("true", name="c")).encode()))))
        request = tasks_pb2.CreateTaskRequest(container_id="c", rootfs=[mount_pb2.Mount(
            type="bind", source=str(rootfs), options=["rbind", "ro"])])
        made = True
        try:
            await clients.tasks.Create(request, timeout=patience)
        except errdefs.DeadlineExceeded:
            made = False
        if not made:
            await eventually(functools.partial(_is_there, clients, request), 30)
        await start(clients, "c")
        await eventually(functools.partial(stopped, clients, "c"))
        assert await remove(clients, "c") == 0


async def _is_there(clients: Clients, request: tasks_pb2.CreateTaskRequest) -> bool:
    try:
        await clients.tasks.Create(request)
    except errdefs.AlreadyExists:
        # being taken back; or it was whole at the moment when the client went away
        try:
            return (await state(clients, "c")).status == task_pb2.CREATED
        except errdefs.NotFound:
            return False
    return True


async def test_many_at_once(server: Daemon, rootfs: Path) -> None:
    async with server.clients() as clients:
        async def one(name: str) -> int:
            await create(server, clients, name, rootfs, "sh", "-c", f"exit {int(name[1:])}")
            waiting = asyncio.ensure_future(clients.tasks.Wait(
                tasks_pb2.WaitRequest(container_id=name)))
            await start(clients, name)
            assert (await waiting).exit_status == int(name[1:])
            return await remove(clients, name)

        assert await asyncio.gather(*(one(f"c{n}") for n in range(8))) == list(range(8))
    assert bundles(server) == []


@pytest.mark.parametrize("zygote", [COLD, ""])
async def test_embedded_layer_runs_tasks(zygote: str, rootfs: Path, leak_check: None,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through LocalTransport, as the engine may have it in its own process;
    without a zygote the program is started instead."""
    monkeypatch.setenv("PATH", f"{os.path.dirname(COLD)}:{os.environ['PATH']}")
    top = tempfile.mkdtemp(prefix="ctd-", dir="/tmp")
    services = service.build(f"{top}/root", f"{top}/state", address=f"{top}/c.sock",
                             zygote=zygote)
    await services.start()
    try:
        clients = Clients(rpc.LocalTransport(services.servicers()), "default")
        async with events(clients) as seen:
            await create(_Embedded, clients, "c", rootfs, "sh", "-c", "exit 4")
            await start(clients, "c")
            await eventually(lambda: "/tasks/exit" in topics(seen))
            assert await remove(clients, "c") == 4
    finally:
        await services.stop()
        shutil.rmtree(top)


class _Embedded:
    runtime = CARREL


async def test_more_layers_than_a_page_of_mount_data(server: Daemon, rootfs: Path,
                                                     tmp_path: Path) -> None:
    """128 layers, as Docker's limit has it: over 4 KiB of lowerdir=."""
    out = tmp_path / "out"
    async with server.clients() as clients:
        parent = ""
        for number in range(127):
            made = await clients.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
                snapshotter="overlayfs", key=f"k{number}", parent=parent))
            if not number:
                shutil.copytree(rootfs, made.mounts[0].source, dirs_exist_ok=True)
            await clients.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(
                snapshotter="overlayfs", key=f"k{number}", name=f"L{number}"))
            parent = f"L{number}"
        made = await clients.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="overlayfs", key="c", parent=parent))
        assert len(",".join(made.mounts[0].options)) > 4096
        await create(server, clients, "c", rootfs, "ls", "/bin", output=f"file://{out}",
                     mounts=list(made.mounts))
        await start(clients, "c")
        await eventually(lambda: stopped(clients, "c"))
        assert await remove(clients, "c") == 0
        assert out.read_text() == "busybox\n"


@pytest.mark.parametrize(("leaving", "kind"), [(False, errdefs.Unavailable),
                                               (True, errdefs.NotFound)])
async def test_a_call_that_outlasts_the_task(leaving: bool, kind: type[errdefs.CarrelError]
                                             ) -> None:
    """Kill of a paused container: it dies, and is deleted, before the shim has thawed it."""
    class Shim:
        async def call(self, *_: Any) -> None:
            task.leaving = leaving
            raise errdefs.Unavailable("ttrpc: closed")

    task = Task(SimpleNamespace(id="t1"), "")  # type: ignore[arg-type]
    task.shim = Shim()  # type: ignore[assignment]
    with pytest.raises(kind):
        await task.call("Kill", None, object)
