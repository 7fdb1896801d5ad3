"""``/containers/{id}/exec`` and ``/exec``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import execs, jsonio, streams, validate, web
from carrel.engine.area import Area
from carrel.engine.context import EngineContext
from carrel.engine.routes_containers import window
from carrel.engine.server import VERSION
from carrel.engine.streams import Session

if TYPE_CHECKING:
    pass

#: how long a resize waits for its process to start, as in Docker
_START_SECONDS = 10.0


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.post("/containers/{id}/exec", area.create),
        web.post("/exec/{id}/start", area.start),
        web.post("/exec/{id}/resize", area.resize),
        web.get("/exec/{id}/json", area.inspect),
    ]


class _Area(Area):
    async def create(self, request: web.Request) -> web.Response:
        container = self.manager.find(request.match_info["id"])
        item = execs.create(self.manager, container, await jsonio.read_object(request))
        return jsonio.response({"Id": item.id}, 201)

    async def start(self, request: web.Request) -> web.StreamResponse:
        body = await jsonio.read_object(request, optional=True)
        item = execs.find(self.manager, request.match_info["id"])
        console = validate.console_size(body.get("ConsoleSize")) or item.console
        if body.get("Detach"):
            item.config = {**item.config, "AttachStdin": False}
            execs.begin(item)
            await execs.prepare(item, console)
            await execs.run(item, None)
            return web.Response(status=200)
        execs.begin(item)
        config = item.config
        session = Session(
            stdin=bool(config["AttachStdin"]), stdout=bool(config["AttachStdout"]),
            stderr=bool(config["AttachStderr"]), tty=item.tty,
            framed=not body.get("Tty", False),  # what the client reads, not what the process has
            keys=streams.parse_keys(config["DetachKeys"]))
        session.hold = item.done
        media = streams.MULTIPLEXED if session.framed and request[VERSION] >= (1, 42) \
            else streams.RAW
        streams.hijack(request, session, media)
        try:
            await execs.prepare(item, console)
            await execs.run(item, session)
        except (errdefs.CarrelError, OSError) as error:
            # the head is sent: the words go where the output would go
            session.output(streams.STDOUT if config["AttachStdout"] else streams.STDERR,
                           f"{error}\r\n".encode())
            session.finish()
        return await streams.serve(session)

    async def resize(self, request: web.Request) -> web.Response:
        item = execs.find(self.manager, request.match_info["id"])
        height, width = window(request)
        # clients before API 1.42 tell the size beside the start
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(item.settled.wait(), _START_SECONDS)
        if not item.running:
            raise errdefs.Conflict(f"exec {item.id} is not running")
        await self.manager.tasks.resize(item.container.id, height, width, item.id)
        return web.Response(status=200)

    async def inspect(self, request: web.Request) -> web.Response:
        return jsonio.response(execs.find(self.manager, request.match_info["id"]).inspect())
