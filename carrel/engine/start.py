"""``POST /containers/{id}/start``: the sandbox, the files, the spec, the task.

Every step pushes its undo; when one fails, everything before it is taken back in
reverse order and the container is as it was, with the error in its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import (
    create,
    explain,
    finish,
    jsonlog,
    layers,
    logopts,
    netglue,
    prepare,
    specbuild,
    texts,
    timefmt,
)
from carrel.engine.config import CARREL_RUNTIME
from carrel.engine.fifostdio import FifoStdio
from carrel.engine.model import DEAD, PAUSED, REMOVING, RUNNING, Container
from carrel.engine.stdio import ShimStdio, Stdio
from carrel.engine.tasks import resolve_runtime
from carrel.network.api import Sandbox

if TYPE_CHECKING:
    from carrel.engine.manager import Manager


async def start(manager: Manager, container: Container) -> None:
    """On behalf of a client."""
    async with container.lock:
        state = container.state
        if state.status == PAUSED:
            raise errdefs.Conflict(texts.start_paused())
        if state.status == RUNNING:
            raise errdefs.NotModified("already started")
        if container.removed or state.status in (REMOVING, DEAD):
            raise errdefs.Conflict("container is marked for removal and cannot be started")
        finish.cancel_restart(container)
        container.record.restart_count = 0
        container.restart_delay = 0.0
        container.record.manually_stopped = False
        await start_locked(manager, container)


async def start_locked(manager: Manager, container: Container) -> None:
    """The work itself; the caller holds the lock."""
    if manager.stopping:
        raise errdefs.Unavailable("the daemon is shutting down")
    await finish.settled(container)
    container.no_restart = False
    container.exit_seen = asyncio.Event()
    try:
        async with contextlib.AsyncExitStack() as undo:
            pid = await _start(manager, container, undo)
            undo.pop_all()
    except BaseException as error:
        _failed(manager, container, error)
        raise
    state = container.state
    state.pid, state.status = pid, RUNNING
    manager.ctx.events.publish("container", "start", container.id, container.attributes())
    _watch_health(manager, container)


def _watch_health(manager: Manager, container: Container) -> None:
    check = container.record.config.get("Healthcheck") or {}
    if (check.get("Test") or ["NONE"])[0] not in ("NONE", ""):
        from carrel.engine import health

        container.monitor = health.Monitor(manager, container)
        container.monitor.start()


async def _start(manager: Manager, container: Container, undo: contextlib.AsyncExitStack) -> int:
    prepared = await prepare.take(container)
    mounts = await manager.snapshot_mounts(container)
    sandbox = await _sandbox(manager, container, undo, prepared.key if prepared else "")
    files = write_files(manager, container, sandbox)
    sources = await _volume_sources(manager, container, undo)
    if not container.record.populated:
        await _populate(manager, container, mounts, sources)
    shm = manager.shm_source(container, undo)
    if prepared and prepared.inputs == (sandbox.netns_path, files, sources, shm):
        spec = prepared.spec
    else:
        spec = specbuild.encode(await specbuild.build(manager, container, sandbox, files,
                                                      sources, shm))
    if container.spec_written != spec:
        await manager.tasks.create_record(container.id, container.image_ref,
                                          container.record.runtime, spec)
        container.spec_written = spec
    stdio = make_stdio(manager, container)
    container.stdio = stdio
    undo.callback(_close_stdio, container)
    await stdio.open()
    return await _run(manager, container, stdio, mounts, undo)


def _close_stdio(container: Container) -> None:
    stdio, container.stdio = container.stdio, None
    if stdio:
        stdio.close()


async def _run(manager: Manager, container: Container, stdio: Stdio, mounts: list[Any],
               undo: contextlib.AsyncExitStack) -> int:
    undo.push_async_callback(_drop_task, manager, container)
    try:
        creating = asyncio.ensure_future(
            manager.tasks.create(container.id, mounts, stdio, container.tty))
        try:
            await asyncio.sleep(0)  # the request leaves: the commit runs while the shim works
            _commit_intent(manager, container)
            if stdio.early:
                await _join(container, stdio, creating)
        except errdefs.CarrelError:
            await creating  # why nobody could be joined
            raise
        except BaseException:
            # what it still makes must be there before it can be taken back
            await asyncio.gather(creating, return_exceptions=True)
            raise
        pid = await creating
        await stdio.created()
        await _join(container, stdio)
        await manager.tasks.start(container.id)
        trace = explain.CURRENT.get()
        if trace is not None:
            trace.read(explain.path_of(manager.ctx.config, container.id))
    except errdefs.CarrelError as error:
        raise runtime_error(error, container.record.path) from error
    return pid


async def _join(container: Container, stdio: Stdio,
                creating: asyncio.Future[int] | None = None) -> None:
    """Who attached before the start, so that they see all of the output."""
    pending = container.pending
    while pending and not (creating and creating.done()):
        session = pending.pop(0)
        try:
            await stdio.attach(session, creating)
        except BaseException:
            pending.insert(0, session)  # ended by whoever undoes the start
            raise


def _commit_intent(manager: Manager, container: Container) -> None:
    """The record of a running container, before it runs.

    What a restarted daemon finds is settled against the containerd layer: a task
    that runs is adopted, one that was never started is dropped.
    """
    state, shown = container.state, container.state.status
    state.exit_code, state.error, state.oom_killed = 0, "", False
    state.started_at = timefmt.now()
    container.record.populated = True
    state.status = RUNNING
    try:
        manager.save(container)
    finally:
        state.status = shown


async def _drop_task(manager: Manager, container: Container) -> None:
    with contextlib.suppress(errdefs.CarrelError):
        if await manager.tasks.delete(container.id) is None:
            return
    with contextlib.suppress(errdefs.CarrelError):
        await manager.tasks.kill(container.id, 9)
        await manager.tasks.delete(container.id)


#: what a runtime says of a program that is not there, or cannot be run
_NOT_THERE = ("executable file not found", "no such file or directory",
              "system cannot find the file specified")
_NOT_RUN = ("permission denied", "is a directory", "not a directory", "exec format error")


def runtime_error(error: errdefs.CarrelError, command: str) -> errdefs.CarrelError:
    """In Docker's frame; what the user got wrong is a 400, the rest a 500."""
    message = error.message
    if isinstance(error, errdefs.Unavailable):
        return error
    kind = errdefs.InvalidParameter if exit_code_of(message) in (126, 127) else (
        errdefs.SystemFailure)
    # clients look for Go's words, to end with 126 or 127; in crun they begin with a capital
    for words in (*_NOT_THERE, *_NOT_RUN):
        message = message.replace(words.capitalize(), words)
    return kind(texts.start_failed(message))


def exit_code_of(message: str) -> int:
    """What Docker makes of the runtime's words."""
    message = message.lower()
    if any(words in message for words in _NOT_THERE):
        return 127
    if any(words in message for words in _NOT_RUN):
        return 126
    return 128


def _failed(manager: Manager, container: Container, error: BaseException) -> None:
    """State after a start that did not happen."""
    for session in container.pending:
        session.finish()
    container.pending = []
    state = container.state
    message = error.message if isinstance(error, errdefs.CarrelError) else str(error)
    state.error, state.pid = message, 0
    state.exit_code = exit_code_of(message)
    if state.running:
        state.status = "exited"
    manager.save(container)
    if container.host["AutoRemove"]:
        manager.ctx.spawn(finish.auto_remove(manager, container),
                          f"remove {container.id[:12]}")
    else:
        container.tell("next-exit", "not-running", "stopped", error=message)


# --- pieces -------------------------------------------------------------------


async def _sandbox(manager: Manager, container: Container, undo: contextlib.AsyncExitStack,
                   key: str) -> Sandbox:
    spec = netglue.sandbox_spec(manager, container, key)
    if container.record.config.get("NetworkDisabled"):
        import msgspec

        spec = msgspec.structs.replace(spec, mode="none", endpoints=(), ports=())
    if spec.ports or any(e.ipv4 or e.ipv6 for e in spec.endpoints):
        await manager.network_released()
    with explain.kernel_calls(7):
        sandbox = await manager.ctx.network.create_sandbox(spec)
    undo.push_async_callback(manager.ctx.network.remove_sandbox, container.id)
    netglue.announce(manager, container, "connect")
    return sandbox


def write_files(manager: Manager, container: Container, sandbox: Sandbox) -> dict[str, str]:
    """hosts, resolv.conf and hostname, as files of the engine; path inside -> outside."""
    folder = manager.files_folder(container)
    os.makedirs(folder, mode=0o711, exist_ok=True)
    if container.record.log_driver != "none":
        os.makedirs(manager.folder(container), mode=0o710, exist_ok=True)
    if container.host["NetworkMode"].startswith("container:"):
        other = manager.joinable(container.host["NetworkMode"][10:], "network")
        base = manager.files_folder(other)
        return {f"/etc/{n}": f"{base}/{n}" for n in ("hosts", "resolv.conf", "hostname")
                if os.path.exists(f"{base}/{n}")}
    hostname = container.record.config.get("Hostname") or ""
    contents = {"hostname": f"{hostname}\n", "hosts": sandbox.hosts,
                "resolv.conf": sandbox.resolv_conf}
    result = {}
    for name, text in contents.items():
        path = f"{folder}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        result[f"/etc/{name}"] = path
    return result


async def _volume_sources(manager: Manager, container: Container,
                          undo: contextlib.AsyncExitStack) -> dict[str, str]:
    """Destination -> host folder. A missing source is an error before anything runs."""
    result = {}
    for point in container.record.mounts:
        if point.type == "volume":
            source = await manager.ctx.volumes.mount(point.name, container.id)
            undo.push_async_callback(manager.ctx.volumes.unmount, point.name, container.id)
            if point.subpath:
                source = await _subpath(source, point.subpath)
            result[point.destination] = source
        elif point.type == "bind":
            create.make_source(point)
            result[point.destination] = point.source
    return result


async def _subpath(source: str, subpath: str) -> str:
    """A folder in a volume: no link on the way may lead out of it."""
    from carrel.kernel import syscalls

    root = os.open(source, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = syscalls.openat2(root, subpath, os.O_PATH | os.O_CLOEXEC,
                              syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise errdefs.InvalidParameter(
            f"cannot access path {source}/{subpath}: {os.strerror(error.errno or 0).lower()}"
        ) from None
    finally:
        os.close(root)
    os.close(fd)
    return f"{source}/{subpath}"


async def _populate(manager: Manager, container: Container, mounts: list[Any],
                    sources: dict[str, str]) -> None:
    """A volume that is empty gets what the image has at its place (copy-up)."""
    wanted = [p for p in container.record.mounts
              if p.type == "volume" and not p.nocopy and not p.subpath
              and not os.listdir(sources[p.destination])]
    if not wanted:
        return
    folders = layers.of(mounts)
    candidates = [p for p in wanted if _may_exist(folders, p.destination)]
    if not candidates:
        return
    from carrel.engine.view import copy_up

    await copy_up(mounts, [(p.destination, sources[p.destination]) for p in candidates])


def _may_exist(folders: list[str], path: str) -> bool:
    """Cheap: does any layer have the first component of the path?"""
    first = path.strip("/").split("/", 1)[0]
    return any(os.path.lexists(f"{folder}/{first}") for folder in folders)


# --- stdio --------------------------------------------------------------------


def log_path(manager: Manager, container: Container) -> str:
    return f"{manager.folder(container)}/{container.id}-json.log"


def make_stdio(manager: Manager, container: Container) -> Stdio:
    """The way that fits the container's shim."""
    config = container.record.config
    stdin, once = bool(config.get("OpenStdin")), bool(config.get("StdinOnce"))
    options, driver = container.record.log_opts, container.record.log_driver
    size = logopts.max_size(options)
    count = int(options.get("max-file") or 1)
    attrs = logopts.attributes(container)
    path = log_path(manager, container)
    if resolve_runtime(manager.ctx.config, container.record.runtime).shim == CARREL_RUNTIME:
        log: dict[str, str] = {"log": driver}
        if driver == "json-file":
            log["path"] = path
            if size:
                log["max-size"], log["max-file"] = str(size), str(count)
            if attrs:
                log["extra"] = jsonlog.encode_attributes(attrs)
        return ShimStdio(f"{manager.io_folder(container)}/init.sock", stdin=stdin,
                         terminal=container.tty, stdin_once=once, log=log)
    writer = jsonlog.Writer(path, max_size=size, max_files=count, attrs=attrs) \
        if driver == "json-file" else None
    return FifoStdio(f"{manager.io_folder(container)}/init", stdin=stdin, terminal=container.tty,
                     stdin_once=once, log=writer,
                     close_stdin=lambda: manager.tasks.close_stdin(container.id))
