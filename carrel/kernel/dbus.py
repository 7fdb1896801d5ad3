"""Just enough D-Bus to ask systemd for a unit: a blocking client, no library.

Values are marshalled by signature: ``marshal("ssa(sv)", [...])``, where a
variant is a pair ``(signature, value)``. Little-endian only, no fds.
"""

from __future__ import annotations

import os
import struct
from errno import ETIMEDOUT
from time import monotonic

from carrel.errdefs import SystemFailure, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from typing import Any

_FIXED = {"y": ("B", 1), "b": ("I", 4), "n": ("h", 2), "q": ("H", 2), "i": ("i", 4),
          "u": ("I", 4), "x": ("q", 8), "t": ("Q", 8), "d": ("d", 8)}
_ALIGN = {**{k: v[1] for k, v in _FIXED.items()}, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8,
          "{": 8}
_CALL, _RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = (
    1, 2, 3, 4, 5, 6, 8)
_LIMIT = 1 << 24


def split(signature: str) -> list[str]:
    """"sa(sv)u" as ["s", "a(sv)", "u"]."""
    found, index = [], 0
    while index < len(signature):
        end = _end(signature, index)
        found.append(signature[index:end])
        index = end
    return found


def _end(signature: str, index: int) -> int:
    while signature[index] == "a":
        index += 1
    if signature[index] not in "({":
        return index + 1
    depth = 0
    while True:
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[index], 0)
        index += 1
        if not depth:
            return index


def marshal(signature: str, values: Any, out: bytearray | None = None) -> bytearray:
    out = bytearray() if out is None else out
    for kind, value in zip(split(signature), values):
        _put(kind, value, out)
    return out


def _pad(out: bytearray, alignment: int) -> None:
    out.extend(bytes(-len(out) % alignment))


def _put(kind: str, value: Any, out: bytearray) -> None:
    first = kind[0]
    _pad(out, _ALIGN[first])
    if first in _FIXED:
        out += struct.pack("<" + _FIXED[first][0], int(value) if first != "d" else value)
    elif first in "so":
        raw = value.encode()
        out += struct.pack("<I", len(raw)) + raw + b"\0"
    elif first == "g":
        out += bytes([len(value)]) + value.encode() + b"\0"
    elif first == "v":
        _put("g", value[0], out)
        _put(value[0], value[1], out)
    elif first == "a":
        at = len(out)
        out += b"\0\0\0\0"
        _pad(out, _ALIGN[kind[1]])
        begin = len(out)
        for item in value:
            _put(kind[1:], item, out)
        struct.pack_into("<I", out, at, len(out) - begin)
    else:  # a structure
        marshal(kind[1:-1], value, out)


def unmarshal(signature: str, data: bytes, at: int = 0) -> tuple[list[Any], int]:
    values = []
    for kind in split(signature):
        value, at = _get(kind, data, at)
        values.append(value)
    return values, at


def _get(kind: str, data: bytes, at: int) -> tuple[Any, int]:
    first = kind[0]
    at += -at % _ALIGN[first]
    if first in _FIXED:
        code, size = _FIXED[first]
        return struct.unpack_from("<" + code, data, at)[0], at + size
    if first in "so":
        length = struct.unpack_from("<I", data, at)[0]
        return data[at + 4:at + 4 + length].decode("utf-8", "replace"), at + 5 + length
    if first == "g":
        length = data[at]
        return data[at + 1:at + 1 + length].decode(), at + 2 + length
    if first == "v":
        inner, at = _get("g", data, at)
        value, at = _get(inner, data, at)
        return (inner, value), at
    if first == "a":
        length = struct.unpack_from("<I", data, at)[0]
        at += 4
        at += -at % _ALIGN[kind[1]]
        end = at + length
        items = []
        while at < end:
            item, at = _get(kind[1:], data, at)
            items.append(item)
        return items, at
    values, at = unmarshal(kind[1:-1], data, at)
    return tuple(values), at


class Message:
    """A received message."""

    __slots__ = ("body", "fields", "kind", "signature")

    def __init__(self, kind: int, fields: dict[int, Any], body: bytes) -> None:
        self.kind = kind
        self.fields = fields
        self.signature = str(fields.get(_SIGNATURE, ""))
        self.body = body

    @property
    def values(self) -> list[Any]:
        return unmarshal(self.signature, self.body)[0]


class RemoteError(SystemFailure):
    """The other side answered with an error; ``name`` is D-Bus' name of it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Connection:
    """To a peer that needs no bus (systemd's private socket), as root."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        import _socket
        self._socket: Socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM
                                              | _socket.SOCK_CLOEXEC)
        self._serial = 0
        self._deadline = monotonic() + timeout
        self._signals: list[Message] = []
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            identity = str(os.geteuid()).encode().hex()
            # BEGIN at once: systemd does not look for a message that arrives in
            # one piece with it, so the first one must wait until it has been read.
            self._socket.sendall(b"\0AUTH EXTERNAL " + identity.encode() + b"\r\nBEGIN\r\n")
            answer = self._socket.recv(512)
            if not answer.startswith(b"OK "):
                raise Unavailable(f"systemd refused the connection: {answer[:80]!r}")
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"cannot reach systemd at {path}: {error.strerror}",
                              hint="use the cgroupfs driver") from error
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(self, path: str, interface: str, member: str, signature: str = "",
             *values: Any) -> list[Any]:
        """The reply's values; an error reply is raised."""
        self._serial += 1
        body = marshal(signature, values)
        fields = [(_PATH, ("o", path)), (_INTERFACE, ("s", interface)), (_MEMBER, ("s", member)),
                  (_DESTINATION, ("s", "org.freedesktop.systemd1"))]
        if signature:
            fields.append((_SIGNATURE, ("g", signature)))
        header = marshal("yyyyuua(yv)", [ord("l"), _CALL, 0, 1, len(body), self._serial, fields])
        _pad(header, 8)
        self._socket.sendall(bytes(header + body))
        while True:
            message = self._receive()
            if message.kind == _SIGNAL:
                self._signals.append(message)
            elif message.fields.get(_REPLY_SERIAL) == self._serial:
                if message.kind == _ERROR:
                    text = message.values[0] if message.signature.startswith("s") else ""
                    raise RemoteError(str(message.fields.get(_ERROR_NAME, "")), text)
                return message.values

    def signal(self, member: str) -> list[Any]:
        """Wait for the next signal of that name; its values."""
        while True:
            for index, message in enumerate(self._signals):
                if message.fields.get(_MEMBER) == member:
                    del self._signals[index]
                    return message.values
            message = self._receive()
            if message.kind == _SIGNAL:
                self._signals.append(message)

    def _receive(self) -> Message:
        head = self._exactly(16)
        if head[0] != ord("l"):
            raise SystemFailure("D-Bus: a big-endian peer")
        body_length, _, fields_length = struct.unpack_from("<III", head, 4)
        if body_length > _LIMIT or fields_length > _LIMIT:
            raise SystemFailure("D-Bus: message too long")
        rest = self._exactly(fields_length + -fields_length % 8 + body_length)
        # the array's length is at 12 of the header, its items from 16 on
        rows, _ = _get("a(yv)", head + rest[:fields_length], 12)
        return Message(head[1], {code: value for code, (_, value) in rows},
                       rest[fields_length + -fields_length % 8:])

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = self._deadline - monotonic()
            if left <= 0:
                raise OSError(ETIMEDOUT, "timed out waiting for systemd")
            self._socket.settimeout(left)
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise SystemFailure("systemd closed the connection")
            data += chunk
        return data
