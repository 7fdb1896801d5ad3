"""From a blob to the chunks of its tar: following, decompressing, hashing, in a thread.

Decompression and SHA-256 release the GIL, so a layer is decompressed and hashed on
one core while the other writes its files; and because the blob is read from the file
it is being received into, both overlap with the download.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from carrel.containerd.tarstream import BadArchive
from carrel.errdefs import Cancelled, CarrelError

CHUNK = 512 * 1024
#: how often a thread that waits for data looks whether it should give up
STOP_SECONDS = 0.25
_QUEUED = 16        # chunks between the two threads: 8 MiB
#: zstd's --long=27; a frame may claim 2 GiB
MAX_ZSTD_WINDOW = 1 << 27
MAGIC = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz",
         b"BZh": "bzip2"}


class Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Growing:
    """How much of a file is there, while somebody else writes it.  -1: not even begun."""

    def __init__(self, size: int = -1, *, done: bool = False) -> None:
        self._changed = threading.Condition()
        self.size = size
        self._done = done
        self._error: BaseException | None = None

    def advance(self, size: int) -> None:
        with self._changed:
            self.size = size
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait_beyond(self, offset: int, stop: threading.Event | None = None) -> int:
        """Block until there is more than ``offset``, or nothing more will come."""
        with self._changed:
            while self.size <= offset and not self._done:
                self._check(stop)
                self._changed.wait(STOP_SECONDS)
            return self.size

    def wait_finished(self, stop: threading.Event | None = None) -> None:
        """Block until the file was verified and committed."""
        with self._changed:
            while not self._done:
                self._check(stop)
                self._changed.wait(STOP_SECONDS)

    def _check(self, stop: threading.Event | None) -> None:
        if self._error is not None:
            raise Cancelled(f"the source of the layer failed: {self._error}")
        if stop is not None and stop.is_set():
            raise Cancelled("unpacking was given up")


class FileReader(io.RawIOBase):
    """Reads a file from its start, waiting for what is not written yet."""

    def __init__(self, fd: int, growing: Growing, stop: threading.Event | None = None) -> None:
        self._fd = fd
        self._growing = growing
        self._stop = stop
        self.offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._stop is not None and self._stop.is_set():
            raise Cancelled("unpacking was given up")
        if self._growing.size <= self.offset:
            self._growing.wait_beyond(self.offset, self._stop)
        view = memoryview(buffer).cast("B")
        left = self._growing.size - self.offset
        count = os.preadv(self._fd, [view[:left] if left < len(view) else view], self.offset)
        self.offset += count
        return count


def compression(head: bytes) -> str:
    """Of the first bytes of a stream: gzip, zstd, xz, bzip2 or "" for none that we know."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    # a zstd stream may begin with a skippable frame
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    return ""


def decompressor(source: io.RawIOBase) -> tuple[Reads, str]:
    """(what gives the decompressed bytes, name of the compression), by magic number."""
    buffered = io.BufferedReader(source, CHUNK)
    kind = compression(buffered.peek(8)[:8])
    if kind == "gzip":
        from isal import igzip
        return igzip.IGzipFile(fileobj=buffered), kind
    if kind == "zstd":
        import zstandard
        return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(
            buffered, read_size=CHUNK, read_across_frames=True), kind
    if kind == "xz":
        import lzma
        return lzma.LZMAFile(buffered), kind
    if kind == "bzip2":
        import bz2
        return bz2.BZ2File(buffered), kind
    return buffered, kind


class Prefetcher:
    """Reads, hashes and queues chunks in a thread; ``next_chunk`` takes them."""

    def __init__(self, source: Reads, *, hashing: bool = True) -> None:
        self._source = source
        self._hash = hashlib.sha256() if hashing else None
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)
        self._stopped = False
        self._ended = False
        self.size = 0
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        self._thread.start()

    @property
    def digest(self) -> str:
        """Of all chunks; only once ``next_chunk`` has returned ``b""``."""
        if self._hash is None or not self._ended:
            raise RuntimeError("the stream was not read to its end")
        return "sha256:" + self._hash.hexdigest()

    def _run(self) -> None:
        try:
            while not self._stopped:
                chunk = self._source.read(CHUNK)
                if self._hash is not None:
                    self._hash.update(chunk)
                self._queue.put(chunk)
                if not chunk:
                    return
        except BaseException as error:
            self._queue.put(error)

    def next_chunk(self) -> bytes:
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            if isinstance(item, (CarrelError, MemoryError)):
                raise item
            raise BadArchive(f"cannot decompress the layer: {item}") from item
        self.size += len(item)
        self._ended = not item
        return item

    def close(self) -> None:
        """Stop the thread, whatever it is doing (it may wait for a full queue)."""
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.02)
            except queue.Empty:
                pass
        self._thread.join()


def chunks_of(source: Reads) -> Callable[[], bytes]:
    """Chunks read in the caller's own thread (small archives, tests)."""
    return lambda: source.read(CHUNK)
