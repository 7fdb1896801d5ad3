"""After a restart of the daemon: which containers live, how the others ended."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import finish, log, remove, start
from carrel.engine.fifostdio import FifoStdio
from carrel.engine.model import CREATED, EXITED, PAUSED, RESTARTING, RUNNING, Container
from carrel.engine.tasks import PAUSED as TASK_PAUSED
from carrel.engine.tasks import RUNNING as TASK_RUNNING
from carrel.engine.tasks import STOPPED as TASK_STOPPED
from carrel.engine.tasks import nanoseconds

if TYPE_CHECKING:
    from carrel.engine.execs import Exec
    from carrel.engine.manager import Manager

#: exit code of a container whose end nobody saw, as in Docker
_UNSEEN = 255


async def restore(manager: Manager) -> list[Container]:
    """Adopt what lives; returns those that a restart policy wants started."""
    manager.load()
    tasks = await manager.tasks.list()
    living = {c.id for c in manager.all()
              if c.id in tasks and tasks[c.id].status in (TASK_RUNNING, TASK_PAUSED)}
    await manager.ctx.network.restore(living)
    wanted = []
    for container in manager.all():
        if container.state.status in (RUNNING, PAUSED):
            await _settle(manager, container, tasks.get(container.id))
        elif container.id in tasks:
            # a start that the dead daemon never finished
            await start._drop_task(manager, container)
        if container.state.status == RESTARTING:
            container.state.status = EXITED
            wanted.append(container)
        elif container.state.status in (EXITED, CREATED) and _at_boot(container):
            wanted.append(container)
    for ident, doc in manager.ctx.store.all("cleanup"):
        manager.ctx.spawn(remove.clean_disk(manager, ident, list(doc.get("volumes") or [])),
                          f"clean {ident[:12]}")
    return wanted


async def _settle(manager: Manager, container: Container, task: Any) -> None:
    if task is not None and task.status in (TASK_RUNNING, TASK_PAUSED):
        container.state.pid = int(task.pid)
        container.state.status = PAUSED if task.status == TASK_PAUSED else RUNNING
        container.task_dirty = True
        container.stdio = start.make_stdio(manager, container)
        if isinstance(container.stdio, FifoStdio):
            await container.stdio.open(existing=True)
        if container.state.health is not None:
            start._watch_health(manager, container)
        return
    await _ended(manager, container, task)


async def _ended(manager: Manager, container: Container, task: Any) -> None:
    status, when = _UNSEEN, time.time_ns()
    if task is not None and task.status == TASK_STOPPED:
        status = int(task.exit_status)
        when = nanoseconds(task.exited_at) or when
    await finish.exited(manager, container, 0, status, when)


def _at_boot(container: Container) -> bool:
    """Docker's rule for containers that are not running when the daemon starts."""
    name = container.host["RestartPolicy"]["Name"]
    if container.state.status == CREATED or container.host["AutoRemove"]:
        return False
    if name == "always":
        return True
    return not container.record.manually_stopped and finish.policy_says(container)


async def start_wanted(manager: Manager, wanted: list[Container]) -> None:
    """Those with a policy, a few at a time, after the API answers."""
    gate = asyncio.Semaphore(4)

    async def one(container: Container) -> None:
        async with gate:
            try:
                await start.start(manager, container)
            except errdefs.NotModified:
                pass
            except (errdefs.CarrelError, OSError) as error:
                log.error(f"restart policy: {container.id[:12]}: {error}", error)

    await asyncio.gather(*(one(c) for c in wanted))


async def auto_removals(manager: Manager) -> None:
    """``--rm`` containers that ended while no daemon was there."""
    for container in manager.all():
        if container.host["AutoRemove"] and container.state.status == EXITED:
            await finish.auto_remove(manager, container)


async def reconcile(manager: Manager, container: Container) -> None:
    """One container against what the containerd layer says now."""
    try:
        task = await manager.tasks.get(container.id)
    except errdefs.NotFound:
        task = None
    if task is None or task.status == TASK_STOPPED:
        await _ended(manager, container, task)


async def reconcile_all(manager: Manager) -> None:
    tasks = await manager.tasks.list()
    for container in manager.all():
        task = tasks.get(container.id)
        if container.alive and not container.lock.locked() and (
                task is None or task.status == TASK_STOPPED):
            await _ended(manager, container, task)
    for item in list(manager.execs.values()):
        if item.running:
            await _reconcile_exec(manager, item)


async def _reconcile_exec(manager: Manager, item: Exec) -> None:
    try:
        process = await manager.tasks.get(item.container.id, item.id)
    except errdefs.NotFound:
        item.exited(_UNSEEN)
        return
    if process.status == TASK_STOPPED:
        item.exited(int(process.exit_status))
