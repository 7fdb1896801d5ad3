"""The json-file log: written here for foreign shims, read here for everybody.

One object a line: ``{"log":"text\\n","stream":"stdout","time":"..."}``; ``attrs``
holds what ``--log-opt labels/env`` asked for.  ``path.1`` is the newest of the
rotated files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import BinaryIO

import msgspec

from carrel.engine import timefmt
from carrel.kernel import inotify

_MAX_LINE = 16 << 10
_BLOCK = 64 << 10
_IN_CREATE, _IN_MOVED_TO, _IN_DELETE_SELF = 0x100, 0x80, 0x400
_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, gc=False):
    """``gc=False``: a log is a million of these, and none can be part of a cycle."""

    log: str
    stream: str = "stdout"
    time: str = timefmt.ZERO
    attrs: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(Entry)


class Writer:
    """Splits output into lines, writes them, rotates."""

    def __init__(self, path: str, *, max_size: int = 0, max_files: int = 1,
                 attrs: dict[str, str] | None = None) -> None:
        self.path = path
        self._max_size, self._max_files = max_size, max_files
        self._attrs = attrs or {}
        self._partial: dict[str, bytearray] = {}
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)

    def write(self, stream: str, data: bytes, when_ns: int) -> None:
        buffer = self._partial.setdefault(stream, bytearray())
        buffer += data
        out = bytearray()
        stamp = timefmt.rfc3339(when_ns)
        while buffer:
            end = buffer.find(b"\n", 0, _MAX_LINE)
            if end < 0 and len(buffer) < _MAX_LINE:
                break
            cut = end + 1 if end >= 0 else _MAX_LINE
            out += self._line(stream, bytes(buffer[:cut]), stamp)
            del buffer[:cut]
        self._append(out)

    def _line(self, stream: str, text: bytes, stamp: str) -> bytes:
        entry = {"log": text.decode("utf-8", "replace"), "stream": stream}
        if self._attrs:
            return _encode({**entry, "attrs": self._attrs, "time": stamp}) + b"\n"
        return _encode({**entry, "time": stamp}) + b"\n"

    def _append(self, data: bytes | bytearray) -> None:
        if not data:
            return
        if self._max_size and self._size and self._size + len(data) > self._max_size:
            self._rotate()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view):]
        self._size += len(data)

    def _rotate(self) -> None:
        os.close(self._fd)
        for number in range(self._max_files - 1, 0, -1):
            older = f"{self.path}.{number - 1}" if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self.path}.{number}")
        if self._max_files <= 1:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self._fd = self._open()
        self._size = 0

    def flush(self) -> None:
        """Write lines that have no end yet."""
        stamp = timefmt.now() if any(self._partial.values()) else ""
        for stream, buffer in self._partial.items():
            if buffer:
                self._append(self._line(stream, bytes(buffer), stamp))
                buffer.clear()

    def close(self) -> None:
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def files(path: str) -> list[str]:
    """The log's files, oldest first."""
    found = [path]
    number = 1
    while os.path.exists(f"{path}.{number}"):
        found.append(f"{path}.{number}")
        number += 1
    return found[::-1]


def remove(path: str) -> None:
    for name in files(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def parse(line: bytes) -> Entry | None:
    """None for a line that is no entry: half-written, or damaged."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError:
        return None


def parse_lines(lines: bytes) -> list[Entry]:
    """All entries of whole lines, in one call; line by line only where one is damaged."""
    try:
        return _decoder.decode_lines(lines)
    except msgspec.MsgspecError:
        return [entry for entry in map(parse, lines.split(b"\n")) if entry is not None]


def _open_log(path: str) -> BinaryIO | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    return os.fdopen(fd, "rb", buffering=0)


def _seek_tail(stream: BinaryIO, lines: int) -> int:
    """Position so that ``lines`` lines follow; how many are missing for that."""
    position = stream.seek(0, os.SEEK_END)
    missing = lines + 1  # the newline at the very end is no line's beginning
    while position > 0:
        step = min(_BLOCK, position)
        position -= step
        stream.seek(position)
        block = stream.read(step) or b""
        count = block.count(b"\n")
        if count >= missing:
            index = len(block)
            for _ in range(missing):
                index = block.rfind(b"\n", 0, index)
            stream.seek(position + index + 1)
            return 0
        missing -= count
    stream.seek(0)
    return missing - 1 if missing > 1 else 0


class Reader:
    """Entries of a log, in order; then, if asked, those that come."""

    def __init__(self, path: str, *, tail: int = -1, since_ns: int | None = None,
                 until_ns: int | None = None) -> None:
        self._path = path
        self._tail = tail
        self._since, self._until = since_ns, until_ns
        self._partial = b""
        self._current: BinaryIO | None = None

    def _open_all(self) -> list[BinaryIO]:
        streams = [s for s in map(_open_log, files(self._path)) if s]
        if self._tail < 0:
            return streams
        wanted = self._tail
        kept: list[BinaryIO] = []
        for stream in reversed(streams):
            if kept and wanted <= 0:
                stream.close()
                continue
            wanted = _seek_tail(stream, wanted) if wanted > 0 else _to_end(stream)
            kept.append(stream)
        return kept[::-1]

    def _batches(self, stream: BinaryIO) -> Iterator[list[Entry]]:
        while True:
            block = stream.read(_BLOCK)
            if not block:
                return
            block = self._partial + block
            end = block.rfind(b"\n") + 1
            self._partial = block[end:]
            batch = parse_lines(block[:end])
            if self._since is not None or self._until is not None:
                batch = list(self._within(batch))
            if batch:
                yield batch

    def _within(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            when = timefmt.parse_rfc3339(entry.time)
            if self._since is not None and when < self._since:
                continue
            if self._until is not None and when > self._until:
                continue
            yield entry

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """What is there now."""
        streams = self._open_all()
        try:
            while streams:
                stream = streams[0]
                for batch in self._batches(stream):
                    yield batch
                    await asyncio.sleep(0)
                if len(streams) == 1:
                    self._current = streams.pop()
                else:
                    streams.pop(0).close()
        finally:
            for stream in streams:
                stream.close()

    async def follow(self, ended: asyncio.Future[None]) -> AsyncIterator[list[Entry]]:
        """What is there, then what comes, until ``ended`` and nothing is left."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        fd = inotify.watch(os.path.dirname(self._path),
                           inotify.IN_MODIFY | _IN_CREATE | _IN_MOVED_TO | _IN_DELETE_SELF)

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                while os.read(fd, 16384):
                    changed.set()

        loop.add_reader(fd, woken)
        ended.add_done_callback(lambda _: changed.set())
        try:
            async for batch in self.entries():
                yield batch
            while True:
                last = ended.done()
                changed.clear()
                async for batch in self._news():
                    yield batch
                if last or (self._until is not None and _past(self._until)):
                    return
                await self._pause(changed)
        finally:
            loop.remove_reader(fd)
            os.close(fd)
            self.close()

    async def _pause(self, changed: asyncio.Event) -> None:
        if self._until is None:
            await changed.wait()
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), max(0, (self._until - time.time_ns()) / 1e9))

    async def _news(self) -> AsyncIterator[list[Entry]]:
        while True:
            if self._current is None:
                self._current = _open_log(self._path)
                if self._current is None:
                    return
            for batch in self._batches(self._current):
                yield batch
                await asyncio.sleep(0)
            if not self._rotated(self._current):
                return
            for batch in self._batches(self._current):  # written before the rotation
                yield batch
            self._current.close()
            self._current = None

    def _rotated(self, stream: BinaryIO) -> bool:
        try:
            now = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(stream.fileno())
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)

    def close(self) -> None:
        if self._current:
            self._current.close()
            self._current = None


def _to_end(stream: BinaryIO) -> int:
    stream.seek(0, os.SEEK_END)
    return 0


def _past(until_ns: int) -> bool:
    return time.time_ns() >= until_ns


def encode_attributes(attrs: dict[str, str]) -> str:
    return _encode(attrs).decode()
