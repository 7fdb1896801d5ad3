"""carrel attach"""

from __future__ import annotations

from .attachment import attach
from .client import escape
from .command import Command
from .errors import CliError, Detached
from .flags import Flag
from .streams import check_tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .flags import Options


def _run(app: App, options: Options, args: list[str]) -> int:
    from .cmd_run import exit_status
    container = args[0]
    info = app.engine.call("GET", f"/containers/{escape(container)}/json")
    state = info["State"]
    if not state["Running"]:
        raise CliError("You cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise CliError("You cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise CliError("You cannot attach to a restarting container, wait until it is "
                       "running")
    stdin = not options["no-stdin"] and bool(info["Config"]["OpenStdin"])
    check_tty(stdin, bool(info["Config"]["Tty"]))
    try:
        answer = attach(app, options, container, info, stdin=stdin,
                        sig_proxy=options["sig-proxy"], condition="not-running")
    except Detached:
        raise CliError("read escape sequence") from None
    return exit_status(answer)


COMMANDS = {"attach": Command(_run, "[OPTIONS] CONTAINER", 1, 1, (
    Flag("detach-keys", "", "string", "Keys that detach from the container"),
    Flag("no-stdin", "", "bool", "Do not attach STDIN"),
    Flag("sig-proxy", "", "bool", "Pass signals on to the process", True),
))}
