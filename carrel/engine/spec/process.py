"""The ``process`` object: what runs, as whom, with which rights."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Iterable, Mapping
from typing import Any

from carrel import errdefs
from carrel.engine.spec import capabilities
from carrel.engine.spec.user import User

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(entries: Iterable[str], *, tty: bool, hostname: str, home: str = "",
                path: bool = True) -> list[str]:
    """Docker's defaults, then what was asked for; a bare ``NAME`` takes a variable away."""
    values: dict[str, str] = {}
    if path:
        values["PATH"] = DEFAULT_PATH
    if hostname:
        values["HOSTNAME"] = hostname
    if tty:
        values["TERM"] = "xterm"
    for entry in entries:
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    if home:
        values.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in values.items()]


def merge_environment(image: Iterable[str], own: Iterable[str]) -> list[str]:
    """The container's Env as ``inspect`` shows it."""
    result: dict[str, str] = {}
    for entry in image:
        result[entry.partition("=")[0]] = entry
    for entry in own:
        result[entry.partition("=")[0]] = entry
    return list(result.values())


def rlimits(own: Iterable[Mapping[str, Any]], defaults: Mapping[str, tuple[int, int]],
            *, may_raise: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The limits, and warnings for those that this daemon has no right to give."""
    wanted = dict(defaults)
    for item in own:
        wanted[item["Name"]] = (item.get("Soft", 0), item.get("Hard", 0))
    result, warnings = [], []
    for name, (soft, hard) in wanted.items():
        top = (1 << 64) - 1
        soft, hard = (top if v == -1 else v for v in (soft, hard))
        limit = _hard_limit(name)
        if not may_raise and limit is not None and hard > limit:
            warnings.append(f"ulimit {name}: capped at {limit}, the daemon has no "
                            "CAP_SYS_RESOURCE")
            hard, soft = limit, min(soft, limit)
        result.append({"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard})
    return result, warnings


def _hard_limit(name: str) -> int | None:
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        return None
    hard = resource.getrlimit(number)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def security_options(options: Iterable[str]) -> dict[str, str]:
    """``--security-opt`` as key and value; ``label`` may come more than once."""
    result: dict[str, str] = {}
    for option in options:
        separator = "=" if "=" in option else ":"
        key, given, value = option.partition(separator)
        if key in ("no-new-privileges", "writable-cgroups"):
            value = "true" if not given or value in _TRUE else "false"
        result[key] = f"{result[key]},{value}" if key == "label" and key in result else value
    return result


def check_selinux(options: Mapping[str, str]) -> None:
    """Labels have no meaning on hosts without SELinux (Docker accepts them there); where
    they would have one, what is not built is an error, never silent."""
    label = options.get("label", "")
    if label and label != "disable" and os.path.exists("/sys/fs/selinux/enforce"):
        raise errdefs.NotImplementedYet("SELinux labels are not implemented in Carrel")


@functools.cache
def own_oom_score() -> int:
    """The daemon's, which its children would inherit."""
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0


def build(*, args: list[str], env: list[str], cwd: str, user: User, terminal: bool,
          host: Mapping[str, Any], caps: list[str], no_new_privileges: bool,
          limits: list[dict[str, Any]], lsm_fields: Mapping[str, str],
          console: tuple[int, int] | None = None) -> dict[str, Any]:
    """One process, for the container or for exec."""
    held = caps if user.uid == 0 else []
    process: dict[str, Any] = {
        "terminal": terminal,
        "user": user.spec(),
        "args": args,
        "env": env,
        "cwd": cwd or "/",
        "capabilities": {"bounding": caps, "effective": held, "permitted": held},
        "noNewPrivileges": no_new_privileges,
        **lsm_fields,
    }
    if limits:
        process["rlimits"] = limits
    # a daemon that the kernel shall spare (its unit says so) must not pass that on
    if host.get("OomScoreAdj") or own_oom_score() < 0:
        process["oomScoreAdj"] = host.get("OomScoreAdj") or 0
    if console and terminal:
        process["consoleSize"] = {"height": console[0], "width": console[1]}
    return process


def effective_caps(host: Mapping[str, Any]) -> list[str]:
    return capabilities.effective(host.get("CapAdd") or (), host.get("CapDrop") or (),
                                  bool(host.get("Privileged")))
