"""The gRPC door of a containerd layer that is in this process: for ``ctr`` and its like.

The engine itself does not go through it.  Nobody may ever knock, so what it needs is
loaded by the first who does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from carrel.containerd.sockets import listen
from carrel.proto.rpc import Servicers


class Front:
    """A socket on which the layer's services are served from the first connection on."""

    def __init__(self, path: str, servicers: Servicers) -> None:
        self._path = path
        self._servicers = servicers
        self._server: Any = None
        self._opening: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = listen(path, 0o660)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._knocked)

    def _knocked(self) -> None:
        """The connection waits in the socket's queue until the server takes it."""
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        sock, self._socket = self._socket, None
        self._opening = asyncio.ensure_future(self._open(sock))

    async def _open(self, sock: socket.socket) -> None:
        from carrel.proto import grpc

        self._server = grpc.server(self._servicers)
        await self._server.start(sock=sock)

    async def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
