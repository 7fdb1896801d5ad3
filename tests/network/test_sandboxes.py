"""Sandboxes on real namespaces: connectivity, isolation, publishing, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest

from carrel import errdefs
from carrel.network.api import AddressPool, EndpointSpec, NetworkSpec, PortBinding
from tests.network.support import (
    engine,
    fetch,
    fetch_here,
    free_port,
    inside,
    outside,
    server,
    spec,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "exec")


@pytest.mark.parametrize("pool_size", [0, 2])
async def test_default_bridge(root: str, pool_size: int) -> None:
    async with engine(root, pool_size=pool_size) as net:
        if pool_size:
            await asyncio.sleep(0.2)
        one = await net.create_sandbox(spec(1))
        two = await net.create_sandbox(spec(2, hostname="two"))
        place = one.endpoints[net.network("bridge").id]
        assert place.ipv4 == net.network("bridge").pools[0].gateway.rsplit(".", 1)[0] + ".2"
        status, output = await inside(one.netns_path, "ip", "-o", "address")
        assert status == 0
        assert f"{place.ipv4}/{place.prefix4}" in output
        assert "inet6 fe80" not in output
        _, output = await inside(one.netns_path, "ip", "link", "show", "eth0")
        assert place.mac in output and "state UP" in output
        other = two.endpoints[net.network("bridge").id].ipv4
        async with server(two.netns_path, "hello"):
            assert await fetch(one.netns_path, other, 80) == f"hello ::ffff:{place.ipv4}"
        assert f"{other}\ttwo\n" in two.hosts
        await net.remove_sandbox(one.id)
        await net.remove_sandbox(one.id)
        again = await net.create_sandbox(spec(3))
        assert again.endpoints[net.network("bridge").id].ipv4 == place.ipv4


async def test_none_and_host_and_shared(root: str) -> None:
    async with engine(root) as net:
        alone = await net.create_sandbox(spec(1).__class__(id="1" * 64, mode="none"))
        status, output = await inside(alone.netns_path, "ip", "-o", "link")
        assert status == 0 and output.count("\n") == 1 and "LOOPBACK,UP" in output
        host = await net.create_sandbox(spec(1).__class__(id="2" * 64, mode="host"))
        assert host.netns_path == ""
        shared = await net.create_sandbox(
            spec(1).__class__(id="3" * 64, mode="container:" + "1" * 64))
        assert shared.netns_path == alone.netns_path
        await net.remove_sandbox(shared.id)
        assert os.path.exists(alone.netns_path)


async def test_published_port(root: str) -> None:
    with outside() as world:
        async with engine(root) as net:
            port = free_port()
            box = await net.create_sandbox(spec(
                1, ports=(PortBinding(container_port=80, host_port=port),
                          PortBinding(container_port=80))))
            random_port = box.ports[-1].host_port
            assert {(p.host_ip, p.host_port) for p in box.ports} >= {
                ("0.0.0.0", port), ("::", port), ("0.0.0.0", random_port)}
            other = await net.create_sandbox(spec(2))
            await net.create_network(NetworkSpec(name="far"))
            far = await net.create_sandbox(spec(3, "far"))
            async with server(box.netns_path, "web"):
                assert await fetch(world, "198.51.100.1", port) == "web ::ffff:198.51.100.2"
                assert (await fetch_here("127.0.0.1", port)).startswith("web")
                assert (await fetch_here("127.0.0.1", random_port)).startswith("web")
                assert (await fetch_here("198.51.100.1", port)).startswith("web")
                assert (await fetch_here("::1", port)).startswith("web")
                assert (await fetch(world, "2001:db8::1", port)).startswith("web")
                for client in (box, other, far):
                    assert (await fetch(client.netns_path, "198.51.100.1", port)
                            ).startswith("web"), client.spec.name
            await net.remove_sandbox(box.id)
            assert await fetch(world, "198.51.100.1", port, 0.5) == ""
            with socket.socket() as sock:
                sock.bind(("0.0.0.0", port))


async def test_udp_port(root: str) -> None:
    async with engine(root) as net:
        wish = PortBinding(container_port=53, proto="udp")
        box = await net.create_sandbox(spec(1, ports=(wish,)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, \
                socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client6:
            loop = asyncio.get_running_loop()
            for sock, address in ((client, "127.0.0.1"), (client6, "::1")):
                sock.setblocking(False)
                sock.connect((address, box.ports[0].host_port))
            async with server(box.netns_path, "first", 53, udp=True):
                for sock in (client, client6):
                    await loop.sock_sendall(sock, b"x")
                    assert await asyncio.wait_for(loop.sock_recv(sock, 100), 20) == b"first x"
            # the flow of a client must not stick to the address of a container that is gone
            await net.remove_sandbox(box.id)
            await net.create_sandbox(spec(2))  # takes the address of the first
            box = await net.create_sandbox(spec(3, ports=(msgspec.structs.replace(
                wish, host_port=box.ports[0].host_port),)))
            async with server(box.netns_path, "second", 53, udp=True):
                await loop.sock_sendall(client, b"y")
                assert await asyncio.wait_for(loop.sock_recv(client, 100), 20) == b"second y"


async def test_only_published_ports_are_reachable(root: str) -> None:
    with outside() as world:
        async with engine(root) as net:
            box = await net.create_sandbox(spec(1, ports=(
                PortBinding(container_port=80, host_ip="127.0.0.1", host_port=free_port()),)))
            address = box.endpoints[net.network("bridge").id].ipv4
            await inside(world, "ip", "route", "add", f"{address}/32", "via", "198.51.100.1")
            await net.create_network(NetworkSpec(name="far"))
            far = await net.create_sandbox(spec(2, "far"))
            async with server(box.netns_path, "web"):
                port = box.ports[0].host_port
                assert (await fetch_here("127.0.0.1", port)).startswith("web")
                assert await fetch(world, address, 80, 0.5) == ""
                assert await fetch(world, "198.51.100.1", port, 0.5) == ""
                assert await fetch(far.netns_path, address, 80, 0.5) == ""
            # route_localnet must not open the host's loopback to containers
            gateway = net.network("bridge").pools[0].gateway
            await inside(box.netns_path, "ip", "route", "add", "127.0.0.9/32", "via", gateway)
            with socket.create_server(("127.0.0.1", 0)) as private:
                await inside(box.netns_path, "ip", "address", "del", "127.0.0.1/8", "dev", "lo")
                await inside(box.netns_path, "ip", "route", "add", "127.0.0.1/32", "via", gateway)
                assert await fetch(box.netns_path, "127.0.0.1", private.getsockname()[1],
                                   0.5) == ""


async def test_internal_network(root: str) -> None:
    with outside() as world:
        async with engine(root) as net:
            network = await net.create_network(NetworkSpec(name="island", internal=True))
            one = await net.create_sandbox(spec(1, "island", ports=(
                PortBinding(container_port=80, host_port=free_port()),)))
            two = await net.create_sandbox(spec(2, "island"))
            assert one.ports == ()
            await inside(one.netns_path, "ip", "route", "add", "default", "via",
                         network.pools[0].gateway)
            async with server(two.netns_path, "near"), server(world, "far"):
                assert (await fetch(one.netns_path, two.endpoints[network.id].ipv4, 80)
                        ).startswith("near")
                assert await fetch(one.netns_path, "198.51.100.2", 80, 0.5) == ""


async def test_masquerade(root: str) -> None:
    with outside() as world:
        async with engine(root) as net:
            box = await net.create_sandbox(spec(1))
            await net.create_network(NetworkSpec(name="plain", options={
                "com.docker.network.bridge.enable_ip_masquerade": "false"}))
            plain = await net.create_sandbox(spec(2, "plain"))
            async with server(world, "far"):
                assert await fetch(box.netns_path, "198.51.100.2", 80) == \
                    "far ::ffff:198.51.100.1"
                assert await fetch(plain.netns_path, "198.51.100.2", 80, 0.5) == ""


async def test_no_icc(root: str) -> None:
    async with engine(root) as net:
        network = await net.create_network(NetworkSpec(name="quiet", options={
            "com.docker.network.bridge.enable_icc": "false"}))
        one = await net.create_sandbox(spec(1, "quiet"))
        port = free_port()
        two = await net.create_sandbox(spec(2, "quiet", ports=(
            PortBinding(container_port=80, host_port=port),)))
        async with server(two.netns_path, "web"):
            assert await fetch(one.netns_path, two.endpoints[network.id].ipv4, 80, 0.5) == ""
            assert (await fetch(one.netns_path, network.pools[0].gateway, port)).startswith("web")


async def test_port_conflicts_leave_nothing(root: str) -> None:
    async with engine(root) as net:
        port = free_port()
        wish = (PortBinding(container_port=81), PortBinding(container_port=80, host_port=port))
        await net.create_sandbox(spec(1, ports=wish))
        with pytest.raises(errdefs.SystemFailure,
                           match=rf"Bind for 0\.0\.0\.0:{port} failed: port is already allocated"):
            await net.create_sandbox(spec(2, ports=wish))
        other = free_port()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", other))
            sock.listen()
            with pytest.raises(errdefs.SystemFailure, match="address already in use"):
                await net.create_sandbox(spec(2, ports=(
                    wish[0], PortBinding(container_port=80, host_port=other))))
        assert net.sandbox(spec(2).id) is None
        assert len(os.listdir(f"{root}/netns")) == 1
        box = await net.create_sandbox(spec(2))
        assert box.endpoints[net.network("bridge").id].ipv4.endswith(".3")
        ranged = PortBinding(container_port=80, host_port=port, host_port_end=port + 3)
        box = await net.create_sandbox(spec(3, ports=(ranged,)))
        assert port < box.ports[0].host_port <= port + 3


async def test_exhaustion_and_static_addresses(root: str) -> None:
    async with engine(root) as net:
        network = await net.create_network(NetworkSpec(
            name="small", pools=(AddressPool(subnet="10.9.8.0/29", aux={"printer": "10.9.8.3"}),)))
        box = await net.create_sandbox(spec(1, EndpointSpec(network="small", ipv4="10.9.8.6")))
        assert box.endpoints[network.id].ipv4 == "10.9.8.6"
        with pytest.raises(errdefs.Forbidden, match="Address already in use"):
            await net.create_sandbox(spec(2, EndpointSpec(network="small", ipv4="10.9.8.6")))
        for number, last in ((2, 2), (3, 4), (4, 5)):
            box = await net.create_sandbox(spec(number, "small"))
            assert box.endpoints[network.id].ipv4 == f"10.9.8.{last}"
        with pytest.raises(errdefs.CarrelError, match="no available IPv4 addresses on this "
                           f"network's address pools: small \\({network.id}\\)"):
            await net.create_sandbox(spec(5, "small"))
        await net.remove_sandbox(spec(3).id)
        assert (await net.create_sandbox(spec(5, "small"))).endpoints[network.id].ipv4 == "10.9.8.4"


async def test_fifty_up_and_down(root: str) -> None:
    async with engine(root, pool_size=3) as net:
        for _ in range(2):
            boxes = await asyncio.gather(*(net.create_sandbox(
                spec(n, ports=(PortBinding(container_port=80),))) for n in range(50)))
            addresses = {b.endpoints[net.network("bridge").id].ipv4 for b in boxes}
            assert len(addresses) == 50
            await asyncio.gather(*(net.remove_sandbox(b.id) for b in boxes))
        assert os.listdir(f"{root}/netns") == [] and os.listdir(f"{root}/network") == []
