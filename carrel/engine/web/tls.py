"""TLS between a connection and its protocol.

The event loops' own has no half-close: it ends the connection when the client says that it has
sent everything. ``docker run -i`` says that at the end of its input, and waits for the
output. Here ``eof_received`` is asked as without TLS, and what it answers holds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

from carrel.engine import log

_READ = 256 << 10


class Tls(asyncio.Protocol):
    """Protocol of the bare transport below, transport of the protocol above."""

    def __init__(self, context: ssl.SSLContext, above: asyncio.Protocol, patience: float) -> None:
        self._above = above
        self._context = context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._below: Any = None
        self._shaken = self._ended = self._closing = self._paused = False
        self._loop = asyncio.get_running_loop()
        self._clock: asyncio.TimerHandle | None = self._loop.call_later(patience, self.abort)

    # --- what the transport below tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._stop_clock()
        if self._shaken:
            self._above.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        self._pump()

    def eof_received(self) -> bool:
        """Without a farewell before it, it is no end but a cut."""
        return self._ended and not self._closing

    def pause_writing(self) -> None:
        if self._shaken:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._shaken:
            self._above.resume_writing()

    # --- between ---

    def _pump(self) -> None:
        """What has come, decrypted, to the protocol above."""
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self._stop_clock()
                self._above.connection_made(self)  # type: ignore[arg-type]
            while not (self._paused or self._ended or self._closing):
                data = self._tls.read(_READ)
                if data:
                    self._above.data_received(data)
                else:
                    self._end()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end()
        except ssl.SSLError as error:
            log.debug(f"TLS: {error}")
            self._flush()   # the alert that says why
            self._closing = True
            self._below.close()
            return
        self._flush()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if not self._above.eof_received():
                self.close()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    # --- what the protocol above does ---

    def write(self, data: bytes) -> None:
        if data and not self._closing:
            self._tls.write(data)
            self._flush()

    def writelines(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """After what was written, and with a farewell."""
        if self._closing:
            return
        self._closing = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the client's own is not waited for
        self._flush()
        self._below.close()

    def abort(self) -> None:
        self._closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._closing or bool(self._below.is_closing())

    def pause_reading(self) -> None:
        self._paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._below.resume_reading()
            self._loop.call_soon(self._pump)    # what was decrypted already, or could be

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self._above = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        return self._below.get_extra_info(name, default)
