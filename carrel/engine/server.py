"""The Engine API's front: versions, routing, errors.

One catch-all handler strips ``/v1.NN`` and looks the path up in a table of our
own, because every operation exists under every version and without one.

What a request passes: version check, route, handler; errors become
``{"message": ...}`` here and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

from carrel import errdefs
from carrel.engine import endpoints, guard, jsonio, log, texts, web

API_VERSION = "1.51"
MIN_API_VERSION = "1.24"
_MAX = (1, 51)
_MIN = (1, 24)
_PREFIX = re.compile(r"/v([0-9]{1,3})\.([0-9]{1,3})(?=/)", re.ASCII)
_HEADERS = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": "Carrel/0.1.0 (linux)",
}
#: the version of the API that this request speaks, as (major, minor)
VERSION = "api_version"

Handler = web.Handler


def _pattern(path: str) -> re.Pattern[str]:
    """``/images/{name:.*}/json`` as a regular expression; ``{id}`` is one segment."""
    out = []
    position = 0
    for match in re.finditer(r"\{(\w+)(?::([^{}]+))?\}", path):
        out.append(re.escape(path[position:match.start()]))
        out.append(f"(?P<{match[1]}>{match[2] or '[^/]+'})")
        position = match.end()
    out.append(re.escape(path[position:]))
    return re.compile("".join(out) + r"\Z", re.DOTALL)


class Router:
    """Method and path to handler; the longest literal path wins by order of adding."""

    def __init__(self) -> None:
        self._static: dict[tuple[str, str], Handler] = {}
        self._dynamic: dict[str, list[tuple[str, re.Pattern[str], Handler]]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        if "{" not in path:
            self._static.setdefault((method, path), handler)
        else:
            first = path.split("/", 2)[1]
            self._dynamic.setdefault(first, []).append((method, _pattern(path), handler))

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        handler = self._static.get((method, path))
        if handler is not None:
            return handler, {}
        for candidate, pattern, handler in self._dynamic.get(path.split("/", 2)[1], ()):
            if candidate == method and (match := pattern.match(path)):
                return handler, match.groupdict()
        return None


def _unbuilt(method: str, path: str, operation: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        raise errdefs.NotImplementedYet(
            texts.not_implemented(f"{operation} ({method} {path})"))

    return handle


class Api:
    """The table of operations and the one handler in front of it."""

    def __init__(self, routes: Iterable[web.RouteDef]) -> None:
        self.router = Router()
        for route in routes:
            self.router.add(route.method, route.path, route.handler)
        for method, path, operation in endpoints.OPERATIONS:
            wide = path.replace("{name}", "{name:.+}")
            self.router.add(method, wide, _unbuilt(method, path, operation))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            response = await self._dispatch(request)
        except errdefs.CarrelError as error:
            response = _answer(request, error)
        except asyncio.CancelledError:
            raise
        except OSError as error:
            if isinstance(error, ConnectionError):
                return web.Taken()  # the client went away: there is nobody to answer
            log.error(f"{request.method} {request.path}: {error}", error)
            response = jsonio.error_response(500, str(error))
        except Exception as error:
            log.error(f"{request.method} {request.path}: {error!r}", error)
            response = jsonio.error_response(500, f"internal error: {error}")
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        guard.check(request)
        path = request.path
        version = _MAX
        match = _PREFIX.match(path)
        if match:
            version = (int(match[1]), int(match[2]))
            path = path[match.end():]
            check_version(version)
        request[VERSION] = version
        found = self.router.find(request.method, path)
        if found is None:
            raise errdefs.NotFound(texts.PAGE_NOT_FOUND)
        handler, params = found
        request.match_info.update(params)
        return await handler(request)


def check_version(version: tuple[int, int]) -> None:
    """400 for what this daemon does not speak."""
    text = f"{version[0]}.{version[1]}"
    if version > _MAX:
        raise errdefs.InvalidParameter(texts.version_too_new(text, API_VERSION))
    if version < _MIN:
        raise errdefs.InvalidParameter(texts.version_too_old(text, MIN_API_VERSION))


def _answer(request: web.Request, error: errdefs.CarrelError) -> web.Response:
    status = error.http_status
    if status == 304:
        return web.Response(status=304)
    message = error.message if not error.hint else f"{error.message} ({error.hint})"
    if status >= 500 and status != 501:
        log.error(f"{request.method} {request.path}: {message}", error)
    else:
        log.debug(f"{request.method} {request.path}: {status} {message}")
    return jsonio.error_response(status, message)


def headers() -> dict[str, str]:
    """What every answer carries; for handlers that write their own head."""
    return dict(_HEADERS)


def all_routes(ctx: Any) -> list[web.RouteDef]:
    """The areas, in the order in which their paths are tried."""
    from carrel.engine import areas

    return [route for area in areas.load() for route in area.routes(ctx)]
