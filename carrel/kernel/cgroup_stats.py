"""What a container used, in one shape for v1 and v2.

The shape is that of ``runc events --stats`` (``cpu``, ``cpuset``, ``memory``,
``pids``, ``blkio``, ``hugetlb``), plus two keys of ours that readers of runc's
shape ignore: ``version`` (1 or 2) and ``oom`` (the out-of-memory counters).
Times are nanoseconds; "no limit" is 2^64-1, except for pids, where it is 0.
"""

from __future__ import annotations

import os
from errno import ENODEV, ENOENT, EOPNOTSUPP

from carrel.kernel.cgroup_base import Group, key_values, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Stats = dict[str, Any]

_TICK_NS = 10_000_000  # USER_HZ is 100 in every ABI
_UNLIMITED = (1 << 64) - 1
_MISSING = (ENOENT, ENODEV, EOPNOTSUPP)

#: name in runc's shape -> names of the v1 file behind ``blkio.`` or ``blkio.bfq.``
_BLKIO = {
    "ioServiceBytesRecursive": "io_service_bytes_recursive",
    "ioServicedRecursive": "io_serviced_recursive",
    "ioQueueRecursive": "io_queued_recursive",
    "ioServiceTimeRecursive": "io_service_time_recursive",
    "ioWaitTimeRecursive": "io_wait_time_recursive",
    "ioMergedRecursive": "io_merged_recursive",
    "ioTimeRecursive": "time_recursive",
    "sectorsRecursive": "sectors_recursive",
}
_CPUSET_FLAGS = ("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate",
                 "memory_spread_page", "memory_spread_slab", "memory_pressure",
                 "sched_load_balance", "sched_relax_domain_level")
#: a list of more cpus than any machine has would be somebody's mistake
_MAX_NUMBERS = 1 << 16


def _empty(version: int) -> Stats:
    return {
        "version": version,
        "cpu": {"usage": {"total": 0, "percpu": [], "percpu_kernel": [], "percpu_user": [],
                          "kernel": 0, "user": 0},
                "throttling": {"periods": 0, "throttledPeriods": 0, "throttledTime": 0}},
        "cpuset": {"cpus": [], "mems": [], **dict.fromkeys(_CPUSET_FLAGS, 0)},
        "memory": {"cache": 0, "usage": _entry(), "swap": _entry(), "kernel": _entry(),
                   "kernelTCP": _entry(), "raw": {}},
        "pids": {"current": 0, "limit": 0},
        "blkio": {name: [] for name in _BLKIO},
        "hugetlb": {},
        "oom": {"oom_kill": 0, "under_oom": 0, "oom_kill_disable": 0},
    }


def _entry() -> dict[str, int]:
    return {"limit": 0, "usage": 0, "max": 0, "failcnt": 0}


def expand(text: str) -> list[int]:
    """"0-3,7" as numbers, bounded."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else ():
        low, dash, high = part.partition("-")
        first, last = int(low), int(high if dash else low)
        if last - first + len(found) > _MAX_NUMBERS:
            raise ValueError(f"too many numbers: {text[:80]!r}")
        found.extend(range(first, last + 1))
    return found


def _huge_page_sizes(group: Group) -> list[str]:
    sizes = set()
    for name in os.listdir(group.path):
        if name.startswith("hugetlb."):
            sizes.add(name.split(".")[1])
    return sorted(sizes)


def _pids_limit(text: str) -> int:
    return 0 if text.strip() == "max" else number(text)


# --- v1 ----------------------------------------------------------------------
def v1(groups: dict[str, Group]) -> Stats:
    """From the controllers that are there; a controller that is not leaves zeros."""
    stats = _empty(1)
    for name, reader in (("cpu", _v1_cpu), ("cpuacct", _v1_cpuacct), ("cpuset", _v1_cpuset),
                         ("memory", _v1_memory), ("pids", _pids), ("blkio", _v1_blkio),
                         ("hugetlb", _v1_hugetlb)):
        if name in groups:
            reader(groups[name], stats)
    unified = groups.get("")
    if "hugetlb" not in groups and unified is not None:
        _v2_hugetlb(unified, stats)
    return stats


def _v1_cpu(group: Group, stats: Stats) -> None:
    values = key_values(group.read_or("cpu.stat"))
    stats["cpu"]["throttling"] = {
        "periods": values.get("nr_periods", 0), "throttledPeriods": values.get("nr_throttled", 0),
        "throttledTime": values.get("throttled_time", 0)}


def _v1_cpuacct(group: Group, stats: Stats) -> None:
    usage = stats["cpu"]["usage"]
    usage["total"] = group.number("cpuacct.usage", 0)
    modes = key_values(group.read_or("cpuacct.stat"))
    usage["user"], usage["kernel"] = (modes.get(k, 0) * _TICK_NS for k in ("user", "system"))
    usage["percpu"] = [int(n) for n in group.read_or("cpuacct.usage_percpu").split()]
    for line in group.read_or("cpuacct.usage_all").splitlines()[1:]:
        _, user, system = line.split()[:3]
        usage["percpu_user"].append(int(user))
        usage["percpu_kernel"].append(int(system))


def _v1_cpuset(group: Group, stats: Stats) -> None:
    cpuset = stats["cpuset"]
    cpuset["cpus"] = expand(group.read_or("cpuset.cpus"))
    cpuset["mems"] = expand(group.read_or("cpuset.mems"))
    for flag in _CPUSET_FLAGS:
        text = group.read_or(f"cpuset.{flag}", "0").strip()
        cpuset[flag] = int(text)  # the relax level may be -1


def _v1_memory(group: Group, stats: Stats) -> None:
    memory = stats["memory"]
    memory["raw"] = key_values(group.read_or("memory.stat"))
    memory["cache"] = memory["raw"].get("cache", 0)
    for key, prefix in (("usage", "memory"), ("swap", "memory.memsw"), ("kernel", "memory.kmem"),
                        ("kernelTCP", "memory.kmem.tcp")):
        if key != "usage" and not group.has(f"{prefix}.usage_in_bytes"):
            continue
        memory[key] = {"limit": group.number(f"{prefix}.limit_in_bytes", 0),
                       "usage": group.number(f"{prefix}.usage_in_bytes", 0),
                       "max": group.number(f"{prefix}.max_usage_in_bytes", 0),
                       "failcnt": group.number(f"{prefix}.failcnt", 0)}
    stats["oom"].update(key_values(group.read_or("memory.oom_control")))


def _pids(group: Group, stats: Stats) -> None:
    try:
        stats["pids"] = {"current": group.number("pids.current"),
                         "limit": _pids_limit(group.read("pids.max"))}
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        stats["pids"] = {"current": len(group.pids()), "limit": 0}


def _v1_blkio(group: Group, stats: Stats) -> None:
    """The first family of files that has the bytes wins: BFQ with debugging,
    BFQ, CFQ of old kernels, the throttling layer (always there)."""
    for prefix in ("blkio.bfq.", "blkio.", "blkio.throttle."):
        entries = _blkio_entries(group, f"{prefix}io_service_bytes_recursive")
        if not entries and prefix != "blkio.throttle.":
            continue
        for key, name in _BLKIO.items():
            stats["blkio"][key] = _blkio_entries(group, prefix + name)
        return


def _blkio_entries(group: Group, name: str) -> list[dict[str, Any]]:
    entries = []
    for line in group.read_or(name).splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) < 3 or fields[0] == "Total":
            continue
        entries.append({"major": int(fields[0]), "minor": int(fields[1]),
                        "op": fields[2] if len(fields) > 3 else "", "value": int(fields[-1])})
    return entries


def _v1_hugetlb(group: Group, stats: Stats) -> None:
    for size in _huge_page_sizes(group):
        prefix = f"hugetlb.{size}.rsvd"
        if not group.has(f"{prefix}.usage_in_bytes"):
            prefix = f"hugetlb.{size}"
        stats["hugetlb"][size] = {"usage": group.number(f"{prefix}.usage_in_bytes", 0),
                                  "max": group.number(f"{prefix}.max_usage_in_bytes", 0),
                                  "failcnt": group.number(f"{prefix}.failcnt", 0)}


# --- v2 ----------------------------------------------------------------------
def v2(group: Group) -> Stats:
    stats = _empty(2)
    _v2_cpu(group, stats)
    _v2_memory(group, stats)
    _pids(group, stats)
    _v2_io(group, stats)
    _v2_hugetlb(group, stats)
    stats["cpuset"]["cpus"] = expand(group.read_or("cpuset.cpus.effective"))
    stats["cpuset"]["mems"] = expand(group.read_or("cpuset.mems.effective"))
    for key, name in (("cpu", "cpu"), ("memory", "memory"), ("blkio", "io")):
        pressure = _pressure(group.read_or(f"{name}.pressure"))
        if pressure:
            stats[key]["psi"] = pressure
    return stats


def _v2_cpu(group: Group, stats: Stats) -> None:
    values = key_values(group.read_or("cpu.stat"))
    usage, throttling = stats["cpu"]["usage"], stats["cpu"]["throttling"]
    for key, name in (("total", "usage_usec"), ("user", "user_usec"), ("kernel", "system_usec")):
        usage[key] = values.get(name, 0) * 1000
    throttling["periods"] = values.get("nr_periods", 0)
    throttling["throttledPeriods"] = values.get("nr_throttled", 0)
    throttling["throttledTime"] = values.get("throttled_usec", 0) * 1000


def _v2_memory(group: Group, stats: Stats) -> None:
    memory = stats["memory"]
    memory["raw"] = key_values(group.read_or("memory.stat"))
    memory["cache"] = memory["raw"].get("file", 0)
    for key, prefix in (("usage", "memory"), ("swap", "memory.swap")):
        if group.has(f"{prefix}.current"):
            memory[key] = {"limit": group.number(f"{prefix}.max", 0),
                           "usage": group.number(f"{prefix}.current", 0),
                           "max": group.number(f"{prefix}.peak", 0), "failcnt": 0}
    swap, usage = memory["swap"], memory["usage"]
    # v1's readers expect memory and swap in one number
    swap["usage"] += usage["usage"]
    swap["max"] = 0
    if swap["limit"] != _UNLIMITED:
        swap["limit"] = min(swap["limit"] + usage["limit"], _UNLIMITED)
    events = key_values(group.read_or("memory.events"))
    usage["failcnt"] = events.get("max", 0)
    stats["oom"].update(events)


def _v2_io(group: Group, stats: Stats) -> None:
    tables = {"rbytes": ("ioServiceBytesRecursive", "Read"),
              "wbytes": ("ioServiceBytesRecursive", "Write"),
              "rios": ("ioServicedRecursive", "Read"), "wios": ("ioServicedRecursive", "Write")}
    for line in group.read_or("io.stat").splitlines():
        device, _, rest = line.partition(" ")
        major, colon, minor = device.partition(":")
        if not colon:
            continue
        for item in rest.split():
            key, _, value = item.partition("=")
            if key in tables:
                table, operation = tables[key]
                stats["blkio"][table].append({"major": int(major), "minor": int(minor),
                                              "op": operation, "value": int(value)})


def _v2_hugetlb(group: Group, stats: Stats) -> None:
    try:
        sizes = _huge_page_sizes(group)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return
    for size in sizes:
        prefix = f"hugetlb.{size}"
        current = f"{prefix}.rsvd.current"
        if not group.has(current):
            current = f"{prefix}.current"
        events = key_values(group.read_or(f"{prefix}.events"))
        stats["hugetlb"][size] = {"usage": group.number(current, 0), "max": 0,
                                  "failcnt": events.get("max", 0)}


def _pressure(text: str) -> dict[str, Any]:
    """PSI: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        kind, *items = line.split()
        pairs = dict(item.split("=", 1) for item in items)
        found[kind] = {"avg10": float(pairs["avg10"]), "avg60": float(pairs["avg60"]),
                       "avg300": float(pairs["avg300"]), "total": int(pairs["total"])}
    return found
