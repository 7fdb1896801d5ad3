"""Bodies as they are framed on the wire. ``feed`` puts what belongs to the body into ``out``
and gives what came after it, or None as long as there is more to come."""

from __future__ import annotations

import re

from carrel.engine.web.fields import BadRequest

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*;[\t -~]*)?")
#: of the line with a chunk's size, and of all trailing fields
_LINE_MAX = 4 << 10
_TRAILER_MAX = 16 << 10


class Sized:
    """So many bytes."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def feed(self, data: bytes, out: list[bytes]) -> bytes | None:
        if len(data) < self._left:
            self._left -= len(data)
            out.append(data)
            return None
        left, self._left = self._left, 0
        if left == len(data):
            out.append(data)
            return b""
        out.append(data[:left])
        return data[left:]


class Chunked:
    """Chunks, each with its size before it; extensions and trailing fields are dropped."""

    __slots__ = ("_in_trailer", "_left", "_line", "_trailer")

    def __init__(self) -> None:
        self._left = 0          # of the chunk, with the line end after it
        self._line = b""        # the beginning of a line that is not whole yet
        self._in_trailer = False
        self._trailer = 0

    def feed(self, data: bytes, out: list[bytes]) -> bytes | None:
        data, self._line = self._line + data, b""
        position = 0
        while True:
            if self._left:
                position = self._chunk(data, position, out)
                if self._left:
                    return None
            end = data.find(b"\r\n", position)
            if end < 0:
                self._line = data[position:]
                if len(self._line) > _LINE_MAX:
                    raise BadRequest("malformed chunk: line too long")
                return None
            line, position = data[position:end], end + 2
            if self._in_trailer:
                self._trailer += len(line) + 2
                if self._trailer > _TRAILER_MAX:
                    raise BadRequest("trailing fields are too long")
                if not line:
                    return data[position:]
            elif not _SIZE.fullmatch(line):
                raise BadRequest("malformed chunk size")
            else:
                size = int(line.partition(b";")[0], 16)
                self._in_trailer = not size
                self._left = size + 2 if size else 0

    def _chunk(self, data: bytes, position: int, out: list[bytes]) -> int:
        """What is here of the chunk and of the line end behind it; the position after that."""
        have = len(data) - position
        size = min(self._left - 2, have) if self._left > 2 else 0
        if size:
            out.append(data[position:position + size])
            position, have, self._left = position + size, have - size, self._left - size
        if self._left <= 2 and have:
            tail = data[position:position + self._left]
            if tail != b"\r\n"[2 - self._left:][:len(tail)]:
                raise BadRequest("malformed chunk: longer than its size")
            position += len(tail)
            self._left -= len(tail)
        return position
