"""The bulk data of a transfer: a unix socket of our engine, or a stream of a client.

Either becomes a blocking socket for the thread that reads or writes the archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from carrel import errdefs
from carrel.containerd.events import pack_event
from carrel.containerd.streaming import Stream, StreamManager
from carrel.proto import transfer_streaming_pb2

UNIX = "unix://"
_PIECE = 32 * 1024      # containerd's readers take no larger message
_WINDOW = 8 << 20
_Pump = Callable[[Stream, socket.socket], Coroutine[Any, Any, None]]


class SocketReader(io.RawIOBase):
    """A blocking socket as a raw file."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._socket.recv_into(buffer)


@contextlib.asynccontextmanager
async def receiving(streams: StreamManager, namespace: str, name: str,
                    ) -> AsyncIterator[socket.socket]:
    """A socket that gives what the client sends."""
    async with _joined(streams, namespace, name, _from_stream) as (ours, _):
        yield ours


@contextlib.asynccontextmanager
async def sending(streams: StreamManager, namespace: str, name: str,
                  ) -> AsyncIterator[socket.socket]:
    """A socket whose data goes to the client."""
    async with _joined(streams, namespace, name, _to_stream) as (ours, task):
        yield ours
        if task is not None:
            ours.shutdown(socket.SHUT_WR)
            await task


@contextlib.asynccontextmanager
async def _joined(streams: StreamManager, namespace: str, name: str, pump: _Pump,
                  ) -> AsyncIterator[tuple[socket.socket, asyncio.Task[None] | None]]:
    """The client's socket; or one end of a pair, and the task between the other and its stream."""
    if name.startswith(UNIX):
        async with _connected(name) as ours:
            yield ours, None
        return
    stream = await streams.get(namespace, name)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    task = asyncio.ensure_future(pump(stream, theirs))
    try:
        yield ours, task
    finally:
        await _end(task, ours, theirs)
        stream.close()


@contextlib.asynccontextmanager
async def _connected(name: str) -> AsyncIterator[socket.socket]:
    path = name[len(UNIX):]
    if not path.startswith("/"):
        raise errdefs.InvalidParameter(f"stream {name}: the path must be absolute")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(5.0)
        try:
            sock.connect(path)
        except OSError as error:
            raise errdefs.Unavailable(f"stream {name}: {error.strerror}") from error
        sock.settimeout(None)
        yield sock
    except BaseException:
        # wakes a thread that is blocked in it
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        raise
    finally:
        sock.close()


async def _end(task: asyncio.Task[None], ours: socket.socket, theirs: socket.socket) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError, errdefs.CarrelError):
        await task
    ours.close()
    theirs.close()


async def _from_stream(stream: Stream, sock: socket.socket) -> None:
    """``Data`` messages in, as many as the window that we announce lets through."""
    loop = asyncio.get_running_loop()
    try:
        await stream.send(pack_event(transfer_streaming_pb2.WindowUpdate(update=_WINDOW)))
        credit = 0
        while (message := await stream.receive()) is not None:
            if not message.type_url.endswith(".Data"):
                raise errdefs.InvalidParameter(
                    f"unexpected {message.type_url} on a data stream")
            data = transfer_streaming_pb2.Data.FromString(message.value).data
            await loop.sock_sendall(sock, data)
            credit += len(data)
            if credit >= _WINDOW // 2:
                await stream.send(pack_event(
                    transfer_streaming_pb2.WindowUpdate(update=credit)))
                credit = 0
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


async def _to_stream(stream: Stream, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    window = 0
    while data := await loop.sock_recv(sock, _PIECE):
        while window <= 0:
            message = await stream.receive()
            if message is None:
                raise errdefs.Cancelled(f"stream {stream.name} was closed by the client")
            if message.type_url.endswith(".WindowUpdate"):
                window += transfer_streaming_pb2.WindowUpdate.FromString(message.value).update
        window -= len(data)
        await stream.send(pack_event(transfer_streaming_pb2.Data(data=data)))
