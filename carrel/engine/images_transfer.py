"""The engine's side of a transfer: progress, credentials and archive streams.

The work is done by the containerd layer; the engine opens the streams that the call
names and turns progress into what Docker's clients show.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from carrel import errdefs
from carrel.engine import jsonio, web
from carrel.engine.bulkstream import StreamChannel
from carrel.engine.server import headers
from carrel.proto import (
    streaming_pb2,
    transfer_imagestore_pb2,
    transfer_pb2,
    transfer_progress_pb2,
    transfer_registry_pb2,
)

if TYPE_CHECKING:
    from carrel.engine.containerd import Client
    from carrel.engine.context import EngineContext

Progress = transfer_progress_pb2.Progress
DANGLING_PREFIX = "moby-dangling"


def pack(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Credentials(msgspec.Struct, frozen=True):
    """What ``X-Registry-Auth`` holds."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """User and password; ``auth`` is the older form of both."""
        if self.username or not self.auth:
            return self.username, self.password
        try:
            user, _, password = base64.b64decode(self.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise errdefs.InvalidParameter("invalid auth in X-Registry-Auth") from None
        return user, password.rstrip("\0")


def credentials(header: str | None) -> Credentials:
    """Decode ``X-Registry-Auth``: base64url of a JSON object."""
    if not header:
        return Credentials()
    if len(header) > 1 << 16:
        raise errdefs.InvalidParameter("X-Registry-Auth header is too long")
    try:
        raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        return msgspec.json.decode(raw or b"{}", type=Credentials)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        # the value is a secret: it must not appear in the message
        raise errdefs.InvalidParameter("invalid X-Registry-Auth header: invalid JSON") from None


class Lines(Protocol):
    """Takes the lines of an operation."""

    async def send(self, value: dict[str, Any]) -> None: ...


class NdJson:
    """An answer of one JSON object a line.  Its head is sent with the first object, so that
    an error before it still has a status of its own."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={**headers(), "Content-Type": "application/json"})

    @property
    def started(self) -> bool:
        return self.response.prepared

    async def send(self, value: dict[str, Any]) -> None:
        if not self.started:
            await self.response.prepare(self._request)
        await self.response.write(jsonio.encode(value) + b"\r\n")

    async def finish(self) -> web.StreamResponse:
        if not self.started:
            await self.response.prepare(self._request)
        await self.response.write_eof()
        return self.response


async def answering(request: web.Request, work: Callable[[NdJson], Awaitable[None]],
                    *, always: bool = False) -> web.StreamResponse:
    """Run ``work``; an error after the first line (or ``always``) becomes the last line."""
    out = NdJson(request)
    try:
        await work(out)
    except (errdefs.CarrelError, OSError) as error:
        if not (out.started or always) or isinstance(error, ConnectionResetError):
            raise
        await out.send({"errorDetail": {"message": str(error)}, "error": str(error)})
    return await out.finish()


# --- calls ---


async def transfer(client: Client, source: Message, destination: Message,
                   told: Callable[[Progress], Awaitable[None]]) -> None:
    """One transfer; ``told`` gets its progress in order.

    When ``told`` fails, our own client has gone away: then the transfer is cancelled.
    """
    name = f"progress-{secrets.token_hex(8)}"
    opened = asyncio.Event()
    reading = asyncio.ensure_future(_read_progress(client, name, opened, told))
    call: asyncio.Future[Any] | None = None
    try:
        await _opened(opened, reading)
        call = asyncio.ensure_future(client.transfer.Transfer(transfer_pb2.TransferRequest(
            source=pack(source), destination=pack(destination),
            options=transfer_pb2.TransferOptions(progress_stream=name))))
        await asyncio.wait((call, reading), return_when=asyncio.FIRST_COMPLETED)
        if not call.done() and reading.exception() is not None:
            reading.result()
        await call
        await asyncio.wait_for(reading, 10.0)
    finally:
        await _cancelled(*(task for task in (call, reading) if task is not None))


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """End tasks; how they end is no matter any more."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _opened(opened: asyncio.Event, task: asyncio.Future[None]) -> None:
    waiting = asyncio.ensure_future(opened.wait())
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()


async def _read_progress(client: Client, name: str, opened: asyncio.Event,
                         told: Callable[[Progress], Awaitable[None]]) -> None:
    async for message in client.streaming.Stream(_only_init(name)):
        opened.set()
        if message.type_url.endswith(".Progress"):
            await told(Progress.FromString(message.value))


async def _only_init(name: str) -> AsyncIterator[AnyMessage]:
    """Our half of a progress stream: it is opened, and then we only listen."""
    yield pack(streaming_pb2.StreamInit(id=name))


@contextlib.asynccontextmanager
async def auth_stream(client: Client, host: str, auth: Credentials) -> AsyncIterator[str]:
    """A stream that answers the layer's requests for credentials, for ``host`` only."""
    if auth == Credentials():
        yield ""
        return
    name = f"auth-{secrets.token_hex(8)}"
    answers: asyncio.Queue[AnyMessage] = asyncio.Queue()
    opened = asyncio.Event()

    async def requests() -> AsyncIterator[AnyMessage]:
        yield pack(streaming_pb2.StreamInit(id=name))
        while True:
            yield await answers.get()

    async def serve() -> None:
        async for message in client.streaming.Stream(requests()):
            opened.set()
            if message.type_url.endswith(".AuthRequest"):
                asked = transfer_registry_pb2.AuthRequest.FromString(message.value)
                answers.put_nowait(pack(_answer(asked, host, auth)))

    task = asyncio.ensure_future(serve())
    try:
        await _opened(opened, task)
        yield name
    finally:
        await _cancelled(task)


def _answer(asked: transfer_registry_pb2.AuthRequest, host: str,
            auth: Credentials) -> transfer_registry_pb2.AuthResponse:
    response = transfer_registry_pb2.AuthResponse()
    if asked.host != host:
        return response     # another host: it gets nothing
    if auth.registrytoken:
        response.authType = transfer_registry_pb2.HEADER
        response.secret = f"Bearer {auth.registrytoken}"
    elif auth.identitytoken:
        response.authType = transfer_registry_pb2.REFRESH
        response.username, response.secret = auth.username, auth.identitytoken
    else:
        user, password = auth.pair
        if user or password:
            response.authType = transfer_registry_pb2.CREDENTIALS
            response.username, response.secret = user, password
    return response


def image_store(ctx: EngineContext, name: str = "", platform: tuple[str, str, str] | None = None,
                *, unpack: bool = True) -> transfer_imagestore_pb2.ImageStore:
    """Where images go: unpacked, by their names, or by digest where they have none."""
    store = transfer_imagestore_pb2.ImageStore(name=name)
    if unpack:
        configuration = store.unpacks.add(snapshotter=ctx.config.snapshotter)
        if platform:
            chosen = configuration.platform
            chosen.os, chosen.architecture, chosen.variant = platform
            store.platforms.add().CopyFrom(chosen)
    if ctx.config.foreign:
        # containerd knows no empty prefix, and would give every pulled image a second name
        if not name:
            store.extra_references.add(name=DANGLING_PREFIX, is_prefix=True, allow_overwrite=True,
                                       add_digest=True, skip_named_digest=True)
        return store
    if not name:
        store.extra_references.add(is_prefix=True, allow_overwrite=True)
    store.extra_references.add(name=DANGLING_PREFIX, add_digest=True, skip_named_digest=True)
    return store


# --- archives ---


def channel(ctx: EngineContext) -> Channel | StreamChannel:
    """The way that this daemon's containerd takes and gives archives."""
    return StreamChannel(ctx.containerd) if ctx.config.foreign else Channel(ctx)


class Channel:
    """A unix socket at which the containerd layer takes or gives one archive."""

    def __init__(self, ctx: EngineContext) -> None:
        folder = os.path.join(ctx.config.exec_root, "transfer")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.path = os.path.join(folder, f"{secrets.token_hex(8)}.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._connection: socket.socket | None = None

    @property
    def name(self) -> str:
        return f"unix://{self.path}"

    async def __aenter__(self) -> Channel:
        self._listener.bind(self.path)
        os.chmod(self.path, 0o600)
        self._listener.listen(1)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for sock in (self._connection, self._listener):
            if sock is not None:
                sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        self._connection, _ = await loop.sock_accept(self._listener)
        self._connection.setblocking(False)
        return self._connection

    async def feed(self, chunks: AsyncIterator[bytes]) -> None:
        """Send what a client uploads.  The reader may stop early: that is its error to tell."""
        loop = asyncio.get_running_loop()
        connection = await self._accept()
        async for chunk in chunks:      # an error in here is the client's: it went away
            try:
                await loop.sock_sendall(connection, chunk)
            except (BrokenPipeError, ConnectionResetError):
                return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)

    def written(self) -> None:
        """The transfer has ended: the layer has closed its end by then."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the layer writes, to its end."""
        loop = asyncio.get_running_loop()
        connection = await self._accept()
        while data := await loop.sock_recv(connection, 1 << 20):
            yield data


async def together(call: Awaitable[None], beside: Awaitable[None]) -> None:
    """Wait for ``call``; what runs beside it ends with it, and its failure ends the call."""
    main = asyncio.ensure_future(call)
    other = asyncio.ensure_future(beside)
    try:
        await asyncio.wait((main, other), return_when=asyncio.FIRST_COMPLETED)
        if not main.done() and other.done() and other.exception() is not None:
            other.result()
        await main
        if other.done():
            other.result()
    finally:
        await _cancelled(main, other)
