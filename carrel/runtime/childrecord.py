"""The child's part of the record (kernel/record.py), brought back to the parent.

The child's recorder is a copy: what it adds is sent as JSON rows when it is ready
(over the report socket) and once more just before execve (through the fifo).
Nothing of this happens unless somebody records.
"""

from __future__ import annotations

import os

from carrel.kernel import record
from carrel.oci import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: rows in one packet: a sequenced packet holds about 200 KiB
_ROWS = 400
_HEADER = 9  # b"L" and eight digits


class ChildRecord:
    """Rows that were not sent yet."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = len(record.active.records) if record.active is not None else 0

    def packets(self) -> list[bytes]:
        """What is new, as packets that begin with ``L``."""
        if record.active is None:
            return []
        rows = record.active.records[self.sent:]
        self.sent += len(rows)
        return [b"L" + json.dumps([_plain(row) for row in rows[i:i + _ROWS]]).encode()
                for i in range(0, len(rows), _ROWS)]


def _plain(row: Any) -> list[Any]:
    step, call, args, result, number, begin, took = row
    return [step, call, [printable(a) for a in args], result if isinstance(result, int) else None,
            number, begin, took]


def printable(value: object) -> object:
    """An argument as the record shows it: text and numbers; what is neither is an address."""
    if isinstance(value, bytes):
        return os.fsdecode(value)[:200].encode("utf-8", "replace").decode()
    if isinstance(value, str):
        return value[:200].encode("utf-8", "replace").decode()
    if value is None or isinstance(value, int):
        return value
    return "&..."


def merge(packet: bytes) -> None:
    """Add a child's rows to this process's record."""
    if record.active is None:
        return
    for step, call, args, result, number, begin, took in json.loads(packet[1:], "record"):
        record.active.add((step, call, tuple(args), result, number, begin, took))


def write_to(fifo: int, packets: list[bytes]) -> None:
    for packet in packets:
        os.write(fifo, b"L%08d" % (len(packet) - 1) + packet[1:])


def take_from(data: bytes) -> bytes:
    """Merge the rows at the head of what came through the fifo; the rest."""
    while data[:1] == b"L":
        end = _HEADER + int(data[1:_HEADER])
        merge(b"L" + data[_HEADER:end])
        data = data[end:]
    return data
