"""ps, events, spec, features; checkpoint and restore, which are not built."""

from __future__ import annotations

import os
import sys
from select import POLLIN, poll

from carrel.errdefs import Conflict, InvalidParameter, NotImplementedYet
from carrel.oci import json
from carrel.runtime import api
from carrel.runtime import container as containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.arguments import Parsed
    from carrel.runtime.main import Context

OPTIONS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "checkpoint": (), "restore": (), "features": (),
    "ps": (("format", "value", "f", "select one of: table or json (default: \"table\")"),),
    "events": (("interval", "value", "", "set the stats collection interval (default: 5s)"),
               ("stats", "flag", "", "display the container's stats then exit")),
    "spec": (("bundle", "value", "b", "path to the root of the bundle directory"),
             ("rootless", "flag", "", "generate a configuration for a rootless container")),
}
USAGE = {"checkpoint": "<container-id>", "restore": "<container-id>", "features": "",
         "ps": "<container-id> [ps options]", "events": "<container-id>", "spec": ""}
ARGUMENTS = {"checkpoint": (0, -1), "restore": (0, -1), "features": (0, 0), "ps": (1, -1),
             "events": (1, 1), "spec": (0, 0)}


def run_checkpoint(context: Context, given: Parsed) -> int:
    raise NotImplementedYet("checkpoint is not built", hint="use runc with CRIU")


def run_restore(context: Context, given: Parsed) -> int:
    raise NotImplementedYet("restore is not built", hint="use runc with CRIU")


def run_features(context: Context, given: Parsed) -> int:
    from carrel.runtime.features import features
    sys.stdout.write(json.dumps(features(), "  ") + "\n")
    sys.stdout.flush()
    return 0


def run_spec(context: Context, given: Parsed) -> int:
    from carrel.runtime.template import default_spec
    if given.text("bundle"):
        os.chdir(given.text("bundle"))
    if os.path.lexists("config.json"):
        raise Conflict("file config.json exists. Remove it first")
    if not os.path.isdir("."):
        raise InvalidParameter("bundle is not a directory")
    text = json.dumps(default_spec(rootless=given.flag("rootless")), "\t")
    fd = os.open("config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(fd, "w", encoding="utf-8") as f:
        f.write(text)
    return 0


# --- ps ------------------------------------------------------------------------

def run_ps(context: Context, given: Parsed) -> int:
    form = given.text("format") or "table"
    words = given.rest[1:]
    # as runc: flags may follow the id, because the rest are options of ps
    if words[:1] and words[0] in ("-f", "--format", "-format") and len(words) > 1:
        form, words = words[1], words[2:]
    if form not in ("table", "json"):
        raise InvalidParameter("invalid format option")
    found = api.load(given.rest[0], context.root)
    if found.status == containers.STOPPED:
        pids: list[int] = []
    else:
        pids = found.pids()
    if form == "json":
        sys.stdout.write(json.dumps(pids) + "\n")
    else:
        sys.stdout.write(_filter(_host_ps(words or ["-ef"]), pids))
    sys.stdout.flush()
    return 0


def _host_ps(words: list[str]) -> list[str]:
    """The host's own ps with the caller's options: this is the caller's command
    line on the caller's machine, nothing of the container gets into it."""
    path = next((p for p in ("/usr/bin/ps", "/bin/ps") if os.access(p, os.X_OK)), "")
    if not path:
        raise NotImplementedYet("the ps program is not installed here", hint="use -f json")
    reader, writer = os.pipe()
    pid = os.posix_spawn(path, ["ps", *words], dict(os.environ),
                         file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as f:
        lines = f.read().splitlines()
    _, status = os.waitpid(pid, 0)
    if status:
        raise InvalidParameter(f"ps: exit status {os.waitstatus_to_exitcode(status)}")
    return lines


def _filter(lines: list[str], pids: list[int]) -> str:
    titles = lines[0].split()
    if "PID" not in titles:
        raise InvalidParameter("couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = {str(p) for p in pids}
    kept = [lines[0]]
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column] in wanted:
            kept.append(line)
    return "\n".join(kept) + "\n"


# --- events ----------------------------------------------------------------------

def run_events(context: Context, given: Parsed) -> int:
    interval = _duration(given.text("interval") or "5s")
    found = api.load(given.rest[0], context.root)
    if found.status == containers.STOPPED:
        raise Conflict(f"container with id {found.id} is not running")
    if given.flag("stats"):
        _emit("stats", found.id, _statistics(found))
        return 0
    _follow(found, interval)
    return 0


def _follow(found: containers.Container, interval: float) -> None:
    pidfd = found.open_pidfd()
    oom = found.cgroup.oom_fd()
    watch = poll()
    watch.register(pidfd, POLLIN)
    watch.register(oom, POLLIN)
    try:
        while True:
            events = [fd for fd, _ in watch.poll(interval * 1000)]
            if oom in events:
                os.read(oom, 4096)
                if found.alive or found.cgroup.oom_count():
                    _emit("oom", found.id, None)
            if pidfd in events:
                return
            if not events:
                _emit("stats", found.id, _statistics(found))
    finally:
        os.close(oom)


def _statistics(found: containers.Container) -> dict[str, Any]:
    """runc's shape, without our own keys: its readers look for "oom" in the stream."""
    return {k: v for k, v in found.stats().items() if k not in ("version", "oom")}


def _emit(kind: str, id: str, data: Any) -> None:
    event: dict[str, Any] = {"type": kind, "id": id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _duration(text: str) -> float:
    """Go's notation: ``1m30s``, ``100ms``."""
    total, number, index = 0.0, "", 0
    while index < len(text):
        if text[index] in "0123456789.":
            number += text[index]
            index += 1
            continue
        unit = text[index:index + 2] if text[index:index + 2] in _UNITS else text[index]
        if unit not in _UNITS or not number or number.count(".") > 1 or number == ".":
            raise InvalidParameter(f'invalid duration "{text}"')
        total += float(number) * _UNITS[unit]
        number = ""
        index += len(unit)
    if number or total <= 0:
        raise InvalidParameter("duration interval must be greater than 0")
    return total
