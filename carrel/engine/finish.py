"""The end of a process: exit status, who is told, what is cleaned, whether it starts again.

The status is recorded and told at once; taking things down follows, and whoever
needs it done (a new start, a removal) waits for :func:`settled`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import timefmt
from carrel.engine.model import EXITED, RESTARTING, Container

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 60.0
_STABLE = 10.0  # a run of that many seconds makes the next delay the first again


async def exited(manager: Manager, container: Container, pid: int, status: int, when_ns: int
                 ) -> None:
    """The event of the containerd layer, or what a restarted daemon found out."""
    async with container.lock:
        if not container.alive or (pid and container.state.pid != pid):
            return
        if container.stdio:
            await container.stdio.drained()
        if container.monitor:
            container.monitor.stop()
            container.monitor = None
        _record(manager, container, status, when_ns)


def _save_end(manager: Manager, container: Container) -> None:
    """An end that cannot be written (the disk is full) is still an end: whoever waits is
    told, and a later daemon finds it out again from the containerd layer."""
    import sqlite3

    try:
        manager.save(container)
    except (sqlite3.Error, OSError) as error:
        from carrel.engine import log

        log.error(f"the end of {container.id[:12]} is not saved: {error}")


def _record(manager: Manager, container: Container, status: int, when_ns: int) -> None:
    state = container.state
    state.pid, state.exit_code = 0, status
    state.finished_at = timefmt.rfc3339(when_ns)
    again = wants_restart(manager, container)
    state.status = RESTARTING if again else EXITED
    ran = max(0.0, (when_ns - timefmt.parse_rfc3339(state.started_at)) / 1e9)
    if again:
        container.record.restart_count += 1
        container.restart_delay = (_FIRST_DELAY if ran >= _STABLE or not container.restart_delay
                                   else min(container.restart_delay * 2, _LONGEST_DELAY))
    removing = bool(container.host["AutoRemove"]) and not again
    if not removing:
        _save_end(manager, container)
    manager.ctx.events.publish("container", "die", container.id, container.attributes(
        exitCode=str(status), execDuration=str(int(ran))))
    container.exit_seen.set()
    for process in list(container.execs.values()):
        process.container_gone()
    container.cleanup = manager.ctx.spawn(_clean(manager, container),
                                          f"clean {container.id[:12]}")
    container.tell("not-running", "next-exit")
    if again:
        container.restart_task = manager.ctx.spawn(_restart(manager, container),
                                                   f"restart {container.id[:12]}")
        return
    container.tell("stopped")
    if removing:
        manager.ctx.spawn(auto_remove(manager, container), f"remove {container.id[:12]}")


async def _clean(manager: Manager, container: Container) -> None:
    """Everything that a start made; each part by itself, so that one failure stops none."""
    stdio, container.stdio = container.stdio, None
    release = manager.release_network(container)
    outcomes = await asyncio.gather(
        release, _delete_task(manager, container), *(
            manager.ctx.volumes.unmount(p.name, container.id)
            for p in container.record.mounts if p.type == "volume"),
        return_exceptions=True)
    if stdio:
        stdio.close()
    manager.drop_shm(container)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            from carrel.engine import log

            log.warning(f"cleaning up after {container.id[:12]}: {outcome}")


async def _delete_task(manager: Manager, container: Container) -> None:
    with contextlib.suppress(errdefs.NotFound):
        await manager.tasks.delete(container.id)


async def settled(container: Container) -> None:
    """Until nothing of the last run is left."""
    if container.cleanup and container.cleanup is not asyncio.current_task():
        await asyncio.wait([container.cleanup])


def wants_restart(manager: Manager, container: Container) -> bool:
    """The restart policy, after an exit."""
    if container.no_restart or manager.stopping or container.removed:
        return False
    return policy_says(container)


def policy_says(container: Container) -> bool:
    policy = container.host["RestartPolicy"]
    name = policy["Name"]
    if name in ("always", "unless-stopped"):
        return True
    if name == "on-failure":
        limit = policy["MaximumRetryCount"]
        return container.state.exit_code != 0 and (
            limit == 0 or container.record.restart_count < limit)
    return False


async def _restart(manager: Manager, container: Container) -> None:
    from carrel.engine import start

    await asyncio.sleep(container.restart_delay)
    async with container.lock:
        if container.state.status != RESTARTING or container.removed or manager.stopping:
            return
        container.restart_task = None
        try:
            await start.start_locked(manager, container)
        except (errdefs.CarrelError, OSError) as error:
            from carrel.engine import log

            log.error(f"restart of {container.id[:12]}: {error}", error)
            container.state.status = EXITED
            manager.save(container)
            container.tell("not-running", "next-exit", "stopped")


def cancel_restart(container: Container) -> bool:
    """True when the container was between two runs."""
    task, container.restart_task = container.restart_task, None
    if task and not task.done():
        task.cancel()
    return container.state.status == RESTARTING


async def auto_remove(manager: Manager, container: Container) -> None:
    """``--rm``: by the engine, so that it happens also when the client is gone."""
    from carrel.engine import remove

    with contextlib.suppress(errdefs.NotFound, errdefs.Conflict):
        await remove.remove(manager, container, force=True, volumes=True, automatic=True)
