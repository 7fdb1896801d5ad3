"""A small userland relay behind a published port's own socket.

Most packets never come here: nftables sends them to the container.  What does: IPv6 for a container
that has none, and connections while somebody else's flush has our rules removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from carrel.network.ports import Reserved

_CHUNK = 65536
_UDP_IDLE = 90.0
_UDP_CLIENTS = 1024
_CONNECTIONS = 1024
_CONNECT_SECONDS = 10.0


class Relay:
    """Serves one reserved port until it is closed; the socket itself stays the reservation's."""

    def __init__(self, reserved: Reserved, target: str) -> None:
        self._socket = reserved.socket
        self._target = (target, reserved.binding.container_port)
        self._family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[Any, socket.socket] = {}
        self._expiry: dict[Any, asyncio.TimerHandle] = {}
        tcp = reserved.binding.proto == "tcp"
        self._loop.add_reader(self._socket, self._accept if tcp else self._datagram)

    def close(self) -> None:
        """Idempotent."""
        self._loop.remove_reader(self._socket)
        for task in self._tasks:
            task.cancel()
        for client in list(self._clients):
            self._forget(client)

    # -- TCP ------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._tasks) >= _CONNECTIONS:
            connection.close()
            return
        task = self._loop.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        server = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._loop.sock_connect(server, self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(client, server))
                group.create_task(self._copy(server, client))
        except (OSError, TimeoutError, ExceptionGroup):
            pass  # the other side is gone: both ends are closed below
        finally:
            client.close()
            server.close()

    async def _copy(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK):
            await self._loop.sock_sendall(target, data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    # -- UDP ------------------------------------------------------------------------------

    def _datagram(self) -> None:
        for _ in range(64):
            try:
                data, client = self._socket.recvfrom(_CHUNK)
            except OSError:
                return
            out = self._clients.get(client) or self._new_client(client)
            if out is not None:
                with contextlib.suppress(OSError):
                    out.send(data)
                self._touch(client)

    def _new_client(self, client: Any) -> socket.socket | None:
        if len(self._clients) >= _UDP_CLIENTS:
            return None
        out = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            out.connect(self._target)
        except OSError:
            out.close()
            return None
        self._clients[client] = out
        self._loop.add_reader(out, self._answer, client)
        return out

    def _answer(self, client: Any) -> None:
        out = self._clients.get(client)
        if out is None:
            return
        try:
            data = out.recv(_CHUNK)
            self._socket.sendto(data, client)
        except OSError:
            return
        self._touch(client)

    def _touch(self, client: Any) -> None:
        old = self._expiry.pop(client, None)
        if old is not None:
            old.cancel()
        self._expiry[client] = self._loop.call_later(_UDP_IDLE, self._forget, client)

    def _forget(self, client: Any) -> None:
        timer = self._expiry.pop(client, None)
        if timer is not None:
            timer.cancel()
        out = self._clients.pop(client, None)
        if out is not None:
            self._loop.remove_reader(out)
            out.close()
