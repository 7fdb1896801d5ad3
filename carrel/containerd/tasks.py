"""``containerd.services.tasks.v1.Tasks``: each call is passed to the task's shim."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.containerd.containers import ContainerStore
from carrel.containerd.task_manager import (
    START_TIMEOUT,
    STATE_TIMEOUT,
    Exit,
    Task,
    TaskManager,
)
from carrel.proto import metrics_pb2, shim_v2_pb2, task_pb2, tasks_pb2
from carrel.proto.rpc import Context

log = logging.getLogger(__name__)


class TasksService:
    """The wire side; tasks are in :mod:`carrel.containerd.task_manager`."""

    def __init__(self, manager: TaskManager, containers: ContainerStore) -> None:
        self._manager = manager
        self._containers = containers

    def _get(self, context: Context, name: str) -> Task:
        return self._manager.get(context.namespace, name)

    async def Create(self, request: tasks_pb2.CreateTaskRequest, context: Context,
                     ) -> tasks_pb2.CreateTaskResponse:
        if request.HasField("checkpoint"):
            raise errdefs.NotImplementedYet("restoring a checkpoint is not built")
        if request.task_api_address:
            raise errdefs.NotImplementedYet("task_api_address (the sandbox API) is not built")
        container = self._containers.get(context.namespace, request.container_id)
        task = await self._manager.create(context.namespace, container, request)
        return tasks_pb2.CreateTaskResponse(container_id=task.id, pid=task.pid)

    async def Start(self, request: tasks_pb2.StartRequest, context: Context,
                    ) -> tasks_pb2.StartResponse:
        response = await self._get(context, request.container_id).call(
            "Start", shim_v2_pb2.StartRequest(id=request.container_id, exec_id=request.exec_id),
            shim_v2_pb2.StartResponse, START_TIMEOUT)
        return tasks_pb2.StartResponse(pid=response.pid)

    async def Delete(self, request: tasks_pb2.DeleteTaskRequest, context: Context,
                     ) -> tasks_pb2.DeleteResponse:
        task = self._get(context, request.container_id)
        return _deleted(task.id, await self._manager.delete(task))

    async def DeleteProcess(self, request: tasks_pb2.DeleteProcessRequest, context: Context,
                            ) -> tasks_pb2.DeleteResponse:
        if not request.exec_id:
            raise errdefs.InvalidParameter("exec id must not be empty")
        task = self._get(context, request.container_id)
        response = await task.call(
            "Delete", shim_v2_pb2.DeleteRequest(id=task.id, exec_id=request.exec_id),
            shim_v2_pb2.DeleteResponse)
        return tasks_pb2.DeleteResponse(id=request.exec_id, pid=response.pid,
                                        exit_status=response.exit_status,
                                        exited_at=response.exited_at)

    async def Get(self, request: tasks_pb2.GetRequest, context: Context) -> tasks_pb2.GetResponse:
        task = self._get(context, request.container_id)
        return tasks_pb2.GetResponse(process=await _state(task, request.exec_id))

    async def List(self, request: tasks_pb2.ListTasksRequest, context: Context,
                   ) -> tasks_pb2.ListTasksResponse:
        accept = filters.compile_all([request.filter] if request.filter else [])
        tasks = [task for task in self._manager.walk(context.namespace) if accept(_lookup(task))]
        states = await asyncio.gather(*(_state_or_none(task) for task in tasks))
        return tasks_pb2.ListTasksResponse(tasks=[state for state in states if state is not None])

    async def Kill(self, request: tasks_pb2.KillRequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        if task.exit is not None:
            raise errdefs.NotFound("process already finished: not found")
        await task.call("Kill", shim_v2_pb2.KillRequest(
            id=task.id, exec_id=request.exec_id, signal=request.signal, all=request.all), Empty)
        return Empty()

    async def Exec(self, request: tasks_pb2.ExecProcessRequest, context: Context) -> Empty:
        values.check_identifier(request.exec_id, "exec id")
        task = self._get(context, request.container_id)
        await task.call("Exec", shim_v2_pb2.ExecProcessRequest(
            id=task.id, exec_id=request.exec_id, terminal=request.terminal, stdin=request.stdin,
            stdout=request.stdout, stderr=request.stderr, spec=request.spec), Empty)
        return Empty()

    async def ResizePty(self, request: tasks_pb2.ResizePtyRequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        await task.call("ResizePty", shim_v2_pb2.ResizePtyRequest(
            id=task.id, exec_id=request.exec_id, width=request.width, height=request.height),
            Empty)
        return Empty()

    async def CloseIO(self, request: tasks_pb2.CloseIORequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        await task.call("CloseIO", shim_v2_pb2.CloseIORequest(
            id=task.id, exec_id=request.exec_id, stdin=request.stdin), Empty)
        return Empty()

    async def Pause(self, request: tasks_pb2.PauseTaskRequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        await task.call("Pause", shim_v2_pb2.PauseRequest(id=task.id), Empty)
        return Empty()

    async def Resume(self, request: tasks_pb2.ResumeTaskRequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        await task.call("Resume", shim_v2_pb2.ResumeRequest(id=task.id), Empty)
        return Empty()

    async def ListPids(self, request: tasks_pb2.ListPidsRequest, context: Context,
                       ) -> tasks_pb2.ListPidsResponse:
        task = self._get(context, request.container_id)
        response = await task.call("Pids", shim_v2_pb2.PidsRequest(id=task.id),
                                   shim_v2_pb2.PidsResponse)
        return tasks_pb2.ListPidsResponse(processes=response.processes)

    async def Checkpoint(self, request: tasks_pb2.CheckpointTaskRequest, context: Context,
                         ) -> tasks_pb2.CheckpointTaskResponse:
        raise errdefs.NotImplementedYet("/containerd.services.tasks.v1.Tasks/Checkpoint is not "
                                        "built in carrel-containerd")

    async def Update(self, request: tasks_pb2.UpdateTaskRequest, context: Context) -> Empty:
        task = self._get(context, request.container_id)
        await task.call("Update", shim_v2_pb2.UpdateTaskRequest(
            id=task.id, resources=request.resources, annotations=request.annotations), Empty)
        return Empty()

    async def Metrics(self, request: tasks_pb2.MetricsRequest, context: Context,
                      ) -> tasks_pb2.MetricsResponse:
        accept = filters.compile_all(request.filters)
        tasks = [task for task in self._manager.walk(context.namespace) if accept(_lookup(task))]
        found = await asyncio.gather(*(_metric_or_none(task) for task in tasks))
        return tasks_pb2.MetricsResponse(metrics=[metric for metric in found if metric])

    async def Wait(self, request: tasks_pb2.WaitRequest, context: Context,
                   ) -> tasks_pb2.WaitResponse:
        task = self._get(context, request.container_id)
        end = await self._manager.wait(task, request.exec_id)
        return tasks_pb2.WaitResponse(exit_status=end.status, exited_at=values.stamp(end.at))


def _deleted(name: str, end: Exit) -> tasks_pb2.DeleteResponse:
    return tasks_pb2.DeleteResponse(id=name, pid=end.pid, exit_status=end.status,
                                    exited_at=values.stamp(end.at))


async def _state(task: Task, exec_id: str) -> task_pb2.Process:
    if task.exit is not None:
        if exec_id:
            raise errdefs.NotFound(f"exec {exec_id}: its shim is gone: not found")
        if not task.buried.is_set():
            # its shim died just now, and its processes are being killed
            return task_pb2.Process(container_id=task.id, id=task.id, pid=task.exit.pid,
                                    status=task_pb2.UNKNOWN)
        return task_pb2.Process(container_id=task.id, id=task.id, pid=task.exit.pid,
                                status=task_pb2.STOPPED, exit_status=task.exit.status,
                                exited_at=values.stamp(task.exit.at))
    state: Any = await task.call(
        "State", shim_v2_pb2.StateRequest(id=task.id, exec_id=exec_id),
        shim_v2_pb2.StateResponse, STATE_TIMEOUT)
    return task_pb2.Process(
        container_id=task.id, id=exec_id or task.id, pid=state.pid, status=state.status,
        stdin=state.stdin, stdout=state.stdout, stderr=state.stderr, terminal=state.terminal,
        exit_status=state.exit_status, exited_at=state.exited_at)


async def _state_or_none(task: Task) -> task_pb2.Process | None:
    """For lists: one shim that hangs is shown as unknown and holds nobody up."""
    try:
        return await _state(task, "")
    except errdefs.DeadlineExceeded:
        return task_pb2.Process(container_id=task.id, id=task.id, pid=task.pid,
                                status=task_pb2.UNKNOWN)
    except errdefs.CarrelError as error:
        log.debug("state of task %s: %s", task.id, error)
        return None


async def _metric_or_none(task: Task) -> metrics_pb2.Metric | None:
    try:
        response: Any = await task.call("Stats", shim_v2_pb2.StatsRequest(id=task.id),
                                        shim_v2_pb2.StatsResponse, STATE_TIMEOUT)
    except errdefs.CarrelError as error:
        log.debug("stats of task %s: %s", task.id, error)
        return None
    return metrics_pb2.Metric(timestamp=values.stamp(values.now()), id=task.id,
                              data=response.stats)


def _lookup(task: Task) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        value = {"id": task.id, "namespace": task.namespace,
                 "runtime": task.runtime}.get(path[0], "")
        return value, bool(value)

    return find
