"""start, state, list, kill, delete, pause, resume."""

from __future__ import annotations

import os
import sys

from carrel.errdefs import CarrelError, InvalidParameter, NotFound
from carrel.oci import json
from carrel.runtime import api, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.runtime.arguments import Parsed
    from carrel.runtime.main import Context

OPTIONS = {
    "start": (), "state": (), "pause": (), "resume": (),
    "list": (("format", "value", "f", "select one of: table or json (default: \"table\")"),
             ("quiet", "flag", "q", "display only container IDs")),
    "kill": (("all", "flag", "a", "send the signal to all processes of the container"),),
    "delete": (("force", "flag", "f", "forcibly deletes the container if it is still running "
                                      "(uses SIGKILL)"),),
}
USAGE = {"start": "<container-id>", "state": "<container-id>", "pause": "<container-id>",
         "resume": "<container-id>", "list": "", "kill": "<container-id> [signal]",
         "delete": "<container-id>"}
ARGUMENTS = {"start": (1, 1), "state": (1, 1), "pause": (1, 1), "resume": (1, 1),
             "list": (0, 0), "kill": (1, 2), "delete": (1, 1)}

_SIGNALS = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
)
SIGNALS = {name: number for number, name in enumerate(_SIGNALS, 1)}
SIGNALS |= {"IOT": 6, "CLD": 17, "POLL": 29, "UNUSED": 31}
SIGNALS |= {f"RTMIN+{n}" if n else "RTMIN": 34 + n for n in range(16)}
SIGNALS |= {f"RTMAX-{n}" if n else "RTMAX": 64 - n for n in range(15)}


def signal_number(text: str) -> int:
    """``9``, ``KILL``, ``SIGKILL``, ``kill``."""
    if text.isascii() and text.isdigit():
        number = int(text[:4])
        if number <= 64:  # 0 asks whether the process is there
            return number
    else:
        found = SIGNALS.get(text.upper().removeprefix("SIG"))
        if found is not None:
            return found
    raise InvalidParameter(f"unknown signal {text!r}".replace("'", '"'))


def run_start(context: Context, given: Parsed) -> int:
    api.load(given.rest[0], context.root).start()
    return 0


def run_state(context: Context, given: Parsed) -> int:
    found = api.state(api.load(given.rest[0], context.root))
    sys.stdout.write(json.dumps(found, "  "))
    sys.stdout.flush()
    return 0


def run_pause(context: Context, given: Parsed) -> int:
    api.load(given.rest[0], context.root).pause()
    return 0


def run_resume(context: Context, given: Parsed) -> int:
    api.load(given.rest[0], context.root).resume()
    return 0


def run_kill(context: Context, given: Parsed) -> int:
    signal = signal_number(given.rest[1] if len(given.rest) > 1 else "SIGTERM")
    api.load(given.rest[0], context.root).kill(signal, given.flag("all"))
    return 0


def run_delete(context: Context, given: Parsed) -> int:
    force = given.flag("force")
    try:
        found = api.load(given.rest[0], context.root)
    except NotFound:
        if force:
            return 0
        raise
    found.delete(force)
    return 0


def run_list(context: Context, given: Parsed) -> int:
    form = given.text("format") or "table"
    if form not in ("table", "json"):
        raise InvalidParameter("invalid format option")
    rows = []
    for container in _containers(context, explicit=True):
        row = api.state(container)
        row["owner"] = _owner(container.record.get("owner", 0))
        rows.append(row)
    if given.flag("quiet"):
        text = "".join(f"{row['id']}\n" for row in rows)
    elif form == "json":
        text = json.dumps(rows or None) if rows else "null"
    else:
        text = _table(rows)
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def _containers(context: Context, *, explicit: bool) -> list[api.Container]:
    from carrel.runtime.main import DEFAULT_ROOT
    try:
        names = sorted(os.listdir(context.root))
    except FileNotFoundError:
        if context.root == DEFAULT_ROOT:
            return []
        raise
    found = []
    for name in names:
        if name.startswith("."):
            continue
        try:
            found.append(api.load(name, context.root))
        except (CarrelError, OSError) as error:
            log.warning(f"load container {name}: {api.message(error)}")
    return found


def _owner(uid: int) -> str:
    """By the host's passwd file, read by ourselves: NSS would load libraries."""
    with open("/etc/passwd", encoding="utf-8", errors="replace") as f:
        for line in f:
            fields = line.split(":", 3)
            if len(fields) > 2 and fields[2] == str(uid):
                return fields[0]
    return f"#{uid}"


def _table(rows: list[dict[str, object]]) -> str:
    keys = ("id", "pid", "status", "bundle", "created", "owner")
    lines = [[k.upper() for k in keys], *([str(row[k]) for k in keys] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    widths[0] = max(widths[0], 9)
    return "".join("   ".join([*(c.ljust(w) for c, w in zip(line, widths)), line[5]]) + "\n"
                   for line in lines)
