"""``docker top`` without ps: /proc of the container's processes, columns by an allowlist."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from carrel import errdefs
from carrel.engine import execs, layers
from carrel.engine.model import Container

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(msgspec.Struct):
    pid: int
    ppid: int
    pgid: int
    sid: int
    tty: str
    state: str
    user: str
    uid: int
    cpu_ticks: int
    start: float          # seconds since the epoch
    nice: int
    threads: int
    vsz: int
    rss: int
    comm: str
    args: str


def _boot_time() -> float:
    with open("/proc/stat", encoding="ascii") as f:
        for line in f:
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as f:
        return f.read(1 << 16)


def _tty(number: int) -> str:
    if number == 0:
        return "?"
    major, minor = os.major(number), os.minor(number)
    return f"pts/{minor}" if 136 <= major < 144 else f"{major}:{minor}"


def look(pid: int, boot: float, users: dict[int, str]) -> Process | None:
    """None when it is gone."""
    try:
        stat = _read(pid, "stat").decode("utf-8", "replace")
        command = _read(pid, "cmdline").replace(b"\0", b" ").strip().decode("utf-8", "replace")
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    comm = stat[stat.index("(") + 1:stat.rindex(")")]
    rest = stat[stat.rindex(")") + 2:].split()
    return Process(
        pid=pid, state=rest[0], ppid=int(rest[1]), pgid=int(rest[2]), sid=int(rest[3]),
        tty=_tty(int(rest[4])), cpu_ticks=int(rest[11]) + int(rest[12]), nice=int(rest[16]),
        threads=int(rest[17]), start=boot + int(rest[19]) / _TICKS, vsz=int(rest[20]),
        rss=int(rest[21]) * _PAGE, uid=uid, user=users.get(uid, str(uid)), comm=comm,
        args=command or f"[{comm}]")


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _elapsed(p: Process) -> str:
    seconds = max(0, int(time.time() - p.start))
    hours, rest = divmod(seconds, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}" if hours else (
        f"{rest // 60:02d}:{rest % 60:02d}")


def _stime(p: Process) -> str:
    recent = time.time() - p.start < 86400
    return time.strftime("%H:%M" if recent else "%b%d", time.gmtime(p.start))


def _percent(p: Process) -> float:
    alive = max(time.time() - p.start, 0.01)
    return p.cpu_ticks / _TICKS / alive * 100


def _memory_percent(p: Process) -> str:
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    return f"{p.rss / total * 100:.1f}"


#: name in ``-o`` -> heading and value
COLUMNS: dict[str, tuple[str, Callable[[Process], str]]] = {
    "pid": ("PID", lambda p: str(p.pid)), "ppid": ("PPID", lambda p: str(p.ppid)),
    "pgid": ("PGID", lambda p: str(p.pgid)), "pgrp": ("PGRP", lambda p: str(p.pgid)),
    "sid": ("SID", lambda p: str(p.sid)), "sess": ("SESS", lambda p: str(p.sid)),
    "tty": ("TT", lambda p: p.tty), "tt": ("TT", lambda p: p.tty),
    "stat": ("STAT", lambda p: p.state), "s": ("S", lambda p: p.state),
    "state": ("S", lambda p: p.state), "user": ("USER", lambda p: p.user),
    "uname": ("USER", lambda p: p.user), "euser": ("EUSER", lambda p: p.user),
    "uid": ("UID", lambda p: str(p.uid)), "euid": ("EUID", lambda p: str(p.uid)),
    "c": ("C", lambda p: str(int(_percent(p)))), "pcpu": ("%CPU", lambda p: f"{_percent(p):.1f}"),
    "%cpu": ("%CPU", lambda p: f"{_percent(p):.1f}"), "pmem": ("%MEM", _memory_percent),
    "%mem": ("%MEM", _memory_percent), "stime": ("STIME", _stime), "start": ("START", _stime),
    "time": ("TIME", lambda p: _clock(p.cpu_ticks // _TICKS)),
    "cputime": ("TIME", lambda p: _clock(p.cpu_ticks // _TICKS)),
    "etime": ("ELAPSED", _elapsed), "etimes": ("ELAPSED",
                                               lambda p: str(int(time.time() - p.start))),
    "ni": ("NI", lambda p: str(p.nice)), "nice": ("NI", lambda p: str(p.nice)),
    "nlwp": ("NLWP", lambda p: str(p.threads)), "thcount": ("THCNT", lambda p: str(p.threads)),
    "vsz": ("VSZ", lambda p: str(p.vsz // 1024)), "vsize": ("VSZ", lambda p: str(p.vsz // 1024)),
    "rss": ("RSS", lambda p: str(p.rss // 1024)), "rssize": ("RSS",
                                                            lambda p: str(p.rss // 1024)),
    "comm": ("COMMAND", lambda p: p.comm), "ucmd": ("CMD", lambda p: p.comm),
    "args": ("COMMAND", lambda p: p.args), "cmd": ("CMD", lambda p: p.args),
    "command": ("COMMAND", lambda p: p.args),
}
_FULL = ("uid_name", "pid", "ppid", "c", "stime", "tty_long", "time", "cmd")
_USER = ("user", "pid", "%cpu", "%mem", "vsz", "rss", "tty_long", "stat", "start", "time",
         "command")
_HIDDEN: dict[str, tuple[str, Callable[[Process], str]]] = {
    "uid_name": ("UID", lambda p: p.user), "tty_long": ("TTY", lambda p: p.tty),
}


def columns(text: str) -> list[tuple[str, Callable[[Process], str]]]:
    """The options that choose processes say nothing here: these are the container's."""
    words = text.split()
    chosen: list[str] = []
    index = 0
    base: tuple[str, ...] = _FULL
    while index < len(words):
        word = words[index]
        if word in ("-o", "-eo", "o", "-Ao", "axo", "-axo", "-o="):
            index += 1
            if index >= len(words):
                raise errdefs.InvalidParameter(f"unsupported ps arguments: {text[:80]!r}")
            chosen += words[index].split(",")
        elif word.startswith("-o") and len(word) > 2:
            chosen += word[2:].split(",")
        elif word in ("aux", "auxw", "auxww", "-aux", "u", "au"):
            base = _USER
        elif word not in ("-ef", "-e", "-f", "-A", "ax", "-ax", "-fe", "-w", "-ww", "-efww", "e"):
            raise errdefs.InvalidParameter(
                f"unsupported ps arguments: {text[:80]!r}",
                hint="-ef, aux, or -o with " + ",".join(sorted(COLUMNS)))
        index += 1
    if not chosen:
        return [_HIDDEN.get(n) or COLUMNS[n] for n in base]
    result = []
    for item in chosen:
        name, equals, title = item.partition("=")
        found = COLUMNS.get(name.lower())
        if found is None:
            raise errdefs.InvalidParameter(f"unsupported ps column: {name[:40]!r}",
                                           hint="known: " + ",".join(sorted(COLUMNS)))
        result.append((title if equals and title else found[0], found[1]))
    return result


async def top(manager: Manager, container: Container, ps_args: str) -> dict[str, Any]:
    wanted = columns(ps_args[:1000])
    if not container.alive:
        execs.check_running(container)
    pids = await manager.tasks.pids(container.id)
    users = _users(await manager.snapshot_mounts(container))
    boot = _boot_time()
    rows = []
    for pid in sorted(pids):
        process = look(pid, boot, users)
        if process:
            rows.append([value(process) for _, value in wanted])
    manager.ctx.events.publish("container", "top", container.id, container.attributes())
    return {"Titles": [title for title, _ in wanted], "Processes": rows}


def _users(mounts: list[Any]) -> dict[int, str]:
    """Names as the container has them."""
    try:
        raw = layers.read(layers.of(mounts), "etc/passwd")
    except (layers.Unusual, OSError):
        return {}
    result: dict[int, str] = {}
    for line in raw.split(b"\n")[:10000]:
        parts = line.split(b":")
        if len(parts) > 2 and parts[2].isdigit() and len(parts[2]) < 11:
            result.setdefault(int(parts[2]), parts[0].decode("utf-8", "replace"))
    return result
