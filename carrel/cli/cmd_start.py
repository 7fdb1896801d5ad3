"""carrel start"""

from __future__ import annotations

from .client import escape
from .command import MANY, Command
from .errors import CliError, Detached
from .flags import Flag
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .flags import Options


def _run(app: App, options: Options, args: list[str]) -> int:
    if options["checkpoint"] or options["checkpoint-dir"]:
        raise CliError("starting from a checkpoint is not built yet")
    if options["attach"] or options["interactive"]:
        if len(args) > 1:
            raise CliError("you cannot start and attach multiple containers at once")
        return _attached(app, options, args[0])
    failed = []
    for container in args:
        try:
            app.engine.call("POST", f"/containers/{escape(container)}/start")
        except CliError as error:
            warn(error.message)
            failed.append(container)
        else:
            print(container)
    if failed:
        raise CliError(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _attached(app: App, options: Options, container: str) -> int:
    from .attachment import attach
    from .cmd_run import exit_status
    engine = app.engine
    info = engine.call("GET", f"/containers/{escape(container)}/json")
    identifier = info["Id"]

    def start() -> None:
        engine.call("POST", f"/containers/{identifier}/start")

    removed = bool((info.get("HostConfig") or {}).get("AutoRemove"))
    try:
        answer = attach(app, options, identifier, info, stdin=options["interactive"],
                        sig_proxy=options["sig-proxy"] and not info["Config"]["Tty"],
                        condition="removed" if removed else "next-exit", start=start)
    except Detached:
        return 0
    return exit_status(answer)


COMMANDS = {"start": Command(_run, "[OPTIONS] CONTAINER [CONTAINER...]", 1, MANY, (
    Flag("attach", "a", "bool", "Attach STDOUT and STDERR, pass signals on"),
    Flag("checkpoint", "", "string", "Restore from this checkpoint"),
    Flag("checkpoint-dir", "", "string", "Where the checkpoints are"),
    Flag("detach-keys", "", "string", "Keys that detach from the container"),
    Flag("interactive", "i", "bool", "Attach the container's STDIN"),
    Flag("sig-proxy", "", "bool", "Pass signals on to the process", True, hidden=True),
))}
