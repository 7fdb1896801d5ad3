"""OCI ``linux.resources`` -> cgroup v2 files.

The OCI fields were made for v1; the conversions (shares to weight, memory+swap
to swap alone, blkio weight to io weight) are those that runc documents, so a
container is weighed alike under either engine.
"""

from __future__ import annotations

from errno import EINVAL, ENOENT

from carrel.errdefs import InvalidParameter
from carrel.kernel.cgroup_base import PERMISSION_ERRNOS
from carrel.kernel.cgroup_v1_limits import check_ranges, hugetlb_files, pids_value
from carrel.kernel.cgroup_v1_limits import rdma as set_rdma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.cgroup_base import Group

    Resources = dict[str, Any]

_DEFAULT_PERIOD = 100_000


def cpu_weight(shares: int) -> int:
    """v1 cpu.shares (2..262144, default 1024) as v2 cpu.weight (1..10000,
    default 100): the quadratic in log2 that meets all three points."""
    from math import ceil, log2  # only where shares are asked for
    if not shares:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    bits = log2(shares)
    return ceil(10 ** ((bits * bits + 125 * bits) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """blkio weight 10..1000 as io.weight 1..10000, linearly."""
    return 1 + (weight - 10) * 9999 // 990 if weight else 0


def swap_limit(memory: int, swap: int) -> int:
    """v1 memory+swap as v2's swap alone; -1 is no limit, 0 "not asked for"
    (or, where swap equals memory and both are set, none at all)."""
    if memory == -1 and not swap:
        return -1
    if swap in (-1, 0) or memory == -1:
        return swap
    if not memory:
        raise InvalidParameter("unable to set swap limit without memory limit")
    if memory < 0:
        raise InvalidParameter(f"invalid memory value: {memory}")
    if swap < memory:
        raise InvalidParameter("memory+swap limit should be >= memory limit")
    return swap - memory


def _value(number: int) -> str:
    return "max" if number == -1 else str(number)


def memory(group: Group, asked: Resources) -> None:
    limit, swap = asked.get("limit") or 0, asked.get("swap") or 0
    reservation = asked.get("reservation") or 0
    if asked.get("checkBeforeUpdate") and limit > 0:
        _check_usage(group, limit, reservation)
    only_swap = swap_limit(limit, swap)
    if only_swap or swap > 0:
        try:
            group.write("memory.swap.max", _value(only_swap))
        except OSError as error:
            # without swap accounting "none" and "no limit" are both true already
            if error.errno != ENOENT or only_swap > 0:
                raise
    if limit:
        group.write("memory.max", _value(limit))
    if reservation:
        group.write("memory.low", _value(reservation))


def _check_usage(group: Group, limit: int, reservation: int) -> None:
    usage = group.number("memory.current", 0)
    for value, what in ((limit, "memory limit"), (reservation, "memory reservation")):
        if 0 < value < usage:
            raise InvalidParameter(
                f"rejecting {what} {value} because of current usage {usage}")


def io(group: Group, asked: Resources) -> None:
    weight, devices = asked.get("weight") or 0, asked.get("weightDevice") or []
    if weight or devices:
        bfq = group.has("io.bfq.weight")
        if weight:
            if bfq:
                group.write("io.bfq.weight", str(weight))
            else:
                group.write("io.weight", str(io_weight(weight)))
        # per-device weights exist for BFQ alone, since 5.4; "default N" tells
        if devices and bfq and not group.read("io.bfq.weight").strip().isdecimal():
            for one in devices:
                if one.get("weight"):
                    group.write("io.bfq.weight",
                                f"{one['major']}:{one['minor']} {one['weight']}")
    for key, name in (("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
                      ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops")):
        for one in asked.get(key) or []:
            rate = one["rate"] or "max"
            group.write("io.max", f"{one['major']}:{one['minor']} {name}={rate}")


def cpu(group: Group, asked: Resources) -> None:
    if asked.get("idle") is not None:
        group.write("cpu.idle", str(asked["idle"]))
    weight = cpu_weight(asked.get("shares") or 0)
    # an idle group has no weight; the kernel answers EINVAL
    if weight and asked.get("idle") != 1:
        group.write("cpu.weight", str(weight))
    quota, period, burst = asked.get("quota") or 0, asked.get("period") or 0, asked.get("burst")
    again = False
    if burst is not None:
        try:
            group.write("cpu.max.burst", str(burst))
        except OSError as error:
            # beside the old quota the kernel may refuse it; then after the new one
            if error.errno != EINVAL or not quota:
                raise
            again = True
    if quota or period:
        group.write("cpu.max", f"{quota if quota > 0 else 'max'} {period or _DEFAULT_PERIOD}")
        if again:
            group.write("cpu.max.burst", str(burst))


def cpuset(group: Group, asked: Resources) -> None:
    for key in ("cpus", "mems"):
        if asked.get(key):
            group.write(f"cpuset.{key}", check_ranges(asked[key], key))


def unified(group: Group, asked: dict[str, str], controllers: list[str]) -> None:
    """Files of v2 by name; each line of a value is a write of its own."""
    for name, value in asked.items():
        if "/" in name:
            raise InvalidParameter(f"unified resource {name!r} must be a file name (no slashes)")
        try:
            for line in value.splitlines() or [""]:
                group.write(name, line)
        except OSError as error:
            controller, dot, _ = name.partition(".")
            if error.errno == ENOENT or error.errno in PERMISSION_ERRNOS:
                if not dot:
                    raise InvalidParameter(f"unified resource {name!r} must be in the form "
                                           "CONTROLLER.PARAMETER") from error
                if controller not in controllers and controller != "cgroup":
                    raise InvalidParameter(f"unified resource {name!r} can't be set: controller "
                                           f"{controller!r} not available") from error
            error.add_note(f"unable to set unified resource {name!r}")
            raise


def apply(group: Group, resources: Resources) -> None:
    """Everything but devices and unified, which the manager does."""
    limit = (resources.get("pids") or {}).get("limit")
    if limit is not None:
        group.write("pids.max", pids_value(limit))
    if resources.get("memory"):
        memory(group, resources["memory"])
    if resources.get("blockIO"):
        io(group, resources["blockIO"])
    if resources.get("cpu"):
        cpu(group, resources["cpu"])
        cpuset(group, resources["cpu"])
    if resources.get("hugepageLimits"):
        hugetlb_files(group, resources["hugepageLimits"], "max")
    if resources.get("rdma"):
        set_rdma(group, resources["rdma"], False)


def needs(resources: Resources) -> list[str]:
    """The controllers that these resources cannot do without."""
    found = []
    cpu_part, memory_part = resources.get("cpu") or {}, resources.get("memory") or {}
    if (resources.get("pids") or {}).get("limit") is not None:
        found.append("pids")
    if any(memory_part.get(k) for k in ("limit", "swap", "reservation")):
        found.append("memory")
    if any(resources.get("blockIO") or {}):
        found.append("io")
    if any(cpu_part.get(k) for k in ("shares", "quota", "period")) or any(
            cpu_part.get(k) is not None for k in ("idle", "burst")):
        found.append("cpu")
    if cpu_part.get("cpus") or cpu_part.get("mems"):
        found.append("cpuset")
    if resources.get("hugepageLimits"):
        found.append("hugetlb")
    if resources.get("rdma"):
        found.append("rdma")
    return found
