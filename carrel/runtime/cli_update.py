"""update: change the limits of a container that exists."""

from __future__ import annotations

import sys

from carrel.errdefs import Conflict, InvalidParameter
from carrel.oci import json
from carrel.runtime import api, state
from carrel.runtime import container as containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.arguments import Parsed
    from carrel.runtime.main import Context

#: flag -> (section, key, kind, help)
_LIMITS = {
    "blkio-weight": ("blockIO", "weight", "number", "relative block IO weight"),
    "cpu-period": ("cpu", "period", "number", "CPU CFS period to be used for hardcapping (usec)"),
    "cpu-quota": ("cpu", "quota", "number", "CPU CFS hardcap limit (usec)"),
    "cpu-burst": ("cpu", "burst", "number", "CPU CFS hardcap burst limit (usec)"),
    "cpu-share": ("cpu", "shares", "number", "CPU shares (relative weight)"),
    "cpu-rt-period": ("cpu", "realtimePeriod", "number", "CPU realtime period (usec)"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", "number", "CPU realtime hardcap limit (usec)"),
    "cpu-idle": ("cpu", "idle", "number", "set cgroup SCHED_IDLE or not"),
    "cpuset-cpus": ("cpu", "cpus", "text", "CPU(s) to use"),
    "cpuset-mems": ("cpu", "mems", "text", "memory node(s) to use"),
    "memory": ("memory", "limit", "bytes", "memory limit (in bytes)"),
    "memory-reservation": ("memory", "reservation", "bytes", "memory reservation (in bytes)"),
    "memory-swap": ("memory", "swap", "bytes", "total memory usage (memory + swap)"),
    "pids-limit": ("pids", "limit", "number", "maximum number of pids allowed"),
}
_IGNORED = (("kernel-memory", "value", "", "(obsolete; do not use)"),
            ("kernel-memory-tcp", "value", "", "(obsolete; do not use)"))
OPTIONS = {"update": (
    ("resources", "value", "r", "path to the file containing the resources to update or '-' to "
                                "read from the standard input"),
    *((name, "value", "", text) for name, (_, _, _, text) in _LIMITS.items()), *_IGNORED,
)}
USAGE = {"update": "<container-id>"}
ARGUMENTS = {"update": (1, 1)}
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def run_update(context: Context, given: Parsed) -> int:
    found = api.load(given.rest[0], context.root)
    if found.status == containers.STOPPED:
        raise Conflict("container not running")
    if given.text("resources"):
        resources = _from_file(given.text("resources"))
    else:
        resources = _from_flags(given)
    found.update(resources)
    _remember(found, resources)
    return 0


def _from_file(path: str) -> dict[str, Any]:
    raw = sys.stdin.buffer.read(json.LIMIT + 1) if path == "-" else state.read(path, follow=True)
    found = json.loads(raw, path)
    if not isinstance(found, dict):
        raise InvalidParameter(f"{path} is not an object")
    return found


def _from_flags(given: Parsed) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    for flag, (section, key, kind, _) in _LIMITS.items():
        if flag not in given.given or not given.text(flag):
            continue
        resources.setdefault(section, {})[key] = _value(given.text(flag), kind, flag)
    return resources


def _value(text: str, kind: str, flag: str) -> int | str:
    if kind == "text":
        return text
    scale = 1
    digits = text
    if kind == "bytes" and text != "-1":
        low = text.lower().removesuffix("b").removesuffix("i")
        if low[-1:] in _UNITS:
            scale, low = _UNITS[low[-1]], low[:-1]
        digits = low
    plain = digits[1:] if digits.startswith("-") else digits
    if not plain.isascii() or not plain.isdigit() or len(plain) > 20:
        raise InvalidParameter(f"invalid value for {flag}: {text!r}")
    return int(digits) * scale


def _remember(found: containers.Container, resources: dict[str, Any]) -> None:
    """Into the kept configuration, so that what reads it later sees the limits."""
    spec = found.spec
    kept = spec.setdefault("linux", {}).setdefault("resources", {})
    for section, values in resources.items():
        if isinstance(values, dict) and isinstance(kept.get(section), dict):
            kept[section] = {**kept[section], **values}
        else:
            kept[section] = values
    state.write(found.folder, state.CONFIG, json.dumps(spec).encode())
