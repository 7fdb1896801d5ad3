"""A client's connection taken out of HTTP, and the session of attach and exec on it.

    client  <--- Hijacked (an asyncio protocol) --->  Session  <--->  Stdio backend

Nothing here copies through queues: data goes from one transport to the other,
and a side that cannot take more stops the reading of the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from carrel import errdefs
from carrel.engine import server, web

STDIN, STDOUT, STDERR = 0, 1, 2
DEFAULT_KEYS = b"\x10\x11"  # ctrl-p, ctrl-q
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
#: what a client may send before somebody takes it
_EARLY = 1 << 20


class Port(Protocol):
    """The client's end of a session."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Input(Protocol):
    """The process's standard input, as a backend offers it."""

    def write(self, data: bytes) -> None: ...
    def eof(self) -> None: ...


def frame(stream: int, data: bytes) -> bytes:
    """stdcopy: which stream, how many bytes, the bytes."""
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


def parse_keys(text: str | None) -> bytes:
    """``ctrl-p,ctrl-q`` as the bytes that a terminal sends."""
    if not text:
        return DEFAULT_KEYS
    out = bytearray()
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            out += key.encode()
        elif key.startswith("ctrl-") and len(key) == 6 and (
                key[5].isascii() and (key[5].isalpha() or key[5] in "@[\\]^_")):
            out.append(ord(key[5].upper()) & 0x1F)
        else:
            raise errdefs.InvalidParameter(
                f"invalid detach keys ({text[:40]}): Unknown character: '{key[:16]}'")
    return bytes(out)


class _Detacher:
    """Finds the keys in a stream of input; a half-typed sequence is held back."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What passes, and whether the keys were there."""
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(out), True
                continue
            if self._matched:
                out += self._keys[:self._matched]
                self._matched = 1 if byte == self._keys[0] else 0
                if self._matched:
                    continue
            out.append(byte)
        return bytes(out), False


class Session:
    """One attached client. A backend sets ``input`` and calls the output methods."""

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool, tty: bool,
                 keys: bytes = b"", framed: bool | None = None) -> None:
        self.stdin, self.stdout, self.stderr, self.tty = stdin, stdout, stderr, tty
        self.framed = (not tty) if framed is None else framed
        self.on_drain: Callable[[], None] | None = None      # the backend's: output may go on
        self.on_close: Callable[[], None] | None = None      # the backend's: client is gone
        self.detached = False
        self.stuck = False                                   # the client takes no more now
        self.hold: asyncio.Future[int] | None = None         # not closed before this is done
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._detacher = _Detacher(keys) if keys and tty and stdin else None
        self._port: Port | None = None
        self._input: Input | None = None
        self._early = bytearray()
        self._early_eof = False
        self._unframed = bytearray()

    # --- the backend's side ------------------------------------------------------
    def set_input(self, target: Input) -> None:
        self._input = target
        if self._early:
            target.write(bytes(self._early))
            self._early.clear()
            if self._port:
                self._port.resume_reading()
        if self._early_eof:
            target.eof()

    def output(self, stream: int, data: bytes) -> None:
        """Bytes of one stream of the process."""
        if self._port and (self.stdout if stream == STDOUT else self.stderr):
            self._port.write(frame(stream, data) if self.framed else data)

    def relay(self, data: bytes) -> None:
        """Bytes as the shim sends them: frames, or raw with a terminal."""
        if not self._port:
            return
        if self.tty:
            self._port.write(frame(STDOUT, data) if self.framed else data)
        elif self.framed:
            self._port.write(data)
        else:
            self._unframe(data)

    def _unframe(self, data: bytes) -> None:
        buffer = self._unframed
        buffer += data
        while len(buffer) >= 8:
            size = int.from_bytes(buffer[4:8], "big")
            if len(buffer) < 8 + size:
                return
            if self._port:
                self._port.write(bytes(buffer[8:8 + size]))
            del buffer[:8 + size]

    def pause_input(self) -> None:
        if self._port:
            self._port.pause_reading()

    def resume_input(self) -> None:
        if self._port:
            self._port.resume_reading()

    def finish(self) -> None:
        """The output is at its end: everything written is still sent.

        With ``hold`` the client sees the end only once the exit status is known,
        because it asks for that next.
        """
        if self.hold and not self.hold.done():
            self.hold.add_done_callback(lambda _: self.finish())
        elif self._port:
            self._port.close()
        elif not self.done.done():
            self.done.set_result(None)

    # --- the client's side -------------------------------------------------------
    def bind(self, port: Port) -> None:
        self._port = port

    def received(self, data: bytes) -> None:
        if not self.stdin:
            return
        gone = False
        if self._detacher:
            data, gone = self._detacher.feed(data)
        if data:
            if self._input:
                self._input.write(data)
            else:
                self._early += data
                if len(self._early) > _EARLY and self._port:
                    self._port.pause_reading()
        if gone:
            self.detached = True
            self.lost()
            if self._port:
                self._port.close()

    def received_eof(self) -> None:
        if not self.stdin:
            return
        if self._input:
            self._input.eof()
        else:
            self._early_eof = True

    def lost(self) -> None:
        """The client is gone."""
        close, self.on_close = self.on_close, None
        if close:
            close()
        if not self.done.done():
            self.done.set_result(None)

    def writable(self, ready: bool) -> None:
        self.stuck = not ready
        if ready and self.on_drain:
            self.on_drain()


class Hijacked(asyncio.Protocol):
    """The client's transport after HTTP let go of it."""

    def __init__(self, session: Session, http: asyncio.Protocol, transport: Any) -> None:
        self._session = session
        self._http = http
        self._transport = transport
        session.bind(self)

    def data_received(self, data: bytes) -> None:
        self._session.received(data)

    def eof_received(self) -> bool:
        self._session.received_eof()
        return True  # output goes on after the client closed its writing side

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.lost()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._session.writable(False)

    def resume_writing(self) -> None:
        self._session.writable(True)

    # Port
    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


def hijack(request: web.Request, session: Session, media: str) -> None:
    """Answer 101 (or 200 for the oldest clients) and hand the connection over.
    """
    http = request.connection
    wants_upgrade = "upgrade" in request.headers.get("Connection", "").lower() and (
        request.headers.get("Upgrade", "").lower() == "tcp")
    head = ["HTTP/1.1 101 UPGRADED" if wants_upgrade else "HTTP/1.1 200 OK",
            f"Content-Type: {media}"]
    if wants_upgrade:
        head += ["Connection: Upgrade", "Upgrade: tcp"]
    head += [f"{k}: {v}" for k, v in server.headers().items()]
    early = http.hijack(lambda transport: Hijacked(session, http, transport),
                        "\r\n".join([*head, "", ""]).encode())
    if early:
        session.received(early)


async def serve(session: Session) -> web.StreamResponse:
    """Hold the request until the session ends."""
    await asyncio.shield(session.done)
    return web.Taken()
