"""OCI ``linux.resources`` -> cgroup v1 files, one function a controller.

Order matters where two files constrain each other (memory and swap, quota
and period); the reasons stand at the functions. A value of 0 (or absent)
means "not asked for", as in the OCI specification's Go types.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOENT

from carrel.errdefs import InvalidParameter
from carrel.kernel import cgroup_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.kernel.cgroup_base import Group

    Resources = dict[str, Any]
    #: what the list shall be, and the writes (file, line) that make it so
    DeviceWrites = tuple[cgroup_devices.DeviceState, list[tuple[str, str]]]


def memory(group: Group, asked: Resources, fresh: bool) -> None:
    limit, swap = asked.get("limit") or 0, asked.get("swap") or 0
    if limit == -1 and not swap and group.has("memory.memsw.limit_in_bytes"):
        swap = -1  # unlimited memory cannot stay under a limited memory+swap
    if limit and swap and not fresh and (
            swap == -1 or group.number("memory.limit_in_bytes") < swap):
        # memory+swap may never be below memory: the one that grows goes first
        _swap_limit(group, swap)
        _memory_limit(group, limit)
    else:
        _memory_limit(group, limit)
        _swap_limit(group, swap)
    if asked.get("reservation"):
        group.write("memory.soft_limit_in_bytes", str(asked["reservation"]))
    if asked.get("disableOOMKiller"):
        group.write("memory.oom_control", "1")
    swappiness = asked.get("swappiness")
    # -1 unsigned is how Go clients say "unset"
    if swappiness is not None and swappiness not in (-1, (1 << 64) - 1):
        if not 0 <= swappiness <= 100:
            raise InvalidParameter(
                f"invalid memory swappiness value: {swappiness} (valid range is 0-100)")
        group.write("memory.swappiness", str(swappiness))


def _memory_limit(group: Group, value: int) -> None:
    if not value:
        return
    try:
        group.write("memory.limit_in_bytes", str(value))
    except OSError as error:
        if error.errno != EBUSY:
            raise
        usage = group.number("memory.usage_in_bytes")
        peak = group.number("memory.max_usage_in_bytes")
        raise InvalidParameter(f"unable to set memory limit to {value} (current usage: {usage}, "
                               f"peak usage: {peak})") from error


def _swap_limit(group: Group, value: int) -> None:
    if value:
        group.write("memory.memsw.limit_in_bytes", str(value))


def cpu(group: Group, asked: Resources, fresh: bool) -> None:
    shares = asked.get("shares") or 0
    if shares:
        group.write("cpu.shares", str(shares))
        # the kernel clamps silently; 2 to 262144 are its ends
        if not 2 <= shares <= 262144:
            real = group.number("cpu.shares")
            end = "maximum" if shares > real else "minimum"
            raise InvalidParameter(f"the {end} allowed cpu-shares is {real}")
    period, quota, burst = asked.get("period") or 0, asked.get("quota") or 0, asked.get("burst")
    later = []
    if period and not _try_write(group, "cpu.cfs_period_us", period, bool(quota)):
        later.append(("cpu.cfs_period_us", period))
    if burst is not None and not _try_write(group, "cpu.cfs_burst_us", burst, bool(quota),
                                            optional=True):
        later.append(("cpu.cfs_burst_us", burst))
    if quota:
        group.write("cpu.cfs_quota_us", str(quota))
        for name, value in later:
            group.write(name, str(value))
    if asked.get("idle") is not None:
        group.write("cpu.idle", str(asked["idle"]))
    runtime, rt_period = asked.get("realtimeRuntime") or 0, asked.get("realtimePeriod") or 0
    rt_done = not rt_period or _try_write(group, "cpu.rt_period_us", rt_period, bool(runtime))
    if runtime:
        group.write("cpu.rt_runtime_us", str(runtime))
        if not rt_done:
            group.write("cpu.rt_period_us", str(rt_period))


def _try_write(group: Group, name: str, value: int, retry: bool, optional: bool = False) -> bool:
    """False when the kernel refuses the value beside the old quota (EINVAL) and
    it is worth a second try after the new quota is set."""
    try:
        group.write(name, str(value))
    except OSError as error:
        if optional and error.errno == ENOENT:
            return True  # a kernel before 5.14: no burst
        if error.errno != EINVAL or not retry:
            raise
        return False
    return True


def cpuset(group: Group, asked: Resources, fresh: bool) -> None:
    for key, name in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
        if asked.get(key):
            group.write(name, check_ranges(asked[key], key))


def check_ranges(text: str, what: str) -> str:
    """Syntax of "0-3,7" without building a list: a range may name 10^9 cpus."""
    for part in text.strip().split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or len(part) > 24:
            raise InvalidParameter(f"invalid cpuset {what}: {text[:80]!r}")
        if dash and int(low) > int(high):
            raise InvalidParameter(f"invalid cpuset {what}: {text[:80]!r}")
    return text


def pids(group: Group, asked: Resources, fresh: bool) -> None:
    limit = asked.get("limit")
    if limit is not None:
        group.write("pids.max", pids_value(limit))


def pids_value(limit: int) -> str:
    # 0 would be "no process at all"; systemd cannot say that, so 1, as runc does
    return str(limit) if limit > 0 else "1" if limit == 0 else "max"


def blkio(group: Group, asked: Resources, fresh: bool) -> None:
    weight, devices = asked.get("weight") or 0, asked.get("weightDevice") or []
    prefix = "blkio."
    if (weight or devices) and not group.has("blkio.weight"):
        prefix = "blkio.bfq."  # CFQ went away in 5.0
    if weight:
        group.write(f"{prefix}weight", str(weight))
    if asked.get("leafWeight"):
        group.write("blkio.leaf_weight", str(asked["leafWeight"]))
    for device in devices:
        number = f"{device['major']}:{device['minor']}"
        if device.get("weight"):
            group.write(f"{prefix}weight_device", f"{number} {device['weight']}")
        if device.get("leafWeight"):
            group.write("blkio.leaf_weight_device", f"{number} {device['leafWeight']}")
    for key, name in (("throttleReadBpsDevice", "read_bps"),
                      ("throttleWriteBpsDevice", "write_bps"),
                      ("throttleReadIOPSDevice", "read_iops"),
                      ("throttleWriteIOPSDevice", "write_iops")):
        for device in asked.get(key) or []:
            group.write(f"blkio.throttle.{name}_device",
                        f"{device['major']}:{device['minor']} {device['rate']}")


def hugetlb(group: Group, asked: list[Resources], fresh: bool) -> None:
    hugetlb_files(group, asked, "limit_in_bytes")


def hugetlb_files(group: Group, asked: list[Resources], suffix: str) -> None:
    reserved = True
    for one in asked:
        # Go readers take keys in any case, and "pagesize" is seen in the wild
        size = one.get("pageSize") or one.get("pagesize") or ""
        if not size or "/" in size:
            raise InvalidParameter(f"invalid hugepage size {size!r}")
        group.write(f"hugetlb.{size}.{suffix}", str(one["limit"]))
        if reserved:
            try:
                group.write(f"hugetlb.{size}.rsvd.{suffix}", str(one["limit"]))
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                reserved = False  # a kernel before 5.7


def net_cls(group: Group, asked: Resources, fresh: bool) -> None:
    if asked.get("classID"):
        group.write("net_cls.classid", str(asked["classID"]))


def net_prio(group: Group, asked: Resources, fresh: bool) -> None:
    for one in asked.get("priorities") or []:
        group.write("net_prio.ifpriomap", f"{one['name']} {one['priority']}")


def rdma(group: Group, asked: dict[str, Resources], fresh: bool) -> None:
    for device, limits in asked.items():
        parts = [f"{name}={limits[key]}" for key, name in (
            ("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limits.get(key) is not None]
        if parts:
            group.write("rdma.max", f"{device} {' '.join(parts)}")


def device_writes(asked: list[Resources]) -> DeviceWrites:
    """For a new group, which inherits its parent's list: begin with "deny all"."""
    target = cgroup_devices.build(asked)
    return target, cgroup_devices.transition(
        cgroup_devices.DeviceState(not target.allow), target)


def devices(group: Group, asked: list[Resources]) -> None:
    """Change the list of a group that has one."""
    target = cgroup_devices.build(asked)
    current = cgroup_devices.parse_list(group.read("devices.list"))
    write_devices(group, (target, cgroup_devices.transition(current, target)))


def write_devices(group: Group, ready: DeviceWrites) -> None:
    target, writes = ready
    for name in dict.fromkeys(name for name, _ in writes):  # each file in one piece of the order
        group.write_lines(name, [line for other, line in writes if other == name])
    # Security hangs on this list: look whether the kernel has what was asked.
    real = cgroup_devices.parse_list(group.read("devices.list"))
    if real.allow != target.allow or (not target.allow and real.rules != target.rules):
        raise InvalidParameter("resulting devices cgroup doesn't precisely match target")


#: controller, how to find its part of linux.resources, how to set it; in runc's order
CONTROLLERS: tuple[tuple[str, Callable[[Resources], Any], Callable[[Group, Any, bool], None]],
                   ...] = (
    ("cpuset", lambda r: _only(r.get("cpu"), "cpus", "mems"), cpuset),
    ("devices", lambda r: r.get("devices"), lambda g, asked, _fresh: devices(g, asked)),
    ("memory", lambda r: _only(r.get("memory"), "limit", "swap", "reservation", "swappiness",
                               "disableOOMKiller"), memory),
    ("cpu", lambda r: _only(r.get("cpu"), "shares", "quota", "period", "burst", "idle",
                            "realtimeRuntime", "realtimePeriod"), cpu),
    ("pids", lambda r: {k: v for k, v in (r.get("pids") or {}).items() if v is not None}, pids),
    ("blkio", lambda r: {k: v for k, v in (r.get("blockIO") or {}).items() if v}, blkio),
    ("hugetlb", lambda r: r.get("hugepageLimits"), hugetlb),
    ("net_cls", lambda r: _only(r.get("network"), "classID"), net_cls),
    ("net_prio", lambda r: _only(r.get("network"), "priorities"), net_prio),
    ("rdma", lambda r: r.get("rdma"), rdma),
)


def _only(part: Resources | None, *keys: str) -> Resources:
    """What of ``part`` was really asked for."""
    if not part:
        return {}
    return {k: part[k] for k in keys if part.get(k) is not None and part.get(k) != ""
            and (part[k] or k in ("burst", "idle", "swappiness"))}
