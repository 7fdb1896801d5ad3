"""Tasks: running containers, each with a shim.

    absent --create--> created --start--> running <--> paused
                          |                  | exit, or the shim's death
                          +---- delete <-- stopped

State is asked of the shim, which outlives this daemon; nothing but the
connection is kept here.  A shim that dies takes its knowledge along: what it
left is cleaned up by the shim program's ``delete``, the exit is published, and
the task stays as *stopped* until it is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import values
from carrel.containerd.bundle import Bundle, bundles, discard, retired, socket_path
from carrel.containerd.events import EventBus
from carrel.containerd.farewell import TOPIC, Farewells, deletion
from carrel.containerd.shims import CARREL, SHUTDOWN_TIMEOUT, Launcher, Shim, ShimLog
from carrel.proto import containers_pb2, shim_v2_pb2, task_events_pb2, tasks_pb2

log = logging.getLogger(__name__)

#: seconds for one call of a shim; hooks of the runtime run inside create and start
CREATE_TIMEOUT, START_TIMEOUT, CALL_TIMEOUT = 120.0, 120.0, 30.0
#: what nobody may wait for longer: list and inspect
STATE_TIMEOUT = 2.0
LOAD_TIMEOUT = 5.0
#: exit status of a process that was killed with its shim; where nothing is known
_KILLED, _UNKNOWN = 137, 255


@dataclass(slots=True)
class Exit:
    pid: int
    status: int
    at: int


class Task:
    """A container's task: its bundle, its shim, and its end when the shim is gone."""

    def __init__(self, bundle: Bundle, runtime: str) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.shim: Shim | None = None
        self.log: ShimLog | None = None
        #: pid of the container's init, as the shim told
        self.pid = 0
        #: set when the shim died without telling
        self.exit: Exit | None = None
        self.buried = asyncio.Event()
        #: the end of the connection is expected
        self.leaving = False
        #: the start of the shim: its version and address
        self.launch: asyncio.Future[tuple[int, str]] | None = None
        #: the shim's Create
        self.making: asyncio.Future[shim_v2_pb2.CreateTaskResponse] | None = None

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def socket(self) -> str:
        """The shim's socket, where it is one of ours (a foreign shim removes its own)."""
        if self.shim is None or self.runtime != CARREL:
            return ""
        return socket_path(self.shim.address)

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    async def call(self, method: str, request: Any, response: type[Any],
                   timeout: float | None = CALL_TIMEOUT) -> Any:
        if self.shim is None or self.exit is not None:
            raise errdefs.NotFound(f"task {self.id}: its shim is gone: not found")
        try:
            return await self.shim.call(method, request, response, timeout)
        except errdefs.Unavailable:
            if not self.leaving:
                raise
            # deleted meanwhile: a Kill that thaws a container may outlast it
            raise errdefs.NotFound(f"task {self.id}: its shim is gone: not found") from None

    def close(self) -> None:
        self.leaving = True
        if self.shim is not None:
            self.shim.close()
        if self.log is not None:
            self.log.close()
            self.log = None


class TaskManager:
    """All tasks, by namespace and id."""

    def __init__(self, state: str, root: str, launcher: Launcher, events: EventBus) -> None:
        self._state = state
        self._root = root
        self._launcher = launcher
        self._events = events
        self._tasks: dict[tuple[str, str], Task] = {}
        #: a task that is being made: its id is taken, but it is not there yet
        self._making: set[tuple[str, str]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self.farewells = Farewells(events)

    def get(self, namespace: str, name: str) -> Task:
        try:
            return self._tasks[namespace, name]
        except KeyError:
            raise errdefs.NotFound(f"task {name} not found: not found") from None

    def walk(self, namespace: str) -> Iterator[Task]:
        for (there, _), task in tuple(self._tasks.items()):
            if there == namespace:
                yield task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_report)
        return task

    # --- create ---

    async def create(self, namespace: str, container: containers_pb2.Container,
                     request: tasks_pb2.CreateTaskRequest) -> Task:
        """A shim, and in it the container's init, which waits for ``start``."""
        key = (namespace, container.id)
        if key in self._tasks or key in self._making:
            raise errdefs.AlreadyExists(f"task {container.id}: already exists")
        runtime = request.runtime_path or container.runtime.name
        bundle = Bundle(self._state, self._root, namespace, container.id)
        task = Task(bundle, runtime)
        self._making.add(key)
        try:
            self._make_bundle(bundle, runtime != CARREL)
            await self._create(task, container, request)
        except BaseException:
            # also when the client went away: nothing may be left behind.  The id stays taken
            # until all is undone, however often the client's call is cancelled meanwhile
            undoing = self._spawn(self._undo(task))
            undoing.add_done_callback(lambda _: self._making.discard(key))
            await asyncio.wait([undoing])
            raise
        self._tasks[key] = task
        self._making.discard(key)
        return task

    def _make_bundle(self, bundle: Bundle, with_work: bool) -> None:
        try:
            bundle.create(with_work)
        except errdefs.AlreadyExists:
            # of a task that we know nothing of: an interrupted creation
            self._discard(bundle.retire())
            bundle.create(with_work)

    async def _create(self, task: Task, container: containers_pb2.Container,
                      request: tasks_pb2.CreateTaskRequest) -> None:
        bundle = task.bundle
        options = request.options if request.HasField("options") else container.runtime.options
        encoded = options.SerializeToString()
        if task.runtime != CARREL:
            task.log = ShimLog(bundle)
        task.launch = asyncio.ensure_future(self._launcher.start(bundle, task.runtime, encoded))
        # written while the shim starts: it reads the specification at its Create
        bundle.write("config.json", container.spec.value)
        # a client that goes away must not make us forget a shim that is being born
        version, address = await asyncio.shield(task.launch)
        task.shim = await Shim.connect(bundle, version, address, lambda: self._lost(task))
        bundle.save_bootstrap(version, address)
        task.making = asyncio.ensure_future(task.shim.call("Create", shim_v2_pb2.CreateTaskRequest(
            id=task.id, bundle=bundle.path, rootfs=request.rootfs, terminal=request.terminal,
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr,
            options=options if encoded else None),
            shim_v2_pb2.CreateTaskResponse, CREATE_TIMEOUT))
        task.pid = (await asyncio.shield(task.making)).pid

    async def _undo(self, task: Task) -> None:
        """Take back a task that could not be made."""
        task.leaving = True
        if await self._find_shim(task):
            # a foreign shim that failed half-way forgets what its runtime made; ours does not
            if not await self._ask_to_go(task) or task.runtime != CARREL:
                await self._launcher.cleanup(task.bundle, task.runtime)
        elif task.launch is not None and task.launch.exception() is None:
            await self._launcher.cleanup(task.bundle, task.runtime)
        if task.making is not None and task.making.done():
            task.making.exception()  # was told to the client, if there still is one
        task.close()
        self._discard(self._retire(task), task.socket)

    async def _find_shim(self, task: Task) -> bool:
        """Whether there is a shim that answers; one that is being born is waited for."""
        if task.launch is None:
            return task.shim is not None and not task.shim.client.closed
        try:
            version, address = await task.launch
            if task.shim is None:
                task.shim = await Shim.connect(task.bundle, version, address, _nothing)
        except errdefs.CarrelError:
            return False
        return not task.shim.client.closed

    async def _ask_to_go(self, task: Task) -> bool:
        """End the container and the shim, for a shim that answers; False when it does not."""
        try:
            await self._end_container(task)
            await self._shut_down(task)
        except errdefs.CarrelError as error:
            log.warning("task %s: the shim does not take leave: %s", task.id, error)
            return False
        return True

    async def _end_container(self, task: Task) -> None:
        """Kill and delete what a create that nobody waits for may have made by now."""
        assert task.shim is not None
        call = task.shim.call
        if task.making is not None:
            # only after its answer is the container there, or not
            await asyncio.wait([task.making])
        try:
            await call("Kill", shim_v2_pb2.KillRequest(id=task.id, signal=signal.SIGKILL,
                                                       all=True), Empty, CALL_TIMEOUT)
            await call("Wait", shim_v2_pb2.WaitRequest(id=task.id), shim_v2_pb2.WaitResponse,
                       SHUTDOWN_TIMEOUT)
        except (errdefs.NotFound, errdefs.Conflict):
            pass  # never created, or at its end
        try:
            await call("Delete", shim_v2_pb2.DeleteRequest(id=task.id),
                       shim_v2_pb2.DeleteResponse, CALL_TIMEOUT)
        except errdefs.NotFound:
            pass

    async def _shut_down(self, task: Task) -> None:
        assert task.shim is not None
        try:
            await task.shim.call("Shutdown", shim_v2_pb2.ShutdownRequest(id=task.id), Empty,
                                 SHUTDOWN_TIMEOUT)
        except errdefs.Unavailable:
            pass  # it went without an answer

    def _retire(self, task: Task) -> list[str]:
        """Free the task's id; the paths that are still to be deleted."""
        try:
            return task.bundle.retire()
        except OSError as error:
            log.error("remove bundle %s: %s", task.bundle.path, error)
            return []

    def _discard(self, paths: list[str], socket: str = "") -> None:
        """Delete retired bundles, and a shim's socket, in a thread: nobody waits for it."""
        if paths or socket:
            self._spawn(asyncio.to_thread(_discard, paths, socket))

    # --- delete ---

    async def delete(self, task: Task) -> Exit:
        """Delete a stopped task; its shim ends."""
        if task.exit is not None:
            await task.buried.wait()
            self._forget(task)
            return task.exit
        assert task.shim is not None
        # our own shim tells before it answers
        token = self.farewells.expect(task.namespace, task.id) if task.runtime != CARREL else None
        try:
            response = await task.shim.call(
                "Delete", shim_v2_pb2.DeleteRequest(id=task.id), shim_v2_pb2.DeleteResponse,
                CALL_TIMEOUT)
        except errdefs.Unavailable:
            # the shim died under the call: its burial has the answer
            self.farewells.forget(task.namespace, task.id)
            end = await self._buried(task)
            self._forget(task)
            return end
        except BaseException:
            self.farewells.forget(task.namespace, task.id)
            raise
        task.leaving = True
        self._forget(task)
        end = Exit(response.pid, response.exit_status, response.exited_at.ToNanoseconds())
        self._spawn(self._leave(task, self._retire(task), end, token))
        return end

    async def _leave(self, task: Task, paths: list[str], end: Exit, token: object) -> None:
        """Not on the path of the answer: the shim has nothing left but to end."""
        try:
            await self._shut_down(task)
            if token is not None:
                await self._ended(task)
        except errdefs.CarrelError as error:
            log.warning("task %s: shutdown of its shim: %s", task.id, error)
        finally:
            task.close()
            self._discard(paths, task.socket)
        if token is not None:
            await self.farewells.close(
                task.namespace, deletion(task.id, end.pid, end.status, end.at), token)

    async def _ended(self, task: Task) -> None:
        assert task.shim is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await task.shim.client.ended.wait()

    def _forget(self, task: Task) -> None:
        key = (task.namespace, task.id)
        if self._tasks.get(key) is task:
            del self._tasks[key]

    # --- the death of a shim ---

    def _lost(self, task: Task) -> None:
        """The connection ended.  A shim never closes it by itself: it is dead."""
        if not task.leaving and (task.namespace, task.id) in self._tasks:
            log.warning("shim of task %s died", task.id)
            self._spawn(self._bury(task))

    async def _buried(self, task: Task) -> Exit:
        if task.exit is None and not task.leaving:
            await self._bury(task)
        if task.exit is None:
            raise errdefs.NotFound(f"task {task.id} was deleted: not found")
        await task.buried.wait()
        return task.exit

    async def _bury(self, task: Task) -> None:
        if task.leaving:
            return
        task.leaving = True
        task.exit = Exit(task.pid, _KILLED, values.now())
        try:
            response = await self._launcher.cleanup(task.bundle, task.runtime)
            if response is None:
                task.exit.status = _UNKNOWN
            else:
                task.exit.pid = response.pid or task.pid
                task.exit.status = response.exit_status or _KILLED
                if response.exited_at.seconds > 0:
                    task.exit.at = response.exited_at.ToNanoseconds()
            self._discard(self._retire(task), task.socket)
            self._tell_end(task, task.exit)
        finally:
            task.close()
            task.buried.set()

    def _tell_end(self, task: Task, end: Exit) -> None:
        at = values.stamp(end.at)
        self._events.publish(task.namespace, "/tasks/exit", task_events_pb2.TaskExit(
            container_id=task.id, id=task.id, pid=end.pid, exit_status=end.status, exited_at=at))
        self._events.publish(task.namespace, TOPIC, deletion(task.id, end.pid, end.status, end.at))

    # --- wait ---

    async def wait(self, task: Task, exec_id: str) -> Exit:
        """Until the process ends; also when its shim dies meanwhile."""
        if task.exit is None:
            try:
                response = await task.call("Wait", shim_v2_pb2.WaitRequest(
                    id=task.id, exec_id=exec_id), shim_v2_pb2.WaitResponse, None)
                return Exit(0, response.exit_status, response.exited_at.ToNanoseconds())
            except errdefs.Unavailable:
                return await self._buried(task)
        await task.buried.wait()
        return task.exit

    # --- restart of this daemon ---

    async def load(self) -> None:
        """Find the shims of an earlier daemon again; clean up after those that died."""
        self._discard(retired(self._state, self._root))
        found = list(bundles(self._state, self._root))
        await asyncio.gather(*(self._load(bundle) for bundle in found))

    async def _load(self, bundle: Bundle) -> None:
        task = Task(bundle, bundle.shim_binary() or CARREL)
        key = (bundle.namespace, bundle.id)
        try:
            await self._reconnect(task)
        except (errdefs.CarrelError, OSError) as error:
            log.info("task %s: its shim is gone: %s", bundle.id, error)
            await self._load_dead(task)
            return
        self._tasks[key] = task

    async def _reconnect(self, task: Task) -> None:
        where = task.bundle.bootstrap()
        if where is None:
            raise errdefs.NotFound("it was never started")
        if task.bundle.has("log"):
            task.log = ShimLog(task.bundle)
        task.shim = await Shim.connect(task.bundle, *where, lambda: self._lost(task))
        state = await task.shim.call("State", shim_v2_pb2.StateRequest(id=task.id),
                                     shim_v2_pb2.StateResponse, LOAD_TIMEOUT)
        task.pid = state.pid

    async def _load_dead(self, task: Task) -> None:
        where = task.bundle.bootstrap()
        if task.shim is not None and not task.shim.client.closed:
            # it answers, but knows no such container: it was being made
            await self._undo(task)
            return
        if where is None and not task.bundle.shim_binary():
            task.close()
            self._discard(self._retire(task))
            return
        self._tasks[task.namespace, task.id] = task
        await self._bury(task)

    async def stop(self) -> None:
        """Let go of the shims; they and their containers live on."""
        if self._background:
            await asyncio.wait(set(self._background), timeout=SHUTDOWN_TIMEOUT)
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("cleaning up after a task: %s", error, exc_info=error)


def _nothing() -> None:
    """The connection of a shim that is told to go."""


def _discard(paths: list[str], socket: str) -> None:
    try:
        if socket:
            os.unlink(socket)
    except FileNotFoundError:
        pass
    try:
        discard(paths)
    except OSError as error:
        # tried again at the next start
        log.error("remove bundle: %s", error)
