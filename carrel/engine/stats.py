"""``docker stats``: the cgroup's counters and the network's, in Docker's shape."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import specbuild, timefmt
from carrel.engine.model import Container
from carrel.kernel import cgroup

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_UNLIMITED = 1 << 62
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def system_cpu() -> int:
    """Nanoseconds of all cpus, idle included."""
    with open("/proc/stat", encoding="ascii") as f:
        return sum(int(v) for v in f.readline().split()[1:9]) * _TICK_NS


def _memory_total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Collector:
    """Samples of one container; each holds the one before for the client's percentages."""

    def __init__(self, manager: Manager, container: Container) -> None:
        self._manager, self._container = manager, container
        self._before: dict[str, Any] = {}
        self._read = timefmt.ZERO

    def sample(self) -> dict[str, Any]:
        container = self._container
        result: dict[str, Any] = {
            "id": container.id, "name": f"/{container.name}", "os_type": "linux",
            "read": timefmt.ZERO, "preread": self._read, "pids_stats": {},
            "blkio_stats": _blkio({}), "num_procs": 0, "storage_stats": {},
            "cpu_stats": _empty_cpu(), "precpu_stats": self._before or _empty_cpu(),
            "memory_stats": {},
        }
        raw = self._raw()
        if raw is None:
            return result
        now = timefmt.now()
        result["read"] = now
        result["cpu_stats"] = self._cpu(raw)
        result["memory_stats"] = self._memory(raw)
        result["blkio_stats"] = _blkio(raw["blkio"])
        result["pids_stats"] = {"current": raw["pids"]["current"],
                                **({"limit": raw["pids"]["limit"]} if raw["pids"]["limit"]
                                   else {})}
        networks = _networks(container.state.pid)
        if networks and container.host["NetworkMode"] not in ("host", "none"):
            result["networks"] = networks
        self._before, self._read = result["cpu_stats"], now
        return result

    def _raw(self) -> dict[str, Any] | None:
        if not self._container.alive:
            return None
        try:
            path = specbuild.cgroup_path(self._manager, self._container)
            systemd = self._manager.ctx.config.systemd_cgroups
            return cgroup.open_manager(path, systemd=systemd).stats()
        except (OSError, errdefs.CarrelError):
            return None  # it ended in this moment

    def _cpu(self, raw: dict[str, Any]) -> dict[str, Any]:
        cpu = raw["cpu"]
        usage: dict[str, Any] = {
            "total_usage": cpu["usage"]["total"], "usage_in_kernelmode": cpu["usage"]["kernel"],
            "usage_in_usermode": cpu["usage"]["user"]}
        if cpu["usage"]["percpu"]:
            usage["percpu_usage"] = cpu["usage"]["percpu"]
        throttling = cpu["throttling"]
        return {
            "cpu_usage": usage, "system_cpu_usage": system_cpu(),
            "online_cpus": os.cpu_count() or 1,
            "throttling_data": {"periods": throttling["periods"],
                                "throttled_periods": throttling["throttledPeriods"],
                                "throttled_time": throttling["throttledTime"]},
        }

    def _memory(self, raw: dict[str, Any]) -> dict[str, Any]:
        usage = raw["memory"]["usage"]
        limit = usage.get("limit", 0)
        result: dict[str, Any] = {
            "usage": usage.get("usage", 0), "stats": raw["memory"]["raw"],
            "limit": _memory_total() if not limit or limit > _UNLIMITED or (
                limit > _memory_total()) else limit,
        }
        if raw.get("version") == 1:
            result["max_usage"] = usage.get("max", 0)
            if usage.get("failcnt"):
                result["failcnt"] = usage["failcnt"]
        return result


def _empty_cpu() -> dict[str, Any]:
    return {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}}


_BLKIO = (("io_service_bytes_recursive", "ioServiceBytesRecursive"),
          ("io_serviced_recursive", "ioServicedRecursive"),
          ("io_queue_recursive", "ioQueueRecursive"),
          ("io_service_time_recursive", "ioServiceTimeRecursive"),
          ("io_wait_time_recursive", "ioWaitTimeRecursive"),
          ("io_merged_recursive", "ioMergedRecursive"), ("io_time_recursive", "ioTimeRecursive"),
          ("sectors_recursive", "sectorsRecursive"))


def _blkio(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: raw.get(key) or None for name, key in _BLKIO}


def _networks(pid: int) -> dict[str, dict[str, int]]:
    """Counters of the container's interfaces, read in its own network namespace."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as f:
            lines = f.read(1 << 20).splitlines()[2:]
    except OSError:
        return {}
    result = {}
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        if name.strip() == "lo" or len(numbers) < 12:
            continue
        rx, tx = numbers[0:4], numbers[8:12]
        result[name.strip()] = {
            "rx_bytes": int(rx[0]), "rx_packets": int(rx[1]), "rx_errors": int(rx[2]),
            "rx_dropped": int(rx[3]), "tx_bytes": int(tx[0]), "tx_packets": int(tx[1]),
            "tx_errors": int(tx[2]), "tx_dropped": int(tx[3])}
    return result
