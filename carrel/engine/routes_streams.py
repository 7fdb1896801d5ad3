"""``/containers/{id}``: attach, logs, stats, wait; answers that go on."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import jsonio, jsonlog, stats, streams, texts, timefmt, web
from carrel.engine.area import ContainerArea
from carrel.engine.context import EngineContext
from carrel.engine.model import RESTARTING, Container
from carrel.engine.server import VERSION
from carrel.engine.start import log_path
from carrel.engine.streams import STDERR, STDOUT, Session

if TYPE_CHECKING:
    pass

#: a frame's stream and size, in one call; the frame of streams.frame()
_frame_head = struct.Struct(">B3xI").pack
_WAIT = {"": "not-running", "not-running": "not-running", "next-exit": "next-exit",
         "removed": "removed"}


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.post("/containers/{id}/attach", area.attach),
        web.get("/containers/{id}/attach/ws", area.websocket),
        web.get("/containers/{id}/logs", area.logs),
        web.get("/containers/{id}/stats", area.stats),
        web.post("/containers/{id}/wait", area.wait),
    ]


class _Area(ContainerArea):
    # --- attach -----------------------------------------------------------------
    def _session(self, request: web.Request, container: Container, *, framed: bool | None = None
                 ) -> Session:
        if container.state.status == "paused":
            raise errdefs.Conflict(
                f"container {container.id} is paused, unpause the container before attach")
        if container.state.status == RESTARTING:
            raise errdefs.Conflict(
                f"container {container.id} is restarting, wait until the container is running")
        stream = jsonio.flag(request, "stream")
        return Session(
            stdin=stream and jsonio.flag(request, "stdin")
            and bool(container.config.get("OpenStdin")),
            stdout=jsonio.flag(request, "stdout"), stderr=jsonio.flag(request, "stderr"),
            tty=container.tty, framed=framed,
            keys=streams.parse_keys(request.query.get("detachKeys")))

    async def attach(self, request: web.Request) -> web.StreamResponse:
        container = self.find(request)
        session = self._session(request, container)
        await jsonio.read_body(request)  # it means nothing, and what follows it is stdin
        media = streams.MULTIPLEXED if not container.tty and request[VERSION] >= (1, 42) \
            else streams.RAW
        streams.hijack(request, session, media)
        await self._join(request, container, session)
        response = await streams.serve(session)
        if session.detached:
            self.ctx.events.publish("container", "detach", container.id, container.attributes())
        return response

    async def _join(self, request: web.Request, container: Container, session: Session) -> None:
        self.ctx.events.publish("container", "attach", container.id, container.attributes())
        if jsonio.flag(request, "logs"):
            # docker-py reads the head through a buffer and the rest from the bare socket:
            # what arrives together with the head would be lost to it
            await asyncio.sleep(0.005)
            await self._replay(container, session)
        if not jsonio.flag(request, "stream"):
            session.finish()
        elif container.alive and container.stdio:
            try:
                await container.stdio.attach(session)
            except errdefs.CarrelError as error:
                session.output(STDERR, f"{error.message}\n".encode())
                session.finish()
        elif container.removed:
            session.finish()
        else:
            container.pending.append(session)
            session.on_close = lambda: _leave(container, session)

    async def _replay(self, container: Container, session: Session) -> None:
        if container.record.log_driver != "json-file":
            return
        reader = jsonlog.Reader(log_path(self.manager, container))
        async for batch in reader.entries():
            for entry in batch:
                session.output(STDERR if entry.stream == "stderr" else STDOUT,
                               entry.log.encode())
        reader.close()

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """Raw bytes of both streams as binary messages; what comes in is stdin."""
        from carrel.engine import websocket

        container = self.find(request)
        session = self._session(request, container, framed=False)
        websocket.accept(request, session)
        await self._join(request, container, session)
        return await streams.serve(session)

    # --- logs -------------------------------------------------------------------
    async def logs(self, request: web.Request) -> web.StreamResponse:
        container = self.find(request)
        want = {name for name in ("stdout", "stderr") if jsonio.flag(request, name)}
        if not want:
            raise errdefs.InvalidParameter(
                "Bad parameters: you must choose at least one stream")
        if container.record.log_driver != "json-file":
            raise errdefs.NotImplementedYet(texts.log_driver_cannot_read())
        since = timefmt.parse_point(request.query.get("since"))
        until = timefmt.parse_point(request.query.get("until"))
        reader = jsonlog.Reader(log_path(self.manager, container), since_ns=since,
                                until_ns=until, tail=_tail(request.query.get("tail")))
        media = streams.MULTIPLEXED if not container.tty and request[VERSION] >= (1, 42) \
            else streams.RAW
        response = web.StreamResponse(headers={"Content-Type": media})
        _common(response)
        await response.prepare(request)
        render = _Renderer(want, framed=not container.tty,
                           timestamps=jsonio.flag(request, "timestamps"),
                           details=jsonio.flag(request, "details"))
        following = jsonio.flag(request, "follow") and (container.running)
        batches = reader.follow(self._ended(container)) if following else reader.entries()
        try:
            async for batch in batches:
                data = render(batch)
                if data:
                    await response.write(data)
        except ConnectionError:
            pass  # the client has seen enough
        finally:
            await batches.aclose()  # type: ignore[attr-defined]
            reader.close()
        return response

    @staticmethod
    def _ended(container: Container) -> asyncio.Future[Any]:
        """Done when the container stops for good; its last output is in the log then."""
        if not container.running:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return container.wait_for("stopped")

    # --- stats ------------------------------------------------------------------
    async def stats(self, request: web.Request) -> web.StreamResponse:
        container = self.find(request)
        collector = stats.Collector(self.manager, container)
        stream = jsonio.flag(request, "stream", True)
        if not stream:
            one_shot = jsonio.flag(request, "one-shot")
            if container.alive and not one_shot:
                collector.sample()
                await asyncio.sleep(1.0)
            return jsonio.response(collector.sample())
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        _common(response)
        await response.prepare(request)
        ended = container.wait_for("removed")
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                await response.write(jsonio.encode(collector.sample()) + b"\n")
                await asyncio.wait([ended], timeout=1.0)
        ended.cancel()
        return response

    # --- wait -------------------------------------------------------------------
    async def wait(self, request: web.Request) -> web.StreamResponse:
        """The head is sent at once, so that the client knows that it is heard."""
        container = self.find(request)
        condition = _WAIT.get(request.query.get("condition", ""))
        if condition is None:
            raise errdefs.InvalidParameter(
                f'invalid condition: "{request.query["condition"][:40]}"')
        if condition == "not-running" and not container.running:
            state = container.state
            return jsonio.response({"StatusCode": state.exit_code})
        future = container.wait_for(condition)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        _common(response)
        try:
            await response.prepare(request)
            code, error = await future
            value: dict[str, Any] = {"StatusCode": code}
            if error:
                value["Error"] = {"Message": error}
            await response.write(jsonio.encode(value) + b"\n")
            await response.write_eof()
        except ConnectionError:
            pass  # nobody waits any more
        finally:
            future.cancel()
        return response


def _leave(container: Container, session: Session) -> None:
    if session in container.pending:
        container.pending.remove(session)


def _common(response: web.StreamResponse) -> None:
    from carrel.engine import server

    response.headers.update(server.headers())


def _tail(text: str | None) -> int:
    if text in (None, "", "all"):
        return -1
    assert text is not None
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    return -1  # as Docker: what is no number means everything


class _Renderer:
    """Entries as the bytes of the answer."""

    def __init__(self, want: set[str], *, framed: bool, timestamps: bool, details: bool) -> None:
        self._want, self._framed = want, framed
        self._timestamps, self._details = timestamps, details

    def __call__(self, batch: list[jsonlog.Entry]) -> bytes:
        parts = []
        for entry in batch:
            stream = entry.stream
            if stream not in self._want:
                continue
            text = entry.log
            if self._details:
                attrs = ",".join(f"{k}={v}" for k, v in sorted((entry.attrs or {}).items()))
                text = f"{attrs} {text}"
            if self._timestamps:
                text = f"{_padded(entry.time)} {text}"
            data = text.encode()
            if self._framed:
                parts.append(_frame_head(STDERR if stream == "stderr" else STDOUT, len(data)))
            parts.append(data)
        return b"".join(parts)


def _padded(stamp: str) -> str:
    """Nine digits of fraction always, so that columns line up."""
    if len(stamp) == 30 and stamp[19] == "." and stamp[29] == "Z":
        return stamp    # has them
    head, dot, fraction = stamp.rstrip("Z").partition(".")
    return f"{head}.{fraction if dot else '':0<9}Z"
