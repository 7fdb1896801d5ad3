"""Events to the containerd layer: in order, never blocking, kept while it is away.

One event is on its way at a time, because a real containerd handles two
requests of one connection side by side and could swap them.
"""

from __future__ import annotations

import errno
import time

from carrel.shim import loop as poll
from carrel.shim.schema import SCHEMAS
from carrel.shim.sockets import Socket, unix
from carrel.shim.ttrpc import HEADER, MESSAGE_MAX, REQUEST, frame
from carrel.shim.wire import WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from carrel.shim.wire import Message

TOPICS = {
    "TaskCreate": "/tasks/create", "TaskStart": "/tasks/start", "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete", "TaskOOM": "/tasks/oom", "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started", "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
}
QUEUE_MAX = 1024
REPLY_SECONDS = 5.0
RETRY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
#: a daemon that answers "no" this often to the same event will not change its mind
REFUSALS_MAX = 5


def timestamp(ns: int) -> Message:
    return {"seconds": ns // 1_000_000_000, "nanos": ns % 1_000_000_000}


class Publisher:
    """The queue, and the connection that empties it."""

    def __init__(self, loop: poll.Loop, address: str, namespace: str,
                 warn: Callable[[str], None]) -> None:
        self._loop = loop
        self._path = address.removeprefix("unix://")
        self._namespace = namespace
        self._warn = warn
        self._queue: list[bytes] = []
        self._socket: Socket | None = None
        self._in = bytearray()
        self._stream = 1
        self._waiting = False
        self._failures = self._refusals = 0
        self._timer: poll.Timer | None = None
        self.dropped = 0

    @property
    def empty(self) -> bool:
        return not self._queue

    def publish(self, name: str, event: Message) -> None:
        if not self._path:
            return
        envelope = {
            "timestamp": timestamp(time.time_ns()), "namespace": self._namespace,
            "topic": TOPICS[name],
            "event": {"type_url": f"containerd.events.{name}",
                      "value": encode(SCHEMAS[name], event)},
        }
        if len(self._queue) >= QUEUE_MAX:
            del self._queue[1 if self._waiting else 0]
            self.dropped += 1
            self._warn(f"event queue is full: {self.dropped} events dropped so far")
        self._queue.append(encode(SCHEMAS["ForwardRequest"], {"envelope": envelope}))
        # not before the answer to the request that caused it: somebody waits for that
        self._loop.call_soon(self._send_next)

    def _send_next(self) -> None:
        if self._waiting or not self._queue or self._timer is not None:
            return
        try:
            connection = self._connect()
            request = {
                "service": "containerd.services.events.ttrpc.v1.Events", "method": "Forward",
                "payload": self._queue[0], "timeout_nano": int(REPLY_SECONDS * 1e9),
                "metadata": [{"key": "containerd-namespace-ttrpc", "value": self._namespace}],
            }
            data = frame(self._stream, REQUEST, encode(SCHEMAS["Request"], request))
            # events are small against a socket's buffer: a short write is a stuck daemon
            if connection.send(data) != len(data):
                raise BlockingIOError(errno.EAGAIN, "the daemon does not read")
        except OSError:
            self._retry_later()
            return
        self._waiting = True
        self._timer = self._loop.call_later(REPLY_SECONDS, self._timed_out)

    def _connect(self) -> Socket:
        if self._socket is None:
            connection = unix()
            try:
                connection.setblocking(False)
                connection.connect(self._path)
            except OSError:
                connection.close()
                raise
            self._socket = connection
            self._in.clear()
            self._stream = 1
            self._loop.add(connection.fileno(), poll.IN, self._readable)
        return self._socket

    def _readable(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._in += data
        while len(self._in) >= HEADER.size:
            length, _stream, _kind, _flags = HEADER.unpack_from(self._in)
            if length > MESSAGE_MAX:
                self._lost()
                return
            if len(self._in) < HEADER.size + length:
                return
            payload = bytes(self._in[HEADER.size:HEADER.size + length])
            del self._in[:HEADER.size + length]
            self._answered(payload)

    def _answered(self, payload: bytes) -> None:
        if not self._waiting:
            return
        self._waiting = False
        self._stream += 2
        self._cancel_timer()
        try:
            status = decode(SCHEMAS["Response"], payload)["status"] or {"code": 0}
        except WireError as error:
            status = {"code": 2, "message": str(error)}
        if status["code"]:
            self._refusals += 1
            if self._refusals < REFUSALS_MAX:
                self._retry_later()
                return
            self.dropped += 1
            self._warn(f"event refused and dropped: {status['message']}")
        self._refusals = self._failures = 0
        del self._queue[0]
        self._send_next()

    def _timed_out(self) -> None:
        self._timer = None
        self._lost()

    def _lost(self) -> None:
        self._disconnect()
        if self._queue:
            self._retry_later()

    def _disconnect(self) -> None:
        self._waiting = False
        self._cancel_timer()
        if self._socket is not None:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _retry_later(self) -> None:
        self._disconnect()
        delay = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
        self._failures += 1
        self._timer = self._loop.call_later(delay, self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._send_next()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self._disconnect()
        self._queue.clear()
