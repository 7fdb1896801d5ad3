"""User-defined networks: names, connecting at run time, a daemon that dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.network import files, purge, resolver
from carrel.network.api import AddressPool, Config, EndpointSpec, NetworkSpec, PortBinding
from carrel.network.controller import Controller
from tests.network.support import (
    MemoryStore,
    engine,
    fetch,
    fetch_here,
    free_port,
    inside,
    server,
    spec,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]

_RESOLVE = """
import socket, struct, sys
name, kind, tcp = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
q = struct.pack(">HHHHHH", 77, 0x100, 1, 0, 0, 0)
q += b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0"
q += struct.pack(">HH", kind, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
s.settimeout(20)
s.connect(("127.0.0.11", 53))
if tcp:
    s.sendall(struct.pack(">H", len(q)) + q); s.recv(2); d = s.recv(4096)
else:
    s.send(q); d = s.recv(4096)
assert d[:2] == q[:2]
print(d[3] & 15, d[2] >> 1 & 1, struct.unpack(">H", d[6:8])[0], d[len(q):].hex())
"""


async def resolve(path: str, name: str, kind: int = 1, *, tcp: bool = False
                  ) -> tuple[int, int, int, str]:
    """(code, truncated, number of answers, hexadecimal of the answers)."""
    status, output = await inside(path, "/usr/bin/python3", "-c", _RESOLVE, name, str(kind),
                                  *(("tcp",) if tcp else ()))
    assert status == 0, output
    code, truncated, count, data = (*output.split(), "")[:4]
    return int(code), int(truncated), int(count), data


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "exec")


async def test_names(root: str) -> None:
    async with engine(root) as net:
        network = await net.create_network(NetworkSpec(name="front"))
        one = await net.create_sandbox(spec(1, "front", hostname="uno"))
        two = await net.create_sandbox(spec(2, EndpointSpec(network="front", aliases=("db", "x"))))
        three = await net.create_sandbox(spec(3, EndpointSpec(network="front", aliases=("db",))))
        assert "nameserver 127.0.0.11\n" in one.resolv_conf
        assert "options" in one.resolv_conf and "ndots:0" in one.resolv_conf
        address = socket.inet_aton(two.endpoints[network.id].ipv4).hex()
        for name in ("box2", "BOX2", "x", two.id[:12], "box2.front"):
            code, _, count, data = await resolve(one.netns_path, name)
            assert (code, count) == (0, 1) and data.endswith(address), name
        assert (await resolve(one.netns_path, "uno"))[2] == 1
        # several: all of them, in turn a different one first
        orders = {(await resolve(one.netns_path, "db"))[3] for _ in range(4)}
        assert len(orders) == 2
        assert (await resolve(one.netns_path, "db"))[2] == 2
        # a name that is known has no IPv6 address: that is an answer, not a question to others
        assert (await resolve(one.netns_path, "box2", 28))[:3] == (0, 0, 0)
        assert (await resolve(one.netns_path, "box2", tcp=True))[2] == 1
        reverse = ".".join(reversed(two.endpoints[network.id].ipv4.split("."))) + ".in-addr.arpa"
        assert bytes.fromhex((await resolve(one.netns_path, reverse, 12))[3]).endswith(
            b"\4box2\5front\0")
        net.rename(two.id, "renamed")
        assert (await resolve(one.netns_path, "renamed"))[2] == 1
        await net.remove_sandbox(three.id)
        assert (await resolve(one.netns_path, "db"))[2] == 1
        # a container may have port 53 for itself
        async with server(one.netns_path, "own", 53, udp=True):
            assert (await resolve(one.netns_path, "renamed"))[2] == 1


@contextlib.asynccontextmanager
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """A name server on loopback that answers 192.0.2.7 to everything, over UDP truncated for
    names that begin with "big"."""
    seen: list[bytes] = []
    loop = asyncio.get_running_loop()
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    udp.bind(("127.0.0.1", port))

    def reply(query: bytes, truncate: bool) -> bytes:
        seen.append(query)
        if query[13:17] == b"nope":
            return query[:2] + b"\x81\x83" + query[4:]
        if truncate and query[13:16] == b"big":
            return query[:2] + b"\x83\x80" + query[4:]
        return (query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:]
                + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7")

    def on_udp() -> None:
        data, client = udp.recvfrom(4096)
        udp.sendto(b"\0\0" + reply(data, True)[2:], client)  # a forged id first: not believed
        udp.sendto(reply(data, True), client)

    async def on_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = reply(await reader.readexactly(size), False)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    loop.add_reader(udp, on_udp)
    serving = await asyncio.start_server(on_tcp, sock=tcp)
    monkeypatch.setattr(resolver, "_server_address",
                        lambda server: (socket.AF_INET, ("127.0.0.1", port)))
    try:
        yield seen
    finally:
        loop.remove_reader(udp)
        udp.close()
        serving.close()


async def test_host_resolver_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "resolv.conf"
    host.write_text("nameserver 192.0.2.1\n")
    monkeypatch.setattr(files, "HOST_RESOLV_CONF", str(host))
    asked: list[str] = []

    async def exchange(server: str, data: bytes, question: object) -> bytes:
        asked.append(server)
        return data

    monkeypatch.setattr(resolver, "_exchange_udp", exchange)
    async with engine(str(tmp_path / "exec")) as net:
        await net.create_network(NetworkSpec(name="front"))
        box = await net.create_sandbox(spec(1, "front"))
        await resolve(box.netns_path, "example.org")
        host.write_text("nameserver 192.0.2.22\n")
        await resolve(box.netns_path, "example.org")
    assert asked == ["192.0.2.1", "192.0.2.22"]


async def test_other_names_are_asked_outside(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(root, dns=("127.0.0.1",)) as net, upstream(monkeypatch) as seen:
        await net.create_network(NetworkSpec(name="front"))
        await net.create_network(NetworkSpec(name="island", internal=True))
        box = await net.create_sandbox(spec(1, "front"))
        lonely = await net.create_sandbox(spec(2, "island"))
        code, _, count, data = await resolve(box.netns_path, "www.example.org")
        assert (code, count) == (0, 1) and data.endswith("c0000207")
        assert (await resolve(box.netns_path, "nope.example.org"))[0] == 3
        assert (await resolve(box.netns_path, "big.example.org"))[1] == 1
        assert (await resolve(box.netns_path, "big.example.org", tcp=True))[2] == 1
        before = len(seen)
        assert (await resolve(lonely.netns_path, "www.example.org"))[0] == 3
        assert len(seen) == before  # an internal network does not leak questions


async def test_connect_and_disconnect(root: str) -> None:
    async with engine(root) as net:
        front = await net.create_network(NetworkSpec(name="front"))
        back = await net.create_network(NetworkSpec(name="back", pools=(
            AddressPool(subnet="10.77.0.0/24", gateway="10.77.0.254"),)))
        port = free_port()
        box = await net.create_sandbox(spec(1, ports=(
            PortBinding(container_port=80, host_port=port),)))
        peer = await net.create_sandbox(spec(2, "back"))
        place = await net.connect(box.id, "back", EndpointSpec(
            network="back", ipv4="10.77.0.9", mac="02:00:00:00:00:09", aliases=("nine",)))
        assert (place.ifname, place.ipv4) == ("eth1", "10.77.0.9")
        _, output = await inside(box.netns_path, "ip", "address", "show", "eth1")
        assert "10.77.0.9/24" in output and "02:00:00:00:00:09" in output
        assert (await resolve(peer.netns_path, "nine"))[2] == 1
        assert (await resolve(box.netns_path, "box2"))[2] == 1
        _, routes = await inside(box.netns_path, "ip", "route")
        # networks are asked in the order of their names: back is before bridge
        assert "default via 10.77.0.254" in routes and routes.count("default") == 1
        async with server(box.netns_path, "web"):
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
            await net.disconnect(box.id, "back")
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
            _, routes = await inside(box.netns_path, "ip", "route")
            assert f"default via {net.network('bridge').pools[0].gateway}" in routes
            await net.connect(box.id, front.id, EndpointSpec(network="front",
                                                             gateway_priority=5))
            await net.disconnect(box.id, "bridge")
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
        with pytest.raises(errdefs.NotFound):
            await net.disconnect(box.id, "back")
        with pytest.raises(errdefs.Forbidden, match="has active endpoints"):
            await net.remove_network("front")
        assert [s.id for s, _ in net.on_network(back.id)] == [peer.id]


async def test_creation_is_checked(root: str) -> None:
    async with engine(root) as net:
        await net.create_network(NetworkSpec(name="one", pools=(
            AddressPool(subnet="10.5.0.0/24"),)))
        for wrong, kind, text in (
            (NetworkSpec(name="one"), errdefs.Conflict, "network with name one already exists"),
            (NetworkSpec(name="host"), errdefs.Forbidden,
             "operation is not permitted on predefined host network"),
            (NetworkSpec(name="x", driver="macvlan"), errdefs.NotImplementedYet, "macvlan"),
            (NetworkSpec(name="x", driver="weave"), errdefs.NotFound, "plugin not found"),
            (NetworkSpec(name="x\n"), errdefs.InvalidParameter, "invalid network name"),
            (NetworkSpec(name="x", pools=(AddressPool(subnet="10.5.0.128/25"),)),
             errdefs.Forbidden, "Pool overlaps with other one on this address space"),
            (NetworkSpec(name="x", pools=(AddressPool(subnet="10.6.0.0/24", gateway="1.2.3.4"),)),
             errdefs.InvalidParameter, "parent subnet is 10.6.0.0/24"),
            (NetworkSpec(name="x", options={"com.docker.network.bridge.gateway_mode_ipv4":
                                            "routed"}), errdefs.NotImplementedYet, "gateway_mode"),
        ):
            with pytest.raises(kind, match=text):
                await net.create_network(wrong)
        with pytest.raises(errdefs.Forbidden, match="is a pre-defined network and cannot be remov"):
            await net.remove_network("bridge")
        with pytest.raises(errdefs.NotFound, match="network nope not found"):
            await net.remove_network("nope")
        assert len(net.networks()) == 4


async def test_ipv6_network(root: str) -> None:
    async with engine(root) as net:
        network = await net.create_network(NetworkSpec(name="six", enable_ipv6=True, pools=(
            AddressPool(subnet="fd00:77::/64"),)))
        port = free_port()
        box = await net.create_sandbox(spec(1, "six", ports=(
            PortBinding(container_port=80, host_port=port),)))
        peer = await net.create_sandbox(spec(2, "six"))
        assert box.endpoints[network.id].ipv6 == "fd00:77::2"
        async with server(box.netns_path, "web"):
            assert (await fetch(peer.netns_path, "fd00:77::2", 80)).startswith("web")
            assert (await fetch_here("::1", port)).startswith("web")
        assert (await resolve(peer.netns_path, "box1", 28))[2] == 1


async def test_daemon_dies_and_comes_back(root: str) -> None:
    store = MemoryStore()
    first = Controller(root, store, Config(pool_size=0))
    await first.start()
    await first.create_network(NetworkSpec(name="front"))
    port = free_port()
    kept = await first.create_sandbox(spec(1, "front", ports=(
        PortBinding(container_port=80, host_port=port),)))
    lost = await first.create_sandbox(spec(2, "front"))
    # as by kill -9: its sockets and its threads are gone, the kernel's state is not
    for live in list(first._sandboxes.live.values()):
        first._sandboxes.forget(live)
        first._sandboxes.ports.release(live.reserved)
    first._thread.stop()
    Path(f"{root}/netns/half-made").touch()
    async with engine(root, store) as net, server(kept.netns_path, "web"):
        # before anybody says which containers live, their ports work
        assert (await fetch_here("127.0.0.1", port)).startswith("web")
        found = await net.restore([kept.id])
        assert set(found) == {kept.id} and found[kept.id].endpoints == kept.endpoints
        assert (await fetch_here("127.0.0.1", port)).startswith("web")
        assert (await resolve(kept.netns_path, "box1"))[2] == 1
        assert os.listdir(f"{root}/netns") == [kept.key[:12]]
        again = await net.create_sandbox(spec(3, "front"))
        network = net.network("front")
        assert again.endpoints[network.id].ipv4 == lost.endpoints[network.id].ipv4
        with pytest.raises(errdefs.SystemFailure, match="port is already allocated"):
            await net.create_sandbox(spec(4, ports=kept.ports[:1]))
        await net.remove_sandbox(kept.id)
        assert await fetch(again.netns_path, network.pools[0].gateway, port, 0.5) == ""


async def test_rules_come_back(root: str) -> None:
    async with engine(root, userland_proxy=False) as net:
        port = free_port()
        box = await net.create_sandbox(spec(1, ports=(
            PortBinding(container_port=80, host_port=port),)))
        async with server(box.netns_path, "web"):
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            await net.reload()
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
            # and by itself, within seconds
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            for _ in range(300):
                await asyncio.sleep(0.1)
                if "carrel" in subprocess.run(["nft", "list", "tables"], capture_output=True,
                                              text=True, check=True).stdout:
                    break
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
            # a start that comes first finds it missing and does not fail
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            other = await net.create_sandbox(spec(2, ports=(PortBinding(container_port=80),)))
            assert (await fetch_here("127.0.0.1", port)).startswith("web")
            assert other.ports


async def test_address_is_free_although_a_dead_connection_keeps_the_namespace(root: str) -> None:
    """A TCP connection whose peer is gone holds its namespace for minutes. What comes to the
    address meanwhile must go to the new owner."""
    async with engine(root) as net:
        box = await net.create_sandbox(spec(1))
        peer = await net.create_sandbox(spec(2))
        address = box.endpoints[net.network("bridge").id].ipv4
        async with server(box.netns_path, "old"):
            code = (f"import socket, time; s = socket.create_connection(('{address}', 80)); "
                    "print('ready', flush=True); time.sleep(60)")
            process = await asyncio.create_subprocess_exec(
                "nsenter", f"--net={peer.netns_path}", "/usr/bin/python3", "-c", code,
                stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            await process.stdout.readline()
            await inside(peer.netns_path, "ip", "link", "set", "eth0", "down")
        # the server's FIN is never acknowledged
        await net.remove_sandbox(box.id)
        again = await net.create_sandbox(spec(3))
        assert again.endpoints[net.network("bridge").id].ipv4 == address
        async with server(again.netns_path, "new"):
            for _ in range(3):
                assert (await fetch_here(address, 80)).startswith("new")
        process.kill()
        await process.wait()


async def test_interfaces_of_others_stay(root: str) -> None:
    subprocess.run(["ip", "link", "add", "theirs", "type", "bridge"], check=True)
    try:
        async with engine(root) as net:
            with pytest.raises(errdefs.Conflict, match="interface theirs exists already"):
                await net.create_network(NetworkSpec(name="x", options={
                    "com.docker.network.bridge.name": "theirs"}))
            assert len(net.networks()) == 3
            other = Controller(root + "2", MemoryStore(), Config(bridge=net.network(
                "bridge").bridge))
            with pytest.raises(errdefs.Conflict, match="belongs to somebody else"):
                await other.start()
            await other.stop()
            assert (await net.create_sandbox(spec(1))).endpoints
        subprocess.run(["ip", "link", "show", "theirs"], check=True, capture_output=True)
    finally:
        subprocess.run(["ip", "link", "delete", "theirs"], check=True)


async def test_two_engines_side_by_side(root: str) -> None:
    async with engine(root) as one, engine(root + "2") as two:
        a = await one.create_sandbox(spec(1, ports=(PortBinding(container_port=80),)))
        b = await two.create_sandbox(spec(1, ports=(PortBinding(container_port=80),)))
        assert one.network("bridge").pools != two.network("bridge").pools
        async with server(a.netns_path, "one"), server(b.netns_path, "two"):
            assert (await fetch_here("127.0.0.1", a.ports[0].host_port)).startswith("one")
            assert (await fetch_here("127.0.0.1", b.ports[0].host_port)).startswith("two")


_FLOOD = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("127.0.0.11", 53))
for n in range(4000):
    q = struct.pack(">HHHHHH", n, 0x100, 1, 0, 0, 0)
    q += bytes([5]) + b"%05d" % n + b"\\7example\\3org\\0" + struct.pack(">HH", 1, 1)
    s.send(q)
"""


async def test_own_names_are_answered_in_a_flood(root: str) -> None:
    async with engine(root, dns=("198.51.100.99",)) as net:  # nobody there
        await net.create_network(NetworkSpec(name="front"))
        box = await net.create_sandbox(spec(1, "front"))
        peer = await net.create_sandbox(spec(2, "front"))
        flood = asyncio.create_task(inside(peer.netns_path, "/usr/bin/python3", "-c", _FLOOD))
        await asyncio.sleep(0.2)
        code = (f"import time; t = time.time()\n{_RESOLVE}\n"
                "assert time.time() - t < 4, time.time() - t")
        status, output = await inside(box.netns_path, "/usr/bin/python3", "-c", code, "box2", "1")
        assert status == 0, output
        await flood
        assert net._sandboxes.resolver._under_way <= 512


async def test_reload_between_start_and_registration(root: str) -> None:
    """A reload that runs right behind a start, before the event loop has heard of its success,
    keeps what the start has published."""
    async with engine(root, userland_proxy=False) as net:
        port = free_port()
        start = asyncio.create_task(net.create_sandbox(spec(1, ports=(
            PortBinding(container_port=80, host_port=port),))))
        await asyncio.sleep(0)
        await asyncio.gather(start, *(net.reload() for _ in range(3)))
        async with server(start.result().netns_path, "web"):
            assert (await fetch_here("127.0.0.1", port)).startswith("web")


async def test_purge(root: str) -> None:
    """What a dead engine left goes away without an engine."""
    dead = Controller(root, MemoryStore(), Config(pool_size=0))
    await dead.start()
    await dead.create_sandbox(spec(1, ports=(PortBinding(container_port=80),)))
    for live in list(dead._sandboxes.live.values()):
        dead._sandboxes.forget(live)
        dead._sandboxes.ports.release(live.reserved)
    dead._thread.stop()
    lines = purge.purge(root)
    assert [line.split()[0] for line in lines] == ["network", "bridge", "nftables"]
    assert purge.purge(root) == []


async def test_default_subnet(root: str) -> None:
    store = MemoryStore()
    async with engine(root, store) as net:
        first = net.network("bridge")
    async with engine(root, store) as net:
        assert net.network("bridge") == first  # the same id and subnet after a restart
    async with engine(root, store, bip="10.45.0.1/24", fixed_cidr="10.45.0.64/26",
                      default_gateway="10.45.0.65") as net:
        place = (await net.create_sandbox(spec(1))).endpoints[first.id]
        assert (place.ipv4, place.gateway4) == ("10.45.0.64", "10.45.0.65")
        assert (await net.create_sandbox(spec(2))).endpoints[first.id].ipv4 == "10.45.0.66"
    async with engine(root, store, bip="10.44.0.5/24") as net:
        box = await net.create_sandbox(spec(1))
        place = box.endpoints[first.id]
        assert (place.ipv4, place.prefix4, place.gateway4) == ("10.44.0.1", 24, "10.44.0.5")
        output = subprocess.run(["ip", "-4", "address", "show", net.network("bridge").bridge],
                                capture_output=True, text=True, check=True).stdout
        assert "10.44.0.5/24" in output and output.count("inet ") == 1


async def test_without_rules(root: str) -> None:
    """--iptables=false: nothing of ours in nftables, and published ports work all the same."""
    async with engine(root, iptables=False) as net:
        await net.create_network(NetworkSpec(name="front"))
        box = await net.create_sandbox(spec(1, "front", ports=(PortBinding(container_port=80),)))
        assert subprocess.run(["nft", "list", "ruleset"], capture_output=True,
                              text=True, check=True).stdout == ""
        async with server(box.netns_path, "web"):
            assert (await fetch_here("127.0.0.1", box.ports[0].host_port)).startswith("web")
            assert (await fetch_here("::1", box.ports[0].host_port)).startswith("web")
        await net.remove_sandbox(box.id)
        await net.remove_network("front")
