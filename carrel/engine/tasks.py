"""What the engine asks of the containerd layer for one container, in its own terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from carrel import errdefs
from carrel.engine.config import Config, Runtime
from carrel.engine.containerd import Client
from carrel.engine.stdio import Stdio
from carrel.proto import containers_pb2, runc_options_pb2, snapshots_pb2, tasks_pb2

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
_OPTIONS_TYPE = "containerd.runc.v1.Options"
_GC_ROOT = "containerd.io/gc.root"
STOPPED = 3  # containerd.v1.types.Status
PAUSED = 4
RUNNING = 2


class Tasks:
    """Thin: one method, one call."""

    def __init__(self, client: Client, config: Config) -> None:
        self._client = client
        self._snapshotter = config.snapshotter
        self._config = config

    # --- snapshots and records ---------------------------------------------------
    async def prepare(self, key: str, parent: str) -> list[Any]:
        """A writable snapshot; its mounts."""
        # the record that refers to it comes with the first start, maybe in a month:
        # until then nothing but this label keeps it from the garbage collector
        answer = await self._client.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self._snapshotter, key=key, parent=parent, labels={_GC_ROOT: "carrel"}))
        return list(answer.mounts)

    async def view(self, key: str, parent: str) -> list[Any]:
        answer = await self._client.snapshots.View(snapshots_pb2.ViewSnapshotRequest(
            snapshotter=self._snapshotter, key=key, parent=parent))
        return list(answer.mounts)

    async def mounts(self, key: str) -> list[Any]:
        answer = await self._client.snapshots.Mounts(snapshots_pb2.MountsRequest(
            snapshotter=self._snapshotter, key=key))
        return list(answer.mounts)

    async def usage(self, key: str) -> int:
        answer = await self._client.snapshots.Usage(snapshots_pb2.UsageRequest(
            snapshotter=self._snapshotter, key=key))
        return int(answer.size)

    async def remove_snapshot(self, key: str) -> None:
        await _gone_is_fine(self._client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(
            snapshotter=self._snapshotter, key=key))

    async def create_record(self, ident: str, image: str, runtime: str, spec: bytes) -> None:
        """The container record; an old one of the same id is replaced."""
        record = self._record(ident, image, runtime, spec)
        try:
            await self._client.containers.Create(
                containers_pb2.CreateContainerRequest(container=record))
        except errdefs.AlreadyExists:
            await self._client.containers.Update(containers_pb2.UpdateContainerRequest(
                container=record))

    def _record(self, ident: str, image: str, runtime: str, spec: bytes) -> Any:
        name, options = self._runtime(runtime)
        record = containers_pb2.Container(
            id=ident, image=image, snapshotter=self._snapshotter, snapshot_key=ident,
            spec=AnyMessage(type_url=SPEC_TYPE, value=spec),
            runtime=containers_pb2.Container.Runtime(name=name))
        if options is not None:
            record.runtime.options.CopyFrom(options)
        return record

    def _runtime(self, name: str) -> tuple[str, Any]:
        """The shim, and its options when a particular binary or cgroup driver is wanted."""
        runtime = resolve_runtime(self._config, name)
        systemd = self._config.systemd_cgroups
        if not runtime.path and not systemd:
            return runtime.shim, None
        options = runc_options_pb2.Options(binary_name=runtime.path, systemd_cgroup=systemd)
        return runtime.shim, AnyMessage(type_url=_OPTIONS_TYPE, value=options.SerializeToString())

    async def remove_record(self, ident: str) -> None:
        await _gone_is_fine(self._client.containers.Delete,
                            containers_pb2.DeleteContainerRequest(id=ident))

    # --- tasks -------------------------------------------------------------------
    async def create(self, ident: str, mounts: list[Any], stdio: Stdio, terminal: bool) -> int:
        answer = await self._client.tasks.Create(tasks_pb2.CreateTaskRequest(
            container_id=ident, rootfs=mounts, stdin=stdio.stdin, stdout=stdio.stdout,
            stderr=stdio.stderr, terminal=terminal))
        return int(answer.pid)

    async def start(self, ident: str, exec_id: str = "") -> int:
        answer = await self._client.tasks.Start(tasks_pb2.StartRequest(
            container_id=ident, exec_id=exec_id))
        return int(answer.pid)

    async def delete(self, ident: str) -> tuple[int, int] | None:
        """Exit status and time (ns); None when there was no task."""
        return await self._delete(self._client.tasks.Delete,
                                  tasks_pb2.DeleteTaskRequest(container_id=ident))

    async def delete_exec(self, ident: str, exec_id: str) -> tuple[int, int] | None:
        return await self._delete(self._client.tasks.DeleteProcess, tasks_pb2.DeleteProcessRequest(
            container_id=ident, exec_id=exec_id))

    @staticmethod
    async def _delete(call: Callable[[Any], Any], request: Any) -> tuple[int, int] | None:
        try:
            answer = await call(request)
        except errdefs.NotFound:
            return None
        return int(answer.exit_status), nanoseconds(answer.exited_at)

    async def kill(self, ident: str, signal: int, *, exec_id: str = "", everyone: bool = False
                   ) -> None:
        await self._client.tasks.Kill(tasks_pb2.KillRequest(
            container_id=ident, exec_id=exec_id, signal=signal, all=everyone))

    async def pause(self, ident: str) -> None:
        await self._client.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=ident))

    async def resume(self, ident: str) -> None:
        await self._client.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=ident))

    async def resize(self, ident: str, height: int, width: int, exec_id: str = "") -> None:
        await self._client.tasks.ResizePty(tasks_pb2.ResizePtyRequest(
            container_id=ident, exec_id=exec_id, height=height, width=width))

    async def close_stdin(self, ident: str, exec_id: str = "") -> None:
        await self._client.tasks.CloseIO(tasks_pb2.CloseIORequest(
            container_id=ident, exec_id=exec_id, stdin=True))

    async def pids(self, ident: str) -> list[int]:
        answer = await self._client.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id=ident))
        return [int(p.pid) for p in answer.processes]

    async def update(self, ident: str, resources: bytes) -> None:
        await self._client.tasks.Update(tasks_pb2.UpdateTaskRequest(
            container_id=ident, resources=AnyMessage(type_url=RESOURCES_TYPE, value=resources)))

    async def exec(self, ident: str, exec_id: str, stdio: Stdio, terminal: bool, process: bytes
                   ) -> None:
        await self._client.tasks.Exec(tasks_pb2.ExecProcessRequest(
            container_id=ident, exec_id=exec_id, stdin=stdio.stdin, stdout=stdio.stdout,
            stderr=stdio.stderr, terminal=terminal,
            spec=AnyMessage(type_url=PROCESS_TYPE, value=process)))

    async def list(self) -> dict[str, Any]:
        """All tasks of the namespace by container id."""
        answer = await self._client.tasks.List(tasks_pb2.ListTasksRequest())
        return {task.id or task.container_id: task for task in answer.tasks}

    async def get(self, ident: str, exec_id: str = "") -> Any:
        answer = await self._client.tasks.Get(tasks_pb2.GetRequest(
            container_id=ident, exec_id=exec_id))
        return answer.process


def resolve_runtime(config: Config, name: str) -> Runtime:
    """The runtime of that name; InvalidParameter names those that exist."""
    known = config.runtimes.get(name or config.default_runtime)
    if known is None:
        raise errdefs.InvalidParameter(
            f"unknown or invalid runtime name: {name[:80]} "
            f"(known: {', '.join(sorted(config.runtimes))})")
    return known


def nanoseconds(stamp: Any) -> int:
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)


async def _gone_is_fine(call: Callable[[Any], Any], request: Any) -> None:
    try:
        await call(request)
    except errdefs.NotFound:
        pass
