"""``attach/ws``: frames byte by byte, and a real client of a real container."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carrel.engine import server, streams, web, websocket
from tests.engine.rawhttp import connect
from tests.engine.stack import IMAGE, Stack

HELLO = (b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
         b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def client_frame(kind: int, data: bytes, *, final: bool = True, masked: bool = True,
                 bits: int = 0) -> bytes:
    size, mask = len(data), os.urandom(4)
    head = bytes(((0x80 if final else 0) | bits | kind,))
    flag = 0x80 if masked else 0
    if size < 126:
        head += bytes((flag | size,))
    elif size < 1 << 16:
        head += struct.pack(">BH", flag | 126, size)
    else:
        head += struct.pack(">BQ", flag | 127, size)
    if not masked:
        return head + data
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, size = await reader.readexactly(2)
    assert first & 0xF0 == 0x80 and size < 128
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8), "big")
    return first & 0x0F, await reader.readexactly(size)


class Echo:
    """A process that says what it is told."""

    def __init__(self, session: streams.Session) -> None:
        self.session = session

    def write(self, data: bytes) -> None:
        self.session.output(streams.STDOUT, data)
        if data.endswith(b"end"):
            self.session.finish()

    def eof(self) -> None: ...


@contextlib.asynccontextmanager
async def _echo(path: Path) -> AsyncIterator[
        tuple[asyncio.StreamReader, asyncio.StreamWriter, list[streams.Session]]]:
    sessions: list[streams.Session] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        session = streams.Session(stdin=True, stdout=True, stderr=True, tty=False, framed=False)
        websocket.accept(request, session)
        sessions.append(session)
        session.set_input(Echo(session))
        return await streams.serve(session)

    import socket

    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{path}/s")
    made = web.Server(server.Api([web.get("/ws", handler)]).handle)
    await made.listen(sock)
    reader, writer = await asyncio.open_unix_connection(f"{path}/s")
    try:
        yield reader, writer, sessions
    finally:
        writer.close()
        await made.close()


async def _greet(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head   # of RFC 6455


@pytest.mark.parametrize("size", [1, 3, 10_000_000])
async def test_frames_however_they_come(tmp_path: Path, size: int) -> None:
    async with _echo(tmp_path) as (reader, writer, sessions):
        sent = [b"abc", b"", b"x" * 125, b"y" * 126, b"z" * (70_000 if size > 3 else 300)]
        wire = HELLO + b"".join(client_frame(BINARY, data) for data in sent)
        wire += client_frame(TEXT, b"one ", final=False) + client_frame(PING, b"there?")
        wire += client_frame(0, b"message", final=False) + client_frame(0, b"")
        wire += client_frame(PONG, b"")
        for i in range(0, len(wire), size):
            writer.write(wire[i:i + size])
            await writer.drain()
        await _greet(reader)
        writer.write(client_frame(CLOSE, struct.pack(">H", 1000) + b"bye"))
        out, kinds = bytearray(), []
        while True:
            kind, data = await read_frame(reader)
            kinds.append(kind)
            if kind == BINARY:
                out += data
            elif kind == PONG:
                assert data == b"there?"
            else:
                break
        assert bytes(out) == b"".join(sent) + b"one message"
        assert kind == CLOSE and data == struct.pack(">H", 1000) and kinds.count(PONG) == 1
        assert await reader.read() == b"" and sessions[0].done.done()


@pytest.mark.parametrize("frame", [
    client_frame(BINARY, b"a", masked=False), client_frame(3, b"a"), client_frame(11, b""),
    client_frame(BINARY, b"a", bits=0x40), client_frame(PING, b"a", final=False),
    client_frame(PING, b"a" * 126), client_frame(0, b"a"),
    client_frame(BINARY, b"a", final=False) + client_frame(BINARY, b"b"),
    b"\x82\xff" + b"\xff" * 12,
], ids=range(9))
async def test_what_is_no_frame(tmp_path: Path, frame: bytes) -> None:
    async with _echo(tmp_path) as (reader, writer, sessions):
        writer.write(HELLO + frame)
        await _greet(reader)
        kind, data = await read_frame(reader)
        while kind != CLOSE:
            kind, data = await read_frame(reader)
        assert data == struct.pack(">H", 1002) and await reader.read() == b""
        assert sessions[0].done.done()


async def test_the_end_of_the_output(tmp_path: Path) -> None:
    async with _echo(tmp_path) as (reader, writer, sessions):
        writer.write(HELLO + client_frame(BINARY, b"the end"))
        await _greet(reader)
        assert await read_frame(reader) == (BINARY, b"the end")
        assert (await read_frame(reader))[0] == CLOSE
        writer.write(client_frame(BINARY, b"too late") + client_frame(CLOSE, b"\x03\xe8"))
        assert await reader.read() == b"" and sessions[0].done.done()


@pytest.mark.parametrize(("old", "new"), [
    (b"Upgrade: websocket\r\n", b""), (b", Upgrade", b""), (b"Version: 13", b"Version: 8"),
    (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ="), (b"dGhlIHNhbXBsZSBub25jZQ==", b"!"),
    (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"")])
async def test_no_handshake(tmp_path: Path, old: bytes, new: bytes) -> None:
    async with _echo(tmp_path) as (reader, writer, _):
        writer.write(HELLO.replace(old, new))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.root
def test_a_real_client(stack: Stack) -> None:
    """docker-py's own websocket library against ``cat``."""
    client = pytest.importorskip("websocket")
    stack.load()
    ident = stack.docker("run", "-di", "--name", "web-cat", IMAGE, "sh", "-c",
                         "read x; echo got $x >&2; cat").stdout.strip()
    try:
        sock = client.create_connection(
            f"ws://localhost/v1.47/containers/{ident}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1",
            socket=connect(stack.sock), timeout=30)
        sock.send_text("hello\n")
        got = b""
        while b"got hello\n" not in got:
            got += sock.recv()
        blob = base64.b64encode(os.urandom(150_000)) + b"\n"
        sock.send_binary(blob)
        got = b""
        while len(got) < len(blob):
            got += sock.recv()
        assert got == blob
        stack.docker("kill", "web-cat")
        assert sock.recv() in (b"", "")     # the close frame
        sock.close()
    finally:
        stack.docker("rm", "-f", "web-cat")
