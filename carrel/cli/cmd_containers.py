"""stop, restart, kill, rm, pause, unpause, wait, rename"""

from __future__ import annotations

from .client import escape
from .command import MANY, Command
from .errors import CliError
from .flags import Flag
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .app import App
    from .flags import Options

_SIGNAL = Flag("signal", "s", "string", "Signal to send")


def each(names: list[str], action: Callable[[str], object | None],
         shown: Callable[[str], None] = print) -> int:
    """Do something with every name; go on after an error, and tell at the end.

    The actions run one after the other on one connection: an engine that needs time for
    one of them (``stop``) is asked for all at once by :func:`parallel` instead."""
    failed = False
    for name in names:
        try:
            action(name)
        except CliError as error:
            warn(error.message)
            failed = True
        else:
            shown(name)
    return 1 if failed else 0


def parallel(app: App, names: list[str], method: str,
             request: Callable[[str], tuple[str, dict[str, object]]]) -> int:
    """The same request for every container at once; the results in order."""
    if len(names) == 1:
        def one(name: str) -> None:
            path, query = request(name)
            app.engine.call(method, path, query)
        return each(names, one)
    engine = app.engine
    started = [(name, *request(name)) for name in names]
    failed = False
    limit = 50
    for at in range(0, len(started), limit):
        batch = [(name, path, engine.begin(method, path, query))
                 for name, path, query in started[at:at + limit]]
        for name, path, connection in batch:
            try:
                response = engine.read_head(connection, method)
                if response.status >= 400:
                    raise engine.error_of(response, method, path)
                response.read()
            except CliError as error:
                warn(error.message)
                failed = True
            else:
                print(name, flush=True)
    return 1 if failed else 0


def _stop(app: App, options: Options, args: list[str]) -> int:
    return _stop_like(app, options, args, "stop")


def _restart(app: App, options: Options, args: list[str]) -> int:
    return _stop_like(app, options, args, "restart")


def _stop_like(app: App, options: Options, args: list[str], verb: str) -> int:
    if options.changed("time") and options.changed("timeout"):
        raise CliError("conflicting options: cannot specify both --timeout and --time")
    seconds = None
    for flag in ("timeout", "time"):
        if options.changed(flag):
            seconds = options[flag]
    query: dict[str, object] = {"t": seconds, "signal": options["signal"] or None}
    return parallel(app, args, "POST", lambda n: (f"/containers/{escape(n)}/{verb}", query))


def _kill(app: App, options: Options, args: list[str]) -> int:
    query: dict[str, object] = {"signal": options["signal"] or None}
    return parallel(app, args, "POST", lambda n: (f"/containers/{escape(n)}/kill", query))


def _rm(app: App, options: Options, args: list[str]) -> int:
    query: dict[str, object] = {"force": options["force"], "v": options["volumes"],
                                "link": options["link"]}

    def request(name: str) -> tuple[str, dict[str, object]]:
        name = name.strip("/")
        if not name:
            raise CliError("Container name cannot be empty")
        return f"/containers/{escape(name)}", query

    if len(args) == 1 or not options["force"]:
        return _rm_each(app, args, request, quiet=options["force"])
    return parallel(app, args, "DELETE", request)


def _rm_each(app: App, args: list[str], request: Callable[[str], tuple[str, dict[str, object]]],
             *, quiet: bool) -> int:
    failed = False
    for name in args:
        try:
            path, query = request(name)
            app.engine.call("DELETE", path, query)
        except CliError as error:
            # with --force a container that is not there is what was wanted
            gone = quiet and getattr(error, "status", 0) == 404
            warn(error.message)
            failed = failed or not gone
        else:
            print(name)
    return 1 if failed else 0


def _pause(app: App, options: Options, args: list[str]) -> int:
    return parallel(app, args, "POST", lambda n: (f"/containers/{escape(n)}/pause", {}))


def _unpause(app: App, options: Options, args: list[str]) -> int:
    return parallel(app, args, "POST", lambda n: (f"/containers/{escape(n)}/unpause", {}))


def _wait(app: App, options: Options, args: list[str]) -> int:
    engine = app.engine
    failed = False
    for container in args:
        path = f"/containers/{escape(container)}/wait"
        try:
            answer = engine.call("POST", path)
        except CliError as error:
            warn(error.message)
            failed = True
            continue
        problem = (answer.get("Error") or {}).get("Message")
        if problem:
            warn(problem)
            failed = True
            continue
        print(answer["StatusCode"], flush=True)
    return 1 if failed else 0


def _rename(app: App, options: Options, args: list[str]) -> int:
    old, new = args[0].strip(), args[1].strip()
    if not old or not new:
        raise CliError("Error: Neither old nor new names may be empty")
    try:
        app.engine.call("POST", f"/containers/{escape(old)}/rename", {"name": new})
    except CliError as error:
        warn(error.message)
        raise CliError(f"Error: failed to rename container named {old}") from None
    return 0


_STOP_FLAGS = (
    _SIGNAL,
    Flag("time", "", "int", "Seconds until the kill", hidden=True),
    Flag("timeout", "t", "int", "Seconds until the container is killed"),
)
_SEVERAL = "CONTAINER [CONTAINER...]"

COMMANDS = {
    "stop": Command(_stop, "[OPTIONS] " + _SEVERAL, 1, MANY, _STOP_FLAGS),
    "restart": Command(_restart, "[OPTIONS] " + _SEVERAL, 1, MANY, _STOP_FLAGS),
    "kill": Command(_kill, "[OPTIONS] " + _SEVERAL, 1, MANY, (_SIGNAL,)),
    "rm": Command(_rm, "[OPTIONS] " + _SEVERAL, 1, MANY, (
        Flag("force", "f", "bool", "Kill the container if it runs"),
        Flag("link", "l", "bool", "Remove the link of this name"),
        Flag("volumes", "v", "bool", "Remove the container's anonymous volumes too"),
    )),
    "pause": Command(_pause, _SEVERAL, 1, MANY),
    "unpause": Command(_unpause, _SEVERAL, 1, MANY),
    "wait": Command(_wait, _SEVERAL, 1, MANY),
    "rename": Command(_rename, "CONTAINER NEW_NAME", 2, 2),
}
