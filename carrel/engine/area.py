"""What the areas of the API share: the engine they work on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carrel.engine.context import EngineContext

if TYPE_CHECKING:
    from carrel.engine import web
    from carrel.engine.manager import Manager
    from carrel.engine.model import Container


class Area:
    """Handlers of one noun; an area whose noun is not the container has its own ``find``."""

    def __init__(self, ctx: EngineContext) -> None:
        self.ctx = ctx

    @property
    def manager(self) -> Manager:
        return self.ctx.containers  # type: ignore[return-value]


class ContainerArea(Area):
    def find(self, request: web.Request) -> Container:
        return self.manager.find(request.match_info["id"])
