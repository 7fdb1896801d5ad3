"""What a node says about a swarm that it is not part of. Joining or making one is not built: that
is answered 501 like everything unbuilt."""

from __future__ import annotations

from carrel import errdefs
from carrel.engine import web
from carrel.engine.context import EngineContext


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    return [web.get("/swarm", _inspect), web.post("/swarm/leave", _leave)]


async def _inspect(request: web.Request) -> web.Response:
    raise errdefs.Unavailable(
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to '
        "connect this node to swarm and try again.")


async def _leave(request: web.Request) -> web.Response:
    raise errdefs.Unavailable("This node is not part of a swarm")
