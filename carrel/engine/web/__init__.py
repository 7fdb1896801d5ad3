"""HTTP/1.1 as the Engine API needs it: a server on asyncio.

    server = web.Server(handler); await server.listen(socket); ...; await server.close()
    async def handler(request: web.Request) -> web.StreamResponse

One request after the other on a connection, bodies of a known size or chunked in both
directions, ``100 Continue``, TLS, and connections that are taken out of HTTP
(``request.connection.hijack``). What an API does not need is not here: no files, no
forms, no cookies, no compression, no HTTP/2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from carrel.engine.web.request import Request
from carrel.engine.web.response import Response, StreamResponse, Taken
from carrel.engine.web.server import Server

Handler = Callable[[Request], Awaitable[StreamResponse]]

__all__ = ("Handler", "Request", "Response", "RouteDef", "Server", "StreamResponse", "Taken",
           "delete", "get", "head", "post", "put")


class RouteDef(NamedTuple):
    """An operation of the API and what answers it."""

    method: str
    path: str
    handler: Handler


def get(path: str, handler: Handler) -> RouteDef:
    return RouteDef("GET", path, handler)


def head(path: str, handler: Handler) -> RouteDef:
    return RouteDef("HEAD", path, handler)


def post(path: str, handler: Handler) -> RouteDef:
    return RouteDef("POST", path, handler)


def put(path: str, handler: Handler) -> RouteDef:
    return RouteDef("PUT", path, handler)


def delete(path: str, handler: Handler) -> RouteDef:
    return RouteDef("DELETE", path, handler)
