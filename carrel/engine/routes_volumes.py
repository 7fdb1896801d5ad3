"""``/volumes``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import filters as filtering
from carrel.engine import jsonio, schema, server, web
from carrel.engine.area import Area
from carrel.engine.context import EngineContext, Volume
from carrel.engine.volumes import DRIVER, disk_usage, view

if TYPE_CHECKING:
    from carrel.engine.volumes import VolumeService

_LIST = frozenset({"dangling", "driver", "label", "name"})
_PRUNE = frozenset({"all", "label", "label!"})
_CREATE: schema.Fields = {
    "Name": ("str", ""), "Driver": ("str", ""), "DriverOpts": ("strmap", {}),
    "Labels": ("strmap", {}), "ClusterVolumeSpec": ("obj", None),
}


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.get("/volumes", area.list),
        web.post("/volumes/create", area.create),
        web.post("/volumes/prune", area.prune),
        web.get("/volumes/{name}", area.inspect),
        web.put("/volumes/{name}", area.update),
        web.delete("/volumes/{name}", area.remove),
    ]


class _Area(Area):
    @property
    def volumes(self) -> VolumeService:
        return self.ctx.volumes  # type: ignore[return-value]

    def _used(self, volume: Volume) -> bool:
        return bool(self.ctx.containers.users_of_volume(volume.name))

    async def list(self, request: web.Request) -> web.Response:
        filters = filtering.parse(request.query.get("filters"), _LIST)
        names = filters.get("name")
        found = [v for v in self.volumes.all()
                 if filters.match("driver", v.driver) and filters.match_labels(v.labels)
                 and (not names or any(n in v.name for n in names))]
        if "dangling" in filters:
            wanted = filters.flag("dangling", True)
            found = [v for v in found if self._used(v) != wanted]
        return jsonio.response({"Volumes": [view(v) for v in found], "Warnings": None})

    async def create(self, request: web.Request) -> web.Response:
        body = await jsonio.read_object(request, optional=True)
        fields = schema.complete(schema.check(body, _CREATE, "VolumeCreateRequest"), _CREATE)
        if fields["ClusterVolumeSpec"]:
            raise errdefs.NotImplementedYet("cluster volumes are not built yet")
        volume = await self.volumes.ensure(
            fields["Name"], driver=fields["Driver"], options=fields["DriverOpts"],
            labels=fields["Labels"], anonymous=not fields["Name"])
        return jsonio.response(view(volume), 201)

    async def inspect(self, request: web.Request) -> web.Response:
        return jsonio.response(view(self.volumes.get(request.match_info["name"])))

    async def update(self, request: web.Request) -> web.Response:
        raise errdefs.NotImplementedYet(
            "VolumeUpdate (PUT /volumes/{name}) is not built yet: it changes cluster volumes only")

    async def remove(self, request: web.Request) -> web.Response:
        await self.volumes.remove(request.match_info["name"], force=jsonio.flag(request, "force"))
        return web.Response(status=204)

    async def prune(self, request: web.Request) -> web.Response:
        """Unused anonymous volumes; with ``all`` the named ones too."""
        filters = filtering.parse(request.query.get("filters"), _PRUNE)
        everything = filters.flag("all", request[server.VERSION] < (1, 42))
        deleted: list[str] = []
        freed = 0
        for volume in self.volumes.all():
            if volume.driver != DRIVER or self._used(volume) or not (
                    everything or volume.anonymous):
                continue
            if not filters.match_labels(volume.labels) or filters.excludes_labels(volume.labels):
                continue
            size = 0 if volume.options else await asyncio.to_thread(disk_usage, volume.mountpoint)
            try:
                await self.volumes.remove(volume.name)
            except (errdefs.Conflict, errdefs.NotFound):
                continue  # taken into use, or removed, meanwhile
            deleted.append(volume.name)
            freed += size
        self.ctx.events.publish("volume", "prune", "", {"reclaimed": str(freed)})
        return jsonio.response({"VolumesDeleted": deleted or None, "SpaceReclaimed": freed})
