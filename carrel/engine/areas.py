"""The areas of the API: modules with ``def routes(ctx) -> list[web.RouteDef]``."""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "routes_system", "routes_containers", "routes_streams", "routes_exec", "routes_archive",
    "routes_explain",
    "routes_images", "routes_networks", "routes_volumes", "routes_swarm",
)


def load() -> list[ModuleType]:
    return [importlib.import_module(f"carrel.engine.{name}") for name in NAMES]
