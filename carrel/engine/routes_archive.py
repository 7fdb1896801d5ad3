"""``/containers/{id}/archive`` and ``export``: files in and out of a container."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import jsonio, server, specbuild, timefmt, view, web
from carrel.engine.area import ContainerArea
from carrel.engine.context import EngineContext
from carrel.engine.model import Container

if TYPE_CHECKING:
    pass

_STAT = "X-Docker-Container-Path-Stat"
_TAR = {"Content-Type": "application/x-tar"}


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.head("/containers/{id}/archive", area.stat),
        web.get("/containers/{id}/archive", area.get),
        web.put("/containers/{id}/archive", area.put),
        web.get("/containers/{id}/export", area.export),
    ]


def _path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path:
        raise errdefs.InvalidParameter("Bad parameters: path cannot be empty")
    if "\0" in path or len(path) > 4096:
        raise errdefs.InvalidParameter("invalid path")
    return path


def _header(value: dict[str, Any]) -> str:
    seconds, rest = value["mtime"]
    shown = {**value, "mtime": timefmt.rfc3339(seconds * 1_000_000_000 + rest)}
    return base64.b64encode(jsonio.encode(shown)).decode()


class _Area(ContainerArea):
    async def stat(self, request: web.Request) -> web.Response:
        container = self.find(request)
        async with view.target(self.manager, container) as where:
            async with view.worker({**where, "op": "stat", "path": _path(request),
                                    "name": request.match_info["id"]}) as worker:
                answer = await worker.answer()
        return web.Response(headers={_STAT: _header(answer["stat"])})

    async def get(self, request: web.Request) -> web.StreamResponse:
        container, path = self.find(request), _path(request)
        async with view.target(self.manager, container) as where:
            async with view.worker({**where, "op": "pack", "path": path,
                                    "name": request.match_info["id"]}) as worker:
                answer = await worker.answer()
                self.ctx.events.publish("container", "archive-path", container.id,
                                        container.attributes())
                return await self._send(request, worker, {_STAT: _header(answer["stat"])})

    async def _send(self, request: web.Request, worker: view.Worker, extra: dict[str, str]
                    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_TAR, **extra, **server.headers()})
        await response.prepare(request)
        try:
            async for block in worker.chunks():
                await response.write(block)
        except errdefs.CarrelError:
            # the head said 200: only a broken connection tells that it is not whole
            if request.transport:
                request.transport.abort()
        return response

    async def put(self, request: web.Request) -> web.Response:
        container, path = self.find(request), _path(request)
        if container.host["ReadonlyRootfs"] and not self._in_volume(container, path):
            raise errdefs.Forbidden("container rootfs is marked read-only")
        wanted: dict[str, Any] = {
            "op": "unpack", "path": path, "name": request.match_info["id"],
            "keep_types": jsonio.flag(request, "noOverwriteDirNonDir")}
        container.prepared = None  # whose users may be others now
        user = container.config.get("User") or ""
        if user and jsonio.flag(request, "copyUIDGID"):  # without a user: as in the archive
            who = await specbuild.resolve_user(self.manager, container, user)
            wanted["owner"] = [who.uid, who.gid]
        async with view.target(self.manager, container) as where:
            async with view.worker({**where, **wanted}) as worker:
                await worker.answer()
                try:
                    async for block in request.content.iter_any():
                        await worker.send(block)
                    worker.end_of_input()
                except ConnectionError:
                    pass  # it refused the archive: its answer says why
                await worker.answer()
        self.ctx.events.publish("container", "extract-to-dir", container.id,
                                container.attributes())
        return web.Response(status=200)

    @staticmethod
    def _in_volume(container: Container, path: str) -> bool:
        """Below a writable mount of a container whose root is read-only."""
        clean = "/" + path.strip("/")
        best = max((p for p in container.record.mounts
                    if clean == p.destination or clean.startswith(f"{p.destination}/")),
                   key=lambda p: len(p.destination), default=None)
        if best is not None and not best.rw:
            raise errdefs.Forbidden("mounted volume is marked read-only")
        return best is not None

    async def export(self, request: web.Request) -> web.StreamResponse:
        container = self.find(request)
        mounts = await self.manager.snapshot_mounts(container)
        where = {"mounts": view.read_only(mounts), "folder": view.mount_folder(self.manager)}
        async with view.worker({**where, "op": "export"}) as worker:
            await worker.answer()
            self.ctx.events.publish("container", "export", container.id, container.attributes())
            return await self._send(request, worker, {})
