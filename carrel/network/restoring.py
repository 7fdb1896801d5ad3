"""After a restart of the daemon: what the last one knew is read back and served again.

A sandbox's record lies beside its namespace in the exec-root, so both are gone after a reboot.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from carrel import errdefs
from carrel.kernel import netns, nftables
from carrel.kernel.plan import Operation
from carrel.network import endpoints, files, operations
from carrel.network.api import Network, Sandbox
from carrel.network.sandboxes import Live, Sandboxes, execute


def records(folder: str) -> list[Sandbox]:
    """What the last daemon wrote down. A damaged record is none: its namespace is swept."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if not name.endswith(".json"):
                continue
            with open(f"{folder}/{name}", "rb") as file:
                data = file.read()
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(data, type=Sandbox))
    return found


def elements(sandboxes: Sandboxes, sandbox: Sandbox) -> tuple[nftables.Port, ...]:
    """The map elements of a recorded sandbox, if its namespace and its networks are there."""
    places = sandbox.endpoints
    if (netns.identity(sandbox.netns_path or "/") is None
            or any(i not in sandboxes.networks for i in places)):
        return ()
    exit_point = endpoints.published_through(places.values(), sandboxes.networks_of(places))
    return sandboxes.map_elements(sandbox.ports, exit_point) if exit_point is not None else ()


async def adopt(sandboxes: Sandboxes, sandbox: Sandbox) -> bool:
    """Serve a sandbox of the last daemon again; False when it cannot be."""
    if any(i not in sandboxes.networks for i in sandbox.endpoints):
        return False
    live = Live(sandbox)
    sandboxes.host = files.host_resolver()
    if sandbox.spec.mode == "host" or sandbox.spec.mode.startswith("container:"):
        sandboxes.live[sandbox.id] = live
        return True
    path = sandbox.netns_path
    if netns.identity(path) is None:
        return False
    for endpoint in sandbox.endpoints.values():
        addresses = sandboxes.networks.addresses[endpoint.network_id]
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address:
                addresses.reserve(address)
    networks = sandboxes.networks_of(sandbox.endpoints)
    _reserve_again(sandboxes, live, networks)
    work: list[Operation] = [operations.OpenNamespace(path)]
    if endpoints.has_resolver(networks.values()):
        work.append(operations.OpenResolver(path, replace=True))
    sockets = await sandboxes.thread.run(lambda kernel: execute(kernel, path, work))
    sandboxes.serve(live, sockets)
    return True


def _reserve_again(sandboxes: Sandboxes, live: Live, networks: dict[str, Network]) -> None:
    """The same ports as before; one that somebody took meanwhile stays with the rules."""
    sandbox = live.sandbox
    exit_point = endpoints.published_through(sandbox.endpoints.values(), networks)
    if exit_point is None:
        return
    for binding in sandbox.ports:
        with contextlib.suppress(errdefs.CarrelError):
            live.reserved += sandboxes.ports.reserve(binding, (binding.host_ip,), sandbox.id,
                                                     optional_v6=False)
    live.published = sandboxes.map_elements(sandbox.ports, exit_point)
