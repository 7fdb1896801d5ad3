"""``attach/ws``: the session of an attached client over WebSocket (RFC 6455).

Output of both streams goes out as binary messages; what comes in is stdin, however it is cut
into messages, so no message is ever gathered whole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Any

from carrel import errdefs
from carrel.engine import server, web
from carrel.engine.streams import Hijacked, Session

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
_NORMAL, _PROTOCOL_ERROR = 1000, 1002
#: of a control frame
_CONTROL_MAX = 125
#: for the client's own close frame
_CLOSE_SECONDS = 5.0


def accept(request: web.Request, session: Session) -> None:
    """Answer the handshake; from then on the connection is the session's."""
    fields = request.headers
    if not (fields.has_token("connection", "upgrade")
            and fields.has_token("upgrade", "websocket")):
        raise errdefs.InvalidParameter("a websocket handshake is needed (Upgrade: websocket)")
    if fields.get("Sec-WebSocket-Version") != "13":
        raise errdefs.InvalidParameter("unsupported websocket version (13 is needed)")
    key = fields.get("Sec-WebSocket-Key", "")
    try:
        good = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise errdefs.InvalidParameter("invalid Sec-WebSocket-Key")
    answer = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {answer.decode()}",
            *(f"{k}: {v}" for k, v in server.headers().items()), "", ""]
    taken: list[Framed] = []

    def take(transport: Any) -> Framed:
        taken.append(Framed(session, request.connection, transport))
        return taken[0]

    early = request.connection.hijack(take, "\r\n".join(head).encode())
    if early:
        taken[0].data_received(early)


class Framed(Hijacked):
    """A client whose bytes come and go in frames."""

    def __init__(self, session: Session, http: asyncio.Protocol, transport: Any) -> None:
        super().__init__(session, http, transport)
        self._head = bytearray()    # of the next frame, as far as it is here
        self._left = 0              # of the frame's payload
        self._mask = b""
        self._kind = _CONTINUATION  # of the frame
        self._control = bytearray()
        self._message = False       # between the first and the last frame of a message
        self._closed = False

    # --- in ---

    def data_received(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self._transport.is_closing():
            if self._left:
                piece = data[position:position + self._left]
                position += len(piece)
                self._payload(piece)
            else:
                self._head.append(data[position])
                position += 1
                self._next_frame()

    def eof_received(self) -> bool:
        return False

    def _next_frame(self) -> None:
        """Once the head is whole (2, 4 or 10 bytes, and the mask)."""
        head = self._head
        if len(head) < 2:
            return
        extra = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
        if len(head) < 6 + extra and head[1] & _MASKED:
            return
        kind = self._kind = head[0] & 0x0F
        size = int.from_bytes(head[2:2 + extra], "big") if extra else head[1] & 0x7F
        final = bool(head[0] & _FINAL)
        good = not head[0] & 0x70 and head[1] & _MASKED  # no extension was agreed on
        if kind >= _CLOSE:
            good = good and final and size <= _CONTROL_MAX and kind <= _PONG
            self._control.clear()
        else:
            good = good and kind <= _BINARY and (kind == _CONTINUATION) == self._message
            self._message = not final
        if not good or size >> 63:
            self._end(_PROTOCOL_ERROR)
            return
        self._left, self._mask = size, bytes(head[2 + extra:])
        head.clear()
        if not size:
            self._frame_ended()

    def _payload(self, piece: bytes) -> None:
        size = len(piece)
        mask = self._mask * (size // 4 + 1)
        plain = (int.from_bytes(piece, "big")
                 ^ int.from_bytes(mask[:size], "big")).to_bytes(size, "big")
        self._mask = self._mask[size % 4:] + self._mask[:size % 4]
        self._left -= size
        if self._kind >= _CLOSE:
            self._control += plain
        elif not self._closed:
            self._session.received(plain)
        if not self._left:
            self._frame_ended()

    def _frame_ended(self) -> None:
        if self._kind == _PING:
            self._send(_PONG, bytes(self._control))
        elif self._kind == _CLOSE:
            code = int.from_bytes(self._control[:2], "big") if len(self._control) > 1 else _NORMAL
            self._end(code)

    # --- out ---

    def write(self, data: bytes) -> None:
        if not self._closed:
            self._send(_BINARY, data)

    def close(self) -> None:
        """The output is at its end: the client is told, and closes."""
        if not self._closed:
            self._closed = True
            self._send(_CLOSE, _NORMAL.to_bytes(2, "big"))
            asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport.close)

    def _end(self, code: int) -> None:
        """Answer a close frame, or refuse what was no frame."""
        if not self._closed:
            self._send(_CLOSE, code.to_bytes(2, "big"))
        self._closed = True
        self._session.lost()
        self._transport.close()

    def _send(self, kind: int, data: bytes) -> None:
        if self._transport.is_closing():
            return
        size = len(data)
        if size < 126:
            head = bytes((_FINAL | kind, size))
        elif size < 1 << 16:
            head = bytes((_FINAL | kind, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((_FINAL | kind, 127)) + size.to_bytes(8, "big")
        self._transport.write(head + data)
