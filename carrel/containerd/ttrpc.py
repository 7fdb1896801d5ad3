"""ttrpc: the protocol between this layer and shims.

A frame is ``length u32 BE | stream id u32 BE | type u8 | flags u8`` and then
the payload.  Unary calls are one request frame (type 1) and one response frame
(type 2); calls run side by side on one connection, told apart by stream id
(odd, chosen by the client).  The payloads:

    Request   1 service  2 method  3 payload  4 timeout_nano  5 metadata{1 key 2 value}
    Response  1 status{1 code 2 message}  2 payload

Both are encoded by hand here: they are two messages, and they are on the path
of every call to a shim.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from carrel import errdefs
from carrel.proto.rpc import Context

log = logging.getLogger(__name__)

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_MAX_FRAME = 4 << 20
#: the namespace travels in the metadata under this name
NAMESPACE_KEY = "containerd-namespace-ttrpc"


# --- the two messages --------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def encode_request(service: str, method: str, payload: bytes, timeout: float | None,
                   metadata: Mapping[str, str]) -> bytes:
    out = _field(1, service.encode()) + _field(2, method.encode())
    if payload:
        out += _field(3, payload)
    if timeout:
        out += b"\x20" + _varint(int(timeout * 1e9))
    for key, value in metadata.items():
        out += _field(5, _field(1, key.encode()) + _field(2, value.encode()))
    return out


def encode_response(payload: bytes, code: int = 0, message: str = "") -> bytes:
    if not code:
        return _field(2, payload)
    return _field(1, b"\x08" + _varint(code) + _field(2, message.encode()))


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """``(number, value)`` of a message, in order; ValueError if it is none."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            found.append((number, value))
        elif kind == 2:
            size, at = _read_varint(data, at)
            if at + size > len(data):
                raise ValueError("field goes beyond the end of the message")
            found.append((number, data[at:at + size]))
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > len(data):
                raise ValueError("field goes beyond the end of the message")
        else:
            raise ValueError(f"unknown wire type {kind}")
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _status(data: bytes) -> tuple[int, str]:
    code, message = 0, ""
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            code = value
        elif number == 2:
            message = _text(value)
    return code, message


# --- frames -------------------------------------------------------------------


class _Frames(asyncio.Protocol):
    """Cuts the byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 10:
            length, stream, kind, _flags = _HEADER.unpack_from(buffer)
            if length > _MAX_FRAME:
                log.error("ttrpc: frame of %d bytes is over the limit; closing", length)
                assert self.transport is not None
                self.transport.abort()
                return
            if len(buffer) < 10 + length:
                return
            payload = bytes(buffer[10:10 + length])
            del buffer[:10 + length]
            self.frame(stream, kind, payload)

    def frame(self, stream: int, kind: int, payload: bytes) -> None:
        raise NotImplementedError

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_HEADER.pack(len(payload), stream, kind, 0) + payload)


# --- client -------------------------------------------------------------------


class Client(_Frames):
    """One connection to a shim; any number of calls at once."""

    def __init__(self, on_close: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._next = 1
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._on_close = on_close
        self.closed = False
        #: the connection is no more
        self.ended = asyncio.Event()

    @classmethod
    async def connect(cls, path: str, on_close: Callable[[], None] | None = None,
                      timeout: float = 5.0) -> Client:
        """Connect to the socket at ``path`` (``@name`` and ``\\0name``: abstract)."""
        loop = asyncio.get_running_loop()
        address = "\0" + path[1:] if path.startswith("@") else path
        try:
            async with asyncio.timeout(timeout):
                _, client = await loop.create_unix_connection(lambda: cls(on_close), address)
        except TimeoutError:
            raise errdefs.DeadlineExceeded(
                f"connect to shim at {path}: no answer in {timeout} s") from None
        except OSError as error:
            raise errdefs.Unavailable(f"connect to shim at {path}: {error}") from error
        return client

    def frame(self, stream: int, kind: int, payload: bytes) -> None:
        future = self._waiting.pop(stream, None)
        if future is not None and not future.done() and kind == _RESPONSE:
            future.set_result(payload)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.ended.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(errdefs.Unavailable("ttrpc: closed"))
        if self._on_close is not None:
            self._on_close()

    async def call(self, service: str, method: str, request: Message, response: type[Any],
                   metadata: Mapping[str, str], timeout: float | None = None) -> Any:
        """One unary call; errors by meaning."""
        if self.closed:
            raise errdefs.Unavailable("ttrpc: closed")
        stream, self._next = self._next, self._next + 2
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = future
        self.send(stream, _REQUEST, encode_request(
            service, method, request.SerializeToString(), timeout, metadata))
        timer = None
        if timeout is not None:
            timer = asyncio.get_running_loop().call_later(timeout, _expire, future, method, timeout)
        try:
            return self._result(await future, method, response)
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.pop(stream, None)

    @staticmethod
    def _result(data: bytes, method: str, response: type[Any]) -> Any:
        payload = b""
        try:
            for number, value in fields(data):
                if number == 1 and isinstance(value, bytes):
                    code, message = _status(value)
                    if code:
                        raise errdefs.BY_GRPC_CODE.get(code, errdefs.SystemFailure)(message)
                elif number == 2 and isinstance(value, bytes):
                    payload = value
            return response.FromString(payload)
        except (ValueError, DecodeError) as error:
            raise errdefs.SystemFailure(f"shim's answer to {method}: {error}") from error

    def close(self) -> None:
        self._on_close = None
        if self.transport is not None:
            self.transport.close()


def _expire(future: asyncio.Future[bytes], method: str, timeout: float) -> None:
    if not future.done():
        future.set_exception(errdefs.DeadlineExceeded(
            f"shim: no answer to {method} in {timeout:g} s"))


# --- server -------------------------------------------------------------------

Handler = Callable[[bytes, Context], Awaitable[bytes]]


def unary(request: type[Any], method: Callable[[Any, Context], Awaitable[Message]]) -> Handler:
    """A servicer's coroutine as a handler of bytes."""

    async def handle(payload: bytes, context: Context) -> bytes:
        try:
            message = request.FromString(payload)
        except DecodeError as error:
            raise errdefs.InvalidParameter(f"bad request: {error}") from error
        return (await method(message, context)).SerializeToString()

    return handle


class ServerConnection(_Frames):
    """One client of ours, that is: one shim."""

    def __init__(self, handlers: Mapping[str, Handler], connections: set[ServerConnection]) -> None:
        super().__init__()
        self._handlers = handlers
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def frame(self, stream: int, kind: int, payload: bytes) -> None:
        if kind != _REQUEST:
            return
        task = asyncio.ensure_future(self._serve(stream, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: int, data: bytes) -> None:
        try:
            answer = encode_response(await self._dispatch(data))
        except errdefs.CarrelError as error:
            answer = encode_response(b"", error.grpc_code, error.message)
        except Exception as error:
            log.exception("ttrpc call")
            answer = encode_response(b"", 13, f"{type(error).__name__}: {error}")
        self.send(stream, _RESPONSE, answer)

    async def _dispatch(self, data: bytes) -> bytes:
        service = method = ""
        payload = b""
        metadata: dict[str, str] = {}
        try:
            for number, value in fields(data):
                if number == 1:
                    service = _text(value)
                elif number == 2:
                    method = _text(value)
                elif number == 3 and isinstance(value, bytes):
                    payload = value
                elif number == 5 and isinstance(value, bytes):
                    pair = dict(fields(value))
                    metadata[_text(pair.get(1, b""))] = _text(pair.get(2, b""))
        except ValueError as error:
            raise errdefs.InvalidParameter(f"bad request: {error}") from error
        handler = self._handlers.get(f"/{service}/{method}")
        if handler is None:
            raise errdefs.NotImplementedYet(
                f"/{service}/{method} is not built in carrel-containerd")
        if NAMESPACE_KEY in metadata:
            metadata["containerd-namespace"] = metadata[NAMESPACE_KEY]
        return await handler(payload, Context(metadata))


class Server:
    """ttrpc on a unix socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._connections: set[ServerConnection] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, sock: Any) -> None:
        """Serve on a listening socket."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: ServerConnection(self._handlers, self._connections), sock=sock)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            if connection.transport is not None:
                connection.transport.close()
