"""What is done to the kernel for a sandbox, as operations with an undo (``carrel.kernel.plan``).

They run on the namespace thread; ``kernel`` is :class:`carrel.network.nsthread.Kernel`.  The
controller plans them from addresses that it has already allocated, so planning asks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import msgspec

from carrel.kernel import libc, netlink, netns, nftables, rtnetlink, sysctl
from carrel.kernel.plan import Operation
from carrel.network.files import EMBEDDED
from carrel.network.nsthread import Inside, Kernel
from carrel.network.pool import Ready

STEP = "4 network"
DNS_TABLE = "carrel_dns"


def open_inside(kernel: Kernel, fd: int) -> Inside:
    """Take over ``fd`` together with a socket opened in its namespace."""
    try:
        with kernel.entered(fd):
            return Inside(fd, netlink.Socket())
    except BaseException:
        os.close(fd)
        raise


def _close(kernel: Kernel, path: str) -> None:
    inside = kernel.inside.pop(path, None)
    if inside is not None:
        inside.close()


class MakeNamespace(Operation):
    """A new network namespace with its loopback up, kept at ``path``."""

    __slots__ = ("path", "ready")
    step = STEP

    def __init__(self, path: str, ready: Ready | None = None) -> None:
        """``ready``: one from the pool, if there was one."""
        self.path = path
        self.ready = ready

    def describe(self) -> str:
        return f"make a network namespace and keep it at {self.path}"

    def execute(self, kernel: Kernel) -> None:
        inside = self.ready.inside if self.ready is not None else new_namespace(kernel)
        try:
            netns.bind(inside.fd, self.path)
        except BaseException:
            inside.close()
            raise
        kernel.inside[self.path] = inside

    def undo(self, kernel: Kernel) -> None:
        _close(kernel, self.path)
        netns.unbind(self.path)

    def shell(self) -> str:
        name = os.path.basename(self.path)
        return f"ip netns add {name} && ip -n {name} link set lo up"


def new_namespace(kernel: Kernel) -> Inside:
    """A namespace that only its descriptor keeps alive."""
    fd = netns.create()
    try:
        route = netlink.Socket()
        try:
            route.request([rtnetlink.set_link(1, ifname="lo", up=True)])
        except BaseException:
            route.close()
            raise
    except BaseException:
        kernel.go_home()
        os.close(fd)
        raise
    kernel.go_home()
    return Inside(fd, route)


class OpenNamespace(Operation):
    """Open a namespace that is there already."""

    __slots__ = ("path",)
    step = STEP

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"open the network namespace {self.path}"

    def execute(self, kernel: Kernel) -> None:
        if netns.identity(self.path) is None:
            raise FileNotFoundError(errno.ENOENT, "the network namespace is gone", self.path)
        kernel.inside[self.path] = open_inside(kernel, netns.open_path(self.path))

    def undo(self, kernel: Kernel) -> None:
        _close(kernel, self.path)


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as the kernel sees it."""

    ifname: str
    host_ifname: str
    bridge: str
    mac: str
    mtu: int = 0
    #: (address, prefix length), at most one of each family
    addresses: tuple[tuple[str, int], ...] = ()
    #: of the default routes through this interface
    gateways: tuple[str, ...] = ()
    isolated: bool = False
    ipv6: bool = False


class AddInterface(Operation):
    """A veth pair between a bridge and a namespace, with addresses and routes."""

    __slots__ = ("interface", "path", "pooled")
    step = STEP

    def __init__(self, path: str, interface: Interface, *, pooled: int = 0) -> None:
        """``pooled``: the index of the interface that came with the namespace, up already."""
        self.path = path
        self.interface = interface
        self.pooled = pooled

    def describe(self) -> str:
        i = self.interface
        where = ", ".join(f"{a}/{p}" for a, p in i.addresses)
        return f"connect {i.ifname} ({where}) to {i.bridge} by {i.host_ifname}"

    def execute(self, kernel: Kernel) -> None:
        inside = kernel.inside[self.path]
        i = self.interface
        if not self.pooled:
            make_pair(kernel, inside, i)
        try:
            self._configure(inside)
        except BaseException:
            self.undo(kernel)
            raise

    def _configure(self, inside: Inside) -> None:
        i = self.interface
        index = self.pooled or rtnetlink.link(inside.route, i.ifname).index
        messages = []
        if self.pooled:
            messages.append(rtnetlink.set_link(index, ifname=i.ifname, mac=i.mac))
        messages += [rtnetlink.add_address(index, a, p) for a, p in i.addresses]
        if not self.pooled:
            messages.append(rtnetlink.set_link(index, ifname=i.ifname, up=True))
        messages += [rtnetlink.add_route(g, index=index) for g in i.gateways]
        inside.route.request(messages)

    def undo(self, kernel: Kernel) -> None:
        with contextlib.suppress(OSError):
            kernel.route.request([rtnetlink.delete_link(ifname=self.interface.host_ifname)])

    def shell(self) -> str:
        i, name = self.interface, os.path.basename(self.path)
        lines = [f"ip link add {i.host_ifname} master {i.bridge} up type veth "
                 f"peer name {i.ifname} address {i.mac} netns {name}"]
        lines += [f"ip -n {name} address add {a}/{p} dev {i.ifname}" for a, p in i.addresses]
        lines.append(f"ip -n {name} link set {i.ifname} up")
        lines += [f"ip -n {name} route add default via {g}" for g in i.gateways]
        return "\n".join(lines)


def make_pair(kernel: Kernel, inside: Inside, i: Interface) -> None:
    """The pair: the host's end on the bridge and up, the other born in the namespace."""
    try:
        _request_pair(kernel, inside, i, kernel.index(i.bridge))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        # the bridge was deleted and made anew by hand: its index is another one
        _request_pair(kernel, inside, i, kernel.index(i.bridge, fresh=True))
    try:
        # With br_netfilter the rules see bridged packets: they do the isolation, and a
        # container's way to its own published port never leaves the bridge.
        isolated, hairpin = i.isolated and not kernel.bridge_filter, kernel.bridge_filter
        if isolated or hairpin:
            port = rtnetlink.link(kernel.route, i.host_ifname).index
            kernel.route.request([rtnetlink.set_port(port, i.host_ifname, isolated=isolated,
                                                     hairpin=hairpin)])
        if not i.ipv6:
            with kernel.entered(inside.fd), contextlib.suppress(FileNotFoundError):
                sysctl.write(f"net/ipv6/conf/{i.ifname}/disable_ipv6", "1")
    except BaseException:
        with contextlib.suppress(OSError):
            kernel.route.request([rtnetlink.delete_link(ifname=i.host_ifname)])
        raise


def _request_pair(kernel: Kernel, inside: Inside, i: Interface, master: int) -> None:
    try:
        kernel.route.request([
            rtnetlink.add_veth(i.host_ifname, i.ifname, inside.fd, peer_mac=i.mac, mtu=i.mtu,
                               master=master, up=False),
            # a port of a bridge needs no link-local address, nor the work of announcing one
            rtnetlink.set_link(0, ifname=i.host_ifname, up=True, v6_link_local=False)])
    except OSError as error:
        if error.errno != errno.EEXIST:  # what has that name is not ours
            with contextlib.suppress(OSError):
                kernel.route.request([rtnetlink.delete_link(ifname=i.host_ifname)])
        raise


class RemoveInterface(Operation):
    """Take an interface out of a running sandbox (the one place where a veth is deleted)."""

    __slots__ = ("host_ifname",)
    step = STEP

    def __init__(self, host_ifname: str) -> None:
        self.host_ifname = host_ifname

    def describe(self) -> str:
        return f"delete {self.host_ifname}"

    def execute(self, kernel: Kernel) -> None:
        libc.quietly(kernel.route.request, [rtnetlink.delete_link(ifname=self.host_ifname)],
                     ignore=(errno.ENODEV,))


def silence(kernel: Kernel, host_ifname: str) -> None:
    """Cut a sandbox off whose namespace may outlive it: sockets that wait for a lost peer's
    acknowledgement keep a namespace alive for minutes, and its address is given anew at once."""
    try:
        index = rtnetlink.link(kernel.route, host_ifname).index
        kernel.route.request([rtnetlink.silence_port(index, host_ifname)])
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENETDOWN):
            raise


def delete_lingering(kernel: Kernel, names: set[str]) -> None:
    """Delete those of the links that are still there. Slow (10 to 30 ms each): never on the path
    of a start."""
    for link in rtnetlink.links(kernel.route) if names else ():
        if link.name in names:
            RemoveInterface(link.name).execute(kernel)


class DefaultRoute(Operation):
    """Point the default routes at another interface."""

    __slots__ = ("gateways", "ifname", "path", "previous")
    step = STEP

    def __init__(self, path: str, ifname: str, gateways: tuple[str, ...],
                 previous: tuple[str, tuple[str, ...]] | None) -> None:
        """``previous``: (interface, gateways) to go back to on undo."""
        self.path = path
        self.ifname = ifname
        self.gateways = gateways
        self.previous = previous

    def describe(self) -> str:
        return f"route by default via {', '.join(self.gateways)} ({self.ifname})"

    def execute(self, kernel: Kernel) -> None:
        _set_default(kernel.inside[self.path], self.ifname, self.gateways)

    def undo(self, kernel: Kernel) -> None:
        inside = kernel.inside.get(self.path)
        if inside is not None and self.previous is not None:
            _set_default(inside, *self.previous)


def _set_default(inside: Inside, ifname: str, gateways: tuple[str, ...]) -> None:
    index = rtnetlink.link(inside.route, ifname).index
    families = {rtnetlink.packed(g)[0] for g in gateways}
    old = [r for r in rtnetlink.routes(inside.route)
           if not r.destination and r.gateway and r.table == rtnetlink.RT_TABLE_MAIN
           and (r.family in families or r.index != index)]
    messages = [rtnetlink.delete_route(r.gateway, index=r.index) for r in old]
    messages += [rtnetlink.add_route(g, index=index) for g in gateways]
    inside.route.request(messages)


class Publish(Operation):
    """Elements of the port maps, in one transaction."""

    __slots__ = ("ports", "table")
    step = STEP

    def __init__(self, table: str, ports: tuple[nftables.Port, ...]) -> None:
        self.table = table
        self.ports = ports

    def describe(self) -> str:
        return "publish " + ", ".join(p.text for p in self.ports)

    def execute(self, kernel: Kernel) -> None:
        elements = [nftables.add_port(self.table, p) for p in self.ports]
        try:
            nftables.transaction(kernel.nft, elements)
        except FileNotFoundError:
            if kernel.restore_rules is None:
                raise
            kernel.restore_rules(kernel)  # somebody flushed the ruleset: put our table back
            nftables.transaction(kernel.nft, elements)
        kernel.published.update(((p.map, p.key), p) for p in self.ports)

    def undo(self, kernel: Kernel) -> None:
        unpublish(kernel, self.table, self.ports)

    def shell(self) -> str:
        return "\n".join(f"nft add element inet {self.table} {p.map} '{p.text}'"
                         for p in self.ports)


def unpublish(kernel: Kernel, table: str, ports: tuple[nftables.Port, ...]) -> None:
    """Delete elements; those that somebody else deleted (a flush) do not matter."""
    if not ports:
        return
    for port in ports:
        kernel.published.pop((port.map, port.key), None)
    try:
        nftables.transaction(kernel.nft, [nftables.delete_port(table, p) for p in ports])
    except FileNotFoundError:
        for port in ports:
            libc.quietly(nftables.transaction, kernel.nft, [nftables.delete_port(table, port)],
                         ignore=(errno.ENOENT,))


class OpenResolver(Operation):
    """The embedded resolver's sockets in a namespace, and the redirection of port 53 to them.

    They are on other ports, because a container may well bind port 53 itself.
    """

    __slots__ = ("path", "replace")
    step = STEP

    def __init__(self, path: str, *, replace: bool = False) -> None:
        self.path = path
        self.replace = replace

    def describe(self) -> str:
        return f"open the resolver's sockets ({EMBEDDED}:53) in {self.path}"

    def execute(self, kernel: Kernel) -> None:
        inside = kernel.inside[self.path]
        with kernel.entered(inside.fd):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            inside.resolver = (udp, tcp)
            udp.bind((EMBEDDED, 0))
            tcp.bind((EMBEDDED, 0))
            tcp.listen(64)
            with nftables.open_socket() as rules:
                nftables.transaction(rules, nftables.redirect_output(
                    DNS_TABLE, EMBEDDED, 53,
                    {"udp": udp.getsockname()[1], "tcp": tcp.getsockname()[1]},
                    replace=self.replace))

    def undo(self, kernel: Kernel) -> None:
        inside = kernel.inside.get(self.path)
        for sock in (inside.take_resolver() if inside is not None else None) or ():
            sock.close()


class WriteRecord(Operation):
    """The sandbox as JSON, beside the namespaces: it is gone after a reboot as they are."""

    __slots__ = ("data", "path")
    step = STEP

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.data = data

    def describe(self) -> str:
        return f"write {self.path}"

    def execute(self, kernel: Kernel) -> None:
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        temporary = self.path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, self.data)
        finally:
            os.close(fd)
        os.rename(temporary, self.path)

    def undo(self, kernel: Kernel) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
