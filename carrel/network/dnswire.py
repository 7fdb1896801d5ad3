"""The little of the DNS wire format that the embedded resolver needs. Pure.

Questions are read, answers about our own names are written; everything else is passed on as the
bytes it is, so extensions of the protocol go through untouched.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from struct import Struct, error

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
IN = 1
NOERROR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 2, 3, 4
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_HEADER = Struct(">HHHHHH")
_TYPES = Struct(">HH")
_RECORD = Struct(">HHIH")
_OPT = Struct(">BHHIH")
#: what fits into a datagram when the client says nothing
PLAIN_SIZE = 512
#: what we say that we take; fits into every path's MTU
OUR_SIZE = 1232
TTL = 60


class Malformed(ValueError):
    """Not a question that can be answered."""


class Question:
    """One query: its id, the name as text, the raw question section, what the client can take."""

    __slots__ = ("edns", "flags", "id", "kind", "name", "raw", "size")

    def __init__(self, data: bytes) -> None:
        try:
            self.id, self.flags, count, answers, authority, extra = _HEADER.unpack_from(data)
            if self.flags & _QR or count != 1:
                raise Malformed("not one question")
            self.name, end = _name(data, 12)
            self.kind, kind_class = _TYPES.unpack_from(data, end)
        except (error, IndexError, UnicodeDecodeError) as problem:
            raise Malformed(str(problem)) from None
        if kind_class not in (IN, ANY):
            raise Malformed("not the Internet class")
        self.raw = data[12:end + 4]
        self.edns = False
        self.size = PLAIN_SIZE
        if extra and not answers and not authority:
            self._read_edns(data, end + 4)

    def _read_edns(self, data: bytes, offset: int) -> None:
        """The OPT record is first in practice; anywhere else it is not seen, which is harmless."""
        if len(data) >= offset + _OPT.size:
            root, kind, size, _, _ = _OPT.unpack_from(data, offset)
            if root == 0 and kind == OPT:
                self.edns = True
                self.size = max(PLAIN_SIZE, size)

    @property
    def standard(self) -> bool:
        return not self.flags & _OPCODE


def _name(data: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    total = 0
    while True:
        size = data[offset]
        offset += 1
        if size == 0:
            return ".".join(labels), offset
        total += size + 1
        if size > 63 or total > 254 or offset + size > len(data):
            raise Malformed("bad name")
        labels.append(data[offset:offset + size].decode("ascii"))
        offset += size


def pack_name(name: str) -> bytes:
    out = b""
    for label in name.rstrip(".").split("."):
        raw = label.encode("ascii", "replace")[:63]
        if raw:
            out += bytes([len(raw)]) + raw
    return out + b"\0"


def address_record(address: str) -> tuple[int, bytes]:
    raw = ipaddress.ip_address(address).packed
    return (A if len(raw) == 4 else AAAA), raw


def answer(question: Question, records: Iterable[tuple[int, bytes]] = (), *,
           code: int = NOERROR, limit: int = 0) -> bytes:
    """An answer of our own; with a ``limit``, truncated (TC) when it would be longer."""
    packed = [b"\xc0\x0c" + _RECORD.pack(kind, IN, TTL, len(data)) + data
              for kind, data in records]
    body, count = b"".join(packed), len(packed)
    extra = _OPT.pack(0, OPT, OUR_SIZE, 0, 0) if question.edns else b""
    flags = _QR | _RA | (question.flags & (_RD | _OPCODE)) | code
    if limit and 12 + len(question.raw) + len(body) + len(extra) > limit:
        body, count, flags = b"", 0, flags | _TC
    return (_HEADER.pack(question.id, flags, 1, count, 0, 1 if extra else 0)
            + question.raw + body + extra)


def with_id(data: bytes, ident: int) -> bytes:
    return ident.to_bytes(2, "big") + data[2:]


def is_answer_to(data: bytes, ident: int, question: Question) -> bool:
    """Whether an upstream's datagram belongs to what was asked (names may change their case)."""
    if len(data) < 12 or data[:2] != ident.to_bytes(2, "big") or not data[2] & 0x80:
        return False
    count = int.from_bytes(data[4:6], "big")
    if count == 0:
        return True  # some servers answer errors without the question
    return data[12:12 + len(question.raw)].lower() == question.raw.lower()
