"""Standard streams of a process, behind one interface and two ways.

* :class:`ShimStdio`: Carrel's shim captures, logs and serves attach sockets;
  the engine only joins clients to the shim's socket.
* :class:`carrel.engine.fifostdio.FifoStdio`: any other shim writes into FIFOs;
  the engine reads, logs and hands out.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

from carrel import errdefs
from carrel.engine.streams import Session

#: seconds until a shim that is at work is looked at again
_LOOK_AGAIN = 0.001


class Stdio(Protocol):
    """One process's streams. ``stdin``, ``stdout``, ``stderr`` go into the request."""

    stdin: str
    stdout: str
    stderr: str
    #: clients can be joined while the task is being created
    early: bool

    async def open(self) -> None:
        """Before the task or exec process is created."""

    async def created(self) -> None:
        """The shim has opened its side."""

    async def attach(self, session: Session, creating: asyncio.Future[int] | None = None) -> None:
        """Join a client; output from here on, all of it when before the start."""

    async def drained(self) -> None:
        """After the exit: the last of the output was logged and handed out."""

    def close(self) -> None:
        """Idempotent. Ends all sessions."""


class _Link(asyncio.Protocol):
    """The connection to a shim's attach socket, joined with one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._transport: Any = None
        self._greeting: bytearray | None = bytearray()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        session = self._session
        wish = {"stdin": session.stdin, "stdout": session.stdout, "stderr": session.stderr}
        self._transport.write(json.dumps(wish).encode() + b"\n")

    def data_received(self, data: bytes) -> None:
        if self._greeting is None:
            self._session.relay(data)
            return
        self._greeting += data
        line, newline, rest = bytes(self._greeting).partition(b"\n")
        if not newline:
            return
        self._greeting = None
        if line != b"ok":
            self._refuse(f"attach refused by the shim: {line[:200].decode(errors='replace')}")
            return
        if not self.ready.done():
            self.ready.set_result(None)
        if rest:
            self._session.relay(rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._refuse("the shim closed the attach connection")
        self._session.finish()

    def _refuse(self, why: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(errdefs.SystemFailure(why))

    def pause_writing(self) -> None:
        self._session.pause_input()

    def resume_writing(self) -> None:
        self._session.resume_input()

    # the session's callbacks
    def drain(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def hold(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    # Input
    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def eof(self) -> None:
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()


class ShimStdio:
    """``carrel://``: see docs/ARCHITECTURE.md, boundary containerd layer -> shim."""

    early = True

    def __init__(self, socket: str, *, stdin: bool, terminal: bool, stdin_once: bool = False,
                 log: Mapping[str, str] | None = None) -> None:
        query = dict(log or {})
        if stdin_once:
            query["stdin-once"] = "1"
        uri = f"carrel://{socket}" + (f"?{urlencode(query)}" if query else "")
        self.path = socket
        self.stdin = uri if stdin else ""
        self.stdout = uri
        self.stderr = "" if terminal else uri
        self._links: set[_Link] = set()

    async def open(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o711, exist_ok=True)

    async def created(self) -> None:
        return None

    async def attach(self, session: Session, creating: asyncio.Future[int] | None = None) -> None:
        link = await self._connect(session, creating)
        self._links.add(link)
        _join(session, link, self._links)
        await link.ready
        if session.stdin:
            session.set_input(link)

    def _is_there(self) -> bool:
        return os.path.exists(self.path)

    async def _connect(self, session: Session, creating: asyncio.Future[int] | None) -> _Link:
        """To the shim, which listens long before it answers that the task is created."""
        while True:
            try:
                if creating is None or self._is_there():
                    _, link = await asyncio.get_running_loop().create_unix_connection(
                        lambda: _Link(session), self.path)
                    return link
            except OSError as error:
                if creating is None or creating.done():
                    session.finish()
                    raise errdefs.SystemFailure(f"cannot attach to the shim: {error}") from error
            done, _ = await asyncio.wait([creating], timeout=_LOOK_AGAIN)
            if done:
                creating = None

    async def drained(self) -> None:
        return None  # the shim publishes the exit after its output was drained

    def close(self) -> None:
        return None  # the shim ends its connections by itself, after the last byte


def _join(session: Session, link: _Link, links: set[_Link]) -> None:
    def closed() -> None:
        links.discard(link)
        link.close()

    def writable(ready: bool) -> None:
        session.stuck = not ready
        if ready:
            link.drain()
        else:
            link.hold()

    session.on_close = closed
    session.writable = writable  # type: ignore[method-assign]
