"""carrel logs"""

from __future__ import annotations

from .client import escape
from .command import Command
from .errors import CliError
from .flags import Flag
from .streams import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .client import Response
    from .flags import Options


class _Body:
    """A response body as the connection that a Session reads."""

    def __init__(self, response: Response) -> None:
        self.response = response

    def receive(self, limit: int) -> bytes:
        return self.response.read_some()


def _run(app: App, options: Options, args: list[str]) -> None:
    from time import time

    from .units import timestamp
    engine = app.engine
    path = f"/containers/{escape(args[0])}"
    info = engine.call("GET", path + "/json")
    now = time()
    try:
        since = timestamp(options["since"], now)
    except ValueError:
        raise CliError(f'invalid value for "since": failed to parse value as time or duration: '
                       f'"{options["since"]}"') from None
    try:
        until = timestamp(options["until"], now)
    except ValueError:
        raise CliError(f'invalid value for "until": failed to parse value as time or duration: '
                       f'"{options["until"]}"') from None
    response = engine.open("GET", f"/containers/{info['Id']}/logs", {
        "stdout": True, "stderr": True, "follow": options["follow"],
        "timestamps": options["timestamps"], "details": options["details"],
        "tail": options["tail"], "since": since or None, "until": until or None})
    copy_output(response, tty=bool(info["Config"]["Tty"]))


def copy_output(response: Response, *, tty: bool) -> None:
    """Write a body of multiplexed (or raw) output to our stdout and stderr."""
    session = Session(_Body(response), tty=tty)  # type: ignore[arg-type]
    while session.read_output():
        pass


COMMANDS = {"logs": Command(_run, "[OPTIONS] CONTAINER", 1, 1, (
    Flag("details", "", "bool", "Show what the log driver keeps beside the output"),
    Flag("follow", "f", "bool", "Go on as more is printed"),
    Flag("since", "", "string",
         'Leave out what is older: "2013-01-02T13:23:37Z", or "42m" for 42 minutes'),
    Flag("tail", "n", "string", "Show so many lines from the end", "all"),
    Flag("timestamps", "t", "bool", "Show when each line was printed"),
    Flag("until", "", "string",
         'Leave out what is newer: "2013-01-02T13:23:37Z", or "42m" for 42 minutes'),
))}
