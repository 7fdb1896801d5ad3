"""The boundary between the engine and the network layer, as types.

    controller = Controller(exec_root, store, Config(...))       carrel.network.controller
    await controller.start()                 sweeps orphans, makes bridges, loads the rules
    await controller.restore({"<container id>", ...})   which sandboxes are still alive
    network = await controller.create_network(NetworkSpec(name="front"))
    sandbox = await controller.create_sandbox(SandboxSpec(
        id=container_id, name="web", endpoints=(EndpointSpec(network="front"),),
        ports=(PortBinding(container_port=80, host_port=8080),)))
    sandbox.netns_path       into the OCI spec ("" means: the host's network namespace)
    sandbox.hosts, sandbox.resolv_conf       texts of the two files, to be written by the engine
    await controller.remove_sandbox(container_id)

Every method either does all of its work or leaves nothing behind.  Errors are
``carrel.errdefs`` errors with Docker's wording; a kernel error is an OSError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec


class AddressPool(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network, as asked for or as allocated."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    #: name -> address that is never given to a container
    aux: dict[str, str] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks for when creating a network."""

    name: str
    driver: str = "bridge"
    scope: str = "local"
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: str = ""
    ipam_driver: str = "default"
    #: None: the client said nothing, which is shown as it was said
    ipam_options: dict[str, str] | None = None
    pools: tuple[AddressPool, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network that exists. ``pools`` are complete: subnet and gateway are filled in."""

    id: str
    created: str
    spec: NetworkSpec
    pools: tuple[AddressPool, ...] = ()
    #: the Linux bridge, "" for host and none
    bridge: str = ""
    mtu: int = 1500
    #: subnets were given by the user (a static address may be asked for)
    user_subnets: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def driver(self) -> str:
        return self.spec.driver


class PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A published port. ``host_port`` 0 = any free one; with ``host_port_end`` one of a range."""

    container_port: int
    proto: str = "tcp"
    #: "" = every address, IPv4 and IPv6
    host_ip: str = ""
    host_port: int = 0
    host_port_end: int = 0


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A container's wish for its place on one network (NetworkingConfig.EndpointsConfig)."""

    #: name or id
    network: str
    aliases: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()
    mac: str = ""
    driver_opts: dict[str, str] = {}
    gateway_priority: int = 0
    #: legacy links, "container:alias" or "container"
    links: tuple[str, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on one network, as it was made."""

    id: str
    network_id: str
    network_name: str
    spec: EndpointSpec
    ifname: str
    host_ifname: str
    mac: str
    ipv4: str = ""
    prefix4: int = 0
    gateway4: str = ""
    ipv6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    #: every name that resolves to this endpoint on its network
    dns_names: tuple[str, ...] = ()


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The network side of one container that is about to start."""

    #: the container's id
    id: str
    #: the container's name, without the slash
    name: str = ""
    hostname: str = ""
    domainname: str = ""
    #: of the sandbox, 64 hex digits; made up when empty
    key: str = ""
    #: "" (own namespace), "host", "none" or "container:<id of a container with a sandbox>"
    mode: str = ""
    #: one for each network; the first is the one of --network
    endpoints: tuple[EndpointSpec, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    #: "name:address" or "name=address"; the address may be host-gateway
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace with everything in it. A new value after each change."""

    id: str
    spec: SandboxSpec
    #: the file below <exec-root>/netns; NetworkSettings.SandboxID. "" for host
    key: str = ""
    #: "" = the host's network namespace
    netns_path: str = ""
    #: network id -> endpoint, in the order in which they were connected
    endpoints: dict[str, Endpoint] = {}
    #: the published ports as they are: one for each host address family
    ports: tuple[PortBinding, ...] = ()
    hosts: str = ""
    resolv_conf: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Daemon options of the network layer."""

    #: address and prefix of the default bridge ("172.30.0.1/16"); "" = the first free pool
    bip: str = ""
    #: the part of the default bridge's subnet from which containers get addresses
    fixed_cidr: str = ""
    #: default gateway of containers on the default bridge, when it is not the bridge
    default_gateway: str = ""
    #: ("172.30.0.0/15", 16): ranges from which networks take subnets of that size
    address_pools: tuple[tuple[str, int], ...] = ()
    #: "" = carrel0 (another name for an engine with another exec-root)
    bridge: str = ""
    mtu: int = 1500
    icc: bool = True
    ip_masq: bool = True
    #: False: no rules at all; published ports go through the relay (--iptables, --ip6tables)
    iptables: bool = True
    ip6tables: bool = True
    ip_forward: bool = True
    #: host address for published ports that name none
    default_host_ip: str = ""
    #: [::] of published ports of containers without IPv6 (and what escapes the rules)
    userland_proxy: bool = True
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    host_gateway_ips: tuple[str, ...] = ()
    live_restore: bool = False
    #: how many namespaces wait ready for the default bridge; 0 = none
    pool_size: int = 3


class Store(Protocol):
    """Where networks are kept; ``carrel.engine.store.Store`` is one."""

    def all(self, kind: str) -> list[tuple[str, dict[str, Any]]]: ...
    def put(self, kind: str, ident: str, doc: Any) -> None: ...
    def delete(self, kind: str, ident: str) -> bool: ...


class Controller(Protocol):
    """What the engine calls. Made by :func:`carrel.network.controller.Controller`."""

    #: clear sentences for ``docker info`` (a foreign firewall that drops our packets, ...)
    warnings: list[str]

    async def start(self) -> None:
        """Sweep what a dead daemon left half-made, make the default bridge, load the rules."""

    async def stop(self) -> None:
        """Stop serving. Takes everything off unless sandboxes still live (--live-restore)."""

    async def restore(self, alive: Iterable[str]) -> dict[str, Sandbox]:
        """After a daemon restart: adopt the sandboxes of these containers, remove all others."""

    async def reload(self) -> None:
        """Put rules, addresses and bridges back as they should be (SIGHUP, foreign flush)."""

    async def create_network(self, spec: NetworkSpec) -> Network: ...

    async def remove_network(self, reference: str) -> Network: ...

    def networks(self) -> list[Network]: ...

    def network(self, reference: str) -> Network:
        """By full id, name or unambiguous id prefix; NotFound in Docker's words."""

    def on_network(self, network_id: str) -> list[tuple[Sandbox, Endpoint]]:
        """The sandboxes that are on a network now, with their places there."""

    def namespace_path(self, key: str) -> str:
        """Where the namespace of a sandbox with that key will be bound."""

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox: ...

    async def connect(self, sandbox_id: str, network: str, spec: EndpointSpec) -> Endpoint: ...

    async def disconnect(self, sandbox_id: str, network: str) -> None: ...

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Idempotent. Addresses, names and ports are free again when this returns."""

    def rename(self, sandbox_id: str, name: str) -> None:
        """The container has another name now: the resolver answers to the new one."""

    def unlink(self, sandbox_id: str, alias: str) -> None:
        """It knows the container of that legacy link no longer: ``Sandbox.hosts`` is anew."""

    def sandbox(self, sandbox_id: str) -> Sandbox | None: ...

    def sandboxes(self) -> list[Sandbox]: ...

    def check_endpoint(self, spec: EndpointSpec, *, mode: str) -> None:
        """Refuse at container creation what could never be connected."""
