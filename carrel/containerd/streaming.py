"""Streams that two calls share: a client opens one here and names it in another call.

The transfer service reads archives and credentials from, and writes progress
to, streams that the client opened before, by id.
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd.events import pack_event
from carrel.proto import streaming_pb2
from carrel.proto.rpc import Context

log = logging.getLogger(__name__)

_T = TypeVar("_T")
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
        message = await self.first(self.incoming.get())
        return message if self.incoming.empty() or message is not None else (
            self.incoming.get_nowait())     # it came together with the closing

    async def first(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """What ``work`` gives, or None when the stream is closed before that.

        Neither task outlives this call, whether it is answered, closed or cancelled.
        """
        working = asyncio.ensure_future(work)
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait((working, closing), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, closing):
                task.cancel()
            await asyncio.gather(working, closing, return_exceptions=True)

    async def send(self, message: AnyMessage) -> None:
        """To the client; waits while it does not read, raises when it is gone."""
        if self.closed.is_set():
            raise errdefs.Cancelled(f"stream {self.name} was closed by the client")
        if not self.outgoing.full():
            self.outgoing.put_nowait(message)
            return
        if await self.first(self._put(message)) is None:
            raise errdefs.Cancelled(f"stream {self.name} was closed by the client")

    async def _put(self, message: AnyMessage) -> bool:
        await self.outgoing.put(message)
        return True

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
            async with contextlib.aclosing(_drain(stream)) as messages:
                async for message in messages:
                    yield message
        finally:
            feeder.cancel()
            self._manager.forget(namespace, stream)


async def _feed(requests: AsyncIterator[AnyMessage], stream: Stream) -> None:
    try:
        async for message in requests:
            await stream.incoming.put(message)
    except Exception as error:
        # the connection broke: the reader must not wait for ever
        log.debug("stream %s: %s", stream.name, error)
    # not when cancelled: then the call is over, and closing the stream wakes the reader
    await stream.incoming.put(None)


async def _drain(stream: Stream) -> AsyncGenerator[AnyMessage, None]:
    while True:
        while not stream.outgoing.empty():
            message = stream.outgoing.get_nowait()
            if message is not None:
                yield message
        if stream.closed.is_set():
            return
        message = await stream.first(stream.outgoing.get())
        if message is not None:
            yield message
