"""What a client asks of a container, checked before anything happens."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from carrel import errdefs
from carrel.engine import signals

Bad = errdefs.InvalidParameter
MIB = 1 << 20
MAX_CPU = 8192
_HOSTNAME = re.compile(
    r"[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?)*",
    re.ASCII)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_SYSCTL = re.compile(r"[a-z0-9_.*-]+(?:[./][a-zA-Z0-9_.*:-]+)*", re.ASCII)
_SYSCTLS = frozenset({
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
    "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
})
_CGROUP_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})", re.ASCII)
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})\s*([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)
RLIMITS = frozenset({
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack",
})


def config(value: Mapping[str, Any]) -> None:
    """The API's Config object."""
    for name in ("Hostname", "Domainname"):
        text = value.get(name) or ""
        if text and not (_HOSTNAME.fullmatch(text) and len(text) <= 253):
            raise Bad(f"invalid {name.lower()}: {text[:80]!r}")
    user = value.get("User") or ""
    if len(user) > 256 or not plain(user):
        raise Bad(f"invalid user: {user[:80]!r}")
    workdir = value.get("WorkingDir") or ""
    if workdir and not workdir.startswith("/"):
        raise Bad(f"the working directory '{workdir[:200]}' is invalid, "
                  "it needs to be an absolute path")
    environment(value.get("Env") or ())
    labels(value.get("Labels") or {})
    signal = value.get("StopSignal")
    if signal:
        signals.parse(signal)
    for port in value.get("ExposedPorts") or ():
        parse_port(port)
    if value.get("Healthcheck"):
        healthcheck(value["Healthcheck"])
    mac = value.get("MacAddress")
    if mac and not _MAC.fullmatch(mac):
        raise Bad(f"{mac[:40]} is not a valid mac address")


def plain(text: str) -> bool:
    """No control characters: this text becomes part of a line somewhere."""
    return not any(c < " " or c == "\x7f" for c in text)


def resolver_words(what: str, words: Iterable[str]) -> None:
    """Each becomes a word of a line in resolv.conf."""
    for text in words:
        if not text or not plain(text) or any(c.isspace() for c in text) or len(text) > 253:
            raise Bad(f"invalid {what}: {text[:80]!r}")


def environment(entries: Iterable[str]) -> None:
    for entry in entries:
        if not entry or entry.startswith("="):
            raise Bad(f"invalid environment variable: {entry[:80]}")


def labels(values: Mapping[str, str]) -> None:
    for key in values:
        if not key:
            raise Bad("invalid label: empty key")


def healthcheck(value: Mapping[str, Any]) -> None:
    test = value.get("Test")
    if test is not None and not (isinstance(test, list) and all(isinstance(t, str) for t in test)):
        raise Bad("invalid JSON: Healthcheck.Test must be an array of strings")
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise Bad(f"unknown type {test[0][:40]!r} in healthcheck")
    for name in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        number = value.get(name) or 0
        if not isinstance(number, int) or isinstance(number, bool):
            raise Bad(f"invalid JSON: Healthcheck.{name} must be a number")
        if number and number < 1_000_000:
            raise Bad(f"{name} in Healthcheck cannot be less than 1ms")
    retries = value.get("Retries") or 0
    if not isinstance(retries, int) or retries < 0:
        raise Bad("Retries in Healthcheck cannot be negative")


def host_config(value: dict[str, Any], cfg: Mapping[str, Any]) -> list[str]:
    """The API's HostConfig; returns warnings. ``value`` is complete."""
    warnings: list[str] = []
    restart_policy(value["RestartPolicy"], bool(value["AutoRemove"]))
    _modes(value, cfg)
    resources(value)
    _security(value)
    _sysctls(value)
    _devices(value["Devices"])
    for rule in value["DeviceCgroupRules"] or ():
        if not _CGROUP_RULE.fullmatch(rule):
            raise Bad(f"invalid device cgroup rule format: '{rule[:80]}'")
    if value["Isolation"] not in ("", "default"):
        raise Bad(f"invalid isolation '{value['Isolation'][:40]}' on linux")
    ports(value["PortBindings"])
    for entry in value["ExtraHosts"] or ():
        extra_host(entry)
    for address in value["Dns"] or ():
        ip(address)
    resolver_words("DnsSearch", value["DnsSearch"] or ())
    resolver_words("DnsOptions", value["DnsOptions"] or ())
    if not -1000 <= value["OomScoreAdj"] <= 1000:
        raise Bad(f"Invalid value {value['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")
    console_size(value["ConsoleSize"])
    if value["ShmSize"] < 0:
        raise Bad("SHM size can not be less than 0")
    parent = value["CgroupParent"]
    if parent and (".." in parent.split("/") or "\n" in parent):
        raise Bad(f"invalid cgroup parent: {parent[:80]!r}")
    for group in value["GroupAdd"] or ():
        if not group or len(group) > 64 or ":" in group or "\n" in group:
            raise Bad(f"invalid group: {group[:64]!r}")
    published = value["PublishAllPorts"] or value["PortBindings"]
    if published and value["NetworkMode"] == "host":
        warnings.append("Published ports are discarded when using host network mode")
    if value["OomKillDisable"] and value["Memory"] == 0:
        warnings.append("OOM killer is disabled for the container, but no memory limit is set, "
                        "this can result in the system running out of resources.")
    return warnings


def slice_name(parent: str) -> None:
    """With systemd's cgroups, the parent of a container is a slice."""
    if not parent.endswith(".slice") or len(parent) <= len(".slice") or "/" in parent:
        raise Bad('cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"')


def restart_policy(policy: Mapping[str, Any], auto_remove: bool = False) -> None:
    name = policy.get("Name") or ""
    count = policy.get("MaximumRetryCount") or 0
    if not isinstance(name, str) or not isinstance(count, int) or isinstance(count, bool):
        raise Bad("invalid JSON: RestartPolicy")
    if name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise Bad(f"invalid restart policy: unknown policy '{name[:40]}'; use one of 'no', "
                  "'always', 'on-failure', or 'unless-stopped'")
    if count < 0:
        raise Bad("invalid restart policy: maximum retry count cannot be negative")
    if count and name != "on-failure":
        raise Bad("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if auto_remove and name not in ("", "no"):
        raise Bad("can't create 'AutoRemove' container with restart policy")


def _modes(value: dict[str, Any], cfg: Mapping[str, Any]) -> None:
    network = value["NetworkMode"]
    if network.startswith("container:"):
        if not network[10:]:
            raise Bad("invalid container format container:<name|id>")
        if cfg.get("Hostname"):
            raise Bad("conflicting options: hostname and the network mode")
        if value["PortBindings"] or value["PublishAllPorts"]:
            raise Bad("conflicting options: port publishing and the container type network mode")
        if value["Dns"]:
            raise Bad("conflicting options: dns and the network mode")
        if value["ExtraHosts"]:
            raise Bad("conflicting options: custom host-to-IP mapping and the network mode")
    if network == "host" and value["Links"]:
        raise Bad("conflicting options: host type networking can't be used with links. "
                  "This would result in undefined behavior")
    _one_of(value["PidMode"], ("", "host"), "PID mode", container=True)
    _one_of(value["IpcMode"], ("", "host", "none", "private", "shareable"), "IPC mode",
            container=True)
    _one_of(value["UTSMode"], ("", "host"), "UTS mode")
    if value["UTSMode"] == "host" and cfg.get("Hostname"):
        raise Bad("conflicting options: hostname and the UTS mode")
    _one_of(value["UsernsMode"], ("", "host"), "userns mode")
    _one_of(value["CgroupnsMode"], ("", "host", "private"), "cgroup namespace mode")


def _one_of(value: str, allowed: tuple[str, ...], what: str, container: bool = False) -> None:
    if value in allowed or (container and value.startswith("container:") and value[10:]):
        return
    raise Bad(f"invalid {what}: {value[:80]}")


def resources(value: Mapping[str, Any]) -> None:
    """The numbers of HostConfig that become cgroup limits; also for ``update``."""
    memory, swap = value.get("Memory") or 0, value.get("MemorySwap") or 0
    if memory < 0 or 0 < memory < 6 * MIB:
        raise Bad("Minimum memory limit allowed is 6MB")
    if swap > 0 and memory == 0:
        raise Bad("You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < swap < memory:
        raise Bad("Minimum memoryswap limit should be larger than memory limit, see usage")
    if swap < -1:
        raise Bad(f"invalid memory swap value: {swap}")
    swappiness = value.get("MemorySwappiness")
    if swappiness is not None and swappiness != -1 and not 0 <= swappiness <= 100:
        raise Bad(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    reservation = value.get("MemoryReservation") or 0
    if reservation and reservation < 6 * MIB:
        raise Bad("Minimum memory reservation allowed is 6MB")
    if reservation and memory and memory < reservation:
        raise Bad("Minimum memory limit can not be less than memory reservation limit, see usage")
    _cpu(value)
    weight = value.get("BlkioWeight") or 0
    if weight and not 10 <= weight <= 1000:
        raise Bad("Range of blkio weight is from 10 to 1000")
    for name in ("BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps",
                 "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps"):
        for entry in value.get(name) or ():
            number = entry.get("Weight" if "Weight" in name else "Rate", 0)
            if not isinstance(entry.get("Path"), str) or not isinstance(number, int) or number < 0:
                raise Bad(f"invalid value in {name}")
    for limit in value.get("Ulimits") or ():
        ulimit(limit)


def _cpu(value: Mapping[str, Any]) -> None:
    nano, period, quota = (value.get(k) or 0 for k in ("NanoCpus", "CpuPeriod", "CpuQuota"))
    count = os.cpu_count() or 1
    if nano and (period or quota):
        raise Bad("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set.")
    if nano < 0 or nano > count * 1_000_000_000:
        raise Bad(f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs "
                  "available")
    if period and not 1000 <= period <= 1_000_000:
        raise Bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s "
                  "(i.e. 1000000)")
    if quota and quota != -1 and quota < 1000:
        raise Bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (value.get("CpuShares") or 0) < 0:
        raise Bad("invalid CPU shares")
    for name, label, available in (
            ("CpusetCpus", "CPUs", "/sys/devices/system/cpu/online"),
            ("CpusetMems", "memory nodes", "/sys/devices/system/node/online")):
        text = value.get(name) or ""
        if text:
            _cpuset(text, label, available)


def _cpuset(text: str, label: str, path: str) -> None:
    what = "cpus" if label == "CPUs" else "mems"
    wanted = parse_ranges(text, f"invalid value {text[:80]} for cpuset {what}")
    try:
        with open(path, encoding="ascii") as f:
            available = f.read().strip()
    except OSError:
        available = "0"
    if not wanted <= parse_ranges(available, "invalid list"):
        raise Bad(f"requested {label} are not available - requested {text[:80]}, "
                  f"available: {available}")


def parse_ranges(text: str, problem: str) -> set[int]:
    """``0-3,7``; every number below :data:`MAX_CPU`, so the set stays small."""
    result: set[int] = set()
    if len(text) > 4096:
        raise Bad(problem)
    for part in text.split(","):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not all(t.isascii() and t.isdigit() and len(t) < 6 for t in (low, high)):
            raise Bad(problem)
        if int(high) >= MAX_CPU or int(low) > int(high):
            raise Bad(problem)
        result.update(range(int(low), int(high) + 1))
    return result


def ulimit(value: Mapping[str, Any]) -> None:
    name, soft, hard = value.get("Name"), value.get("Soft", 0), value.get("Hard", 0)
    if not isinstance(name, str) or name not in RLIMITS:
        raise Bad(f"invalid ulimit type: {str(name)[:40]}")
    for number in (soft, hard):
        if not isinstance(number, int) or isinstance(number, bool) or not -1 <= number < 1 << 63:
            raise Bad(f"invalid ulimit value for {name}")
    if hard != -1 and (soft > hard or soft == -1):
        raise Bad(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")


_SWITCHES = ("no-new-privileges", "writable-cgroups")
_BOOLEANS = ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False")


def _security(value: Mapping[str, Any]) -> None:
    for option in value["SecurityOpt"] or ():
        if option in _SWITCHES:
            continue
        separator = "=" if "=" in option else ":"
        key, found, text = option.partition(separator)
        if not found:
            raise Bad(f"invalid --security-opt 1: {option[:80]!r}")
        if key not in ("apparmor", "seccomp", "label", "systempaths", *_SWITCHES):
            raise Bad(f"invalid --security-opt 2: {option[:80]!r}")
        if key in _SWITCHES and text not in _BOOLEANS:
            raise Bad(f"invalid --security-opt 2: {option[:80]!r}")
        if key == "systempaths" and text != "unconfined":
            raise Bad(f"invalid --security-opt 2: {option[:80]!r}")
    from carrel.engine.spec import capabilities

    capabilities.normalize(value["CapAdd"] or ())
    capabilities.normalize(value["CapDrop"] or ())


def _sysctls(value: Mapping[str, Any]) -> None:
    for name, content in (value["Sysctls"] or {}).items():
        if not _SYSCTL.fullmatch(name) or ".." in name or "\n" in content:
            raise Bad(f"invalid sysctl: {name[:80]!r}")
        dotted = name.replace("/", ".") if "." not in name.split("/", 1)[0] else name
        if dotted in _SYSCTLS or dotted.startswith("fs.mqueue."):
            if value["IpcMode"] == "host":
                raise Bad(f"sysctl {name[:80]!r} is not allowed in the host's IPC namespace")
        elif dotted.startswith("net."):
            if value["NetworkMode"] == "host":
                raise Bad(f"sysctl {name[:80]!r} is not allowed in the host's network namespace")
        else:
            raise Bad(f"sysctl '{name[:80]}' is not allowed: it is not in a separate "
                      "kernel namespace")


def _devices(devices: Iterable[Mapping[str, Any]]) -> None:
    for device in devices:
        for key in ("PathOnHost", "PathInContainer", "CgroupPermissions"):
            if not isinstance(device.get(key, ""), str):
                raise Bad(f"invalid JSON: Devices.{key} must be a string")
        path = device.get("PathOnHost") or ""
        if not path.startswith("/") or "\0" in path:
            raise Bad(f"invalid device path: {path[:80]!r}")
        permissions = device.get("CgroupPermissions") or "rwm"
        if not set(permissions) <= set("rwm") or len(permissions) > 3:
            raise Bad(f"invalid device mode: {permissions[:10]}")


def size(text: str) -> int:
    """``10m`` in bytes."""
    match = _SIZE.fullmatch(text.strip()) if len(text) < 40 else None
    if not match:
        raise Bad(f"invalid size: '{text[:40]}'")
    return int(match[1]) << (10 * " kmgtp".index(match[2].lower() or " "))


def parse_port(text: str) -> tuple[int, str]:
    """``80/tcp``."""
    match = _PORT.fullmatch(text)
    if not match or match[2] or not 0 < int(match[1]) < 65536:
        raise Bad(f"invalid port specification: {text[:40]!r}")
    return int(match[1]), match[3] or "tcp"


def ports(bindings: Mapping[str, Any]) -> None:
    for port, hosts in bindings.items():
        parse_port(port)
        if hosts is not None and not isinstance(hosts, list):
            raise Bad(f"invalid JSON: PortBindings[{port[:20]}] must be an array")
        for host in hosts or ():
            if not isinstance(host, dict):
                raise Bad(f"invalid JSON: PortBindings[{port[:20]}] must hold objects")
            host_ports(host.get("HostPort") or "")
            if host.get("HostIp"):
                ip(host["HostIp"])


def host_ports(text: Any) -> tuple[int, int]:
    """``8080`` or ``8080-8090``; (0, 0) for any."""
    if text == "":
        return 0, 0
    match = _PORT.fullmatch(text) if isinstance(text, str) else None
    if not match or match[3]:
        raise Bad(f"invalid port specification: {str(text)[:40]!r}")
    low = int(match[1])
    high = int(match[2] or low)
    if low > high or high > 65535:
        raise Bad(f"invalid port specification: {text[:40]!r}")
    return low, high


def ip(text: Any) -> str:
    try:
        if not isinstance(text, str) or "%" in text:
            raise ValueError
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Bad(f"{str(text)[:64]} is not an ip address") from None


def extra_host(text: str) -> None:
    name, colon, address = text.partition(":")
    if "=" in name:
        name, _, rest = text.partition("=")
        address, colon = rest, "="
    if not colon or not name or not _HOSTNAME.fullmatch(name):
        raise Bad(f"bad format for add-host: {text[:80]!r}")
    if address != "host-gateway":
        ip(address.strip("[]"))


def console_size(size: Any) -> tuple[int, int] | None:
    """``ConsoleSize``: height and width; 0 and 0, or nothing, for a terminal without size."""
    if size is None or size == [0, 0]:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 65536 for n in size)):
        raise Bad("invalid JSON: ConsoleSize must be [height, width]")
    return size[0], size[1]
