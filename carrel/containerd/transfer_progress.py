"""Progress of a transfer, from any thread, to the client's progress stream.

Counters change thousands of times a second; the client sees each at most every
100 ms, and every change of state.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from carrel import errdefs
from carrel.containerd.events import pack_event
from carrel.containerd.streaming import Stream
from carrel.oci import image as oci
from carrel.oci.image import Descriptor
from carrel.proto import descriptor_pb2, transfer_progress_pb2

_INTERVAL = 0.1


def ref_key(descriptor: Descriptor) -> str:
    """containerd's name for one download: ``layer-sha256:...``"""
    if descriptor.media_type in oci.MANIFESTS:
        kind = "manifest"
    elif descriptor.media_type in oci.INDEXES:
        kind = "index"
    elif descriptor.media_type in oci.CONFIGS:
        kind = "config"
    elif "layer" in descriptor.media_type or "rootfs" in descriptor.media_type:
        kind = "layer"
    else:
        kind = "unknown"
    return f"{kind}-{descriptor.digest}"


class Reporter:
    """Sends :class:`Progress` messages; without a stream it does nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[transfer_progress_pb2.Progress | None] = asyncio.Queue()
        self._sent: dict[tuple[str, str], float] = {}
        self._sender = asyncio.ensure_future(self._run()) if stream else None

    def state(self, event: str, descriptor: Descriptor | None = None, *, name: str = "",
              progress: int = 0, parents: tuple[str, ...] = ()) -> None:
        """A change of state.  Any thread."""
        if self._stream is None:
            return
        message = transfer_progress_pb2.Progress(event=event, name=name, parents=parents,
                                                 progress=progress)
        if descriptor is not None:
            message.name = name or ref_key(descriptor)
            message.total = descriptor.size
            message.desc.CopyFrom(descriptor_pb2.Descriptor(
                media_type=descriptor.media_type, digest=descriptor.digest,
                size=descriptor.size, annotations=descriptor.annotations))
        self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    def count(self, event: str, descriptor: Descriptor | None, progress: int, *,
              name: str = "") -> None:
        """A counter that moved.  Any thread."""
        if self._stream is None:
            return
        key = (event, descriptor.digest if descriptor else name)
        now = time.monotonic()
        if now - self._sent.get(key, 0.0) < _INTERVAL:
            return
        self._sent[key] = now
        self.state(event, descriptor, name=name, progress=progress)

    async def _run(self) -> None:
        assert self._stream is not None
        while (message := await self._queue.get()) is not None:
            try:
                await self._stream.send(pack_event(message))
            except errdefs.Cancelled:
                return      # nobody looks any more; the transfer goes on

    async def close(self) -> None:
        """Everything reported reaches the stream, which then ends."""
        if self._sender is None or self._stream is None:
            return
        # what threads have reported is behind call_soon: let it in first
        await asyncio.sleep(0)
        self._queue.put_nowait(None)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sender, 5.0)
        finally:
            self._stream.close()
