"""The embedded resolver: 127.0.0.11 inside containers on user-defined networks.

Own names are answered at once, in the callback that reads the question: a flood of other questions
cannot delay them.  The rest is asked of the host's servers (or those of --dns) from the host's
namespace, with a bounded number of questions under way; nothing is cached, so nothing grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from typing import Any

from carrel.network import dnswire
from carrel.network.dnswire import Question
from carrel.network.networks import Networks
from carrel.network.zone import Zone, address_of_pointer, folded

Upstream = Callable[[], tuple[str, ...]]
_BATCH = 64
_FORWARDS = 512
_SERVER_SECONDS = 3.0
_SERVERS = 3
_TCP_CONNECTIONS = 64
_TCP_IDLE = 10.0
_MAX = 65535


class _Served:
    """The sockets of one sandbox, and what it may see."""

    __slots__ = ("internal", "links", "networks", "tasks", "tcp", "udp", "upstream")

    def __init__(self, udp: socket.socket, tcp: socket.socket, networks: tuple[str, ...],
                 upstream: Upstream, internal: bool, links: dict[str, str]) -> None:
        #: names that only this sandbox uses for others (--link)
        self.links = links
        self.udp = udp
        self.tcp = tcp
        self.networks = networks
        self.upstream = upstream
        self.internal = internal
        self.tasks: set[asyncio.Task[None]] = set()


class Resolver:
    """All sandboxes' resolvers, on the event loop."""

    def __init__(self, zone: Zone, networks: Networks) -> None:
        self._zone = zone
        self._networks = networks
        self._served: dict[str, _Served] = {}
        self._under_way = 0

    def serve(self, ident: str, sockets: tuple[socket.socket, socket.socket],
              networks: tuple[str, ...], upstream: Upstream, *, internal: bool,
              links: dict[str, str] | None = None) -> None:
        """Answer on these sockets, which are ours from now on. ``upstream`` is asked at each
        question: the host's servers may change while the container runs."""
        self.stop(ident)
        one = _Served(*sockets, networks, upstream, internal, links or {})
        self._served[ident] = one
        loop = asyncio.get_running_loop()
        loop.add_reader(one.udp, self._read, one)
        loop.add_reader(one.tcp, self._accept, one)

    def change(self, ident: str, networks: tuple[str, ...], *, internal: bool) -> None:
        one = self._served.get(ident)
        if one is not None:
            one.networks = networks
            one.internal = internal

    def stop(self, ident: str) -> None:
        """Idempotent."""
        one = self._served.pop(ident, None)
        if one is None:
            return
        loop = asyncio.get_running_loop()
        for sock in (one.udp, one.tcp):
            loop.remove_reader(sock)
        for task in one.tasks:
            task.cancel()
        one.udp.close()
        one.tcp.close()

    def close(self) -> None:
        for ident in list(self._served):
            self.stop(ident)

    # -- questions --------------------------------------------------------------------------

    def _read(self, one: _Served) -> None:
        for _ in range(_BATCH):
            try:
                data, client = one.udp.recvfrom(_MAX)
            except OSError:
                return
            try:
                question = Question(data)
            except dnswire.Malformed:
                continue
            reply = self.local(one, question, question.size)
            if reply is not None:
                _send(one.udp, reply, client)
            elif self._under_way >= _FORWARDS:
                _send(one.udp, dnswire.answer(question, code=dnswire.SERVFAIL), client)
            else:
                self._spawn(one, self._forward_udp(one, data, question, client))

    def _spawn(self, one: _Served, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        one.tasks.add(task)
        task.add_done_callback(one.tasks.discard)

    def local(self, one: _Served, question: Question, limit: int) -> bytes | None:
        """The answer if it is ours to give; None: ask somebody else."""
        if not question.standard:
            return dnswire.answer(question, code=dnswire.NOTIMP)
        if question.kind == dnswire.PTR:
            records = self._pointer(one.networks, question.name)
        else:
            records = self._addresses(one, question)
        if records is not None:
            return dnswire.answer(question, records, limit=limit)
        if one.internal:
            return dnswire.answer(question, code=dnswire.NXDOMAIN)
        return None

    def _addresses(self, one: _Served,
                   question: Question) -> list[tuple[int, bytes]] | None:
        name = one.links.get(folded(question.name), question.name)
        for ident in one.networks:
            found = self._zone.lookup(ident, self._networks.find(ident).name, name)
            if found:
                records = [dnswire.address_record(a) for e in found for a in (e.ipv4, e.ipv6) if a]
                return [r for r in records if question.kind in (r[0], dnswire.ANY)]
        return None

    def _pointer(self, networks: tuple[str, ...],
                 name: str) -> list[tuple[int, bytes]] | None:
        address = address_of_pointer(name)
        for ident in networks if address else ():
            endpoint = self._zone.reverse(ident, address)
            if endpoint is not None:
                target = f"{endpoint.dns_names[0]}.{endpoint.network_name}"
                return [(dnswire.PTR, dnswire.pack_name(target))]
        return None

    # -- what others know -------------------------------------------------------------------

    async def _forward_udp(self, one: _Served, data: bytes, question: Question,
                           client: Any) -> None:
        reply = await self._ask(one, data, question, tcp=False)
        if not one.udp.fileno() < 0:
            _send(one.udp, reply, client)

    async def _ask(self, one: _Served, data: bytes, question: Question, *, tcp: bool) -> bytes:
        """The first answer that one of the servers gives; SERVFAIL when none does."""
        self._under_way += 1
        try:
            for server in one.upstream()[:_SERVERS]:
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(_SERVER_SECONDS):
                        exchange = _exchange_tcp if tcp else _exchange_udp
                        return dnswire.with_id(await exchange(server, data, question), question.id)
            return dnswire.answer(question, code=dnswire.SERVFAIL)
        finally:
            self._under_way -= 1

    # -- TCP --------------------------------------------------------------------------------

    def _accept(self, one: _Served) -> None:
        try:
            connection, _ = one.tcp.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(one.tasks) >= _TCP_CONNECTIONS + _FORWARDS:
            connection.close()
            return
        self._spawn(one, self._serve_tcp(one, connection))

    async def _serve_tcp(self, one: _Served, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                question = Question(data)
                reply = self.local(one, question, 0)
                if reply is None:
                    reply = await self._ask(one, data, question, tcp=True)
                writer.write(len(reply).to_bytes(2, "big") + reply)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, dnswire.Malformed):
            pass  # the client is done, or not worth an answer
        finally:
            writer.close()


def _send(sock: socket.socket, data: bytes, client: Any) -> None:
    with contextlib.suppress(OSError):  # full buffer: the client asks again
        sock.sendto(data, client)


def _server_address(server: str) -> tuple[socket.AddressFamily, Any]:
    address, _, zone = server.partition("%")
    if ":" not in address:
        return socket.AF_INET, (address, 53)
    return socket.AF_INET6, (address, 53, 0, socket.if_nametoindex(zone) if zone else 0)


async def _exchange_udp(server: str, data: bytes, question: Question) -> bytes:
    """One datagram there, the answer back; from a port of its own and under an id of its own, so
    that nobody else can guess an answer."""
    loop = asyncio.get_running_loop()
    family, address = _server_address(server)
    ident = secrets.randbits(16)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address)
        await loop.sock_sendall(sock, dnswire.with_id(data, ident))
        while True:
            reply = await loop.sock_recv(sock, _MAX)
            if dnswire.is_answer_to(reply, ident, question):
                return reply


async def _exchange_tcp(server: str, data: bytes, question: Question) -> bytes:
    family, address = _server_address(server)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        ident = secrets.randbits(16)
        writer.write(len(data).to_bytes(2, "big") + dnswire.with_id(data, ident))
        size = int.from_bytes(await reader.readexactly(2), "big")
        reply = await reader.readexactly(size)
        if not dnswire.is_answer_to(reply, ident, question):
            raise OSError(f"{server} answered another question")
        return reply
    finally:
        writer.close()
