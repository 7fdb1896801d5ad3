"""stop, kill, restart, pause: signals, patience, and then force."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import finish, signals, texts
from carrel.engine.model import EXITED, PAUSED, RUNNING, Container

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

DEFAULT_TIMEOUT = 10
#: how long an exit may take after SIGKILL before the caller is told
_AFTER_KILL = 10.0


def stop_signal(container: Container, given: str | None = None) -> int:
    return signals.parse(given or container.config.get("StopSignal") or "SIGTERM")


def patience(container: Container) -> int:
    """Seconds between the signal and SIGKILL; negative: for ever."""
    own = container.config.get("StopTimeout")
    return own if isinstance(own, int) else DEFAULT_TIMEOUT


async def stop(manager: Manager, container: Container, timeout: int | None,
               signal: str | None = None) -> None:
    """Ask, wait, force. Returns when the container is stopped and its ports are free."""
    if not container.running:
        raise errdefs.NotModified("already stopped")
    number = stop_signal(container, signal)
    container.no_restart = True
    if not manager.stopping:
        container.record.manually_stopped = True
    if await _was_between_runs(manager, container):
        return
    seconds = patience(container) if timeout is None else timeout
    await _send(manager, container, number)
    if not await _gone(container, None if seconds < 0 else float(seconds)):
        await kill_and_wait(manager, container)
    await finish.settled(container)
    manager.ctx.events.publish("container", "stop", container.id, container.attributes())


async def _was_between_runs(manager: Manager, container: Container) -> bool:
    async with container.lock:
        if not finish.cancel_restart(container):
            return False
        container.state.status = EXITED
        manager.save(container)
        container.tell("not-running", "next-exit", "stopped")
        return True


async def _send(manager: Manager, container: Container, number: int) -> None:
    """A signal to a process that may be gone meanwhile: that is what was wanted."""
    manager.ctx.events.publish("container", "kill", container.id,
                               container.attributes(signal=str(number)))
    with contextlib.suppress(errdefs.NotFound):
        try:
            await manager.tasks.kill(container.id, number)
        except (errdefs.Conflict, errdefs.SystemFailure) as error:
            if "process already finished" not in error.message and (
                    "not running" not in error.message):
                raise


async def _thaw(manager: Manager, container: Container) -> None:
    """After SIGKILL, for a shim that does not do it by itself, as ours does."""
    if container.state.status == PAUSED:
        with contextlib.suppress(errdefs.CarrelError):
            await manager.tasks.resume(container.id)


async def _gone(container: Container, seconds: float | None) -> bool:
    if not container.alive:
        return True
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(container.exit_seen.wait(), seconds)
        return True
    return not container.alive


async def kill_and_wait(manager: Manager, container: Container) -> None:
    """SIGKILL, thawed first; the exit was recorded when this returns."""
    container.no_restart = True
    if await _was_between_runs(manager, container) or not container.alive:
        return
    await _send(manager, container, 9)
    await _thaw(manager, container)
    if not await _gone(container, _AFTER_KILL):
        if await _lost(manager, container):
            return
        raise errdefs.SystemFailure(
            f"cannot kill container {container.id[:12]}: no exit in {_AFTER_KILL:.0f} s after "
            "SIGKILL")


async def _lost(manager: Manager, container: Container) -> bool:
    """The task is gone and nobody told: ask the containerd layer."""
    from carrel.engine import restore

    await restore.reconcile(manager, container)
    return not container.alive


async def kill(manager: Manager, container: Container, ref: str, signal: str) -> None:
    """``docker kill``: one signal."""
    number = signals.parse(signal)
    if not container.alive and container.lock.locked():
        # its process may run already while the start is not answered yet
        async with container.lock:
            pass
    if not container.alive:
        raise errdefs.Conflict(texts.cannot_kill(ref, texts.not_running(container.id)))
    if number in (9, stop_signal(container)):
        container.no_restart = True
        container.record.manually_stopped = True
    await _send(manager, container, number)
    if number == 9:
        await _thaw(manager, container)
        await _gone(container, _AFTER_KILL)


async def restart(manager: Manager, container: Container, timeout: int | None,
                  signal: str | None) -> None:
    from carrel.engine import start

    # --rm must not remove what is only being restarted
    host, keep = container.host, container.host["AutoRemove"]
    host["AutoRemove"] = False
    try:
        with contextlib.suppress(errdefs.NotModified):
            await stop(manager, container, timeout, signal)
    finally:
        host["AutoRemove"] = keep
    await start.start(manager, container)
    manager.ctx.events.publish("container", "restart", container.id, container.attributes())


async def pause(manager: Manager, container: Container) -> None:
    async with container.lock:
        status = container.state.status
        if status == PAUSED:
            raise errdefs.Conflict(texts.already_paused(container.id))
        if status != RUNNING:
            raise errdefs.Conflict(texts.not_running(container.id))
        await manager.tasks.pause(container.id)
        container.state.status = PAUSED
        manager.save(container)
    manager.ctx.events.publish("container", "pause", container.id, container.attributes())


async def unpause(manager: Manager, container: Container) -> None:
    async with container.lock:
        if container.state.status != PAUSED:
            raise errdefs.Conflict(texts.not_paused(container.id))
        await manager.tasks.resume(container.id)
        container.state.status = RUNNING
        manager.save(container)
    manager.ctx.events.publish("container", "unpause", container.id, container.attributes())
