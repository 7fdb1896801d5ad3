"""Streams that two calls share: a client opens one here and names it in another call.

The transfer service reads archives and credentials from, and writes progress
to, streams that the client opened before, by id.
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd.events import pack_event
from carrel.proto import streaming_pb2
from carrel.proto.rpc import Context

#: messages that may wait in one direction; then the sender waits
_WINDOW = 16


class Stream:
    """The server's end of one stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incoming: asyncio.Queue[AnyMessage | None] = asyncio.Queue(_WINDOW)
        self.outgoing: asyncio.Queue[AnyMessage | None] = asyncio.Queue(_WINDOW)
        #: set when either side is done with the stream
        self.closed = asyncio.Event()

    async def receive(self) -> AnyMessage | None:
        """The client's next message; None after its last."""
        if not self.incoming.empty():
            return self.incoming.get_nowait()
        if self.closed.is_set():
            return None
        getting = asyncio.ensure_future(self.incoming.get())
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait((getting, closing), return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else None
        finally:
            getting.cancel()
            closing.cancel()

    async def send(self, message: AnyMessage) -> None:
        """To the client; waits while it does not read, raises when it is gone."""
        if self.closed.is_set():
            raise errdefs.Cancelled(f"stream {self.name} was closed by the client")
        if not self.outgoing.full():
            self.outgoing.put_nowait(message)
            return
        putting = asyncio.ensure_future(self.outgoing.put(message))
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait((putting, closing), return_when=asyncio.FIRST_COMPLETED)
            if not putting.done():
                raise errdefs.Cancelled(f"stream {self.name} was closed by the client")
        finally:
            putting.cancel()
            closing.cancel()

    def close(self) -> None:
        """Nothing more is sent; what was sent still reaches the client."""
        self.closed.set()


class StreamManager:
    """Open streams by namespace and id."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}
        self._opened = asyncio.Condition()

    def find(self, namespace: str, name: str) -> Stream:
        try:
            return self._streams[namespace, name]
        except KeyError:
            raise errdefs.NotFound(f"stream {name}: not found") from None

    async def get(self, namespace: str, name: str, timeout: float = 5.0) -> Stream:
        """The stream, which the client may be about to open."""
        try:
            async with asyncio.timeout(timeout), self._opened:
                await self._opened.wait_for(lambda: (namespace, name) in self._streams)
        except TimeoutError:
            pass
        return self.find(namespace, name)

    async def open(self, namespace: str, name: str) -> Stream:
        if not name:
            raise errdefs.InvalidParameter("stream id must not be empty")
        if (namespace, name) in self._streams:
            raise errdefs.AlreadyExists(f"stream {name}: already exists")
        stream = self._streams[namespace, name] = Stream(name)
        async with self._opened:
            self._opened.notify_all()
        return stream

    def forget(self, namespace: str, stream: Stream) -> None:
        stream.close()
        self._streams.pop((namespace, stream.name), None)


class StreamingService:
    """``containerd.services.streaming.v1.Streaming``"""

    def __init__(self, manager: StreamManager) -> None:
        self._manager = manager

    async def Stream(self, requests: AsyncIterator[AnyMessage], context: Context,
                     ) -> AsyncIterator[AnyMessage]:
        namespace = context.namespace
        first = await anext(requests, None)
        if first is None or not first.type_url.endswith(".StreamInit"):
            raise errdefs.InvalidParameter("the first message of a stream must be a StreamInit")
        stream = await self._manager.open(namespace,
                                          streaming_pb2.StreamInit.FromString(first.value).id)
        feeder = asyncio.ensure_future(_feed(requests, stream))
        try:
            yield pack_event(Empty())
            async for message in _drain(stream):
                yield message
        finally:
            feeder.cancel()
            self._manager.forget(namespace, stream)


async def _feed(requests: AsyncIterator[AnyMessage], stream: Stream) -> None:
    try:
        async for message in requests:
            await stream.incoming.put(message)
    finally:
        # also when the connection broke: the reader must not wait for ever
        if stream.incoming.full():
            await stream.incoming.put(None)
        else:
            stream.incoming.put_nowait(None)


async def _drain(stream: Stream) -> AsyncIterator[AnyMessage]:
    closing = asyncio.ensure_future(stream.closed.wait())
    try:
        while True:
            getting = asyncio.ensure_future(stream.outgoing.get())
            await asyncio.wait((getting, closing), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                break
            message = getting.result()
            if message is not None:
                yield message
        while not stream.outgoing.empty():
            message = stream.outgoing.get_nowait()
            if message is not None:
                yield message
    finally:
        closing.cancel()
