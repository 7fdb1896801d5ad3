"""What the network tests share: an engine's network layer in this sandbox, and an outside world."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from carrel.network.api import Config, EndpointSpec, PortBinding, SandboxSpec
from carrel.network.controller import Controller


class MemoryStore:
    """The engine's store, without a disk; documents go through JSON as there."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}

    def all(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        return [(i, d) for (k, i), d in self.documents.items() if k == kind]

    def put(self, kind: str, ident: str, doc: Any) -> None:
        self.documents[kind, ident] = msgspec.json.decode(msgspec.json.encode(doc))

    def delete(self, kind: str, ident: str) -> bool:
        return self.documents.pop((kind, ident), None) is not None


@contextlib.asynccontextmanager
async def engine(exec_root: str, store: MemoryStore | None = None,
                 **options: Any) -> AsyncIterator[Controller]:
    options.setdefault("pool_size", 0)
    controller = Controller(exec_root, store or MemoryStore(), Config(**options))
    await controller.start()
    try:
        yield controller
    finally:
        for sandbox in controller.sandboxes():
            await controller.remove_sandbox(sandbox.id)
        await controller.stop()


def spec(number: int, *networks: str | EndpointSpec, ports: tuple[PortBinding, ...] = (),
         **options: Any) -> SandboxSpec:
    places = tuple(EndpointSpec(network=n) if isinstance(n, str) else n
                   for n in networks or ("bridge",))
    options.setdefault("name", f"box{number}")
    return SandboxSpec(id=f"{number:04x}" * 16, endpoints=places, ports=ports, **options)


async def inside(path: str, *command: str, timeout: float = 10.0) -> tuple[int, str]:
    """Run a command in a network namespace: (exit status, output)."""
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={path}", *command, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL)
    output, _ = await asyncio.wait_for(process.communicate(), timeout)
    return process.returncode or 0, output.decode()


@contextlib.asynccontextmanager
async def server(path: str, text: str, port: int = 80, *, udp: bool = False
                 ) -> AsyncIterator[None]:
    """A server in a namespace that says ``text`` to everybody."""
    code = (_UDP_SERVER if udp else _TCP_SERVER).format(port=port, text=text)
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={path}", "/usr/bin/python3", "-c", code,
        stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


_TCP_SERVER = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("::", {port})); s.listen(16); print("ready", flush=True)
while True:
    c, who = s.accept(); c.sendall(b"{text} " + who[0].encode()); c.close()
"""
_UDP_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", {port})); print("ready", flush=True)
while True:
    d, who = s.recvfrom(2048); s.sendto(b"{text} " + d, who)
"""
_FETCH = """
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))
    print(s.recv(100).decode())
except OSError as e:
    print("FAILED", type(e).__name__, e); sys.exit(1)
"""


async def fetch(path: str, address: str, port: int, seconds: float = 20.0) -> str:
    """What a server says to a client in ``path``; "" if it cannot be reached."""
    status, output = await inside(path, "/usr/bin/python3", "-c", _FETCH, address, str(port),
                                  str(seconds))
    return output.strip() if status == 0 else ""


async def fetch_here(address: str, port: int) -> str:
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 20)
    try:
        return (await asyncio.wait_for(reader.read(100), 20)).decode()
    finally:
        writer.close()


@contextlib.contextmanager
def outside() -> Iterator[str]:
    """A second machine at 198.51.100.2, whose neighbour we are (198.51.100.1): its namespace."""
    name = f"/run/outside-{os.getpid()}"
    script = f"""
        touch {name}; unshare --net={name} true
        ip link add up0 type veth peer name eth0 netns {name}
        ip address add 198.51.100.1/24 dev up0; ip link set up0 up
        ip address add 2001:db8::1/64 dev up0 nodad
        nsenter --net={name} sh -ec '
            ip link set lo up; ip link set eth0 up; ip address add 198.51.100.2/24 dev eth0
            ip address add 2001:db8::2/64 dev eth0 nodad'
    """
    subprocess.run(["/bin/sh", "-ec", script], check=True)
    try:
        yield name
    finally:
        subprocess.run(["/bin/sh", "-c", f"ip link delete up0; umount {name}; rm {name}"],
                       check=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        number: int = sock.getsockname()[1]
        return number
