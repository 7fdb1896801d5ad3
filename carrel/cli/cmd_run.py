"""carrel run, carrel create"""

from __future__ import annotations

import os
import sys

from . import jsonc
from .command import MANY, Command
from .createbody import container_body
from .createflags import CREATE_FLAGS, RUN_FLAGS
from .errors import CliError, ConnectError, Detached, EngineError
from .streams import Session, check_tty, parse_detach_keys
from .terminal import size, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

#: asks an engine of ours to keep the record of this start
EXPLAIN_HEADER = {"X-Carrel-Explain": "1"}
_WINDOWS_FLAGS = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")


def with_help(error: CliError, name: str, code: int) -> CliError:
    """The error as run and create show it."""
    return CliError(f"carrel: {error.message}\n\nRun 'carrel {name} --help' for more information",
                    code, error.hint)


def start_code(message: str) -> int:
    """127 when the program is missing, 126 when it cannot be run, else 125."""
    if "executable file not found" in message or "no such file or directory" in message:
        return 127
    if "permission denied" in message or "is a directory" in message:
        return 126
    return 125


def _body(app: App, options: Options, args: list[str], name: str) -> dict[str, Any]:
    if options["pull"] not in ("always", "missing", "never", ""):
        raise with_help(CliError(
            f"invalid pull option: '{options['pull']}': must be one of "
            '"always", "missing" or "never"'), name, 125)
    if options["use-api-socket"]:
        raise with_help(CliError("--use-api-socket is not built yet"), name, 125)
    if options["disable-content-trust"] is False:
        raise with_help(CliError("content trust is not built"), name, 125)
    windows = [n for n in _WINDOWS_FLAGS if options.changed(n)]
    if windows and app.engine.os_type != "windows":
        raise CliError("\n".join(
            f'"--{n}" is only supported on a Docker daemon running on windows, but the Docker '
            f"daemon is running on {app.engine.os_type}" for n in windows))
    try:
        body = container_body(options, args[0], args[1:])
    except ValueError as error:
        raise with_help(CliError(str(error)), name, 125) from None
    proxies = app.config.mapping("proxies")
    if proxies:
        extra = app.config.proxy_environment(app.engine.endpoint.host, options["env"])
        body["Env"] = [*extra, *(body["Env"] or [])] or None
    return body


class IdFile:
    """--cidfile: must not exist, holds the ID once the container does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        if not path:
            return
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise CliError("container ID file found, make sure the other container isn't "
                           f"running or delete {path}") from None
        except OSError as error:
            raise CliError("failed to create the container ID file: open "
                           f"{path}: {(error.strerror or '').lower()}") from None

    def write(self, identifier: str) -> None:
        if self.fd >= 0:
            os.write(self.fd, identifier.encode())
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Nothing was created: leave no file either."""
        if self.fd >= 0:
            os.close(self.fd)
            os.unlink(self.path)
            self.fd = -1


def create_container(app: App, options: Options, body: dict[str, Any],
                     headers: dict[str, str] | None = None) -> str:
    """Create it, pulling the image if that is wanted; the container's ID."""
    from .reference import looks_like_id, parse
    image = body["Image"]
    reference = None if looks_like_id(image) else parse(image).tagged()
    engine = app.engine
    rows, columns = size(1)
    body["HostConfig"]["ConsoleSize"] = [rows, columns]
    id_file = IdFile(options["cidfile"])
    query = {"name": options["name"] or None, "platform": options["platform"] or None}
    try:
        if options["pull"] == "always":
            _pull(app, image, options)
        try:
            answer = engine.call("POST", "/containers/create", query, body, headers)
        except EngineError as error:
            if error.status != 404 or reference is None or options["pull"] not in ("missing", ""):
                raise
            if not options["quiet"]:
                warn(f"Unable to find image '{reference.familiar()}' locally")
            _pull(app, image, options)
            answer = engine.call("POST", "/containers/create", query, body, headers)
    except BaseException:
        id_file.discard()
        raise
    for text in answer.get("Warnings") or []:
        warn(f"WARNING: {text}")
    id_file.write(answer["Id"])
    return str(answer["Id"])


def _pull(app: App, image: str, options: Options) -> None:
    from .images import pull
    pull(app, image, platform=options["platform"], quiet=options["quiet"], out=sys.stderr, fd=2)


def _create(app: App, options: Options, args: list[str]) -> int:
    body = _body(app, options, args, "create")
    print(create_container(app, options, body))
    return 0


def _run(app: App, options: Options, args: list[str]) -> int:
    body = _body(app, options, args, "run")
    try:
        app.engine.ping()
    except ConnectError as error:
        raise with_help(error, "run", 125) from None
    if options["explain"]:
        from .cmd_explain import require
        require(app)
    if options["detach"]:
        if options["attach"]:
            raise CliError("conflicting options: cannot specify both --attach and --detach")
        for key in ("AttachStdin", "AttachStdout", "AttachStderr", "StdinOnce"):
            body[key] = False
    else:
        check_tty(body["AttachStdin"], body["Tty"])
    keys = options["detach-keys"] or app.config.text("detachKeys")
    parsed_keys = parse_detach_keys(keys)
    headers = EXPLAIN_HEADER if options["explain"] else None
    try:
        identifier = create_container(app, options, body, headers)
    except CliError as error:
        raise with_help(error, "run", start_code(error.message)) from None
    if not (body["AttachStdin"] or body["AttachStdout"] or body["AttachStderr"]):
        return _detached(app, options, identifier, headers)
    return _attached(app, options, body, identifier, keys, parsed_keys)


def _detached(app: App, options: Options, identifier: str,
              headers: dict[str, str] | None) -> int:
    print(identifier, flush=True)
    try:
        app.engine.call("POST", f"/containers/{identifier}/start", headers=headers)
    except EngineError as error:
        raise with_help(error, "run", start_code(error.message)) from None
    if options["explain"]:
        from .cmd_explain import show
        show(app, identifier)
    return 0


def _attached(app: App, options: Options, body: dict[str, Any], identifier: str, keys: str,
              parsed_keys: bytes) -> int:
    engine = app.engine
    path = f"/containers/{identifier}"
    attach = {"stream": True, "stdin": body["AttachStdin"], "stdout": body["AttachStdout"],
              "stderr": body["AttachStderr"], "detachKeys": keys or None}
    # both requests are on their way before either answer is waited for
    stream = engine.hijack_begin(path + "/attach", attach, None)
    waiting = engine.begin("POST", path + "/wait",
                           {"condition": "removed" if options["rm"] else "next-exit"})
    engine.hijack_end(stream, path + "/attach")
    wait = engine.read_head(waiting, "POST")
    if wait.status >= 400:
        raise engine.error_of(wait, "POST", path + "/wait")
    session = Session(stream, tty=body["Tty"], stdin=0 if body["AttachStdin"] else -1,
                      stderr=1 if body["Tty"] else 2, detach_keys=parsed_keys,
                      output=body["AttachStdout"] or body["AttachStderr"])
    record = None

    def forward(name: str) -> None:
        engine.call("POST", path + "/kill", {"signal": name})

    def resize() -> None:
        rows, columns = size(1)
        if rows and columns:
            try:
                engine.call("POST", path + "/resize", {"h": rows, "w": columns})
            except EngineError:
                pass  # it has ended, or not begun: the size at creation holds

    session.begin(forward=forward if options["sig-proxy"] else None, resize=resize)
    try:
        try:
            engine.call("POST", path + "/start",
                        headers=EXPLAIN_HEADER if options["explain"] else None)
        except EngineError as error:
            if options["rm"]:
                wait.read()
            raise with_help(error, "run", start_code(error.message)) from None
        if options["explain"]:
            from .cmd_explain import fetch
            record = fetch(app, identifier)
        if session.resize is not None:
            resize()
        answer = session.run(wait)
    except Detached:
        return 0
    finally:
        session.end()
    if record is not None:
        from .cmd_explain import print_record
        print_record(record)
    return exit_status(answer)


def exit_status(answer: bytes) -> int:
    """The process's exit code from the body of /wait."""
    try:
        value = jsonc.loads(answer)
        error = (value.get("Error") or {}).get("Message")
        code = int(value["StatusCode"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CliError("the connection to the engine was lost while waiting for the container",
                       125) from None
    if error:
        raise CliError(f"Error waiting for container: {error}", 125)
    return code


COMMANDS = {
    "run": Command(_run, "[OPTIONS] IMAGE [COMMAND] [ARG...]", 1, MANY, RUN_FLAGS,
                   interspersed=False),
    "create": Command(_create, "[OPTIONS] IMAGE [COMMAND] [ARG...]", 1, MANY, CREATE_FLAGS,
                      interspersed=False),
}
