"""Answers: whole ones, and those that go on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrel.engine.web.request import Request

_REASONS = {
    101: "Switching Protocols", 200: "OK", 201: "Created", 204: "No Content",
    304: "Not Modified", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 409: "Conflict", 417: "Expectation Failed", 499: "Client Closed Request",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
    504: "Gateway Timeout"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: from here on a block is sent beside its frame, not copied together with it
_LARGE = 32 << 10

_date = (0, "")


def _now() -> str:
    """The time of day for ``Date``, made once a second."""
    global _date
    second = int(time.time())
    if second != _date[0]:
        t = time.gmtime(second)
        _date = second, (f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
                         f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT")
    return _date[1]


class StreamResponse:
    """An answer in pieces: ``prepare`` sends its head, ``write`` a piece, ``write_eof`` the end
    (which also comes by itself when the handler returns)."""

    def __init__(self, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})
        self._request: Request | None = None
        self._chunked = self._ended = False

    @property
    def prepared(self) -> bool:
        return self._request is not None

    @property
    def _bodiless(self) -> bool:
        """By the request or the status there are no bytes after the head."""
        return self.status in (204, 304) or (
            self._request is not None and self._request.method == "HEAD")

    def _head(self, keep_alive: bool) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}"]
        for name, value in self.headers.items():
            if "\n" in value or "\r" in value or "\0" in value:
                raise ValueError(f"header {name} with control characters")
            lines.append(f"{name}: {value}")
        lines.append(f"Date: {_now()}")
        if not keep_alive:
            lines.append("Connection: close")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")

    async def prepare(self, request: Request) -> None:
        request.connection.answering(self)
        if self.status not in (204, 304):
            if request.http11:
                self._chunked = request.method != "HEAD"
                self.headers["Transfer-Encoding"] = "chunked"
            else:
                request.keep_alive = False  # the end of the connection is that of the body
        self._request = request
        request.connection.write(self._head(request.keep_alive))

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client does not take any more."""
        request = self._request
        assert request is not None and not self._ended
        if not data or self._bodiless:
            return
        connection = request.connection
        if not self._chunked:
            connection.write(data)
        elif len(data) < _LARGE:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            connection.write(b"%x\r\n" % len(data), data, b"\r\n")
        if connection.stuck:
            await connection.drained()

    async def write_eof(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._chunked:
            assert self._request is not None
            self._request.connection.write(b"0\r\n\r\n")

    async def finish(self, request: Request) -> None:
        """What of it was not sent yet."""
        if not self.prepared:
            await self.prepare(request)
        await self.write_eof()


class Response(StreamResponse):
    """An answer that is known as a whole."""

    def __init__(self, *, status: int = 200, headers: Mapping[str, str] | None = None,
                 body: bytes = b"", content_type: str = "") -> None:
        super().__init__(status=status, headers=headers)
        self.body = body
        if content_type:
            self.headers["Content-Type"] = content_type

    async def finish(self, request: Request) -> None:
        if self.prepared:
            raise RuntimeError("an answer is sent once")
        request.connection.answering(self)
        self._request, self._ended = request, True
        if self.status not in (204, 304):
            self.headers["Content-Length"] = str(len(self.body))
        head = self._head(request.keep_alive)
        connection = request.connection
        if self._bodiless or not self.body:
            connection.write(head)
        elif len(self.body) < _LARGE:
            connection.write(head + self.body)
        else:
            connection.write(head, self.body)

    def alone(self) -> bytes:
        """The answer to what was no request."""
        self.headers["Content-Length"] = str(len(self.body))
        return self._head(False) + self.body


class Taken(StreamResponse):
    """What a handler returns when there is nothing to send: the connection is no longer
    HTTP's, or nobody is at its other end."""

    @property
    def prepared(self) -> bool:
        return True
