"""``docker exec``: further processes in a running container."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import names, schema, specbuild, start, texts, validate
from carrel.engine.config import CARREL_RUNTIME
from carrel.engine.fifostdio import FifoStdio
from carrel.engine.model import PAUSED, RESTARTING, Container
from carrel.engine.spec import capabilities, process
from carrel.engine.stdio import ShimStdio, Stdio
from carrel.engine.streams import Session
from carrel.engine.tasks import resolve_runtime

if TYPE_CHECKING:
    from carrel.engine.manager import Manager


#: how long a process that was created may wait for its start, until the shim forgets it
_AHEAD_SECONDS = 2.0


class Exec:
    """One exec instance: made, started once, inspected until the container goes."""

    def __init__(self, manager: Manager, container: Container, config: dict[str, Any]) -> None:
        self.manager = manager
        self.container = container
        self.config = config
        self.id = names.new_id()
        self.running = False
        self.started = False
        self.exit_code: int | None = None
        self.pid = 0
        self.stdio: Stdio | None = None
        #: what start is going to ask of the shim, asked ahead
        self.ahead: asyncio.Task[Stdio | None] | None = None
        #: the process runs, or never will
        self.settled = asyncio.Event()
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def tty(self) -> bool:
        return bool(self.config["Tty"])

    @property
    def console(self) -> tuple[int, int] | None:
        """As asked for with the creation; the start may say otherwise."""
        return validate.console_size(self.config["ConsoleSize"])

    @property
    def command(self) -> list[str]:
        return list(self.config["Cmd"])

    def exited(self, status: int) -> None:
        """From the event stream, or because the container is gone."""
        if self.done.done():
            return
        self.running, self.exit_code = False, status
        self.container.execs.pop(self.id, None)
        self.manager.ctx.events.publish(
            "container", "exec_die", self.container.id,
            self.container.attributes(execID=self.id, exitCode=str(status)))
        self.manager.ctx.spawn(self._clean(), f"exec {self.id[:12]}")

    async def _clean(self) -> None:
        stdio, self.stdio = self.stdio, None
        if stdio:
            await stdio.drained()
        if not self.done.done():
            self.done.set_result(self.exit_code or 0)
        with contextlib.suppress(errdefs.CarrelError):
            await self.manager.tasks.delete_exec(self.container.id, self.id)
        if stdio:
            stdio.close()

    def container_gone(self) -> None:
        if self.running:
            self.exited(137)

    def inspect(self) -> dict[str, Any]:
        command = self.command
        return {
            "ID": self.id, "Running": self.running, "ExitCode": self.exit_code,
            "ProcessConfig": {
                "tty": self.tty, "entrypoint": command[0], "arguments": command[1:],
                "privileged": bool(self.config["Privileged"]),
                **({"user": self.config["User"]} if self.config["User"] else {}),
            },
            "OpenStdin": bool(self.config["AttachStdin"]),
            "OpenStderr": bool(self.config["AttachStderr"]),
            "OpenStdout": bool(self.config["AttachStdout"]), "CanRemove": False,
            "ContainerID": self.container.id, "DetachKeys": self.config["DetachKeys"],
            "Pid": self.pid,
        }


def check_running(container: Container) -> None:
    status = container.state.status
    if status == PAUSED:
        raise errdefs.Conflict(texts.paused(container.id))
    if status == RESTARTING:
        raise errdefs.Conflict(texts.restarting(container.id))
    if not container.alive:
        raise errdefs.Conflict(texts.not_running(container.id))


def create(manager: Manager, container: Container, body: dict[str, Any]) -> Exec:
    config = schema.complete(schema.check(body, schema.EXEC, "ExecConfig"), schema.EXEC)
    check_running(container)
    if not config["Cmd"]:
        raise errdefs.InvalidParameter("No exec command specified")
    validate.environment(config["Env"] or ())
    validate.console_size(config["ConsoleSize"])
    if config["WorkingDir"] and not config["WorkingDir"].startswith("/"):
        raise errdefs.InvalidParameter(
            f"Cwd must be an absolute path: {config['WorkingDir'][:200]}")
    found = Exec(manager, container, config)
    manager.execs[found.id] = found
    manager.ctx.events.publish(
        "container", f"exec_create: {' '.join(found.command)}", container.id,
        container.attributes(execID=found.id))
    if resolve_runtime(manager.ctx.config, container.record.runtime).shim == CARREL_RUNTIME:
        found.ahead = manager.ctx.spawn(_prepare_ahead(found), f"exec {found.id[:12]}")
    return found


async def _prepare_ahead(item: Exec) -> Stdio | None:
    """``docker exec`` starts at once what it creates: while that request is on its way, the
    process is made known to the shim. None if that failed: the start meets it again, and tells."""
    try:
        stdio = await _announce(item, item.console)
    except (errdefs.CarrelError, OSError):
        return None
    asyncio.get_running_loop().call_later(_AHEAD_SECONDS, _withdraw, item, item.ahead)
    return stdio


def _withdraw(item: Exec, ahead: object) -> None:
    """It was created, and nobody started it."""
    if item.ahead is not None and item.ahead is ahead:
        item.ahead = None
        item.manager.ctx.spawn(_forget(item), f"exec {item.id[:12]}")


def find(manager: Manager, ident: str) -> Exec:
    found = manager.execs.get(ident)
    if found is None:
        raise errdefs.NotFound(texts.no_such_exec(ident[:80]))
    return found


def _stdio(item: Exec) -> Stdio:
    manager, container = item.manager, item.container
    stdin = bool(item.config["AttachStdin"])
    folder = manager.io_folder(container)
    runtime = resolve_runtime(manager.ctx.config, container.record.runtime)
    if runtime.shim == CARREL_RUNTIME:
        return ShimStdio(f"{folder}/{item.id[:12]}.sock", stdin=stdin, terminal=item.tty,
                         stdin_once=True)
    return FifoStdio(f"{folder}/{item.id}", stdin=stdin, terminal=item.tty, stdin_once=True,
                     close_stdin=lambda: manager.tasks.close_stdin(container.id, item.id))


async def _process(item: Exec, console: tuple[int, int] | None) -> dict[str, Any]:
    """As the container's own process, with what was asked for instead."""
    manager, container, config = item.manager, item.container, item.config
    host = container.host
    user_text = config["User"] or container.config.get("User") or ""
    who = await specbuild.resolve_user(manager, container, user_text)
    privileged = bool(config["Privileged"])
    caps = capabilities.everything() if privileged else process.effective_caps(host)
    options = process.security_options(host["SecurityOpt"] or ())
    limits, _ = process.rlimits(host["Ulimits"] or (), manager.ctx.config.default_ulimits,
                                may_raise=manager.may_raise_limits)
    environment = process.environment(
        [*(container.config.get("Env") or ()), *(config["Env"] or ())], tty=item.tty,
        hostname=container.config.get("Hostname") or "", home=who.home)
    return process.build(
        args=item.command, env=environment,
        cwd=config["WorkingDir"] or container.config.get("WorkingDir") or "/", user=who,
        terminal=item.tty, host=host, caps=caps, limits=limits,
        no_new_privileges=specbuild.no_new_privileges(manager, options),
        lsm_fields=await manager.confinement.fields(host, options), console=console)


def begin(item: Exec) -> None:
    """Once only, and only in a running container."""
    if item.started:
        raise errdefs.Conflict(f"Error: Exec command {item.id} has already run"
                               if item.exit_code is not None else
                               f"Error: Exec command {item.id} is already running")
    check_running(item.container)
    item.started = True


async def prepare(item: Exec, console: tuple[int, int] | None) -> None:
    """Make the process known to the shim, if it is not, or not as it is started now."""
    ahead, item.ahead = item.ahead, None
    try:
        if ahead is not None:
            await asyncio.wait([ahead])
            stdio = ahead.result()
            if stdio is not None:
                if console == item.console and bool(stdio.stdin) == bool(
                        item.config["AttachStdin"]):
                    item.stdio = stdio
                    return
                await _forget(item)
        item.stdio = await _announce(item, console)
    except BaseException as error:
        _failed(item, error)
        raise


async def _announce(item: Exec, console: tuple[int, int] | None) -> Stdio:
    stdio = _stdio(item)
    try:
        spec = specbuild.encode(await _process(item, console))
        await stdio.open()
        await item.manager.tasks.exec(item.container.id, item.id, stdio, item.tty, spec)
    except BaseException:
        stdio.close()
        raise
    return stdio


async def run(item: Exec, session: Session | None) -> None:
    """Start it; ``session`` sees all of its output."""
    container, stdio = item.container, item.stdio
    assert stdio is not None
    item.running = True
    container.execs[item.id] = item
    try:
        if session:
            await stdio.attach(session)
        item.pid = await item.manager.tasks.start(container.id, item.id)
        item.settled.set()
        await stdio.created()  # other shims open the streams of an exec at its start
    except BaseException as error:
        _failed(item, error)
        if isinstance(error, errdefs.CarrelError):
            raise start_error(error) from error
        raise
    item.manager.ctx.events.publish(
        "container", f"exec_start: {' '.join(item.command)}", container.id,
        container.attributes(execID=item.id))


def start_error(error: errdefs.CarrelError) -> errdefs.CarrelError:
    code = start.exit_code_of(error.message)
    kind = errdefs.InvalidParameter if code in (126, 127) else errdefs.SystemFailure
    return kind(f"OCI runtime exec failed: {error.message}"
                if not error.message.startswith("OCI runtime exec failed") else error.message)


def _failed(item: Exec, error: BaseException) -> None:
    item.running = False
    item.settled.set()
    message = error.message if isinstance(error, errdefs.CarrelError) else str(error)
    item.exit_code = start.exit_code_of(message)
    item.container.execs.pop(item.id, None)
    stdio, item.stdio = item.stdio, None
    if stdio:
        stdio.close()
    # last: the client's connection is held open until this is done, and the caller
    # still has to say what went wrong
    if not item.done.done():
        item.done.set_result(item.exit_code)
    item.manager.ctx.spawn(_forget(item), f"exec {item.id[:12]}")


async def _forget(item: Exec) -> None:
    with contextlib.suppress(errdefs.CarrelError, OSError):
        await item.manager.tasks.delete_exec(item.container.id, item.id)
    with contextlib.suppress(OSError):
        os.unlink(f"{item.manager.io_folder(item.container)}/{item.id[:12]}.sock")
