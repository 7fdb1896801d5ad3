"""carrel events"""

from __future__ import annotations

import sys

from . import jsonc
from .client import filters_json
from .command import Command
from .errors import CliError
from .flags import Flag
from .terminal import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .app import App
    from .flags import Options


def _line(event: dict[str, Any]) -> str:
    """"TIME TYPE ACTION ID (key=value, ...)" """
    from .units import rfc3339_nano
    nano = event.get("timeNano") or 0
    if nano:
        moment = rfc3339_nano(nano // 10**9, nano % 10**9)
    else:
        moment = rfc3339_nano(event.get("time") or 0, 0)
    actor = event.get("Actor") or {}
    text = f"{moment} {event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    attributes = actor.get("Attributes") or {}
    if attributes:
        text += " (" + ", ".join(f"{k}={v}" for k, v in sorted(attributes.items())) + ")"
    return text


def _ordered(event: dict[str, Any]) -> dict[str, Any]:
    """The fields that an event has today, without the older names of some of them."""
    actor = event.get("Actor") or {}
    found = {"Type": event.get("Type"), "Action": event.get("Action"),
             "Actor": {"ID": actor.get("ID", ""),
                       "Attributes": dict(sorted((actor.get("Attributes") or {}).items()))}}
    found.update((k, event[k]) for k in ("scope", "time", "timeNano") if event.get(k))
    return found


def _formatter(format_text: str) -> Callable[[dict[str, Any]], str]:
    if not format_text:
        return lambda event: clean(_line(event))
    if format_text == "json":
        return lambda event: jsonc.dumps(_ordered(event))
    from .gotemplate import ExecError, Template
    try:
        template = Template(format_text)
    except CliError as error:
        raise CliError("Error parsing format: "
                       + error.message.removeprefix("failed to parse template: "), 64) from None

    def by_template(event: dict[str, Any]) -> str:
        actor = event.get("Actor") or {}
        value = {"Scope": event.get("scope", ""), "Time": event.get("time"),
                 "TimeNano": event.get("timeNano"), "ID": actor.get("ID", ""),
                 "Status": event.get("Action", ""), "From": actor.get("Attributes", {}).get(
                     "image", ""), **event}
        try:
            return clean(template.execute(value))
        except ExecError as error:
            raise CliError(str(error)) from None
    return by_template


def _run(app: App, options: Options, args: list[str]) -> None:
    from time import time

    from .units import timestamp
    shown = _formatter(options["format"])
    now = time()
    query: dict[str, Any] = {"filters": filters_json(options["filter"])}
    for name in ("since", "until"):
        try:
            query[name] = timestamp(options[name], now) or None
        except ValueError as error:
            raise CliError(str(error)) from None
    response = app.engine.open("GET", "/events", query)
    for event in response.values():
        sys.stdout.write(shown(event) + "\n")
        sys.stdout.flush()


COMMANDS = {"events": Command(_run, "[OPTIONS]", 0, 0, (
    Flag("filter", "f", "filter", "Show only what fits, such as type=container"),
    Flag("format", "", "string", """Format the output:
'json':       one JSON object a line
'TEMPLATE':   whatever a Go template makes of it"""),
    Flag("since", "", "string", "Begin with what happened since then"),
    Flag("until", "", "string", "End with what happens then"),
))}
