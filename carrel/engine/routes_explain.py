"""``GET /carrel/containers/{id}/explain``: the record of an explained start."""

from __future__ import annotations

from carrel import errdefs
from carrel.engine import jsonio, web
from carrel.engine.context import EngineContext


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    async def explain(request: web.Request) -> web.Response:
        name = request.match_info["id"]
        traces = ctx.traces
        trace = traces.find(name)
        if trace is None:
            container = ctx.containers.find(name)  # raises: no such container
            trace = traces.find(container.id)
        if trace is None:
            raise errdefs.NotFound(
                f"no record was kept of the start of {name}: it was not started with --explain")
        return jsonio.response(trace.document())

    return [web.get("/carrel/containers/{id}/explain", explain)]
