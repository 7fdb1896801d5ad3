"""One archive to or from a containerd that is not ours, over its Streaming service.

``Data`` messages go as far as the other side's ``WindowUpdate`` messages let them.
With our own layer the bytes go through a socket instead (``images_transfer.Channel``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from carrel import errdefs
from carrel.proto import streaming_pb2, transfer_streaming_pb2

if TYPE_CHECKING:
    from carrel.engine.containerd import Client

#: of one message; what containerd itself sends
_PIECE = 32 << 10
#: what may be on its way to us
_WINDOW = 1 << 20
#: zeros at the end of an archive
_END = 1024
#: for bytes that the answer of their transfer has overtaken
_LATE_SECONDS = 10.0
_WRITTEN = object()


def _pack(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class StreamChannel:
    """An open stream; ``name`` is what a transfer calls it."""

    def __init__(self, client: Client) -> None:
        self.name = f"archive-{secrets.token_hex(8)}"
        self._client = client
        self._outgoing: asyncio.Queue[AnyMessage | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StreamChannel:
        self._task = asyncio.get_running_loop().create_task(self._run())
        if await self._incoming.get() is None:  # the first message says that it is known
            await self._task
            raise errdefs.Unavailable("containerd closed the stream of an archive")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task

    async def _run(self) -> None:
        try:
            async for message in self._client.streaming.Stream(self._requests()):
                self._incoming.put_nowait(message)
        finally:
            self._incoming.put_nowait(None)

    async def _requests(self) -> AsyncIterator[AnyMessage]:
        yield _pack(streaming_pb2.StreamInit(id=self.name))
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def feed(self, chunks: AsyncIterator[bytes]) -> None:
        """Send what a client uploads. The reader may stop early: that is its error to tell."""
        window = 0
        async for chunk in chunks:
            for begin in range(0, len(chunk), _PIECE):
                while window <= 0:
                    message = await self._incoming.get()
                    if message is None:
                        return
                    if message.type_url.endswith(".WindowUpdate"):
                        window += transfer_streaming_pb2.WindowUpdate.FromString(
                            message.value).update
                piece = chunk[begin:begin + _PIECE]
                window -= len(piece)
                self._outgoing.put_nowait(_pack(transfer_streaming_pb2.Data(data=piece)))
        self._outgoing.put_nowait(None)

    def written(self) -> None:
        """The transfer has ended: containerd sends no more, and does not close the stream."""
        self._incoming.put_nowait(_WRITTEN)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The archive that containerd writes, to its end."""
        self._outgoing.put_nowait(_pack(transfer_streaming_pb2.WindowUpdate(update=_WINDOW)))
        credit, tail, patience = 0, b"", None
        # what was sent before the transfer's answer may come after it: two blocks of zeros
        # end an archive
        while patience is None or tail.count(0) < _END:
            async with asyncio.timeout(patience):
                message = await self._incoming.get()
            if message is None:
                return
            if message is _WRITTEN:
                patience = _LATE_SECONDS
                continue
            if not message.type_url.endswith(".Data"):
                continue
            data = transfer_streaming_pb2.Data.FromString(message.value).data
            tail = (tail + data)[-_END:]
            credit += len(data)
            if credit >= _WINDOW // 2:
                self._outgoing.put_nowait(_pack(
                    transfer_streaming_pb2.WindowUpdate(update=credit)))
                credit = 0
            yield data
