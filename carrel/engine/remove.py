"""``DELETE /containers/{id}``: the name is free and the answer sent before the disk is cleaned.

The removal is written into the store together with the record's deletion, as a
document of kind ``cleanup``: a daemon that dies in between finishes the work at
its next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import finish, log, stop, texts
from carrel.engine.model import PAUSED, REMOVING, RESTARTING, Container

if TYPE_CHECKING:
    from carrel.engine.manager import Manager


async def remove(manager: Manager, container: Container, *, force: bool = False,
                 volumes: bool = False, automatic: bool = False) -> None:
    """Gone from the API when this returns."""
    await _end(manager, container, force)
    async with contextlib.AsyncExitStack() as held:
        await held.enter_async_context(container.lock)
        while container.running:  # it was being started, by its restart policy or a client
            await held.aclose()
            await _end(manager, container, force)
            await held.enter_async_context(container.lock)
        if container.removed:
            raise errdefs.Conflict(texts.removal_in_progress(container.id))
        container.removed = True
        finish.cancel_restart(container)
        status, container.state.status = container.state.status, REMOVING
        owned = [p.name for p in container.record.mounts
                 if p.type == "volume" and volumes and manager.is_anonymous(p.name)]
        if automatic:
            # should the daemon die before the commit, the next one finds an ended --rm
            # container and removes it: so those who wait need not wait for the disk
            _announce(manager, container)
            await asyncio.sleep(0)
        try:
            _commit(manager, container, owned)
        except BaseException:
            container.removed, container.state.status = False, status
            if automatic:
                manager.add(container)
            raise
        if not automatic:
            _announce(manager, container)
    manager.ctx.spawn(_clean(manager, container, owned), f"clean {container.id[:12]}")


async def _end(manager: Manager, container: Container, force: bool) -> None:
    """What runs is ended, if that was said."""
    if container.removed:
        raise errdefs.Conflict(texts.removal_in_progress(container.id))
    if not container.running:
        return
    if not force:
        state = container.state.status
        raise errdefs.Conflict(texts.remove_running(
            f"/{container.name}", container.id, state if state in (PAUSED, RESTARTING)
            else "running"))
    await stop.kill_and_wait(manager, container)


def _commit(manager: Manager, container: Container, volumes: list[str]) -> None:
    with manager.ctx.store.transaction():
        manager.flush_cleaned()
        manager.ctx.store.delete("container", container.id)
        manager.ctx.store.put("cleanup", container.id, {"volumes": volumes})


def _announce(manager: Manager, container: Container) -> None:
    """Out of the registry, and everybody is told."""
    manager.forget(container)
    for session in container.pending:
        session.finish()
    manager.ctx.events.publish("container", "destroy", container.id, container.attributes())
    container.tell("removed", "not-running", "next-exit", "stopped")


async def _clean(manager: Manager, container: Container, volumes: list[str]) -> None:
    had_task = container.cleanup is None  # otherwise the end of the run deleted it
    await finish.settled(container)
    for work in (container.preparing, container.recording):
        if work is not None:
            await asyncio.wait([work])
    await clean_disk(manager, container.id, volumes, task=had_task)


async def clean_disk(manager: Manager, ident: str, volumes: list[str], *, task: bool = True
                     ) -> None:
    """What a removed container leaves: record, snapshot, folder, volumes. Idempotent."""
    outcomes = await asyncio.gather(
        _record_and_snapshot(manager, ident, task), *(_volume(manager, name) for name in volumes),
        return_exceptions=True)
    _folder(f"{manager.ctx.config.engine_dir}/containers/{ident}")
    _folder(f"{manager.ctx.config.exec_root}/containers/{ident}")
    _folder(f"{manager.ctx.config.exec_root}/io/{ident[:32]}")
    problems = [o for o in outcomes if isinstance(o, BaseException)]
    for problem in problems:
        log.warning(f"removing what is left of {ident[:12]}: {problem}")
    if not problems:
        manager.cleaned(ident)


async def _record_and_snapshot(manager: Manager, ident: str, task: bool) -> None:
    if task:
        with contextlib.suppress(errdefs.NotFound, errdefs.Conflict):
            await manager.tasks.delete(ident)
    await asyncio.gather(manager.tasks.remove_record(ident), manager.tasks.remove_snapshot(ident))


async def _volume(manager: Manager, name: str) -> None:
    with contextlib.suppress(errdefs.NotFound, errdefs.Conflict):
        await manager.ctx.volumes.remove(name)


def _folder(path: str) -> None:
    """A folder of the engine's own files; it has no folders in it but empty ones."""
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    _folder(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)
        os.rmdir(path)
