"""ttrpc: the framing between the containerd layer and its shims.

A frame is ``length u32 BE | stream id u32 BE | type u8 | flags u8`` and the
payload.  Type 1 is a request, 2 a response, 3 data of a stream (the shim has
no streaming method).  An error is a ``google.rpc.Status`` in the response.
"""

from __future__ import annotations

import struct

from carrel import errdefs
from carrel.shim import loop as poll
from carrel.shim.schema import SCHEMAS
from carrel.shim.sockets import Socket
from carrel.shim.wire import WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.shim.wire import Message, Schema

    #: method name -> (request, response, handler of the server's owner and a message, which
    #: gives a message or the work that gives one)
    Methods = dict[str, tuple[Schema, Schema, Callable[[Any, Message], Any]]]

HEADER = struct.Struct(">IIBB")
MESSAGE_MAX = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3

#: what containerd's clients expect at the end of a message of each class
_CLASS_TEXT = {3: "invalid argument", 5: "not found", 6: "already exists",
               7: "permission denied", 8: "resource exhausted", 9: "failed precondition",
               12: "not implemented", 14: "unavailable", 16: "unauthenticated"}
UNKNOWN, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 2, 3, 8, 12

_REQUEST, _RESPONSE = SCHEMAS["Request"], SCHEMAS["Response"]


def status_of(error: BaseException) -> tuple[int, str]:
    """The status code and text with which an error travels."""
    if isinstance(error, errdefs.CarrelError):
        code, text = error.grpc_code, error.message
        if code == errdefs.SystemFailure.grpc_code:
            code = UNKNOWN  # as the other shims: "internal" means a bug of the shim itself
        ending = _CLASS_TEXT.get(code, "")
        if ending and not text.endswith(ending):
            text = f"{text}: {ending}"
        return code, text
    if isinstance(error, WireError):
        return INVALID_ARGUMENT, str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        where = f" {error.filename!r}" if error.filename is not None else ""
        return UNKNOWN, f"{error.strerror.lower()}{where}"
    return UNKNOWN, f"{type(error).__name__}: {error}"


def frame(stream: int, kind: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), stream, kind, 0) + payload


class Server:
    """Listens, and owns its connections."""

    def __init__(self, loop: poll.Loop, listener: Socket,
                 services: dict[str, Methods], owner: object) -> None:
        self.loop = loop
        self.services = services
        self.owner = owner
        self.connections: set[Connection] = set()
        self._listener = listener
        listener.setblocking(False)
        loop.add(listener.fileno(), poll.IN, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            connection = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # out of descriptors: let the listener rest instead of spinning on it
            self.loop.remove(self._listener.fileno())
            self.loop.call_later(0.1, self._resume)
            return
        connection.setblocking(False)
        self.connections.add(Connection(self, connection))

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.add(self._listener.fileno(), poll.IN, self._accept)

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.remove(self._listener.fileno())
            self._listener.close()
        for connection in list(self.connections):
            connection.close()

    @property
    def drained(self) -> bool:
        """Has every answer left for its client?"""
        return not any(c.pending for c in self.connections)


class Connection:
    """One client: frames in, frames out, answers in any order."""

    __slots__ = ("_in", "_last", "_out", "_server", "_skip", "_socket", "_writing")

    def __init__(self, server: Server, connection: Socket) -> None:
        self._server = server
        self._socket = connection
        self._in = bytearray()
        self._out = bytearray()
        self._skip = 0
        self._last = 0
        self._writing = False
        server.loop.add(connection.fileno(), poll.IN, self._ready)

    @property
    def pending(self) -> bool:
        return bool(self._out)

    def _ready(self, events: int) -> None:
        if events & poll.OUT:
            self._flush()
        if events & ~poll.OUT and self._socket.fileno() >= 0:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        while self._socket.fileno() >= 0 and self._take_frame():
            pass

    def _take_frame(self) -> bool:
        """Handle one frame, if a whole one is there."""
        buffer = self._in
        if self._skip:
            dropped = min(self._skip, len(buffer))
            del buffer[:dropped]
            self._skip -= dropped
        if len(buffer) < HEADER.size or self._skip:
            return False
        length, stream, kind, _flags = HEADER.unpack_from(buffer)
        if length > MESSAGE_MAX:
            del buffer[:HEADER.size]
            self._skip = length
            self._answer_error(stream, RESOURCE_EXHAUSTED, f"message length {length} exceed "
                               f"maximum message size of {MESSAGE_MAX}")
            return True
        if len(buffer) < HEADER.size + length:
            return False
        payload = bytes(buffer[HEADER.size:HEADER.size + length])
        del buffer[:HEADER.size + length]
        if kind == REQUEST:
            self._dispatch(stream, payload)
        elif kind != DATA:
            self._answer_error(stream, INVALID_ARGUMENT, f"unexpected message type {kind}")
        return True

    def _dispatch(self, stream: int, payload: bytes) -> None:
        if stream % 2 != 1:
            self._answer_error(stream, INVALID_ARGUMENT,
                               "StreamID must be odd for client initiated streams")
            return
        if stream <= self._last:
            self._answer_error(stream, INVALID_ARGUMENT,
                               "StreamID cannot be re-used and must increment")
            return
        self._last = stream
        try:
            request = decode(_REQUEST, payload)
            methods = self._server.services.get(request["service"])
            if methods is None:
                self._answer_error(stream, UNIMPLEMENTED, f"service {request['service']}")
                return
            method = methods.get(request["method"])
            if method is None:
                self._answer_error(stream, UNIMPLEMENTED, f"method {request['method']}")
                return
            schema, response_schema, handler = method
            result = handler(self._server.owner, decode(schema, request["payload"]))
        except Exception as error:
            self._answer_error(stream, *status_of(error))
            return
        if isinstance(result, dict):
            self._answer(stream, encode(response_schema, result))
        else:
            poll.run(result).then(
                lambda later: self._answer_later(stream, response_schema, later))

    def _answer_later(self, stream: int, schema: Schema, later: poll.Later) -> None:
        if later.error is not None:
            self._answer_error(stream, *status_of(later.error))
        else:
            self._answer(stream, encode(schema, later.value))

    def _answer(self, stream: int, payload: bytes) -> None:
        # an explicit OK: a response without a status is "unknown" to some clients
        self._send(frame(stream, RESPONSE, encode(_RESPONSE, {"status": {}, "payload": payload})))

    def _answer_error(self, stream: int, code: int, text: str) -> None:
        status = {"code": code, "message": text}
        self._send(frame(stream, RESPONSE, encode(_RESPONSE, {"status": status})))

    def _send(self, data: bytes) -> None:
        if self._socket.fileno() < 0:
            return  # the client left before its answer
        waiting = bool(self._out)
        self._out += data
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if bool(self._out) != self._writing:
            self._writing = not self._writing
            self._server.loop.modify(self._socket.fileno(),
                                     poll.IN | poll.OUT if self._writing else poll.IN)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._server.loop.remove(self._socket.fileno())
        self._socket.close()
        self._out.clear()
        self._server.connections.discard(self)
