"""The ``json-file`` log, as Docker writes it, quickly.

One object a line: ``{"log":"text\\n","stream":"stdout","time":"..."}``.  All lines of
one read get the same time.  A chunk is escaped as a whole by the C encoder and
cut into lines afterwards: a newline is replaced by a lone surrogate, which no
decoded text can contain and no escape changes, and that by the end of one
entry and the beginning of the next.
"""

from __future__ import annotations

import codecs
import os
import time
from _json import encode_basestring as _escape

from carrel.errdefs import InvalidParameter
from carrel.oci import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: longer lines become several entries; only the last one ends in a newline
LINE_MAX = 16384
_MARK = "\udcff"
_NAMES = {1: "stdout", 2: "stderr"}
#: what Go's encoder escapes beyond JSON's own, so that a log may stand in HTML
_HTML = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"),
         ("\u2029", "\\u2029"))


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each invalid byte, as Go does (Python's "replace" joins some)."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("carrel.each", _replace_each)


class JsonLog:
    """One container's log: both streams, rotated."""

    __slots__ = ("_attrs", "_fd", "_files", "_max", "_partial", "_path", "_second", "_size",
                 "_stamp", "_warn", "lost")

    def __init__(self, path: str, warn: Callable[[str], None], max_size: int = 0,
                 max_files: int = 1, attrs: str = "") -> None:
        self._path = path
        self._warn = warn
        self._max = max_size
        self._files = max(1, max_files)
        self._attrs = ""
        if attrs:
            found = json.loads(attrs, "log attributes")
            if not isinstance(found, dict):
                raise InvalidParameter("log attributes are not an object")
            self._attrs = f',"attrs":{json.dumps(found)}'
        self._partial = {1: b"", 2: b""}
        self._second = -1
        self._stamp = ""
        #: bytes of log that could not be written
        self.lost = 0
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                           | os.O_NOFOLLOW, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes) -> None:
        """Log what is whole; keep the beginning of a line for its end."""
        partial = self._partial[stream]
        if partial:
            data = partial + data
        end = data.rfind(b"\n") + 1
        while len(data) - end >= LINE_MAX:
            end = _cut(data, end)
        self._partial[stream] = data[end:]
        if end:
            self._log(stream, data[:end])

    def flush(self) -> None:
        """The process ended: what has no newline is logged without one."""
        for stream, data in self._partial.items():
            if data:
                self._partial[stream] = b""
                self._log(stream, data)

    def _log(self, stream: int, data: bytes) -> None:
        tail = f'","stream":"{_NAMES[stream]}"{self._attrs},"time":"{self._now()}"}}\n'
        begin = 0
        parts: list[str] = []
        for end in _pieces(data):
            parts.append(_entries(data[begin:end], tail))
            begin = end
        self._append("".join(parts).encode())

    def _now(self) -> str:
        """RFC 3339 with nanoseconds, without trailing zeros."""
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if not rest:
            return self._stamp + "Z"
        return f"{self._stamp}.{rest:09d}".rstrip("0") + "Z"

    def _append(self, entries: bytes) -> None:
        """Write whole entries, a new file where the size asks for one."""
        view = memoryview(entries)
        while self._max and self._size + len(view) > self._max:
            room = self._max - self._size
            cut = entries.rfind(b"\n", len(entries) - len(view),
                                len(entries) - len(view) + max(0, room)) + 1
            cut -= len(entries) - len(view)
            if cut <= 0 and self._size == 0:
                # one entry is larger than a file may be: it gets one of its own
                cut = entries.find(b"\n", len(entries) - len(view)) + 1 \
                    - (len(entries) - len(view))
            if cut > 0:
                self._write(view[:cut])
                view = view[cut:]
            if not view:
                return
            self._rotate()
        self._write(view)

    def _write(self, view: memoryview) -> None:
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
        except OSError as error:
            if not self.lost:
                self._warn(f"writing the log {self._path}: {error.strerror}; output is lost")
            self.lost += len(view)

    def _rotate(self) -> None:
        """``path`` -> ``path.1`` -> ``path.2``; the oldest goes."""
        try:
            if self._files == 1:
                os.ftruncate(self._fd, 0)
                self._size = 0
                return
            for number in range(self._files - 1, 1, -1):
                try:
                    os.rename(f"{self._path}.{number - 1}", f"{self._path}.{number}")
                except FileNotFoundError:
                    continue
            os.rename(self._path, f"{self._path}.1")
            old = self._fd
            self._open()
            os.close(old)
        except OSError as error:
            self._warn(f"rotating the log {self._path}: {error.strerror}")
            self._max = 0  # better a large log than one that stops

    def close(self) -> None:
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1


def _entries(data: bytes, tail: str) -> str:
    """Whole lines, or one piece without a newline at its end, as JSON."""
    text = _escape(data.decode("utf-8", "carrel.each").replace("\n", _MARK))
    for char, escaped in _HTML:
        if char in text:
            text = text.replace(char, escaped)
    text = text[:-1]  # without the closing quote, which ``tail`` begins with
    last = text[:-1] + "\\n" + tail if text.endswith(_MARK) else text + tail
    return '{"log":' + last.replace(_MARK, "\\n" + tail + '{"log":"')


def _cut(data: bytes, begin: int) -> int:
    """Where a piece of a long line ends: at most LINE_MAX, not inside a character."""
    end = begin + LINE_MAX
    for back in range(1, 4):
        byte = data[end - back]
        if byte >= 0xC0:  # the first byte of a character: is all of it here?
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end - back if length > back else end
        if byte < 0x80:
            break
    return end


def _pieces(data: bytes) -> list[int]:
    """Ends of the runs of lines that can be encoded at once: lines over LINE_MAX are cut."""
    ends: list[int] = []
    at, size = 0, len(data)
    while size - at > LINE_MAX:
        newline = data.rfind(b"\n", at, at + LINE_MAX)
        if newline >= 0:
            at = newline + 1
            continue
        if at and (not ends or ends[-1] != at):
            ends.append(at)
        at = _cut(data, at)
        ends.append(at)
    if size and (not ends or ends[-1] != size):
        ends.append(size)
    return ends
