"""The HTTP server: what is read from the wire, byte by byte, and what is sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from carrel.engine import web
from carrel.engine.web import connection
from carrel.engine.web.body import Chunked, Sized
from carrel.engine.web.fields import BadRequest, Head
from carrel.engine.web.request import HIGH_WATER, Query

POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


# --- what is read -------------------------------------------------------------------------------


def test_a_head() -> None:
    head = Head(b"GET /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nX-One:  a \r\nx-one:b\r\nEmpty:")
    assert (head.method, head.target, head.http11) == ("GET", "/a%20b?x=1", True)
    assert head.fields["HOST"] == "h" and head.fields.get("x-ONE") == "a, b"
    assert head.fields.get("empty") == "" and head.fields.get("none", "?") == "?"
    assert head.fields.has_token("x-one", "b") and not head.fields.has_token("x-one", "a, b")
    assert "Host" in head.fields and "h" not in head.fields


@pytest.mark.parametrize("raw", [
    b"", b"GET", b"GET / HTTP/1.1 ", b"GET  / HTTP/1.1", b" GET / HTTP/1.1", b"GET /\tHTTP/1.1",
    b"G(T / HTTP/1.1", b"GET / HTTP/1.2", b"GET / http/1.1", b"GET /\xff HTTP/1.1",
    b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost : a", b"GET / HTTP/1.1\r\nHost: a\r\n folded",
    b"GET / HTTP/1.1\nHost: a", b"GET / HTTP/1.1\r\nHost: a\nX: y", b"GET / HTTP/1.1\r\nHost: a\rb",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b", b"GET / HTTP/1.1\r\nHost: a\r\n: y",
    b"GET / HTTP/1.1\r\nHost: a\r\nX", b"GET / HTTP/1.1\r\nHost: a\r\nHOST: a",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1", b"GET / HTTP/1.1\r\nHost: a\r\n"
    b"Content-Length: 99999999999999999999", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3",
    b"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
    b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: y" * 128, b"GET / HTTP/1.1\r\nX: " + b"a" * (16 << 10),
], ids=range(32))
def test_no_head(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        Head(raw)


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i:i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_chunks_however_they_come(size: int) -> None:
    wire = (b"3\r\nabc\r\n0A;name=\"v\" \r\n0123456789\r\n1\r\n\r\r\n2\r\n\r\n\r\n0\r\nT: x\r\n\r\n"
            b"GET /next")
    body, out, rest = Chunked(), [], b""  # type: Chunked, list[bytes], bytes
    pieces = _pieces(wire, size)
    while pieces:
        got = body.feed(pieces.pop(0), out)
        if got is not None:
            rest = got + b"".join(pieces)
            break
    assert b"".join(out) == b"abc0123456789\r\r\n"
    assert rest == b"GET /next"


@pytest.mark.parametrize("wire", [
    b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"\r\n", b"1\r\nab\r\n", b"1\r\na\n", b"1 2\r\na",
    b"1\r\na\r\r0\r\n\r\n", b"F" * 16 + b"\r\n", b"1;" + b"x" * 5000, b"1;a\nb\r\na\r\n",
    b"0\r\n" + b"T: x\r\n" * 4000,
])
@pytest.mark.parametrize("size", [1, 10_000])
def test_no_chunks(wire: bytes, size: int) -> None:
    body, out = Chunked(), []  # type: Chunked, list[bytes]
    with pytest.raises(BadRequest):
        for piece in _pieces(wire, size):
            assert body.feed(piece, out) is None


def test_a_sized_body() -> None:
    body, out = Sized(5), []  # type: Sized, list[bytes]
    assert body.feed(b"ab", out) is None
    assert body.feed(b"cdefg", out) == b"fg" and b"".join(out) == b"abcde"
    assert Sized(2).feed(b"ab", out) == b""


def test_a_query() -> None:
    query = Query("a=1&b=x%20y+z&a=2&flag&=n&&e=%C3%A9&bad=%ff&p=%2B")
    assert query["a"] == "1" and query.getall("a") == ["1", "2"] and query["b"] == "x y z"
    assert query["flag"] == "" and query["e"] == "é" and query["bad"] == "�"
    assert query["p"] == "+" and query.getall("none") == [] and query.get("none") is None
    assert dict(Query("")) == {}


# --- a server -----------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def _serving(path: Path, handler: Handler) -> AsyncIterator[str]:
    where = str(path / "s")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(where)
    server = web.Server(handler)
    await server.listen(sock)
    try:
        yield where
    finally:
        await server.close()
        assert not server.connections


async def _talk(where: str, *parts: bytes, pause: float = 0.02) -> bytes:
    """Send the parts one after the other; everything that came until the end."""
    reader, writer = await asyncio.open_unix_connection(where)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    got = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return got


async def _echo(request: web.Request) -> web.StreamResponse:
    body = b"".join([piece async for piece in request.content.iter_any()])
    return web.Response(body=request.method.encode() + b" " + request.path.encode() + b" " + body)


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_requests_in_one_packet_are_answered_in_order(tmp_path: Path) -> None:
    async with _serving(tmp_path, _echo) as where:
        wire = (b"\r\n" + POST + b"Content-Length: 3\r\n\r\nabc" + GET + POST
                + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n" + LAST)
        for size in (1, 7, len(wire)):
            got = await _talk(where, *_pieces(wire, size), pause=0)
            bodies = [part.partition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1 200 OK")[1:]]
            assert bodies == [b"POST /x abc", b"GET /x ", b"POST /x de", b"GET /last "], size
            assert got.count(b"Connection: close") == 1 and got.count(b"Date: ") == 4


async def test_path_and_absolute_target(tmp_path: Path) -> None:
    async with _serving(tmp_path, _echo) as where:
        for target, path in ((b"/a%2Fb%20c?q", b"/a/b c"), (b"http://h:1/v/x?q", b"/v/x"),
                             (b"/\xc3\xa9", b"/\xc3\xa9"), (b"*", b"*")):
            got = await _talk(where, LAST.replace(b"/last", target))
            assert got.endswith(b"GET " + path + b" "), got


async def test_old_clients(tmp_path: Path) -> None:
    """HTTP/1.0: no chunks; the end of the connection is the end of the answer."""
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await response.write(b"two")
        return response

    for handler, body in ((_echo, b"GET /x "), (stream, b"onetwo")):
        async with _serving(tmp_path, handler) as where:
            got = await _talk(where, b"GET /x HTTP/1.0\r\n\r\n")
            assert got.endswith(b"\r\n\r\n" + body) and b"chunked" not in got
        (tmp_path / "s").unlink()


async def test_an_answer_in_pieces(tmp_path: Path) -> None:
    large = bytes(100_000)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Own": "1"})
        assert not response.prepared
        await response.prepare(request)
        for piece in (b"abc", b"", large):
            await response.write(piece)
        return response

    async with _serving(tmp_path, handler) as where:
        got = await _talk(where, LAST)
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head and b"X-Own: 1" in head
        assert body == b"3\r\nabc\r\n186a0\r\n" + large + b"\r\n0\r\n\r\n"
        got = await _talk(where, LAST.replace(b"GET", b"HEAD"))
        assert got.endswith(b"\r\n\r\n") and got.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(("status", "method", "length"), [
    (204, b"GET", False), (304, b"GET", False), (200, b"HEAD", True), (201, b"GET", True)])
async def test_answers_without_a_body(tmp_path: Path, status: int, method: bytes,
                                      length: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=b"x" if request.method == "HEAD" else b"")

    async with _serving(tmp_path, handler) as where:
        got = await _talk(where, LAST.replace(b"GET", method))
        assert got.startswith(b"HTTP/1.1 %d " % status) and got.endswith(b"\r\n\r\n")
        assert (b"Content-Length" in got) is length


async def test_a_header_that_would_be_two(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"X": "a\r\nY: b"})

    async with _serving(tmp_path, handler) as where:
        assert b"Y: b" not in await _talk(where, GET)


async def test_continue_is_sent_when_the_body_is_wanted(tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, body=b"no")

    ask = POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with _serving(tmp_path, _echo) as where:
        reader, writer = await asyncio.open_unix_connection(where)
        writer.write(ask)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc" + LAST)
        assert (await reader.read()).count(b"200 OK") == 2
        writer.close()
        # what comes with its body needs no leave, and another expectation is not met
        assert b"100 Continue" not in await _talk(where, ask + b"abc" + LAST)
        assert (await _talk(where, ask.replace(b"100-c", b"101-c"))).startswith(b"HTTP/1.1 417 ")
    (tmp_path / "s").unlink()
    async with _serving(tmp_path, refuse) as where:
        got = await _talk(where, ask)
        assert got.startswith(b"HTTP/1.1 404 ") and b"Connection: close" in got


async def test_an_answer_before_the_body_was_read(tmp_path: Path) -> None:
    """The rest is taken in, so that the client comes to read; then the next request."""
    async def early(request: web.Request) -> web.StreamResponse:
        return web.Response(body=request.method.encode())

    async with _serving(tmp_path, early) as where:
        size = 3 * HIGH_WATER
        got = await _talk(where, POST + b"Content-Length: %d\r\n\r\n" % size, bytes(size) + LAST)
        assert got.count(b"200 OK") == 2 and got.endswith(b"GET")


async def test_a_body_waits_for_its_reader(tmp_path: Path) -> None:
    go = asyncio.Event()
    seen: list[int] = []

    async def slow(request: web.Request) -> web.StreamResponse:
        await go.wait()
        seen.append(request.content.size)
        size = sum([len(piece) async for piece in request.content.iter_any()])
        return web.Response(body=str(size).encode())

    size = 16 << 20
    async with _serving(tmp_path, slow) as where:
        reader, writer = await asyncio.open_unix_connection(where)
        writer.write(POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % size)
        writer.write(bytes(size))
        await asyncio.sleep(0.2)
        go.set()
        assert (await reader.read()).endswith(str(size).encode())
        assert HIGH_WATER <= seen[0] < 4 * HIGH_WATER
        writer.close()


async def test_a_client_that_does_not_read_stops_the_writer(tmp_path: Path) -> None:
    written = [0]

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(64 << 10))
            written[0] += 64 << 10

    async with _serving(tmp_path, flood) as where:
        reader, writer = await asyncio.open_unix_connection(where)
        writer.write(GET)
        await asyncio.sleep(0.2)
        first = written[0]
        await asyncio.sleep(0.1)
        assert written[0] == first < 2 << 20
        writer.transport.abort()    # and a client that goes ends it
        del reader


async def test_a_client_that_leaves_in_its_body(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await _echo(request)
        except BaseException as error:
            errors.append(error)
            raise

    async with _serving(tmp_path, handler) as where:
        _, writer = await asyncio.open_unix_connection(where)
        writer.write(POST + b"Content-Length: 10\r\n\r\nabc")
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)
        assert isinstance(errors[0], ConnectionResetError)


async def test_a_body_that_is_none(tmp_path: Path) -> None:
    from carrel.engine import server

    api = server.Api([web.post("/x", _echo)])
    async with _serving(tmp_path, api.handle) as where:
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for parts in ((head + b"zz\r\n",), (head, b"1\r\nab\r\n" + GET)):
            got = await _talk(where, *parts)
            assert got.startswith(b"HTTP/1.1 400 ") and got.count(b"HTTP/1.1") == 1
            assert b"malformed chunk" in got


async def test_a_failure_half_way_cuts_the_answer(tmp_path: Path) -> None:
    from carrel.engine import server

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise ValueError("broken")

    api = server.Api([web.get("/x", handler)])
    async with _serving(tmp_path, api.handle) as where:
        got = await _talk(where, GET)
        assert got.endswith(b"4\r\nhalf\r\n") and got.count(b"HTTP/1.1") == 1


async def test_a_connection_taken_out_of_http(tmp_path: Path) -> None:
    class Upper(asyncio.Protocol):
        def __init__(self, transport: Any, http: asyncio.Protocol) -> None:
            self.transport, self.http = transport, http

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())

        def eof_received(self) -> None:
            self.transport.write(b"!")

        def connection_lost(self, exc: Exception | None) -> None:
            self.http.connection_lost(exc)

    async def handler(request: web.Request) -> web.StreamResponse:
        taken: list[Upper] = []

        def take(transport: Any) -> Upper:
            taken.append(Upper(transport, request.connection))
            return taken[0]

        async for _ in request.content.iter_any():
            pass
        early = request.connection.hijack(take, b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        taken[0].data_received(early)
        return web.Taken()

    async with _serving(tmp_path, handler) as where:
        reader, writer = await asyncio.open_unix_connection(where)
        writer.write(POST + b"Content-Length: 2\r\n\r\n{}early")
        wanted = b"HTTP/1.1 101 UPGRADED\r\n\r\nEARLY"
        assert await reader.readexactly(len(wanted)) == wanted
        writer.write(b" late")
        writer.write_eof()
        assert (await reader.read())[-6:] == b" LATE!"
        writer.close()


async def test_patience_between_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
    async with _serving(tmp_path, _echo) as where:
        got = await _talk(where, GET)       # nothing follows: the server closes
        assert got.count(b"200 OK") == 1
        monkeypatch.setattr(connection, "IDLE_SECONDS", 60)
        monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
        got = await _talk(where, GET, b"GET /half HT")
        assert got.count(b"200 OK") == 1


async def test_the_end_waits_for_answers(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1 if request.path == "/x" else 3600)
        return web.Response(body=b"done")

    async with _serving(tmp_path, handler) as where:
        streams = [await asyncio.open_unix_connection(where) for _ in range(3)]
        for (_, writer), wire in zip(streams, (GET, LAST, b"")):
            writer.write(wire)
        await asyncio.sleep(0.05)
    answers = [await reader.read() for reader, _ in streams]
    assert answers[0].endswith(b"done") and answers[1:] == [b"", b""]
