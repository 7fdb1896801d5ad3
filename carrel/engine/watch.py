"""The event stream of the containerd layer: exits and out-of-memory, as they happen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import finish, log, restore
from carrel.engine.tasks import nanoseconds
from carrel.proto import events_pb2, task_events_pb2

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_EXIT, _OOM = "/tasks/exit", "/tasks/oom"


class Watcher:
    """One subscription for the daemon's life; made anew when the stream breaks."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        delay = 0.05
        again = False
        while True:
            if again:
                self._manager.ctx.spawn(self._catch_up(), "catching up")
            again = True
            try:
                namespace = self._manager.ctx.containerd.namespace
                request = events_pb2.SubscribeRequest(filters=[
                    f"namespace=={namespace},topic~=tasks/"])
                async for envelope in self._manager.ctx.containerd.events.Subscribe(request):
                    delay = 0.05
                    self._handle(envelope)
                raise errdefs.Unavailable("the event stream ended")
            except (errdefs.CarrelError, OSError) as error:
                log.warning(f"events of the containerd layer: {error}; trying again")
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _catch_up(self) -> None:
        """What happened while nobody listened.

        The protocol does not say when a subscription has begun, so the look is
        repeated: soon for the usual case, and once more for a slow one.
        """
        for pause in (0.1, 2.0):
            await asyncio.sleep(pause)
            try:
                await restore.reconcile_all(self._manager)
            except (errdefs.CarrelError, OSError):
                pass  # still away: the next connection looks again

    def _handle(self, envelope: Any) -> None:
        if envelope.topic == _EXIT:
            event = task_events_pb2.TaskExit.FromString(envelope.event.value)
            self._exit(event)
        elif envelope.topic == _OOM:
            oom = task_events_pb2.TaskOOM.FromString(envelope.event.value)
            container = self._manager.get(oom.container_id)
            if container and not container.state.oom_killed:
                container.state.oom_killed = True
                self._manager.ctx.events.publish("container", "oom", container.id,
                                                 container.attributes())

    def _exit(self, event: Any) -> None:
        container = self._manager.get(event.container_id)
        if container is None:
            return
        when = nanoseconds(event.exited_at)
        if event.id in ("", event.container_id):
            self._manager.ctx.spawn(
                finish.exited(self._manager, container, event.pid, event.exit_status, when),
                f"exit of {container.id[:12]}")
            return
        process = self._manager.execs.get(event.id)
        if process:
            process.exited(event.exit_status)
