"""top, port, diff"""

from __future__ import annotations

import sys

from .client import escape
from .command import MANY, Command
from .createbody import port_range
from .errors import CliError
from .tables import Listing, show
from .terminal import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .flags import Options


def _top(app: App, options: Options, args: list[str]) -> None:
    answer = app.engine.call("GET", f"/containers/{escape(args[0])}/top",
                             {"ps_args": " ".join(args[1:]) or None})
    rows = [answer["Titles"], *(answer.get("Processes") or [])]
    sys.stdout.write(_spread([[clean(str(c)) for c in row] for row in rows]))


def _spread(rows: list[list[str]]) -> str:
    """Columns at least 20 wide, as `docker top` has them."""
    widths: list[int] = []
    for row in rows:
        for i, cell in enumerate(row[:-1]):
            if i == len(widths):
                widths.append(20)
            widths[i] = max(widths[i], len(cell) + 3)
    return "".join("".join(c.ljust(w) for c, w in zip(row[:-1], widths, strict=False))
                   + (row[-1] if row else "") + "\n" for row in rows)


def _port(app: App, options: Options, args: list[str]) -> None:
    from .cmd_ps import join_host_port
    info = app.engine.call("GET", f"/containers/{escape(args[0])}/json")
    ports = info["NetworkSettings"].get("Ports") or {}
    lines = []
    if len(args) > 1:
        wanted, slash, proto = args[1].partition("/")
        try:
            port_range(wanted)
        except ValueError as error:
            raise CliError(f"Error: invalid port ({wanted}): {error}") from None
        bindings = ports.get(f"{wanted}/{proto.lower() if slash and proto else 'tcp'}")
        if not bindings:
            raise CliError(f"Error: No public port '{args[1]}' published for {args[0]}")
        lines = [join_host_port(b["HostIp"], b["HostPort"]) for b in bindings]
    else:
        for port, bindings in ports.items():
            lines += [f"{port} -> {join_host_port(b['HostIp'], b['HostPort'])}"
                      for b in bindings or []]
    if lines:
        lines.sort(key=natural)
        print("\n".join(clean(line) for line in lines))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Numbers in a text sort as numbers."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for char in text + "\0":
        if char.isascii() and char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, char))
    return parts


_CHANGES = Listing("*container.diffContext", {
    "Type": lambda c, trunc: ("C", "A", "D")[c["Kind"]],
    "Path": lambda c, trunc: c["Path"],
}, {"Type": "CHANGE TYPE", "Path": "PATH"}, ("Type", "Path"))


def _diff(app: App, options: Options, args: list[str]) -> None:
    if not args[0]:
        raise CliError("Container name cannot be empty")
    changes = app.engine.call("GET", f"/containers/{escape(args[0])}/changes") or []
    show(_CHANGES, changes, "{{.Type}} {{.Path}}")


COMMANDS = {
    "top": Command(_top, "CONTAINER [ps OPTIONS]", 1, MANY, interspersed=False),
    "port": Command(_port, "CONTAINER [PRIVATE_PORT[/PROTO]]", 1, 2),
    "diff": Command(_diff, "CONTAINER", 1, 1),
}
