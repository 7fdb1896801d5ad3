"""HTTP to registries: redirects, authorisation, retries, schemes, proxies.

No ~/.netrc, no cookies, no automatic redirect; an Authorization header is made for
one host and sent to that host only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from errno import ECONNREFUSED
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from carrel import errdefs
from carrel.registry import hosts
from carrel.registry.auth import Asker, Authorizer
from carrel.registry.errors import Transient, printable, read_answer
from carrel.registry.hosts import Endpoint

ATTEMPTS = 5
#: seconds before the second attempt; doubled each time, with jitter
BACKOFF = 0.5
_MAX_BACKOFF = 8.0
_MAX_REDIRECTS = 5
_MAX_BODY = 4 << 20
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_RETRIED = frozenset((408, 500, 502, 503, 504))
_CONNECT_SECONDS = 15.0
_SILENCE_SECONDS = 60.0
_AGENT = "carrel/0.1.0 (linux)"
BROKEN = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError,
           TimeoutError, ConnectionError)


class Transport:
    """One session; shared by everything that one transfer asks of its registry."""

    def __init__(self, ask: Asker, insecure: tuple[str, ...] = (),
                 sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        self._ask = ask
        self.insecure = insecure
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._authorizers: dict[str, Authorizer] = {}
        self._schemes: dict[str, str] = {}
        self._unverified = _context(verify=False)
        self._verified = _context(verify=True)
        self._proxies = urllib.request.getproxies_environment()

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False,
            read_bufsize=1 << 20, headers={"User-Agent": _AGENT},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS,
                                          sock_read=_SILENCE_SECONDS))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # --- one request ---

    def authorizer(self, host: str) -> Authorizer:
        found = self._authorizers.get(host)
        if found is None:
            found = Authorizer(host, self._ask, self._plain, self.insecure)
            self._authorizers[host] = found
        return found

    async def _plain(self, method: str, url: str, headers: Mapping[str, str],
                     data: bytes | None) -> tuple[int, bytes]:
        """A request to a token service: no redirect, small answer."""
        verify = not hosts.is_insecure(urlsplit(url).netloc, self.insecure)
        async with self._send(method, url, headers, data, verify) as response:
            return response.status, await read_limited(response, _MAX_BODY)

    @contextlib.asynccontextmanager
    async def request(self, method: str, endpoint: Endpoint, rest: str, *, scope: str,
                      reference: str = "", headers: Mapping[str, str] | None = None,
                      data: Any = None, retry: bool = True, url: str = "",
                      ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The final answer to a request, whatever its status.

        ``rest`` is below ``/v2/``; ``url`` replaces it (an upload's Location).  GET and HEAD
        are tried again when the connection breaks before an answer or the server fails.
        """
        attempts = ATTEMPTS if retry and method in ("GET", "HEAD") else 1
        async with contextlib.AsyncExitStack() as stack:
            for attempt in range(1, attempts + 1):
                try:
                    response = await stack.enter_async_context(self._authorized(
                        method, endpoint, rest, scope, reference, dict(headers or {}), data, url))
                    if response.status not in _RETRIED or attempt == attempts:
                        break
                    await stack.aclose()
                except _Unreachable as error:
                    if error.final or attempt == attempts:
                        raise errdefs.Unavailable(error.text) from error
                except Transient as error:
                    if attempt == attempts:
                        raise errdefs.Unavailable(str(error)) from error
                await self.pause(attempt)
            else:
                raise errdefs.Unavailable(f"{endpoint.host} does not answer")
            yield response

    async def pause(self, attempt: int) -> None:
        """Exponential, with jitter, so that many pulls do not come back at once."""
        delay = min(BACKOFF * 2 ** (attempt - 1), _MAX_BACKOFF)
        await self._sleep(delay * (0.5 + random.random() / 2))

    @contextlib.asynccontextmanager
    async def _authorized(self, method: str, endpoint: Endpoint, rest: str, scope: str,
                          reference: str, headers: dict[str, str], data: Any, url: str,
                          ) -> AsyncIterator[aiohttp.ClientResponse]:
        authorizer = self.authorizer(endpoint.host)
        for round_ in range(2):
            value = authorizer.header(scope)
            sent = {**headers, "Authorization": value} if value else headers
            body = data() if callable(data) else data
            async with self._schemed(method, endpoint, rest, sent, body, url) as response:
                if response.status != 401 or round_:
                    yield response
                    return
                challenges = response.headers.getall("WWW-Authenticate", [])
                if not await authorizer.answer(challenges, scope, reference):
                    yield response
                    return

    @contextlib.asynccontextmanager
    async def _schemed(self, method: str, endpoint: Endpoint, rest: str,
                       headers: dict[str, str], data: Any, url: str,
                       ) -> AsyncIterator[aiohttp.ClientResponse]:
        """With the scheme that this host is known to speak, or each that it may."""
        if url:
            async with self._redirected(method, endpoint, url, headers, data) as response:
                yield response
            return
        known = self._schemes.get(endpoint.host)
        schemes = (known,) if known else endpoint.schemes
        first: Exception | None = None
        for scheme in schemes:
            last = scheme == schemes[-1]
            try:
                async with contextlib.AsyncExitStack() as stack:
                    response = await stack.enter_async_context(self._redirected(
                        method, endpoint, endpoint.url(scheme, rest), headers, data))
                    if not last and scheme == "http" and response.status == 400 and (
                            b"HTTPS" in await read_limited(response, 4096)):
                        continue
                    self._schemes[endpoint.host] = scheme
                    yield response
                    return
            except (_Unreachable, Transient) as error:
                wrong = isinstance(error, Transient) or error.other_scheme
                if not wrong or (last and first is None):
                    raise
                if last:
                    raise (first or error) from error   # the first is what it speaks
                first = error

    @contextlib.asynccontextmanager
    async def _redirected(self, method: str, endpoint: Endpoint, url: str,
                          headers: dict[str, str], data: Any,
                          ) -> AsyncIterator[aiohttp.ClientResponse]:
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._send(method, url, headers, data, endpoint.verify) as response:
                target = response.headers.get("Location")
                if response.status not in _REDIRECTS or not target or method not in (
                        "GET", "HEAD"):
                    yield response
                    return
                old = urlsplit(url)
                url = urljoin(url, target)
                new = urlsplit(url)
                if not hosts.may_follow(endpoint.host, url, self.insecure):
                    raise errdefs.Forbidden(f"refusing the redirect of {endpoint.host} to "
                                            f"{printable(new.scheme + '://' + new.netloc)}")
                if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                    headers = {k: v for k, v in headers.items() if k != "Authorization"}
        raise errdefs.SystemFailure(f"{endpoint.host}: stopped after {_MAX_REDIRECTS} redirects")

    @contextlib.asynccontextmanager
    async def _send(self, method: str, url: str, headers: Mapping[str, str], data: Any,
                    verify: bool) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        context = self._verified if verify else self._unverified
        try:
            response = await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=data, ssl=context,
                allow_redirects=False, proxy=self._proxy(url))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _failure(method, url, error) from error
        try:
            yield response
        finally:
            response.release()

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        if hosts.is_loopback(parts.netloc):
            return None
        proxy = self._proxies.get(parts.scheme)
        if proxy is None or urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
                parts.hostname or "", self._proxies):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


class _Unreachable(Exception):
    """No answer at all."""

    def __init__(self, text: str, *, other_scheme: bool, final: bool) -> None:
        super().__init__(text)
        self.text = text
        #: worth trying http instead of https, or the other way round
        self.other_scheme = other_scheme
        #: another attempt would give the same
        self.final = final


def _failure(method: str, url: str, error: BaseException) -> Exception:
    """In the form that Go programs print, because people search for it."""
    parts = urlsplit(url)
    where = f'{method.capitalize()} "{parts._replace(query="").geturl()}"'
    host, port = hosts.split_port(parts.netloc)
    port = port or ("443" if parts.scheme == "https" else "80")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _Unreachable(f"{where}: dial tcp: lookup {host}: no such host",
                            other_scheme=False, final=True)
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
        return _Unreachable(f"{where}: tls: failed to verify certificate: x509: {error}",
                            other_scheme=False, final=True)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return _Unreachable(f"{where}: http: server gave HTTP response to HTTPS client",
                            other_scheme=True, final=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = error.errno == ECONNREFUSED or "refused" in str(error)
        reason = "connection refused" if refused else printable(str(error.os_error))
        return _Unreachable(f"{where}: dial tcp {host}:{port}: connect: {reason}",
                            other_scheme=not refused, final=refused)
    if isinstance(error, TimeoutError):
        return Transient(f"{where}: net/http: request canceled (Client.Timeout exceeded)")
    if isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, OSError)):
        if parts.scheme == "https":
            # a server without TLS hangs up in the handshake
            return _Unreachable(f"{where}: {break_of(error, 'EOF')}", other_scheme=True,
                                final=False)
        return Transient(f"{where}: {break_of(error, 'EOF')}")
    return _Unreachable(f"{where}: {printable(str(error))}", other_scheme=False, final=True)


def break_of(error: BaseException, at_the_end: str = "unexpected EOF") -> str:
    """How a connection broke, without the words of the library that saw it."""
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror).lower()
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    return at_the_end


def _context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, refused beyond ``limit``; a broken connection is :class:`Transient`."""
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise errdefs.InvalidParameter(
                    f"answer of {printable(response.host)} is larger than {limit} bytes")
    except BROKEN as error:
        raise Transient(f"{response.method} {response.url}: {break_of(error)}") from error
    return bytes(body)


async def answer_of(response: aiohttp.ClientResponse) -> Any:
    """An error answer, read for its reason."""
    try:
        body = await read_limited(response, 1 << 16)
    except (Transient, errdefs.CarrelError):
        body = b""
    return read_answer(response.status, body, response.method,
                       str(response.url.with_query(None)))
