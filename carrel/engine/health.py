"""Healthchecks: a probe by exec at an interval, its outcome as state and events."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import execs, timefmt
from carrel.engine.model import Container, Health
from carrel.engine.streams import Session

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_SECOND = 1_000_000_000
_INTERVAL, _TIMEOUT, _RETRIES = 30 * _SECOND, 30 * _SECOND, 3
_START_INTERVAL = 5 * _SECOND
_LOG_ENTRIES, _OUTPUT = 5, 4096


class _Collector:
    """A client that keeps the first bytes of the output."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.cut = False

    def write(self, data: bytes) -> None:
        room = _OUTPUT - len(self.data)
        self.cut = self.cut or len(data) > room
        self.data += data[:max(room, 0)]

    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def text(self) -> str:
        return self.data.decode("utf-8", "replace") + ("..." if self.cut else "")


class Monitor:
    """One container's probe, while it runs."""

    def __init__(self, manager: Manager, container: Container) -> None:
        self._manager, self._container = manager, container
        check = container.config["Healthcheck"]
        self._test: list[str] = check["Test"]
        self._interval = (check.get("Interval") or _INTERVAL) / _SECOND
        self._timeout = (check.get("Timeout") or _TIMEOUT) / _SECOND
        self._start_period = (check.get("StartPeriod") or 0) / _SECOND
        self._start_interval = (check.get("StartInterval") or _START_INTERVAL) / _SECOND
        self._retries = check.get("Retries") or _RETRIES
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        container = self._container
        if container.state.health is None or container.state.health.status != "healthy":
            container.state.health = Health()
        self._task = self._manager.ctx.spawn(self._run(), f"health of {container.id[:12]}")

    def stop(self) -> None:
        if self._task:
            self._task.cancel()
        health = self._container.state.health
        if health and health.status != "unhealthy":
            health.status = "unhealthy"

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            starting = loop.time() - begin < self._start_period
            await asyncio.sleep(min(self._interval, self._start_interval)
                                if starting and self._status() == "starting" else self._interval)
            if self._container.state.status != "running":
                continue
            began = timefmt.now()
            code, text = await self._probe()
            self._outcome(began, code, text, loop.time() - begin < self._start_period)

    def _status(self) -> str:
        health = self._container.state.health
        return health.status if health else "none"

    def _command(self) -> list[str]:
        if self._test[0] == "CMD":
            return self._test[1:]
        shell = self._container.config.get("Shell") or ["/bin/sh", "-c"]
        return [*shell, *self._test[1:]]

    async def _probe(self) -> tuple[int, str]:
        collector = _Collector()
        try:
            item = execs.create(self._manager, self._container, {
                "Cmd": self._command(), "AttachStdout": True, "AttachStderr": True})
        except errdefs.CarrelError as error:
            return -1, error.message
        session = Session(stdin=False, stdout=True, stderr=True, tty=False, framed=False)
        session.bind(collector)
        try:
            execs.begin(item)
            await execs.prepare(item, None)
            await execs.run(item, session)
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(item.done)
        except TimeoutError:
            with contextlib.suppress(errdefs.CarrelError):
                await self._manager.tasks.kill(self._container.id, 9, exec_id=item.id)
            return -1, f"Health check exceeded timeout ({_seconds(self._timeout)})"
        except (errdefs.CarrelError, OSError) as error:
            return -1, str(error)
        finally:
            session.lost()
            self._manager.execs.pop(item.id, None)
        return item.exit_code or 0, collector.text()

    def _outcome(self, began: str, code: int, text: str, starting: bool) -> None:
        container = self._container
        health = container.state.health
        if health is None or not container.alive:
            return
        entry: dict[str, Any] = {"Start": began, "End": timefmt.now(), "ExitCode": code,
                                 "Output": text}
        log = [*health.log, entry][-_LOG_ENTRIES:]
        status, streak = health.status, health.failing_streak
        if code == 0:
            status, streak = "healthy", 0
        elif not (starting and status == "starting"):
            streak += 1
            if streak >= self._retries:
                status = "unhealthy"
        changed = status != health.status
        container.state.health = Health(status=status, failing_streak=streak, log=log)
        if changed:
            self._manager.save(container)
            self._manager.ctx.events.publish("container", f"health_status: {status}",
                                             container.id, container.attributes())


def _seconds(value: float) -> str:
    return f"{value:g}s"
