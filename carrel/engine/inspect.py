"""What ``GET /containers/json`` and ``/containers/{id}/json`` show.

Both read the container's record as it is now and wait for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import links, netglue, timefmt
from carrel.engine.filters import Filters
from carrel.engine.model import (
    CREATED,
    DEAD,
    EXITED,
    PAUSED,
    REMOVING,
    RESTARTING,
    RUNNING,
    Container,
    MountPoint,
)

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

FILTERS = frozenset({
    "ancestor", "before", "expose", "exited", "health", "id", "isolation", "is-task", "label",
    "name", "network", "publish", "since", "status", "volume",
})
_STATUSES = (CREATED, RESTARTING, RUNNING, REMOVING, PAUSED, EXITED, DEAD)


def state(container: Container) -> dict[str, Any]:
    s = container.state
    status = s.status
    result: dict[str, Any] = {
        "Status": status, "Running": s.running, "Paused": status == PAUSED,
        "Restarting": status == RESTARTING, "OOMKilled": s.oom_killed, "Dead": status == DEAD,
        "Pid": s.pid, "ExitCode": s.exit_code, "Error": s.error, "StartedAt": s.started_at,
        "FinishedAt": s.finished_at,
    }
    if s.health is not None:
        result["Health"] = {"Status": s.health.status, "FailingStreak": s.health.failing_streak,
                            "Log": s.health.log}
    return result


def mount(point: MountPoint) -> dict[str, Any]:
    result: dict[str, Any] = {"Type": point.type}
    if point.name:
        result["Name"] = point.name
    result.update({"Source": point.source, "Destination": point.destination})
    if point.driver:
        result["Driver"] = point.driver
    result.update({"Mode": point.mode, "RW": point.rw, "Propagation": point.propagation})
    return result


def inspect(manager: Manager, container: Container, size: tuple[int, int] | None = None
            ) -> dict[str, Any]:
    record = container.record
    folder, files = manager.folder(container), manager.files_folder(container)
    host = {k: v for k, v in record.host_config.items()
            if v is not None or k not in ("KernelMemory", "KernelMemoryTCP", "Annotations",
                                          "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs")}
    host["Links"] = links.shown(manager, container)
    result: dict[str, Any] = {
        "Id": record.id, "Created": record.created, "Path": record.path, "Args": record.args,
        "State": state(container), "Image": record.image_id,
        "ResolvConfPath": f"{files}/resolv.conf", "HostnamePath": f"{files}/hostname",
        "HostsPath": f"{files}/hosts",
        "LogPath": f"{folder}/{record.id}-json.log" if record.log_driver == "json-file" else "",
        "Name": f"/{record.name}", "RestartCount": record.restart_count,
        "Driver": manager.ctx.config.snapshotter, "Platform": record.platform, "MountLabel": "",
        "ProcessLabel": "", "AppArmorProfile": manager.confinement.shown(container),
        "ExecIDs": [e.id for e in container.execs.values()] or None,
        "HostConfig": host,
        "GraphDriver": {"Name": manager.ctx.config.snapshotter, "Data": None},
        "Mounts": [mount(p) for p in record.mounts if p.type != "tmpfs" or p.source],
        "Config": {k: v for k, v in record.config.items() if not (
            k in ("ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout",
                  "Shell", "Healthcheck", "ExposedPorts") and v is None)},
        "NetworkSettings": netglue.settings(manager, container),
    }
    if record.image_target:
        result["ImageManifestDescriptor"] = record.image_target
    if size is not None:
        result["SizeRw"], result["SizeRootFs"] = size
    return result


def status_text(container: Container) -> str:
    """``Up 5 minutes (healthy)``, ``Exited (0) 3 seconds ago``."""
    s = container.state
    now = time.time_ns()

    def since(stamp: str) -> str:
        return timefmt.human((now - timefmt.parse_rfc3339(stamp)) / 1e9)

    if s.status == PAUSED:
        return f"Up {since(s.started_at)} (Paused)"
    if s.status == RESTARTING:
        return f"Restarting ({s.exit_code}) {since(s.finished_at)} ago"
    if s.status == RUNNING:
        health = f" ({'health: starting' if s.health.status == 'starting' else s.health.status})" \
            if s.health else ""
        return f"Up {since(s.started_at)}{health}"
    if s.status == REMOVING:
        return "Removal In Progress"
    if s.status == DEAD:
        return "Dead"
    if s.started_at == timefmt.ZERO:
        return "Created"
    return f"Exited ({s.exit_code}) {since(s.finished_at)} ago"


def _ports(manager: Manager, container: Container) -> list[dict[str, Any]]:
    sandbox = manager.sandbox_of(container)
    result = []
    for text, hosts in netglue.port_map(container, sandbox).items():
        port, _, proto = text.partition("/")
        if not hosts:
            result.append({"PrivatePort": int(port), "Type": proto})
        for host in hosts or ():
            result.append({"IP": host["HostIp"], "PrivatePort": int(port),
                           "PublicPort": int(host["HostPort"]), "Type": proto})
    return result


def summary(manager: Manager, container: Container, linked: Iterable[str] = ()) -> dict[str, Any]:
    """One row of ``docker ps``; ``linked``: what links call it."""
    record = container.record
    command = " ".join([record.path, *record.args])
    sandbox = manager.sandbox_of(container)
    row: dict[str, Any] = {
        "Id": record.id, "Names": [f"/{record.name}", *linked], "Image": record.image_ref,
        "ImageID": record.image_id, "Command": command,
        "Created": timefmt.parse_rfc3339(record.created) // 1_000_000_000,
        "Ports": _ports(manager, container), "Labels": dict(container.labels),
        "State": record.state.status, "Status": status_text(container),
        "HostConfig": {"NetworkMode": record.host_config["NetworkMode"],
                       **({"Annotations": record.host_config["Annotations"]}
                          if record.host_config["Annotations"] else {})},
        "NetworkSettings": {"Networks": netglue.endpoint_views(manager, container, sandbox)},
        "Mounts": [mount(p) for p in record.mounts if p.type != "tmpfs"],
    }
    if record.image_target:
        row["ImageManifestDescriptor"] = record.image_target
    return row


def select(manager: Manager, filters: Filters, *, everything: bool, limit: int,
           ancestors: Callable[[Container], bool] | None) -> list[Container]:
    """Newest first, as ``docker ps`` shows them."""
    for status in filters.get("status"):
        if status not in _STATUSES:
            raise errdefs.InvalidParameter(f"invalid filter 'status={status[:40]}'")
    codes = _exit_codes(filters)
    bounds = _bounds(manager, filters)
    if limit > 0 or "status" in filters or "since" in filters or "before" in filters or codes:
        everything = True
    found = sorted(manager.all(), key=lambda c: c.record.created, reverse=True)
    result = []
    for container in found:
        if not everything and not container.running:
            continue
        if not _matches(manager, container, filters, codes, bounds):
            continue
        if ancestors and not ancestors(container):
            continue
        result.append(container)
        if 0 < limit <= len(result):
            break
    return result


def _exit_codes(filters: Filters) -> set[int]:
    try:
        return {int(c) for c in filters.get("exited")}
    except ValueError:
        raise errdefs.InvalidParameter(f"invalid filter 'exited={filters.get('exited')}'") from None


def _bounds(manager: Manager, filters: Filters) -> tuple[str, str]:
    since = max((manager.find(r).record.created for r in filters.get("since")), default="")
    before = min((manager.find(r).record.created for r in filters.get("before")), default="")
    return since, before


def _matches(manager: Manager, container: Container, filters: Filters, codes: set[int],
             bounds: tuple[str, str]) -> bool:
    if not filters and not codes:
        return True
    record, status = container.record, container.state.status
    since, before = bounds
    if (since and record.created <= since) or (before and record.created >= before):
        return False
    if codes and (container.running or record.state.exit_code not in codes
                  or record.state.started_at == timefmt.ZERO):
        return False
    if not filters.match("status", status) or not filters.match_labels(container.labels):
        return False
    ids = filters.get("id")
    if ids and not any(record.id.startswith(i) for i in ids):
        return False
    wanted = filters.get("name")
    if wanted and not any(_name_matches(n, record.name) for n in wanted):
        return False
    health = record.state.health.status if record.state.health else "none"
    if not filters.match("health", health):
        return False
    volumes = filters.get("volume")
    if volumes and not any(v in (p.name, p.destination, p.source)
                           for v in volumes for p in record.mounts):
        return False
    return _network_matches(manager, container, filters) and _port_matches(
        manager, container, filters)


def _name_matches(pattern: str, name: str) -> bool:
    """Docker takes a regular expression here; ours is bounded in length."""
    import re

    if len(pattern) > 256:
        return False
    try:
        return re.search(pattern.replace("^/", "^/?") if pattern.startswith("^/") else pattern,
                         name) is not None or re.search(pattern, f"/{name}") is not None
    except re.error:
        raise errdefs.InvalidParameter(f"invalid filter 'name={pattern[:80]}'") from None


def _network_matches(manager: Manager, container: Container, filters: Filters) -> bool:
    wanted = filters.get("network")
    if not wanted:
        return True
    views = netglue.endpoint_views(manager, container, None)
    names = set(views) | {v["NetworkID"] for v in views.values() if v["NetworkID"]}
    return any(w in names or any(len(w) > 3 and n.startswith(w) for n in names if len(n) == 64)
               for w in wanted)


def _port_matches(manager: Manager, container: Container, filters: Filters) -> bool:
    for name in ("publish", "expose"):
        wanted = filters.get(name)
        if not wanted:
            continue
        if name == "publish":
            have = set(container.host["PortBindings"] or ()) | {
                f"{p['PublicPort']}/{p['Type']}" for p in _ports(manager, container)
                if "PublicPort" in p}
        else:
            have = set(container.config.get("ExposedPorts") or ())
        if not any((w if "/" in w else f"{w}/tcp") in have for w in wanted):
            return False
    return True
