"""``/networks``."""

from __future__ import annotations

from carrel import errdefs
from carrel.engine import filters as filtering
from carrel.engine import jsonio, networks, schema, timefmt, web
from carrel.engine.area import Area
from carrel.engine.context import EngineContext
from carrel.network.api import Network

_PRUNE = frozenset({"until", "label", "label!"})
_CONNECT: schema.Fields = {"Container": ("str", ""), "EndpointConfig": ("obj", None)}
_DISCONNECT: schema.Fields = {"Container": ("str", ""), "Force": ("bool", False)}


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.get("/networks", area.list),
        web.get("/networks/", area.list),
        web.post("/networks/create", area.create),
        web.post("/networks/prune", area.prune),
        web.get("/networks/{id}", area.inspect),
        web.delete("/networks/{id}", area.remove),
        web.post("/networks/{id}/connect", area.connect),
        web.post("/networks/{id}/disconnect", area.disconnect),
    ]


class _Area(Area):
    def find(self, request: web.Request) -> Network:
        return self.ctx.network.network(request.match_info["id"])

    async def list(self, request: web.Request) -> web.Response:
        filters = filtering.parse(request.query.get("filters"), networks.FILTERS)
        return jsonio.response([networks.view(self.ctx, n)
                                for n in networks.select(self.ctx, filters)])

    async def create(self, request: web.Request) -> web.Response:
        spec = networks.spec_of(await jsonio.read_object(request))
        network = await self.ctx.network.create_network(spec)
        self._tell("create", network)
        return jsonio.response({"Id": network.id, "Warning": ""}, 201)

    async def inspect(self, request: web.Request) -> web.Response:
        network = self.find(request)
        scope = request.query.get("scope", "")
        if scope and scope != network.spec.scope:
            raise errdefs.NotFound(f"network {request.match_info['id']} not found")
        view = networks.view(self.ctx, network, containers=True)
        if jsonio.flag(request, "verbose"):
            view["Services"] = {}
        return jsonio.response(view)

    async def remove(self, request: web.Request) -> web.Response:
        network = await self.ctx.network.remove_network(request.match_info["id"])
        self._tell("destroy", network)
        return web.Response(status=204)

    async def connect(self, request: web.Request) -> web.Response:
        body = schema.check(await jsonio.read_object(request), _CONNECT, "NetworkConnectRequest")
        if not body.get("Container"):
            raise errdefs.InvalidParameter("the container to connect is missing")
        await self.ctx.containers.connect_network(
            body["Container"], self.find(request).id, body.get("EndpointConfig") or {})
        return web.Response(status=200)

    async def disconnect(self, request: web.Request) -> web.Response:
        body = schema.check(await jsonio.read_object(request), _DISCONNECT,
                            "NetworkDisconnectRequest")
        if not body.get("Container"):
            raise errdefs.InvalidParameter("the container to disconnect is missing")
        await self.ctx.containers.disconnect_network(
            body["Container"], self.find(request).id, force=body.get("Force", False))
        return web.Response(status=200)

    async def prune(self, request: web.Request) -> web.Response:
        filters = filtering.parse(request.query.get("filters"), _PRUNE)
        until = timefmt.parse_point(filters.one("until") or None)
        deleted = []
        for network in self.ctx.network.networks():
            labels = network.spec.labels
            if (network.name in networks.BUILTIN or networks.in_use(self.ctx, network)
                    or not filters.match_labels(labels) or filters.excludes_labels(labels)
                    or (until is not None and timefmt.parse_rfc3339(network.created) > until)):
                continue
            try:
                self._tell("destroy", await self.ctx.network.remove_network(network.id))
            except (errdefs.Forbidden, errdefs.NotFound):
                continue  # taken into use, or removed, meanwhile
            deleted.append(network.name)
        self.ctx.events.publish("network", "prune", "", {"reclaimed": "0"})
        return jsonio.response({"NetworksDeleted": deleted or None})

    def _tell(self, action: str, network: Network) -> None:
        self.ctx.events.publish("network", action, network.id, {
            "name": network.name, "type": network.driver})
