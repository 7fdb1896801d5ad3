"""The ``linux`` object: namespaces, limits, devices, what is hidden."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from carrel import errdefs

MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_DEVICES = (("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0),
            ("c", 5, 2), ("c", 136, None))
#: finds the pid of the container that another's namespace is joined to
PidOf = Callable[[str], int]


def namespaces(host: Mapping[str, Any], *, netns: str, cgroup_private: bool,
               pid_of: PidOf) -> list[dict[str, str]]:
    """Those that are made, and those that are joined; the host's are left out."""
    result: list[dict[str, str]] = [{"type": "mount"}]
    if netns:
        result.append({"type": "network", "path": netns})
    if host["UTSMode"] != "host":
        result.append({"type": "uts"})
    for mode, kind in ((host["PidMode"], "pid"), (host["IpcMode"], "ipc")):
        if mode.startswith("container:"):
            result.append({"type": kind, "path": f"/proc/{pid_of(mode[10:])}/ns/{kind}"})
        elif mode != "host":
            result.append({"type": kind})
    if cgroup_private:
        result.append({"type": "cgroup"})
    return result


def sysctls(host: Mapping[str, Any], own_network: bool) -> dict[str, str]:
    """Docker's two for unprivileged ping and low ports, then those asked for."""
    result: dict[str, str] = {}
    if own_network:
        result["net.ipv4.ip_unprivileged_port_start"] = "0"
        result["net.ipv4.ping_group_range"] = "0 2147483647"
    result.update(host["Sysctls"] or {})
    return result


def device(path: str, inside: str) -> dict[str, Any]:
    """A device node of the host for the container."""
    try:
        info = os.stat(path)
    except OSError as error:
        raise errdefs.InvalidParameter(
            f"error gathering device information while adding custom device \"{path}\": "
            f"{error.strerror.lower() if error.strerror else error}") from None
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        raise errdefs.InvalidParameter(
            f"error gathering device information while adding custom device \"{path}\": "
            "not a device node")
    return {"path": inside, "type": kind, "major": os.major(info.st_rdev),
            "minor": os.minor(info.st_rdev), "fileMode": stat.S_IMODE(info.st_mode),
            "uid": info.st_uid, "gid": info.st_gid}


def devices(host: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and the rules of the device cgroup."""
    nodes: list[dict[str, Any]] = []
    if host["Privileged"]:
        return _all_devices(), [{"allow": True, "access": "rwm"}]
    # all is denied once, here; Docker denies fuse again, which Debian's crun refuses with systemd
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": kind, "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    for item in host["Devices"] or ():
        outside = item["PathOnHost"]
        inside = item.get("PathInContainer") or outside
        for source, target in _expand(outside, inside):
            node = device(source, target)
            nodes.append(node)
            rules.append({"allow": True, "type": node["type"], "major": node["major"],
                          "minor": node["minor"],
                          "access": item.get("CgroupPermissions") or "rwm"})
    for text in host["DeviceCgroupRules"] or ():
        rules.append(_rule(text))
    return nodes, rules


def _expand(outside: str, inside: str) -> list[tuple[str, str]]:
    """A folder stands for the devices in it."""
    if not os.path.isdir(outside):
        return [(outside, inside)]
    found = []
    for base, _, names in os.walk(outside):
        for name in sorted(names):
            path = os.path.join(base, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                found.append((path, inside.rstrip("/") + path[len(outside.rstrip("/")):]))
    if not found:
        raise errdefs.InvalidParameter(f"no devices found in {outside}")
    return found


def _rule(text: str) -> dict[str, Any]:
    kind, numbers, access = text.split(" ")
    major, minor = numbers.split(":")
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    for name, value in (("major", major), ("minor", minor)):
        if value != "*":
            rule[name] = int(value)
    return rule


def _all_devices() -> list[dict[str, Any]]:
    """The host's devices, without terminals and what the runtime makes by itself."""
    skip = {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx",
            "null", "zero", "full", "random", "urandom", "tty"}
    found = []
    for base, folders, names in os.walk("/dev"):
        if base == "/dev":
            folders[:] = [f for f in folders if f not in skip]
            names = [n for n in names if n not in skip]
        for name in names:
            path = os.path.join(base, name)
            try:
                mode = os.lstat(path).st_mode
                if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                    found.append(device(path, path))
            except (OSError, errdefs.CarrelError):
                continue  # it went away meanwhile
    return found


def resources(host: Mapping[str, Any]) -> dict[str, Any]:
    """Limits of the cgroup; what is not asked for is left out."""
    result: dict[str, Any] = {}
    for name, part in (("memory", _memory(host)), ("cpu", _cpu(host)), ("blockIO", _blkio(host))):
        if part:
            result[name] = part
    pids = host.get("PidsLimit")
    if pids is not None and pids != 0:
        result["pids"] = {"limit": pids if pids > 0 else -1}
    return result


def swap_limits() -> bool:
    """Does this kernel count swap per group? With v1 it may be switched off."""
    return (os.path.exists("/sys/fs/cgroup/cgroup.controllers")
            or os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"))


def _memory(host: Mapping[str, Any]) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    limit, swap = host.get("Memory") or 0, host.get("MemorySwap") or 0
    if limit:
        memory["limit"] = limit
        memory["swap"] = swap or limit * 2
    elif swap:
        memory["swap"] = swap
    if swap == -1 and not swap_limits():
        del memory["swap"]  # nothing to switch off
    if host.get("MemoryReservation"):
        memory["reservation"] = host["MemoryReservation"]
    swappiness = host.get("MemorySwappiness")
    if swappiness is not None and swappiness >= 0:
        memory["swappiness"] = swappiness
    if host.get("OomKillDisable"):
        memory["disableOOMKiller"] = True
    return memory


def _cpu(host: Mapping[str, Any]) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    for name, key in (("CpuShares", "shares"), ("CpuPeriod", "period"), ("CpuQuota", "quota"),
                      ("CpuRealtimePeriod", "realtimePeriod"),
                      ("CpuRealtimeRuntime", "realtimeRuntime"), ("CpusetCpus", "cpus"),
                      ("CpusetMems", "mems")):
        if host.get(name):
            cpu[key] = host[name]
    if host.get("NanoCpus"):
        cpu["period"] = 100_000
        cpu["quota"] = host["NanoCpus"] * 100_000 // 1_000_000_000
    return cpu


def _blkio(host: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if host.get("BlkioWeight"):
        result["weight"] = host["BlkioWeight"]
    for name, key, field in (
            ("BlkioWeightDevice", "weightDevice", "Weight"),
            ("BlkioDeviceReadBps", "throttleReadBpsDevice", "Rate"),
            ("BlkioDeviceWriteBps", "throttleWriteBpsDevice", "Rate"),
            ("BlkioDeviceReadIOps", "throttleReadIOPSDevice", "Rate"),
            ("BlkioDeviceWriteIOps", "throttleWriteIOPSDevice", "Rate")):
        entries = [_throttle(item, field) for item in host.get(name) or ()]
        if entries:
            result[key] = entries
    return result


def _throttle(item: Mapping[str, Any], field: str) -> dict[str, Any]:
    try:
        info = os.stat(item["Path"])
    except OSError as error:
        raise errdefs.InvalidParameter(f"no such device: {item['Path']}: {error.strerror}"
                                       ) from None
    return {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev),
            field.lower(): item.get(field, 0)}
