"""carrel exec"""

from __future__ import annotations

from .command import MANY, Command
from .createbody import read_files
from .errors import CliError, Detached
from .flags import Flag
from .optvalues import environment
from .streams import Session, check_tty, parse_detach_keys
from .terminal import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options


def _body(app: App, options: Options, command: list[str], keys: str) -> dict[str, Any]:
    try:
        variables = read_files(options["env-file"], options["env"], lookup=True)
    except ValueError as error:
        raise CliError(str(error)) from None
    attached = not options["detach"]
    body: dict[str, Any] = {
        "User": options["user"], "Privileged": options["privileged"], "Tty": options["tty"],
        "AttachStdin": attached and options["interactive"], "AttachStderr": attached,
        "AttachStdout": attached, "Detach": options["detach"], "DetachKeys": keys,
        "Env": variables or None, "WorkingDir": options["workdir"], "Cmd": command,
    }
    rows, columns = size(1)
    if options["tty"] and rows:
        body["ConsoleSize"] = [rows, columns]
    return body


def _run(app: App, options: Options, args: list[str]) -> int:
    engine = app.engine
    keys = options["detach-keys"] or app.config.text("detachKeys")
    parsed_keys = parse_detach_keys(keys)
    body = _body(app, options, args[1:], keys)
    if not options["detach"]:
        check_tty(body["AttachStdin"], body["Tty"])
    from .client import escape
    identifier = engine.call("POST", f"/containers/{escape(args[0])}/exec", body=body)["Id"]
    path = f"/exec/{identifier}"
    start: dict[str, Any] = {"Detach": options["detach"], "Tty": options["tty"]}
    if options["detach"]:
        engine.call("POST", path + "/start", body=start)
        return 0
    if "ConsoleSize" in body:
        start["ConsoleSize"] = body["ConsoleSize"]
    stream = engine.hijack_begin(path + "/start", None, start)
    engine.hijack_end(stream, path + "/start")
    session = Session(stream, tty=body["Tty"], stdin=0 if body["AttachStdin"] else -1,
                      stderr=1 if body["Tty"] else 2, detach_keys=parsed_keys)

    def resize() -> None:
        rows, columns = size(1)
        if rows and columns:
            try:
                engine.call("POST", path + "/resize", {"h": rows, "w": columns})
            except CliError:
                pass  # it has ended meanwhile

    session.begin(resize=resize)
    try:
        if session.resize is not None:
            resize()
        session.run()
    except Detached:
        raise CliError("read escape sequence") from None
    finally:
        session.end()
    state = engine.call("GET", path + "/json")
    return int(state.get("ExitCode") or 0)


COMMANDS = {"exec": Command(_run, "[OPTIONS] CONTAINER COMMAND [ARG...]", 2, MANY, (
    Flag("detach", "d", "bool", "Run in the background"),
    Flag("detach-keys", "", "string", "Keys that detach from the command"),
    Flag("env", "e", "list", "Set environment variables", check=environment),
    Flag("env-file", "", "list", "Read environment variables from a file"),
    Flag("interactive", "i", "bool", "Keep STDIN open even if not attached"),
    Flag("privileged", "", "bool", "Give the command all rights of the host's root"),
    Flag("tty", "t", "bool", "Allocate a terminal"),
    Flag("user", "u", "string", "User (name|uid)[:(group|gid)]"),
    Flag("workdir", "w", "string", "Working directory in the container"),
), interspersed=False)}
