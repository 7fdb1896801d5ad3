"""The bridge driver: options, the Linux bridge of a network, what the rules need to know of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os

from carrel import errdefs
from carrel.kernel import libc, rtnetlink, sysctl
from carrel.network.api import Network
from carrel.network.nsthread import Kernel
from carrel.network.rules import BridgeRules

OPT = "com.docker.network.bridge."
OPT_NAME, OPT_ICC, OPT_MASQUERADE = OPT + "name", OPT + "enable_icc", OPT + "enable_ip_masquerade"
OPT_HOST_BINDING, OPT_DEFAULT = OPT + "host_binding_ipv4", OPT + "default_bridge"
OPT_MTU = "com.docker.network.driver.mtu"
_BOOLEAN = {OPT_ICC, OPT_MASQUERADE}
_KNOWN = {OPT_NAME, OPT_ICC, OPT_MASQUERADE, OPT_HOST_BINDING, OPT_DEFAULT, OPT_MTU}
#: options of the driver that are not built: refused, because ignoring one would be a lie
_NOT_BUILT = {OPT + "gateway_mode_ipv4", OPT + "gateway_mode_ipv6", OPT + "inhibit_ipv4",
              OPT + "trusted_host_interfaces", OPT + "nat_unprotected",
              "com.docker.network.container_iface_prefix", "com.docker.network.host_ipv4",
              "com.docker.network.host_ipv6"}
_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}
IFNAMSIZ = 15


def flag(options: dict[str, str], name: str, default: bool) -> bool:
    value = options.get(name, "")
    return default if value == "" else value in _TRUE


def check_options(options: dict[str, str]) -> None:
    """Refuse what is malformed or not built; options of other programs pass."""
    for name, value in options.items():
        if name in _BOOLEAN and value not in _TRUE | _FALSE | {""}:
            raise errdefs.InvalidParameter(
                f'failed to parse {name} value: "{value}" ("{value}" is not a boolean)')
        if name == OPT_MTU and not (value.isascii() and value.isdigit()
                                    and 68 <= int(value) <= 65535):
            raise errdefs.InvalidParameter(f'failed to parse {name} value: "{value}"')
        if name == OPT_NAME and not valid_ifname(value):
            raise errdefs.InvalidParameter(f"invalid bridge name {value!r}")
        if name in _NOT_BUILT or (name.startswith(OPT) and name not in _KNOWN):
            raise errdefs.NotImplementedYet(
                f"the option {name} of the bridge driver is not built yet")


def valid_ifname(name: str) -> bool:
    return (0 < len(name.encode()) <= IFNAMSIZ and name not in (".", "..")
            and not any(c in "/:\"" or c.isspace() or not c.isprintable() for c in name))


def bridge_rules(network: Network, *, ip6tables: bool = True) -> BridgeRules:
    wanted = flag(network.spec.options, OPT_MASQUERADE, True)
    subnets = [p.subnet for p in network.pools]
    return BridgeRules(
        bridge=network.bridge, internal=network.spec.internal, masquerade4=wanted,
        masquerade6=wanted and ip6tables, icc=flag(network.spec.options, OPT_ICC, True),
        subnets4=tuple(s for s in subnets if ":" not in s),
        subnets6=tuple(s for s in subnets if ":" in s))


def mac_for(address: str) -> str:
    """02:42 and the IPv4 address: whoever gets an address again has the same MAC, so no
    neighbour's cache is ever stale."""
    return "02:42:" + rtnetlink.packed(address)[1].hex(":")


def random_mac() -> str:
    raw = bytearray(os.urandom(6))
    raw[0] = (raw[0] | 2) & 0xFE
    return raw.hex(":")


def host_ifname(key: str, serial: str) -> str:
    """The name of the host's end, the same after every restart."""
    return "veth" + hashlib.sha256(f"{key}/{serial}".encode()).hexdigest()[:7]


def _gateways(network: Network) -> list[tuple[str, int]]:
    return [(p.gateway, int(p.subnet.rpartition("/")[2])) for p in network.pools if p.gateway]


def ensure(kernel: Kernel, network: Network, owner: str) -> None:
    """Make the bridge, or bring ours into shape. Runs on the namespace thread.

    ``owner`` is written into the interface's alias: a bridge with another alias is somebody
    else's, and is left alone.
    """
    name = network.bridge
    made = False
    try:
        link = rtnetlink.link(kernel.route, name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        gateways = _gateways(network)
        four = [a for a, _ in gateways if ":" not in a]
        kernel.route.request([rtnetlink.add_bridge(
            name, mac=mac_for(four[0]) if four else random_mac()),
            rtnetlink.set_link(0, ifname=name, alias=owner)])
        made = True
        link = rtnetlink.link(kernel.route, name)
    try:
        if link.kind != "bridge" or link.alias != owner:
            raise errdefs.Conflict(
                f"interface {name} exists already and belongs to somebody else",
                hint="give the engine or the network another bridge name")
        _configure(kernel, network, link)
    except BaseException:
        if made:
            remove(kernel, name, owner)
        raise


def _configure(kernel: Kernel, network: Network, link: rtnetlink.Link) -> None:
    name = network.bridge
    with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
        sysctl.change(f"net/ipv6/conf/{name}/disable_ipv6",
                      "0" if network.spec.enable_ipv6 else "1")
        # a container that plays router must not give the host a route
        sysctl.change(f"net/ipv6/conf/{name}/accept_ra", "0")
    messages = []
    if link.mtu != network.mtu:
        messages.append(rtnetlink.set_link(link.index, ifname=name, mtu=network.mtu))
    if not link.up:
        messages.append(rtnetlink.set_link(link.index, ifname=name, up=True))
    wanted = _gateways(network)
    present = {(a.address, a.prefix) for a in rtnetlink.addresses(kernel.route)
               if a.index == link.index and not a.address.startswith("fe80:")}
    messages += [rtnetlink.delete_address(link.index, a, p)
                 for a, p in sorted(present - set(wanted))]
    messages += [rtnetlink.replace_address(link.index, a, p)
                 for a, p in wanted if (a, p) not in present]
    kernel.route.request(messages)
    # packets that a published port sends from 127.0.0.1 go through the bridge; the rules' guard
    # chain keeps containers away from the host's loopback
    sysctl.change(f"net/ipv4/conf/{name}/route_localnet", "0" if network.spec.internal else "1")


def remove(kernel: Kernel, name: str, owner: str) -> None:
    """Idempotent; what is not ours stays."""
    try:
        link = rtnetlink.link(kernel.route, name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return
        raise
    if link.alias == owner:
        libc.quietly(kernel.route.request, [rtnetlink.delete_link(link.index, name)],
                     ignore=(errno.ENODEV,))
