"""Listeners, and all connections that came from them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from carrel.engine.web import connection

if TYPE_CHECKING:
    import socket
    import ssl

    from carrel.engine.web.request import Request
    from carrel.engine.web.response import StreamResponse

#: for the answers that are on their way when the server ends
_SHUTDOWN_SECONDS = 1.0


class Server:
    """Gives every request to one handler."""

    def __init__(self, handler: Callable[[Request], Awaitable[StreamResponse]]) -> None:
        self.handler = handler
        self.connections: set[connection.Connection] = set()
        self.closing = False
        self._listeners: list[Any] = []

    async def listen(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Accept on a bound socket; with a context only what speaks TLS."""
        factory: Callable[[], asyncio.Protocol] = partial(connection.Connection, self)
        if context is not None:
            from carrel.engine.web.tls import Tls

            bare, patience = factory, connection.HEADER_SECONDS
            factory = lambda: Tls(context, bare(), patience)  # noqa: E731
        self._listeners.append(await asyncio.get_running_loop().create_server(
            factory, sock=sock, backlog=512))

    async def close(self) -> None:
        """No new connections; answers that are under way have a moment to end."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        tasks = [t for c in list(self.connections) if (t := c.shutdown()) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for one in list(self.connections):
            one.close()
        await asyncio.sleep(0)
