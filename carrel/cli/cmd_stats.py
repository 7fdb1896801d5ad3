"""carrel stats"""

from __future__ import annotations

import sys

from .client import escape, filters_json
from .cmd_ps import FORMAT_HELP
from .command import MANY, Command
from .errors import Broken, CliError, EngineError
from .flags import Flag
from .tables import Listing, render, short_id
from .terminal import is_terminal
from .units import bytes_size, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .app import App
    from .client import Response
    from .flags import Options

_NONE = "--"
_INTERVAL = 0.5


class Sample:
    """What one container used, last time we heard of it."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.stats: dict[str, Any] | None = None
        self.problem = ""

    def get(self, field: str) -> str:
        if self.stats is None and field not in ("Container", "Name", "ID"):
            return "-- / --" if field == "MemUsage" else _NONE
        return _FIELDS[field](self)


def cpu_percent(stats: dict[str, Any]) -> float:
    now, before = stats.get("cpu_stats") or {}, stats.get("precpu_stats") or {}
    used = (now.get("cpu_usage") or {}).get("total_usage") or 0
    used -= (before.get("cpu_usage") or {}).get("total_usage") or 0
    system = (now.get("system_cpu_usage") or 0) - (before.get("system_cpu_usage") or 0)
    cpus = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or [])
    return float(used) / system * cpus * 100.0 if used > 0 and system > 0 else 0.0


def memory_used(stats: dict[str, Any]) -> float:
    """Usage without the page cache that is not in use."""
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    usage = float(memory.get("usage") or 0)
    for key in ("total_inactive_file", "inactive_file"):
        if key in details and (details[key] < usage or key == "inactive_file"):
            return usage - details[key] if details[key] < usage else usage
    return usage


def _limit(sample: Sample) -> float:
    return float(((sample.stats or {}).get("memory_stats") or {}).get("limit") or 0)


def _memory(sample: Sample) -> str:
    return f"{bytes_size(memory_used(sample.stats or {}))} / {bytes_size(_limit(sample))}"


def _memory_percent(sample: Sample) -> str:
    limit = _limit(sample)
    return f"{memory_used(sample.stats or {}) / limit * 100.0 if limit else 0.0:.2f}%"


def _network(sample: Sample) -> str:
    networks = (sample.stats or {}).get("networks") or {}
    received = sum(n.get("rx_bytes") or 0 for n in networks.values())
    sent = sum(n.get("tx_bytes") or 0 for n in networks.values())
    return f"{human_size(received, 3)} / {human_size(sent, 3)}"


def _blocks(sample: Sample) -> str:
    entries = ((sample.stats or {}).get("blkio_stats") or {}).get("io_service_bytes_recursive")
    totals = {"r": 0, "w": 0}
    for entry in entries or []:
        letter = str(entry.get("op") or " ")[0].lower()
        if letter in totals:
            totals[letter] += entry.get("value") or 0
    return f"{human_size(totals['r'], 3)} / {human_size(totals['w'], 3)}"


_FIELDS: dict[str, Callable[[Sample], str]] = {
    "Container": lambda s: s.container,
    "Name": lambda s: ((s.stats or {}).get("name") or "").removeprefix("/") or _NONE,
    "ID": lambda s: (s.stats or {}).get("id") or "",
    "CPUPerc": lambda s: f"{cpu_percent(s.stats or {}):.2f}%",
    "MemUsage": _memory,
    "MemPerc": _memory_percent,
    "NetIO": _network,
    "BlockIO": _blocks,
    "PIDs": lambda s: str(((s.stats or {}).get("pids_stats") or {}).get("current") or 0),
}

STATS = Listing(
    "*container.statsContext",
    {
        "BlockIO": lambda s, trunc: s.get("BlockIO"),
        "CPUPerc": lambda s, trunc: s.get("CPUPerc"),
        "Container": lambda s, trunc: s.get("Container"),
        "ID": lambda s, trunc: short_id(s.get("ID")) if trunc else s.get("ID"),
        "MemPerc": lambda s, trunc: s.get("MemPerc"),
        "MemUsage": lambda s, trunc: s.get("MemUsage"),
        "Name": lambda s, trunc: s.get("Name"),
        "NetIO": lambda s, trunc: s.get("NetIO"),
        "PIDs": lambda s, trunc: s.get("PIDs"),
    },
    {"ID": "CONTAINER ID", "Name": "NAME", "Container": "CONTAINER", "CPUPerc": "CPU %",
     "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O",
     "BlockIO": "BLOCK I/O", "PIDs": "PIDS"},
    ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
)


def _names(app: App, options: Options, args: list[str]) -> list[str]:
    if args:
        return args
    items = app.engine.call("GET", "/containers/json", {"all": options["all"]}) or []
    return [str(item["Id"]) for item in items]


def _run(app: App, options: Options, args: list[str]) -> None:
    format_text = options["format"] or app.config.text("statsFormat") or "table"
    trunc = not options["no-trunc"]
    names = _names(app, options, args)
    if options["no-stream"]:
        samples = _once(app, names)
        problems = [s.problem for s in samples if s.problem and args]
        if problems:
            raise CliError("\n".join(problems))
        sys.stdout.write(render(STATS, samples, format_text, trunc=trunc))
        return
    _live(app, options, args, names, format_text, trunc)


def _once(app: App, names: list[str]) -> list[Sample]:
    """One sample of each; the engine takes a second for it, so all are asked at once."""
    engine = app.engine
    query = {"stream": "0"}
    waiting = [(Sample(n), engine.begin("GET", f"/containers/{escape(n)}/stats", query))
               for n in names]
    for sample, connection in waiting:
        try:
            response = engine.read_head(connection, "GET")
            if response.status >= 400:
                raise engine.error_of(response, "GET", "/stats")
            sample.stats = next(iter(response.values()), None)
            response.close()
        except (CliError, Broken) as error:
            sample.problem = str(error)
    return [s for s, _ in waiting]


class _Live:
    """The open streams and the screen."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.samples: dict[str, Sample] = {}
        self.streams: dict[int, tuple[str, Response, bytes]] = {}

    def add(self, name: str) -> str:
        """Begin to listen to a container; the error text if that fails."""
        if name in self.samples:
            return ""
        try:
            response = self.app.engine.open_new("GET", f"/containers/{escape(name)}/stats",
                                                {"stream": "1"})
        except EngineError as error:
            return error.message
        self.samples[name] = Sample(name)
        self.streams[response.connection.fileno()] = (name, response, b"")
        return ""

    def drop(self, fd: int) -> None:
        name, response, _ = self.streams.pop(fd)
        response.close()
        self.samples.pop(name, None)

    def read(self, fd: int) -> None:
        """Take what a stream has to say."""
        from . import jsonc
        name, response, pending = self.streams[fd]
        try:
            data = response.read_some()
        except CliError:
            data = b""
        if not data:
            self.drop(fd)
            return
        lines = (pending + data).split(b"\n")
        self.streams[fd] = (name, response, lines.pop())
        for line in lines:
            if line.strip():
                self.samples[name].stats = jsonc.loads(line)

    def wait(self, seconds: float, extra: int = -1) -> bool:
        """Listen for some time; True if ``extra`` can be read."""
        from select import POLLIN, poll
        from time import monotonic
        end = monotonic() + seconds
        ready = False
        while (left := end - monotonic()) > 0:
            waiter = poll()
            for fd in self.streams:
                waiter.register(fd, POLLIN)
            if extra >= 0:
                waiter.register(extra, POLLIN)
            for fd, _ in waiter.poll(int(left * 1000) + 1):
                if fd == extra:
                    return True
                self.read(fd)
        return ready


def _live(app: App, options: Options, args: list[str], names: list[str], format_text: str,
          trunc: bool) -> None:
    live = _Live(app)
    problems = [text for text in map(live.add, names) if text]
    if args and problems:
        raise CliError("\n".join(problems))
    events = None
    if not args:
        kinds = ["start", "die", "destroy", "create"] if options["all"] else ["start", "die"]
        events = app.engine.open_new("GET", "/events", {"filters": filters_json(
            {"type": ["container"], "event": kinds})})
    screen = is_terminal(1)
    while args == [] or live.streams:
        if live.wait(_INTERVAL, events.connection.fileno() if events else -1):
            assert events is not None
            if not _event(live, events, options["all"]):
                return
            continue
        text = render(STATS, live.samples.values(), format_text, trunc=trunc)
        if screen:
            # rewrite in place: home, each line cleared to its end, the rest below cleared
            text = "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in text.splitlines()) + "\x1b[J"
        sys.stdout.write(text)
        sys.stdout.flush()


def _event(live: _Live, events: Response, everything: bool) -> bool:
    """A container came or went; False when the engine did."""
    from . import jsonc
    data = events.read_some()
    if not data:
        return False
    for line in data.splitlines():
        try:
            event = jsonc.loads(line)
        except ValueError:
            continue
        name = str((event.get("Actor") or {}).get("ID") or "")
        if event.get("Action") in ("start", "create"):
            live.add(name)
        elif event.get("Action") == "destroy" or not everything:
            for fd, (known, _, _) in list(live.streams.items()):
                if known == name:
                    live.drop(fd)
    return True


COMMANDS = {"stats": Command(_run, "[OPTIONS] [CONTAINER...]", 0, MANY, (
    Flag("all", "a", "bool", "Show all containers, not only those that run"),
    Flag("format", "", "string", FORMAT_HELP),
    Flag("no-stream", "", "bool", "Show the first result and end"),
    Flag("no-trunc", "", "bool", "Do not shorten anything"),
))}
