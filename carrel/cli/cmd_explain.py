"""carrel explain, and the end of ``carrel run --explain``"""

from __future__ import annotations

import sys

from .client import escape
from .command import Command
from .errors import CliError, EngineError
from .flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options


def fetch(app: App, container: str) -> dict[str, Any]:
    """The engine's record of a start."""
    engine = app.engine
    path = f"/carrel/containers/{escape(container)}/explain"
    response = engine.exchange("GET", path)
    if response.status >= 400:
        error = engine.error_of(response, "GET", path)
        if "no such container" in error.text.lower():
            raise error
        if error.status in (404, 501) and "record" not in error.text.lower():
            raise _not_ours(app)
        raise error
    from .jsonc import loads
    try:
        record = loads(response.read())
    except ValueError:
        raise _not_ours(app) from None
    if not isinstance(record, dict) or not isinstance(record.get("steps"), list):
        raise _not_ours(app)
    return record


def require(app: App) -> None:
    """CliError unless the engine keeps such records."""
    try:
        fetch(app, "-")
    except EngineError:
        pass  # it knows the question: there is just no container of that name


def _not_ours(app: App) -> CliError:
    return CliError(
        f"the engine at {app.engine.endpoint.host} keeps no record of what it did to start a "
        "container", hint="--explain needs carreld; Docker's engine has nothing like it")


def print_record(record: dict[str, Any]) -> None:
    from carrel.explain.tree import render

    from .terminal import is_terminal, size
    columns = size(1)[1] if is_terminal(1) else 0
    sys.stdout.flush()
    sys.stdout.write(render(record, columns=columns))


def show(app: App, container: str) -> None:
    print_record(fetch(app, container))


def _run(app: App, options: Options, args: list[str]) -> int:
    record = fetch(app, args[0])
    if options["format"] == "json":
        from .jsonc import pretty
        print(pretty(record))
    elif options["format"]:
        raise CliError(f"unknown format {options['format']!r}: only json is known")
    else:
        print_record(record)
    return 0


COMMANDS = {"explain": Command(_run, "[OPTIONS] CONTAINER", 1, 1, (
    Flag("format", "", "string", "'json' for the record itself"),
))}
