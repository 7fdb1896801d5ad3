"""``/containers``: everything that answers once. Streams are in :mod:`routes_streams`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import create as creating
from carrel.engine import explain, jsonio, links, remove, start, stop, timefmt, top, update, web
from carrel.engine import filters as filtering
from carrel.engine import inspect as views
from carrel.engine.area import ContainerArea
from carrel.engine.context import EngineContext
from carrel.engine.model import Container

if TYPE_CHECKING:
    pass

_PRUNE = frozenset({"until", "label", "label!"})


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.get("/containers/json", area.list),
        web.post("/containers/create", area.create),
        web.post("/containers/prune", area.prune),
        web.get("/containers/{id}/json", area.inspect),
        web.get("/containers/{id}/top", area.top),
        web.get("/containers/{id}/changes", area.changes),
        web.post("/containers/{id}/start", area.start),
        web.post("/containers/{id}/stop", area.stop),
        web.post("/containers/{id}/kill", area.kill),
        web.post("/containers/{id}/restart", area.restart),
        web.post("/containers/{id}/pause", area.pause),
        web.post("/containers/{id}/unpause", area.unpause),
        web.post("/containers/{id}/rename", area.rename),
        web.post("/containers/{id}/update", area.update),
        web.post("/containers/{id}/resize", area.resize),
        web.delete("/containers/{id:.+}", area.remove),
    ]


def _no_content() -> web.Response:
    return web.Response(status=204)


class _Area(ContainerArea):
    async def list(self, request: web.Request) -> web.Response:
        filters = filtering.parse(request.query.get("filters"), views.FILTERS)
        limit = jsonio.integer(request, "limit", 0) or 0
        found = views.select(self.manager, filters, everything=jsonio.flag(request, "all"),
                             limit=limit, ancestors=await self._ancestors(filters))
        linked = links.names(self.manager)
        rows = [views.summary(self.manager, c, linked.get(c.id, ())) for c in found]
        if jsonio.flag(request, "size"):
            for row, size in zip(rows, await asyncio.gather(*map(self._size, found))):
                row["SizeRw"], row["SizeRootFs"] = size
        return jsonio.response(rows)

    async def _ancestors(self, filters: filtering.Filters) -> Any:
        """Containers of these images (by any name of them)."""
        if "ancestor" not in filters:
            return None
        wanted = set()
        for ref in filters.get("ancestor"):
            try:
                wanted.add((await self.ctx.images.resolve(ref)).id)
            except errdefs.CarrelError:
                continue
        return lambda c: c.image_id in wanted

    async def _size(self, container: Container) -> tuple[int, int]:
        try:
            written = await self.manager.tasks.usage(container.id)
        except errdefs.CarrelError:
            written = 0
        return written, written + await self._image_size(container)

    async def _image_size(self, container: Container) -> int:
        for row in await self.ctx.images.summaries(all_images=True):
            if row.get("Id") == container.image_id:
                return int(row.get("Size") or 0)
        return 0

    async def create(self, request: web.Request) -> web.Response:
        body = await jsonio.read_object(request)
        trace, begin = explain.asked(request.headers), time.monotonic_ns()
        with explain.tracing(trace):
            container, warnings = await creating.create(
                self.manager, request.query.get("name", ""), body,
                request.query.get("platform", ""))
        if trace is not None:
            trace.note(1, "POST /containers/create", (body.get("Image"),), begin, container.id)
            self.manager.ctx.traces.keep(container.id, trace)
        return jsonio.response({"Id": container.id, "Warnings": warnings}, 201)

    async def inspect(self, request: web.Request) -> web.Response:
        container = self.find(request)
        size = await self._size(container) if jsonio.flag(request, "size") else None
        return jsonio.response(views.inspect(self.manager, container, size))

    async def start(self, request: web.Request) -> web.Response:
        container = self.find(request)
        if request.query.get("checkpoint"):  # detachKeys is for attach, here Docker has no use
            raise errdefs.NotImplementedYet(
                "starting from a checkpoint is not implemented in Carrel")
        if explain.asked(request.headers) is None:
            await start.start(self.manager, container)
            return _no_content()
        traces, begin = self.manager.ctx.traces, time.monotonic_ns()
        trace = traces.find(container.id) or explain.Trace()
        traces.keep(container.id, trace)
        with explain.tracing(trace):
            await start.start(self.manager, container)
        trace.note(1, "POST /containers/start", (container.id,), begin)
        return _no_content()

    async def stop(self, request: web.Request) -> web.Response:
        await stop.stop(self.manager, self.find(request), jsonio.integer(request, "t"),
                        request.query.get("signal") or None)
        return _no_content()

    async def kill(self, request: web.Request) -> web.Response:
        await stop.kill(self.manager, self.find(request), request.match_info["id"],
                        request.query.get("signal") or "SIGKILL")
        return _no_content()

    async def restart(self, request: web.Request) -> web.Response:
        await stop.restart(self.manager, self.find(request), jsonio.integer(request, "t"),
                           request.query.get("signal") or None)
        return _no_content()

    async def pause(self, request: web.Request) -> web.Response:
        await stop.pause(self.manager, self.find(request))
        return _no_content()

    async def unpause(self, request: web.Request) -> web.Response:
        await stop.unpause(self.manager, self.find(request))
        return _no_content()

    async def rename(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if not name:
            raise errdefs.InvalidParameter("Neither old nor new names may be empty")
        self.manager.rename(self.find(request), name)
        return _no_content()

    async def update(self, request: web.Request) -> web.Response:
        warnings = await update.update(self.manager, self.find(request),
                                       await jsonio.read_object(request))
        return jsonio.response({"Warnings": warnings})

    async def resize(self, request: web.Request) -> web.Response:
        container = self.find(request)
        height, width = window(request)
        if not container.alive:
            from carrel.engine import texts

            raise errdefs.Conflict(texts.not_running(container.id))
        await self.manager.tasks.resize(container.id, height, width)
        self.ctx.events.publish("container", "resize", container.id, container.attributes(
            height=str(height), width=str(width)))
        return web.Response(status=200)

    async def remove(self, request: web.Request) -> web.Response:
        if jsonio.flag(request, "link"):
            await links.remove(self.manager, request.match_info["id"])
            return _no_content()
        container = self.find(request)
        await remove.remove(self.manager, container, force=jsonio.flag(request, "force"),
                            volumes=jsonio.flag(request, "v"))
        return _no_content()

    async def top(self, request: web.Request) -> web.Response:
        container = self.find(request)
        return jsonio.response(await top.top(self.manager, container,
                                             request.query.get("ps_args") or "-ef"))

    async def changes(self, request: web.Request) -> web.Response:
        from carrel.engine import view

        container = self.find(request)
        return jsonio.response(await view.changes(self.manager, container) or None)

    async def prune(self, request: web.Request) -> web.Response:
        filters = filtering.parse(request.query.get("filters"), _PRUNE)
        until = timefmt.parse_point(filters.one("until")) if "until" in filters else None
        deleted, space = [], 0
        for container in self.manager.all():
            if container.running or not filters.match_labels(container.labels) or (
                    filters.excludes_labels(container.labels)):
                continue
            if until is not None and timefmt.parse_rfc3339(container.record.created) >= until:
                continue
            try:
                size, _ = await self._size(container)
                await remove.remove(self.manager, container)
            except errdefs.Conflict:
                continue  # started, or being removed, meanwhile
            deleted.append(container.id)
            space += size
        self.ctx.events.publish("container", "prune", "", {"reclaimed": str(space)})
        return jsonio.response({"ContainersDeleted": deleted or None, "SpaceReclaimed": space})


def window(request: web.Request) -> tuple[int, int]:
    """``h`` and ``w``."""
    height, width = jsonio.integer(request, "h"), jsonio.integer(request, "w")
    if height is None or width is None or not (0 <= height < 65536 and 0 <= width < 65536):
        raise errdefs.InvalidParameter("invalid resize height or width")
    return height, width


