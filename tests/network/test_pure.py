"""What needs no root: addresses, files, DNS messages, ports."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import errdefs
from carrel.network import dnswire, endpoints, files, ipam, ports, zone
from carrel.network.api import (
    AddressPool,
    Config,
    Endpoint,
    EndpointSpec,
    Network,
    NetworkSpec,
    PortBinding,
    SandboxSpec,
)

# -- addresses ----------------------------------------------------------------------------------


def test_pool_gives_the_lowest_free_address() -> None:
    pool = ipam.Pool(AddressPool(subnet="10.0.0.0/29", gateway="10.0.0.1"))
    assert [pool.allocate() for _ in range(3)] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    pool.release("10.0.0.3")
    pool.release("10.0.0.3")
    assert pool.allocate() == "10.0.0.3"
    assert [pool.allocate() for _ in range(3)] == ["10.0.0.5", "10.0.0.6", None]


def test_pool_with_a_range_and_static_addresses() -> None:
    pool = ipam.Pool(AddressPool(subnet="10.0.0.0/16", gateway="10.0.0.1",
                                 ip_range="10.0.5.0/30", aux={"x": "10.0.5.1"}))
    assert [pool.allocate() for _ in range(4)] == ["10.0.5.0", "10.0.5.2", "10.0.5.3", None]
    assert pool.take("10.0.99.1") == "10.0.99.1"
    with pytest.raises(errdefs.Forbidden, match="Address already in use"):
        pool.take("10.0.99.1")
    pool.release("10.0.99.1")
    assert pool.take("10.0.99.1")
    for never in ("10.0.0.0", "10.0.255.255", "10.0.0.1"):
        with pytest.raises(errdefs.Forbidden):
            pool.take(never)
    with pytest.raises(errdefs.InvalidParameter):
        pool.take("10.1.0.1")


def test_large_ipv6_subnet_costs_nothing() -> None:
    pool = ipam.Pool(AddressPool(subnet="fd00::/16", gateway="fd00::1"))
    assert pool.take("fd00:ffff:ffff:ffff:ffff:ffff:ffff:fffe")
    assert pool.allocate() == "fd00::2" and pool.used == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_pool_against_a_set(steps: list[tuple[bool, int]]) -> None:
    pool = ipam.Pool(AddressPool(subnet="10.0.0.0/27", gateway="10.0.0.1"))
    taken: set[str] = set()
    free = [f"10.0.0.{n}" for n in range(2, 31)]
    for allocate, number in steps:
        if allocate:
            expected = next((a for a in free if a not in taken), None)
            assert pool.allocate() == expected
            if expected:
                taken.add(expected)
        elif f"10.0.0.{number}" in taken:
            pool.release(f"10.0.0.{number}")
            taken.remove(f"10.0.0.{number}")


def test_subnets_avoid_what_is_taken() -> None:
    taken = [ipam.parse_network("10.0.0.0/23"), ipam.parse_network("10.0.3.128/25")]
    assert str(ipam.choose_subnet([("10.0.0.0/22", 24)], taken)) == "10.0.2.0/24"
    with pytest.raises(errdefs.InvalidParameter, match="fully subnetted"):
        ipam.choose_subnet([("10.0.0.0/24", 24)], taken)


# -- endpoints ----------------------------------------------------------------------------------


def network(name: str, **options: Any) -> Network:
    return Network(id=name * 8, created="", spec=NetworkSpec(name=name, **options), bridge="b",
                   pools=(AddressPool(subnet="10.0.0.0/24"),), user_subnets=True)


def endpoint(on: Network, priority: int = 0, **fields: Any) -> Endpoint:
    return Endpoint(id=f"e-{on.name}", network_id=on.id, network_name=on.name,
                    spec=EndpointSpec(network=on.name, gateway_priority=priority), ifname="eth0",
                    host_ifname="veth0", mac="02:00:00:00:00:01", **fields)


def test_default_route_goes_where_docker_puts_it() -> None:
    nets = {n.id: n for n in (network("b"), network("a"), network("i", internal=True))}
    b, a, i = (endpoint(nets[x * 8], ipv4="10.0.0.2", gateway4="" if x == "i" else f"gw-{x}")
               for x in "bai")
    assert endpoints.gateways([b, i, a], nets) == {"e-a": ("gw-a",)}
    important = endpoint(nets["b" * 8], 7, ipv4="10.0.0.2", gateway4="gw-b")
    assert endpoints.gateways([a, important], nets) == {"e-b": ("gw-b",)}
    six = endpoint(nets["b" * 8], ipv6="fd00::2", gateway6="gw6")
    assert endpoints.gateways([a, six], nets) == {"e-a": ("gw-a",), "e-b": ("gw6",)}
    assert endpoints.published_through([i], nets) is None


@pytest.mark.parametrize(("spec", "text"), [
    (EndpointSpec(network="bridge", ipv4="10.0.0.9"),
     "invalid config for network bridge: invalid endpoint settings:\n"
     "user specified IP address is supported on user defined networks only"),
    (EndpointSpec(network="mine", ipv4="10.9.0.9"),
     "no configured subnet contains IP address 10.9.0.9"),
    (EndpointSpec(network="mine", mac="01:00:00:00:00:01"), "not a unicast MAC address"),
    (EndpointSpec(network="mine", mac="zz"), "invalid MAC address"),
])
def test_bad_endpoints(spec: EndpointSpec, text: str) -> None:
    with pytest.raises(errdefs.InvalidParameter) as caught:
        endpoints.check(network(spec.network), spec)
    assert text in str(caught.value)


# -- files --------------------------------------------------------------------------------------

HOST = files.Resolver(("127.0.0.1", "192.0.2.53", "::1"), ("example.org",), ("timeout:1",))


def test_resolv_conf_of_the_default_bridge() -> None:
    spec = SandboxSpec(id="c" * 64)
    assert files.resolv_conf(spec, Config(), HOST, embedded=False) == (
        "nameserver 192.0.2.53\nsearch example.org\noptions timeout:1\n")
    only_loopback = files.Resolver(("127.0.0.53",))
    assert files.resolv_conf(spec, Config(), only_loopback, embedded=False) == (
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\n")
    spec = SandboxSpec(id="c" * 64, dns=("127.0.0.9",), dns_search=(".",), dns_options=("x",))
    assert files.resolv_conf(spec, Config(), HOST, embedded=False) == (
        "nameserver 127.0.0.9\noptions x\n")


def test_resolv_conf_with_the_embedded_resolver() -> None:
    text = files.resolv_conf(SandboxSpec(id="c" * 64), Config(), HOST, embedded=True)
    assert "nameserver 127.0.0.11\nsearch example.org\noptions timeout:1 ndots:0\n" in text
    spec = SandboxSpec(id="c" * 64, dns_options=("ndots:2",))
    assert "options ndots:2\n" in files.resolv_conf(spec, Config(), HOST, embedded=True)


def test_hosts() -> None:
    spec = SandboxSpec(id="0123456789abcdef", hostname="h", domainname="d.org",
                       extra_hosts=("up:host-gateway", "six=[fd00::9]", "v:fd00::8"))
    text = files.hosts(spec, [endpoint(network("a"), ipv4="10.0.0.2", ipv6="fd00::2")],
                       ("172.30.0.1",))
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("172.30.0.1\tup\nfd00::9\tsix\nfd00::8\tv\n"
                         "10.0.0.2\th.d.org h\nfd00::2\th.d.org h\n")
    for bad in ("nocolon", "x:", ":1.2.3.4", "x:1.2.3", "x:1.2.3.4\n5.6.7.8 y"):
        with pytest.raises(errdefs.InvalidParameter):
            files.parse_extra_host(bad)


def test_parse_resolv_conf() -> None:
    found = files.parse_resolv_conf(
        "# c\nnameserver 192.0.2.1 ; x\nnameserver fe80::1%eth0\nnameserver nonsense\n"
        "domain a.org\nsearch b.org c.org\noptions ndots:1 rotate\nnameserver\n")
    assert found == files.Resolver(("192.0.2.1", "fe80::1%eth0"), ("b.org", "c.org"),
                                   ("ndots:1", "rotate"))


# -- DNS ----------------------------------------------------------------------------------------


def query(name: str, kind: int = dnswire.A, *, edns: int = 0) -> bytes:
    data = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 1 if edns else 0)
    data += dnswire.pack_name(name) + struct.pack(">HH", kind, 1)
    return data + (struct.pack(">BHHIH", 0, 41, edns, 0, 0) if edns else b"")


def test_answers() -> None:
    question = dnswire.Question(query("Web.Front"))
    assert (question.name, question.kind, question.size, question.edns) == (
        "Web.Front", 1, 512, False)
    reply = dnswire.answer(question, [dnswire.address_record("10.0.0.2")])
    assert reply[:2] == b"\0\7" and reply[2] & 0x80 and reply.endswith(b"\0\4\x0a\0\0\2")
    assert reply[12:12 + len(question.raw)] == question.raw
    many = [dnswire.address_record(f"10.0.0.{n}") for n in range(60)]
    short = dnswire.answer(question, many, limit=question.size)
    assert len(short) <= 512 and short[2] & 2 and short[6:8] == b"\0\0"
    wide = dnswire.Question(query("web", edns=4096))
    assert wide.edns and wide.size == 4096
    reply = dnswire.answer(wide, many, limit=wide.size)
    assert reply[6:8] == b"\0\x3c" and reply[10:12] == b"\0\1"
    assert dnswire.answer(question, code=dnswire.NXDOMAIN)[3] & 15 == 3


@given(st.binary(max_size=80))
def test_nonsense_is_refused(data: bytes) -> None:
    try:
        dnswire.Question(data)
    except dnswire.Malformed:
        pass


@given(st.integers(0, 60), st.integers(0, 255))
def test_damaged_questions(position: int, value: int) -> None:
    data = bytearray(query("a-name.of.some.length.example.org", edns=1232))
    data[position] = value
    try:
        dnswire.answer(dnswire.Question(bytes(data)))
    except dnswire.Malformed:
        pass


def test_only_matching_answers_are_believed() -> None:
    question = dnswire.Question(query("example.org"))
    good = dnswire.with_id(dnswire.answer(question), 99)
    assert dnswire.is_answer_to(good, 99, question)
    assert not dnswire.is_answer_to(good, 98, question)
    other = dnswire.with_id(dnswire.answer(dnswire.Question(query("example.com"))), 99)
    assert not dnswire.is_answer_to(other, 99, question)
    assert not dnswire.is_answer_to(query("example.org"), 7, question)


def test_pointer_names() -> None:
    assert zone.address_of_pointer("2.0.0.10.IN-ADDR.ARPA.") == "10.0.0.2"
    six = ".".join("2" + "0" * 27 + "00df") + ".ip6.arpa"
    assert zone.address_of_pointer(six) == "fd00::2"
    for other in ("x.in-addr.arpa", "0.10.in-addr.arpa", "example.org", ""):
        assert zone.address_of_pointer(other) == ""


# -- ports --------------------------------------------------------------------------------------


def test_port_table() -> None:
    table = ports.PortTable()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    wish = PortBinding(container_port=80, host_port=number)
    first = table.reserve(wish, ("127.0.0.1",), "a", optional_v6=False)
    with pytest.raises(errdefs.SystemFailure, match=f"Bind for 0.0.0.0:{number} failed: port is "
                       "already allocated"):
        table.reserve(wish, ("0.0.0.0",), "b", optional_v6=False)
    # another address of the host, and another protocol, are other ports
    more = table.reserve(wish, ("127.0.0.2",), "b", optional_v6=False)
    udp = PortBinding(container_port=80, host_port=number, proto="udp")
    more += table.reserve(udp, ("0.0.0.0",), "b", optional_v6=False)
    table.release(first)
    table.release(first)
    again = table.reserve(wish, ("127.0.0.1",), "c", optional_v6=False)
    table.release(again + more)
    with pytest.raises(errdefs.NotImplementedYet, match="sctp"):
        table.reserve(PortBinding(container_port=1, proto="sctp"), ("0.0.0.0",), "a",
                      optional_v6=False)


def test_ports_are_all_or_none() -> None:
    table = ports.PortTable()
    with socket.create_server(("127.0.0.2", 0)) as other:
        number = other.getsockname()[1]
        wish = PortBinding(container_port=80, host_port=number)
        with pytest.raises(errdefs.SystemFailure, match="address already in use"):
            table.reserve(wish, ("127.0.0.1", "127.0.0.2"), "a", optional_v6=False)
        done = table.reserve(wish, ("127.0.0.1",), "a", optional_v6=False)
        table.release(done)
