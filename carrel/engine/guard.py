"""The connection before the request: patience with headers, and what browsers may not do.

A TCP listener is within reach of every web page that somebody on this machine or its
network opens. Such a page can send simple requests to any address, and by DNS rebinding
it can make its own name stand for this daemon. A page cannot forge ``Host``, ``Origin``
and ``Sec-Fetch-Site``; these are looked at. Unix sockets are out of its reach.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_runner import BaseSite

from carrel import errdefs
from carrel.engine import jsonio, log

#: for the first request's head, and for a TLS handshake
HEADER_SECONDS = 10.0
#: of one line, and of one field; 128 fields at most
_LINE = 16 << 10
#: top-level names that nobody can register
_PRIVATE = ("localhost", "internal")


class Connection(RequestHandler):
    """aiohttp's connection, which waits for a head as long as for a next request."""

    __slots__ = ("_head_clock", "exposed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        #: may a browser be at the other end?
        self.exposed = isinstance(transport.get_extra_info("sockname"), tuple)
        self._head_clock: asyncio.TimerHandle | None = self._loop.call_later(
            HEADER_SECONDS, self._too_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_clock is not None and self._request_count:
            self._head_clock.cancel()
            self._head_clock = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None
        super().connection_lost(exc)

    def _too_late(self) -> None:
        self._head_clock = None
        self.force_close()

    def handle_error(self, request: web.BaseRequest, status: int = 500,
                     exc: BaseException | None = None, message: str | None = None
                     ) -> web.StreamResponse:
        """What was no HTTP at all; in JSON as every other error."""
        log.debug(f"bad request: {status} {exc or message}")
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is on its way already")
        first = (message or "").strip().partition("\n")[0].rstrip(": ")
        response = jsonio.error_response(status, first[:200] or "bad request")
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application over connections of ours."""

    def __init__(self, app: web.Application) -> None:
        super().__init__(app, access_log=None, handle_signals=False, shutdown_timeout=1.0,
                         keepalive_timeout=75.0, max_line_size=_LINE, max_field_size=_LINE,
                         auto_decompress=False)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory,
                       loop=made._loop, **made._kwargs)


class TlsSite(web.SockSite):
    """A listener whose handshakes may not take a minute."""

    async def start(self) -> None:
        await BaseSite.start(self)
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server, sock=self._sock, ssl=self._ssl_context, backlog=self._backlog,
            ssl_handshake_timeout=HEADER_SECONDS)


def check(request: web.Request) -> None:
    """Forbidden for what a web page on another site may have sent."""
    protocol = request.protocol
    if not isinstance(protocol, Connection) or not protocol.exposed:
        return
    host = request.headers.get("Host", "")
    if not _encrypted(protocol) and not _own_name(host):
        raise errdefs.Forbidden(
            f"Host {host[:80]!r} is not a name of this daemon",
            hint="use its IP address or host name: another name may be a web page's")
    origin = request.headers.get("Origin")
    if origin is not None and _page(origin) != host.lower():
        raise errdefs.Forbidden(f"requests from web pages of {origin[:80]!r} are not served")
    if request.headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
        raise errdefs.Forbidden("requests from web pages of another site are not served")


def _page(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _encrypted(protocol: Connection) -> bool:
    """With TLS, a page's own name does not match the certificate."""
    return isinstance(protocol.ssl_context, ssl.SSLContext)


def _own_name(host: str) -> bool:
    """An address, a name without domain, or the machine's: none that a stranger can own."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    return bool(name) and ("." not in name or name.rsplit(".", 1)[1] in _PRIVATE
                           or name == os.uname().nodename.lower())
