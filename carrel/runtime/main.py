"""carrel-runtime: the command line of an OCI runtime, as runc's callers know it."""

from __future__ import annotations

import gc
import os
import sys

from carrel import cold
from carrel.errdefs import CarrelError, InvalidParameter
from carrel.runtime import arguments, errors, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/run/carrel-runtime"

GLOBAL = (
    ("debug", "flag", "", "enable debug logging"),
    ("log", "value", "", "set the log file to write logs to (default is '/dev/stderr')"),
    ("log-format", "value", "", "set the log format ('text' (default), or 'json')"),
    ("root", "value", "", f"root directory for storage of container state (default: "
                          f"\"{DEFAULT_ROOT}\")"),
    ("criu", "value", "", "(ignored: checkpoint and restore are not built)"),
    ("systemd-cgroup", "flag", "", "enable systemd cgroup support, expects cgroupsPath to be of "
                                   "form \"slice:prefix:name\""),
    ("rootless", "value", "", "ignore cgroup permission errors ('true', 'false', or 'auto')"),
    ("version", "flag", "v", "print the version"),
)

#: command -> (module below carrel.runtime, one line)
COMMANDS = {
    "checkpoint": ("cli_other", "checkpoint a running container (not built)"),
    "create": ("cli_start", "create a container"),
    "delete": ("cli_manage", "delete any resources held by the container"),
    "events": ("cli_other", "display container events such as OOM notifications and statistics"),
    "exec": ("cli_start", "execute new process inside the container"),
    "features": ("cli_other", "show the enabled features"),
    "kill": ("cli_manage", "kill sends the specified signal to the container's init process"),
    "list": ("cli_manage", "lists containers started with the given root"),
    "pause": ("cli_manage", "pause suspends all processes inside the container"),
    "ps": ("cli_other", "displays the processes running inside a container"),
    "restore": ("cli_other", "restore a container from a checkpoint (not built)"),
    "resume": ("cli_manage", "resumes all processes that have been previously paused"),
    "run": ("cli_start", "create and run a container"),
    "spec": ("cli_other", "create a new specification file"),
    "start": ("cli_manage", "executes the user defined process in a created container"),
    "state": ("cli_manage", "output the state of a container"),
    "update": ("cli_update", "update container resource constraints"),
}

_IMPLEMENTED = "carrel.runtime."


class Context:
    """The global flags."""

    __slots__ = ("program", "root", "systemd_cgroup")

    def __init__(self, root: str, systemd_cgroup: bool, program: str) -> None:
        self.root = root
        self.systemd_cgroup = systemd_cgroup
        self.program = program


def main(words: list[str] | None = None) -> int:
    """The program.  Without ``words`` it never returns."""
    gc.disable()  # one short command: what it leaves, exit takes
    if words is not None:
        return run(words)
    cold.end(run(sys.argv[1:]), lambda error: log.error(
        f"write stdout: {os.strerror(error.errno or 0).lower()}"))


def run(words: list[str]) -> int:
    """Run one command; the exit status."""
    program = os.path.basename(sys.argv[0]) or "carrel-runtime"
    try:
        given = arguments.parse(words, GLOBAL)
    except arguments.Help:
        return _print(help_text(program))
    except CarrelError as error:
        sys.stderr.write(f"Incorrect Usage: {error}\n\n{help_text(program)}")
        return 1
    if given.flag("version"):
        from carrel.runtime.version import text
        return _print(text(program))
    if not given.rest or given.rest[0] in ("help", "h"):
        return _print(help_text(program))
    return _run(given, program)


def _run(given: arguments.Parsed, program: str) -> int:
    name, *words = given.rest
    if name not in COMMANDS:
        if any(w in ("-h", "--help") for w in words):
            return _print(f"No help topic for '{name}'\n") or 3
        sys.stderr.write(f"No help topic for '{name}'\n")
        return 3
    try:
        log.setup(given.text("log"), given.text("log-format") or "text", given.flag("debug"))
        context = Context(_root(given), given.flag("systemd-cgroup"), program)
        command = _load(name)
        try:
            parsed = arguments.parse(words, command.OPTIONS[name], mixed=name not in ("exec", "ps"))
        except arguments.Help:
            return _print(command_help(program, name, command))
        except InvalidParameter as error:
            sys.stdout.write(f"Incorrect Usage: {error}\n\n"
                             + command_help(program, name, command))
            raise
        log.debug(f"command: {name} {' '.join(words)}")
        _check_count(name, parsed, command.ARGUMENTS[name], program, command)
        return int(getattr(command, "run_" + name)(context, parsed))
    except (CarrelError, OSError, ValueError, OverflowError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        return 130
    finally:
        _flush_warnings()


def _failed(error: BaseException) -> int:
    text = errors.message(error)
    hint = getattr(error, "hint", "")
    log.error(text, plain=getattr(error, "plain", False))
    if hint:
        log.debug(f"hint: {hint}")
    if log.debug_on:
        for note in getattr(error, "__notes__", ()):
            log.debug(note)
    return int(getattr(error, "exit_code", 1))


def _flush_warnings() -> None:
    module = sys.modules.get("carrel.runtime.warnings")
    for text in module.take() if module is not None else ():
        log.warning(text)


def _load(name: str) -> Any:
    module = _IMPLEMENTED + COMMANDS[name][0]
    __import__(module)  # importlib would import warnings
    return sys.modules[module]


def _root(given: arguments.Parsed) -> str:
    if "root" in given.given:
        root = given.text("root")
        if not root:
            raise InvalidParameter("--root must not be empty")
        return os.path.abspath(root)
    return DEFAULT_ROOT


def _check_count(name: str, parsed: arguments.Parsed, wanted: tuple[int, int], program: str,
                 command: Any) -> None:
    low, high = wanted
    count = len(parsed.rest)
    if count < low or 0 <= high < count:
        sys.stdout.write(f"Incorrect Usage.\n\n{command_help(program, name, command)}")
        if low == high:
            text = f'{program}: "{name}" requires exactly {low} argument(s)'
        elif count < low:
            text = f'{program}: "{name}" requires a minimum of {low} argument(s)'
        else:
            text = f'{program}: "{name}" requires a maximum of {high} argument(s)'
        raise InvalidParameter(text)


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0


def help_text(program: str) -> str:
    width = max(len(n) for n in COMMANDS)
    rows = "\n".join(f"   {n.ljust(width)}  {line}" for n, (_, line) in COMMANDS.items())
    return (f"NAME:\n   {program} - Open Container Initiative runtime, the one of Carrel\n\n"
            f"{program} runs containers as described by the OCI runtime specification.\n\n"
            f"USAGE:\n   {program} [global options] command [command options] [arguments...]\n\n"
            f"COMMANDS:\n{rows}\n\nGLOBAL OPTIONS:\n{arguments.describe(GLOBAL)}\n")


def command_help(program: str, name: str, command: Any) -> str:
    usage = command.USAGE[name]
    return (f"NAME:\n   {program} {name} - {COMMANDS[name][1]}\n\n"
            f"USAGE:\n   {program} {name} [command options] {usage}\n\n"
            f"OPTIONS:\n{arguments.describe(command.OPTIONS[name])}\n")
