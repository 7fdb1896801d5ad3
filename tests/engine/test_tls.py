"""TLS under the API: a client that has sent everything still gets its answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carrel.engine import streams, web
from carrel.engine.web import connection
from tests.engine.test_hardening import _certificates as certificates

ATTACH = b"POST /attach HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
BIG = b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SIZE = 8 << 20


class Client:
    """A connection whose TLS is ours to end when we like."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 30)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._more()
        self._flush()

    def _flush(self) -> None:
        self.sock.sendall(self.outgoing.read())

    def _more(self) -> None:
        if data := self.sock.recv(1 << 16):
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def farewell(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._flush()

    def rest(self) -> bytes:
        """Everything to the server's own farewell."""
        got = bytearray()
        while True:
            try:
                data = self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self._more()
                continue
            except ssl.SSLZeroReturnError:
                return bytes(got)
            if not data:
                return bytes(got)
            got += data


class Cat:
    """Tells what it was told once there is no more."""

    def __init__(self, session: streams.Session) -> None:
        self.session, self.got, self.ended = session, bytearray(), False

    def write(self, data: bytes) -> None:
        self.got += data

    def eof(self) -> None:
        self.ended = True
        self.session.output(streams.STDOUT, bytes(self.got))
        self.session.finish()


@contextlib.asynccontextmanager
async def _serving(folder: Path, cats: list[Cat] | None = None
                   ) -> AsyncIterator[tuple[int, ssl.SSLContext, web.Server]]:
    certificates(folder)
    cats = [] if cats is None else cats
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/big":
            return web.Response(body=bytes(SIZE))
        session = streams.Session(stdin=True, stdout=True, stderr=True, tty=False, framed=False)
        streams.hijack(request, session, streams.RAW)
        cats.append(Cat(session))
        session.set_input(cats[-1])
        return await streams.serve(session)

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = web.Server(handler)
    await server.listen(sock, context)
    try:
        yield (sock.getsockname()[1], ssl.create_default_context(cafile=f"{folder}/ca.pem"),
               server)
    finally:
        await server.close()


async def test_an_answer_after_the_clients_farewell(tmp_path: Path) -> None:
    sent = bytes(range(256)) * 4096

    def talk(port: int, context: ssl.SSLContext) -> bytes:
        client = Client(port, context)
        client.send(ATTACH)
        client.send(sent)
        client.farewell()
        return client.rest()

    async with _serving(tmp_path) as (port, context, _):
        got = await asyncio.wait_for(asyncio.to_thread(talk, port, context), 30)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and body == sent


async def test_much_for_a_slow_reader(tmp_path: Path) -> None:
    async with _serving(tmp_path) as (port, context, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context,
                                                       server_hostname="localhost")
        writer.write(BIG)
        await asyncio.sleep(0.2)
        got = await asyncio.wait_for(reader.read(), 30)
        assert got.partition(b"\r\n\r\n")[2] == bytes(SIZE)
        writer.close()


async def test_a_cut_is_no_end(tmp_path: Path) -> None:
    """TCP ends without TLS's farewell: what was sent may not be all of it."""
    cats: list[Cat] = []
    async with _serving(tmp_path, cats) as (port, context, server):
        def talk() -> None:
            client = Client(port, context)
            client.send(ATTACH + b"half of it")
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(1 << 16):
                pass

        await asyncio.wait_for(asyncio.to_thread(talk), 30)
        assert not server.connections
        assert cats[0].session.done.done() and cats[0].got == b"half of it"
        assert not cats[0].ended


async def test_what_speaks_no_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    async with _serving(tmp_path) as (port, context, server):
        for hello in (BIG, b"\x16\x03\x01", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            try:
                got = await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                got = b""
            assert b"HTTP" not in got
            writer.close()
        # nor a client that knows another authority
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context(),
                                          server_hostname="localhost")
        assert not server.connections
        del context
