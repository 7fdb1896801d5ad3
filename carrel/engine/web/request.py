"""One request, as a handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from carrel.engine.web.fields import Fields, Head

if TYPE_CHECKING:
    from carrel.engine.web.connection import Connection

#: a body waits for its reader up to this; then the client does
HIGH_WATER = 256 << 10


class Query(dict[str, str]):
    """The first value of each name; :meth:`getall` has the others."""

    __slots__ = ("_all",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self._all: dict[str, list[str]] = {}
        for part in text.split("&") if text else ():
            name, _, value = part.partition("=")
            name = _decoded(name)
            if not part:
                continue
            self._all.setdefault(name, []).append(_decoded(value))
        self.update((name, values[0]) for name, values in self._all.items())

    def getall(self, name: str, default: list[str] | None = None) -> list[str]:
        return self._all.get(name, default if default is not None else [])


def _decoded(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    return unquote(text) if "%" in text else text


class Content:
    """The body: pieces as they came, and what says that there are no more."""

    __slots__ = ("_connection", "_error", "_pieces", "_waiter", "done", "size")

    def __init__(self, connection: Connection, done: bool) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        #: the client has sent all of it
        self.done = done
        #: what waits for the reader
        self.size = 0

    async def iter_any(self) -> AsyncIterator[bytes]:
        """What has come so far, again and again, to the body's end: clients send chunks of
        32 KiB, and whoever passes them on would rather have more at once."""
        while True:
            while pieces := self._pieces:
                self._pieces, self.size = [], 0
                self._connection.body_wanted()
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._error is not None:
                raise self._error
            if self.done:
                return
            self._connection.body_awaited()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    # --- the connection's side ---

    def add(self, pieces: list[bytes], done: bool) -> None:
        for piece in pieces:
            if piece:
                self._pieces.append(piece)
                self.size += len(piece)
        self.done = done
        self._wake()

    def drop(self) -> None:
        """Nobody reads it any more."""
        self._pieces.clear()
        self.size = 0

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Request:
    """What the client asks for. ``request[name]`` keeps what handlers tell each other."""

    __slots__ = ("_kept", "_query", "connection", "content", "content_length", "headers",
                 "http11", "keep_alive", "match_info", "method", "path", "query_string")

    def __init__(self, head: Head, connection: Connection) -> None:
        self.method = head.method
        target = head.target
        if not target.startswith("/") and target.lower().startswith(("http://", "https://")):
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, self.query_string = target.partition("?")
        #: decoded
        self.path = unquote(path) if "%" in path else path
        self.headers: Fields = head.fields
        self.http11 = head.http11
        self.keep_alive = head.http11 and not head.fields.has_token("connection", "close")
        #: None when only the end of the body will tell
        self.content_length = None if head.chunked else head.length
        self.content = Content(connection, done=not (head.chunked or head.length))
        self.connection = connection
        self.match_info: dict[str, str] = {}
        self._query: Query | None = None
        self._kept: dict[str, Any] = {}

    @property
    def query(self) -> Query:
        if self._query is None:
            self._query = Query(self.query_string)
        return self._query

    @property
    def transport(self) -> Any:
        """None when the client is gone."""
        return self.connection.transport

    def __getitem__(self, name: str) -> Any:
        return self._kept[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._kept[name] = value
