"""Legacy links (``--link db:alias`` on the default bridge): who is linked, and the
variables that tell a container of its links. Names in /etc/hosts are the network layer's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import texts, validate

if TYPE_CHECKING:
    from carrel.engine.manager import Manager
    from carrel.engine.model import Container

DEFAULT_NETWORK = "bridge"
#: of the other container's environment, what means nothing to this one
_PRIVATE = ("HOME", "PATH")


def split(text: str) -> tuple[str, str]:
    """``container:alias`` or ``container``; leading slashes are old notation."""
    target, colon, alias = text.partition(":")
    target = target.lstrip("/")
    alias = alias.rsplit("/", 1)[-1] if colon else target
    if not target or not alias or any(c.isspace() or not c.isprintable() for c in text):
        raise errdefs.InvalidParameter(f"bad format for links: {text[:80]}")
    return target, alias


def check(manager: Manager, host: dict[str, Any]) -> None:
    """At create: every linked container exists, and can be linked to. On the default
    bridge the link is to the container, whatever it is called later."""
    links = []
    for text in host["Links"] or ():
        target, alias = split(text)
        try:
            other = manager.find(target)
        except errdefs.NotFound:
            raise errdefs.InvalidParameter(f"could not get container for {target[:80]}") from None
        if other.host["NetworkMode"] == "host":
            raise errdefs.InvalidParameter(
                "conflicting options: host type networking can't be used with links. This would "
                "result in undefined behavior")
        links.append(f"{other.id}:{alias}" if host["NetworkMode"] == DEFAULT_NETWORK else text)
    if links:
        host["Links"] = links


def shown(manager: Manager, container: Container) -> list[str] | None:
    """As inspect has them: ``/db:/web/alias``."""
    links: list[str] | None = container.host["Links"]
    if not links or container.host["NetworkMode"] != DEFAULT_NETWORK:
        return links
    result = []
    for text in links:
        target, alias = split(text)
        other = manager.get(target)
        result.append(f"/{other.name if other else target}:/{container.name}/{alias}")
    return result


def names(manager: Manager) -> dict[str, list[str]]:
    """The names by which links know containers, by the container's ID: ``/web/alias``."""
    result: dict[str, list[str]] = {}
    for one in manager.all():
        if one.host["Links"] and one.host["NetworkMode"] == DEFAULT_NETWORK:
            for text in one.host["Links"]:
                target, alias = split(text)
                result.setdefault(target, []).append(f"/{one.name}/{alias}")
    return result


async def remove(manager: Manager, name: str) -> None:
    """``rm --link web/alias``: web knows that name no longer, the containers stay."""
    owner, slash, alias = name.strip("/").rpartition("/")
    if not slash:
        raise errdefs.Conflict("Conflict, cannot remove the default link name of the container")
    container = manager.find(owner)
    async with container.lock:
        links = list(container.host["Links"] or ())
        kept = [text for text in links if split(text)[1] != alias]
        if len(kept) == len(links) or container.host["NetworkMode"] != DEFAULT_NETWORK:
            raise errdefs.NotFound(texts.no_such_container(name[:300]))
        container.host["Links"] = kept or None
        manager.save(container)
        if container.alive:
            manager.ctx.network.unlink(container.id, alias)
            manager.refresh_files(container)


def environment(manager: Manager, container: Container) -> list[str]:
    """At start: the variables of all links; the linked containers must run."""
    result: list[str] = []
    if container.host["NetworkMode"] != DEFAULT_NETWORK:
        return result  # on other networks a link is a name and nothing else
    for text in container.host["Links"] or ():
        target, alias = split(text)
        other = manager.find(target)
        if not other.alive:
            raise errdefs.Conflict(
                f"Cannot link to a non running container: /{other.name} AS "
                f"/{container.name}/{alias}")
        sandbox = manager.sandbox_of(other)
        place = next((e for e in sandbox.endpoints.values()
                      if e.network_name == DEFAULT_NETWORK), None) if sandbox else None
        if place is None:
            raise errdefs.Conflict(
                f"container {other.id} not attached to default bridge network")
        result += _variables(f"/{container.name}/{alias}", alias, place.ipv4, other)
    return result


def _variables(name: str, alias: str, address: str, other: Container) -> list[str]:
    prefix = alias.upper().replace("-", "_")
    ports = sorted((validate.parse_port(p) for p in other.config.get("ExposedPorts") or ()),
                   key=lambda p: (p[1] != "tcp", p[1], p[0]))
    result = []
    if ports:
        number, protocol = ports[0]
        result.append(f"{prefix}_PORT={protocol}://{address}:{number}")
    for number, protocol in ports:
        port = f"{prefix}_PORT_{number}_{protocol.upper()}"
        result += [f"{port}={protocol}://{address}:{number}", f"{port}_ADDR={address}",
                   f"{port}_PORT={number}", f"{port}_PROTO={protocol}"]
    for first, last, protocol in _ranges(ports):
        port = f"{prefix}_PORT_{first}_{protocol.upper()}"
        result += [f"{port}_START={protocol}://{address}:{first}", f"{port}_PORT_START={first}",
                   f"{port}_END={protocol}://{address}:{last}", f"{port}_PORT_END={last}"]
    result.append(f"{prefix}_NAME={name}")
    for entry in other.config.get("Env") or ():
        variable, equals, value = entry.partition("=")
        if equals and variable not in _PRIVATE:
            result.append(f"{prefix}_ENV_{variable}={value}")
    return result


def _ranges(ports: Iterable[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Runs of consecutive ports of one protocol."""
    runs: list[tuple[int, int, str]] = []
    for number, protocol in ports:
        if runs and runs[-1][1] + 1 == number and runs[-1][2] == protocol:
            runs[-1] = (runs[-1][0], number, protocol)
        else:
            runs.append((number, number, protocol))
    return [run for run in runs if run[0] != run[1]]
