"""One sample of a container's cgroups, in the messages of containerd's cgroups library."""

from __future__ import annotations

import os

from carrel.errdefs import NotFound
from carrel.kernel import cgroup
from carrel.shim.schema import SCHEMAS
from carrel.shim.wire import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.wire import Message

#: what the kernel says for "no limit", by version
_V1_UNLIMITED = (1 << 63) - 4096
_UINT64_MAX = (1 << 64) - 1


def sample(directories: dict[str, str]) -> Message:
    """An Any with ``io.containerd.cgroups.v1.Metrics`` or ``.v2.Metrics``.

    ``directories``: the cgroup's directory by controller; v2 under ``""``.
    """
    if "" in directories:
        name, message = "v2", _v2(directories[""])
    else:
        name, message = "v1", _v1(directories)
    return {"type_url": f"io.containerd.cgroups.{name}.Metrics",
            "value": encode(SCHEMAS[f"{name}.Metrics"], message)}


def directories_of(pid: int) -> dict[str, str]:
    """Where a process's cgroups are, by controller; ``""`` on a pure v2 machine."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        raise NotFound("cgroup does not exist") from None
    layout = cgroup.layout()
    inside: dict[str, str] = {}
    for line in lines:
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            inside[name] = path
    if layout.mode == "unified" and layout.unified is not None:
        return {"": _join(layout.unified.mountpoint, layout.unified.root, inside.get("", "/"))}
    found: dict[str, str] = {}
    for hierarchy in layout.v1:
        for controller in hierarchy.controllers:
            if controller in inside:
                found[controller] = _join(hierarchy.mountpoint, hierarchy.root,
                                          inside[controller])
    return found


def _join(mountpoint: str, root: str, path: str) -> str:
    if root != "/" and path.startswith(root):
        path = path[len(root):]
    return mountpoint + "/" + path.strip("/")


def _read(directory: str, name: str) -> str:
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""  # a controller, or a kernel, without it


def _number(directory: str, name: str) -> int:
    text = _read(directory, name).strip()
    if text == "max":
        return _UINT64_MAX
    return int(text) if text.isdigit() else 0


def _pairs(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found


def _known(schema: str, values: dict[str, int]) -> dict[str, int]:
    names = {f.name for f in SCHEMAS[schema].fields}
    return {k: v for k, v in values.items() if k in names}


# ---- v1 --------------------------------------------------------------------

_V1_NAMES = {"pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault",
             "pgmajfault": "pg_maj_fault", "hierarchical_memsw_limit": "hierarchical_swap_limit",
             "total_pgpgin": "total_pg_pg_in", "total_pgpgout": "total_pg_pg_out",
             "total_pgfault": "total_pg_fault", "total_pgmajfault": "total_pg_maj_fault"}


def _v1(where: dict[str, str]) -> Message:
    message: Message = {}
    if "pids" in where:
        message["pids"] = {"current": _number(where["pids"], "pids.current"),
                           "limit": _v1_pids_limit(where["pids"])}
    if "cpuacct" in where or "cpu" in where:
        message["cpu"] = _v1_cpu(where.get("cpuacct", ""), where.get("cpu", ""))
    if "memory" in where:
        message["memory"] = _v1_memory(where["memory"])
        control = _pairs(_read(where["memory"], "memory.oom_control"))
        message["memory_oom_control"] = _known("v1.MemoryOomControl", control)
    if "blkio" in where:
        message["blkio"] = {
            "io_service_bytes_recursive": _v1_blkio(where["blkio"], "io_service_bytes"),
            "io_serviced_recursive": _v1_blkio(where["blkio"], "io_serviced")}
    return message


def _v1_pids_limit(directory: str) -> int:
    limit = _number(directory, "pids.max")
    return 0 if limit == _UINT64_MAX else limit


def _v1_cpu(accounting: str, cpu: str) -> Message:
    stat = _pairs(_read(accounting, "cpuacct.stat"))
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    throttle = _pairs(_read(cpu, "cpu.stat"))
    return {
        "usage": {"total": _number(accounting, "cpuacct.usage"),
                  "kernel": stat.get("system", 0) * tick, "user": stat.get("user", 0) * tick,
                  "per_cpu": [int(n) for n in _read(accounting, "cpuacct.usage_percpu").split()]},
        "throttling": {"periods": throttle.get("nr_periods", 0),
                       "throttled_periods": throttle.get("nr_throttled", 0),
                       "throttled_time": throttle.get("throttled_time", 0)}}


def _v1_memory(directory: str) -> Message:
    values = {_V1_NAMES.get(k, k): v for k, v in _pairs(_read(directory, "memory.stat")).items()}
    message: Message = dict(_known("v1.MemoryStat", values))
    for field, prefix in (("usage", "memory"), ("swap", "memory.memsw"), ("kernel", "memory.kmem"),
                          ("kernel_tcp", "memory.kmem.tcp")):
        if _read(directory, f"{prefix}.usage_in_bytes"):
            message[field] = {
                "limit": _number(directory, f"{prefix}.limit_in_bytes"),
                "usage": _number(directory, f"{prefix}.usage_in_bytes"),
                "max": _number(directory, f"{prefix}.max_usage_in_bytes"),
                "failcnt": _number(directory, f"{prefix}.failcnt")}
    return message


def _v1_blkio(directory: str, what: str) -> list[Message]:
    for name in (f"blkio.{what}_recursive", f"blkio.throttle.{what}_recursive",
                 f"blkio.throttle.{what}"):
        entries = []
        for line in _read(directory, name).splitlines():
            words = line.split()
            if len(words) != 3 or ":" not in words[0]:
                continue  # the total at the end
            major, _, minor = words[0].partition(":")
            entries.append({"op": words[1], "major": int(major), "minor": int(minor),
                            "value": int(words[2])})
        if entries:
            return entries
    return []


# ---- v2 --------------------------------------------------------------------

def _v2(directory: str) -> Message:
    memory: dict[str, Any] = _pairs(_read(directory, "memory.stat"))
    memory = _known("v2.MemoryStat", memory)
    memory |= {"usage": _number(directory, "memory.current"),
               "usage_limit": _number(directory, "memory.max"),
               "swap_usage": _number(directory, "memory.swap.current"),
               "swap_limit": _number(directory, "memory.swap.max"),
               "max_usage": _number(directory, "memory.peak"),
               "swap_max_usage": _number(directory, "memory.swap.peak")}
    events = _known("v2.MemoryEvents", _pairs(_read(directory, "memory.events")))
    return {
        "pids": {"current": _number(directory, "pids.current"),
                 "limit": _v1_pids_limit(directory)},
        "cpu": _known("v2.CPUStat", _pairs(_read(directory, "cpu.stat"))),
        "memory": memory, "memory_events": events,
        "io": {"usage": _v2_io(directory)}}


def _v2_io(directory: str) -> list[Message]:
    entries = []
    for line in _read(directory, "io.stat").splitlines():
        device, _, rest = line.partition(" ")
        major, _, minor = device.partition(":")
        if not minor.isdigit():
            continue
        pairs = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        entries.append({"major": int(major), "minor": int(minor),
                        **{k: int(pairs.get(k, 0)) for k in ("rbytes", "wbytes", "rios", "wios")}})
    return entries
