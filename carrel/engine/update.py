"""``docker update``: limits and restart policy of a container that exists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import refused, schema, validate
from carrel.engine.model import Container
from carrel.engine.spec import linux

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_FIELDS = ("CpuShares", "Memory", "CgroupParent", "BlkioWeight", "BlkioWeightDevice",
           "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps",
           "BlkioDeviceWriteIOps", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod",
           "CpuRealtimeRuntime", "CpusetCpus", "CpusetMems", "MemoryReservation", "MemorySwap",
           "NanoCpus", "PidsLimit", "RestartPolicy")


async def update(manager: Manager, container: Container, body: dict[str, Any]) -> list[str]:
    """Applied to the running task first, then recorded: a refused limit changes nothing."""
    given = schema.check(body, schema.HOST_CONFIG, "UpdateConfig")
    for name, value in given.items():
        if name not in _FIELDS and value:  # clients send all fields, those not meant as zero
            raise errdefs.InvalidParameter(f"{name} of a container cannot be updated")
    given = {k: v for k, v in given.items() if k in _FIELDS}
    changes = {k: v for k, v in given.items() if v or k in ("PidsLimit",)}
    policy = changes.pop("RestartPolicy", None)
    if policy and not policy.get("Name"):
        policy = None
    if policy:
        validate.restart_policy(policy, bool(container.host["AutoRemove"]))
    if changes.pop("CgroupParent", None):
        raise errdefs.InvalidParameter("the cgroup parent of a container cannot be updated")
    async with container.lock:
        host = {**container.host, **changes}
        if "NanoCpus" in changes:
            host["CpuPeriod"] = host["CpuQuota"] = 0
        elif "CpuPeriod" in changes or "CpuQuota" in changes:
            if container.host["NanoCpus"]:
                raise errdefs.Conflict("Conflicting options: CPU Period/Quota cannot be updated "
                                       "as NanoCPUs has already been set")
            host["NanoCpus"] = 0
        _memory(container, changes, host)
        validate.resources(host)
        warnings = refused.discard(host, manager.unified)
        if policy:
            host["RestartPolicy"] = {"Name": policy["Name"],
                                     "MaximumRetryCount": policy.get("MaximumRetryCount") or 0}
        resources = linux.resources({**host, **_untouched(changes)})
        if container.alive and changes and resources:
            await manager.tasks.update(container.id, json.dumps(resources).encode())
        container.record.host_config = host
        manager.save(container)
    manager.ctx.events.publish("container", "update", container.id, container.attributes())
    return warnings


def _memory(container: Container, changes: dict[str, Any], host: dict[str, Any]) -> None:
    """A new limit above the old swap limit needs a new swap limit too, as in Docker."""
    if "Memory" not in changes or "MemorySwap" in changes:
        return
    old = container.host["MemorySwap"]
    if old > 0 and changes["Memory"] > old:
        raise errdefs.Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time")
    if not old:
        host["MemorySwap"] = changes["Memory"] * 2


def _untouched(changes: dict[str, Any]) -> dict[str, Any]:
    """Limits that were not named stay out of the call."""
    groups = {"Memory": ("Memory", "MemorySwap", "MemoryReservation"),
              "Blkio": ("BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps",
                        "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps")}
    result: dict[str, Any] = {"OomKillDisable": None, "MemorySwappiness": None}
    for names in groups.values():
        if not any(n in changes for n in names):
            result.update(dict.fromkeys(names))
    return result
