"""The head of a request, read strictly: what two programs could read differently is refused.

Lines end with CR LF and nothing else does; a field has one line; a body has one length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: of the request line, and of one field
LINE_MAX = 16 << 10
FIELDS_MAX = 128
HEAD_MAX = 256 << 10

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
#: control characters, and line ends that are none
_FOREIGN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")
#: fields that would mean two things if they came twice
_SINGLE = frozenset(("host", "content-length", "transfer-encoding", "content-type", "expect",
                     "origin"))


class BadRequest(Exception):
    """What was no request; the connection ends after the answer."""


class Fields(Mapping[str, str]):
    """The fields of a head; case does not matter, and a list may have come in parts."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields  # by lower-case name

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name.lower(), default)

    def has_token(self, name: str, token: str) -> bool:
        """Is this word in the comma-separated list?"""
        text = self._fields.get(name)
        return text is not None and token in [t.strip() for t in text.lower().split(",")]


class Head:
    """A request line and its fields."""

    __slots__ = ("chunked", "fields", "http11", "length", "method", "target")

    def __init__(self, raw: bytes | bytearray) -> None:
        text = raw.decode("latin-1")
        if _FOREIGN.search(text):
            raise BadRequest("malformed header: control characters")
        lines = text.split("\r\n")
        if len(lines) > FIELDS_MAX + 1:
            raise BadRequest(f"more than {FIELDS_MAX} header fields")
        self._first(lines[0])
        fields: dict[str, str] = {}
        for line in lines[1:]:
            _add(fields, line)
        self.fields = Fields(fields)
        if self.http11 and "host" not in fields:
            raise BadRequest("missing required Host header")
        self._framing(fields)

    def _first(self, line: str) -> None:
        words = line.split(" ")
        if len(words) != 3 or len(line) > LINE_MAX or not _TOKEN.fullmatch(words[0]):
            raise BadRequest("malformed request line")
        self.method, self.target, version = words
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadRequest(f"unsupported protocol {version[:20]!r}")
        self.http11 = version == "HTTP/1.1"
        if not self.target.isascii():
            try:
                self.target = self.target.encode("latin-1").decode()
            except UnicodeDecodeError:
                raise BadRequest("malformed request target") from None

    def _framing(self, fields: dict[str, str]) -> None:
        """How long the body is: one answer, or none."""
        self.length = 0
        coding, length = fields.get("transfer-encoding"), fields.get("content-length")
        self.chunked = coding is not None
        if coding is not None and (coding.lower() != "chunked" or not self.http11):
            raise BadRequest(f"unsupported transfer encoding {coding[:40]!r}")
        if length is not None:
            if self.chunked:
                raise BadRequest("both Content-Length and Transfer-Encoding")
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise BadRequest(f"bad Content-Length {length[:40]!r}")
            self.length = int(length)


def _add(fields: dict[str, str], line: str) -> None:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise BadRequest("malformed header field")
    if len(line) > LINE_MAX:
        raise BadRequest(f"header field {name[:40]} is longer than {LINE_MAX} bytes")
    name, value = name.lower(), value.strip(" \t")
    before = fields.get(name)
    if before is not None:
        if name in _SINGLE:
            raise BadRequest(f"header field {name} came twice")
        value = f"{before}, {value}"
    fields[name] = value
