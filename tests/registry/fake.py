"""A registry that misbehaves on request: statuses, cut streams, wrong bytes, redirects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests import images

Handler = Callable[[web.Request], Any]


@dataclass
class Fake:
    """Serves one image ``repo:1``; ``hooks`` are asked first, by (method, last path part)."""

    image: images.Image
    address: str = ""
    hooks: list[Handler] = field(default_factory=list)
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    def __post_init__(self) -> None:
        self.manifest, self.blobs = self.image.manifest()
        self.digest = images.digest(self.manifest)

    @property
    def name(self) -> str:
        return f"{self.address}/repo:1"

    @property
    def layer(self) -> str:
        return str(json.loads(self.manifest)["layers"][0]["digest"])

    def requests(self, part: str) -> list[tuple[str, str, dict[str, str]]]:
        return [entry for entry in self.log if part in entry[1]]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.log.append((request.method, request.path_qs, dict(request.headers)))
        self.counts[request.path] += 1
        for hook in self.hooks:
            response = hook(request)
            if asyncio.iscoroutine(response):
                response = await response
            if response is not None:
                assert isinstance(response, web.StreamResponse)
                return response
        return await self.ordinary(request)

    async def ordinary(self, request: web.Request) -> web.StreamResponse:
        if "/manifests/" in request.path:
            what = request.path.rpartition("/")[2]
            if what in ("1", self.digest):
                return web.Response(body=self.manifest, headers={
                    "Content-Type": images.MANIFEST, "Docker-Content-Digest": self.digest})
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if "/blobs/" in request.path:
            data = self.blobs.get(request.path.rpartition("/")[2])
            if data is None:
                return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return await self.send(request, data)
        return web.Response(body=b"{}")

    async def send(self, request: web.Request, data: bytes, cut: int = -1,
                   ranges: bool = True) -> web.StreamResponse:
        """A blob; ``cut``: hang up after so many bytes of this answer."""
        asked = request.headers.get("Range", "")
        start = int(asked[6:].rstrip("-")) if asked and ranges else 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - start
        await response.prepare(request)
        body = data[start:] if cut < 0 else data[start:start + cut]
        with contextlib.suppress(ConnectionError):
            await response.write(body)
            self.sent += len(body)
            if cut >= 0:
                assert request.transport is not None
                await asyncio.sleep(0.02)
                request.transport.abort()
        return response


def error(status: int, code: str, message: str, **headers: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status,
                             headers=headers)


@contextlib.asynccontextmanager
async def serving(fake: Fake, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None,
                  ) -> AsyncIterator[Fake]:
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        fake.address = f"{host}:{port}"
        yield fake
    finally:
        await runner.cleanup()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
