"""``carrel``: parse the global flags, find the command, run it, tell what went wrong."""

from __future__ import annotations

import gc
import os
import sys

from .app import App
from .command import MANY, Command
from .errors import Broken, CliError, UsageError
from .flags import Flag, Options, parse, usage_lines
from .index import COMMANDS, COMMON, GROUPS, NOT_BUILT, key_of, load, members, top_level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GLOBAL_FLAGS = (
    Flag("config", "", "string", "Directory of the client's configuration"),
    Flag("context", "c", "string", "Context that names the engine to use"),
    Flag("debug", "D", "bool", "Show a traceback when the client itself fails"),
    Flag("host", "H", "list", "Engine to connect to (unix:///path, tcp://host:port)"),
    Flag("log-level", "l", "string", "Accepted for compatibility: debug, info, warn, error, fatal",
         "info"),
    Flag("tls", "", "bool", "Use TLS"),
    Flag("tlscacert", "", "string", "Certificates of the authorities to trust"),
    Flag("tlscert", "", "string", "Client certificate"),
    Flag("tlskey", "", "string", "Key of the client certificate"),
    Flag("tlsverify", "", "bool", "Use TLS and verify the engine's certificate"),
    Flag("version", "v", "bool", "Print the version and quit"),
)
_LEVELS = ("debug", "info", "warn", "warning", "error", "fatal", "panic", "trace")


def main(argv: list[str] | None = None) -> int:
    """The program.  Without ``argv`` it never returns: leaving the interpreter in order
    costs more than most commands."""
    if argv is not None:
        return run(argv)
    code = 1
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 141
    os._exit(code)


def run(argv: list[str]) -> int:
    """One invocation; the exit code."""
    debug = "-D" in argv[:4] or "--debug" in argv[:4]
    try:
        return _dispatch(argv)
    except CliError as error:
        return report(error)
    except Broken as error:
        return report(CliError(f"error during connect: {error}"))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        return report(CliError(_os_error(error)))
    except Exception as error:
        if debug:
            raise
        return report(CliError(
            f"carrel: internal error: {type(error).__name__}: {error}",
            hint="run it again with -D to see where, and please report it"))


def report(error: CliError) -> int:
    """Print an error; its exit code."""
    from .terminal import clean
    sys.stdout.flush()
    if error.message:
        sys.stderr.write(clean(error.message).rstrip("\n") + "\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    sys.stderr.flush()
    return error.code


def _os_error(error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    return f"{error.filename}: {text}" if error.filename else text


def _dispatch(argv: list[str]) -> int:
    app, words = _globals(argv)
    if app is None:
        return 0
    if not words:
        sys.stderr.write(_help_text())
        return 0
    name = words[0]
    if name == "help":
        return _help(app, words[1:])
    if name in GROUPS:
        if len(words) == 1:
            sys.stderr.write(_group_help(name))
            return 0
        sub = words[1]
        key = key_of(f"{name} {sub}")
        if not key:
            return _unknown_in_group(name, words[1:])
        return _run(app, load(key, f"{name} {sub}"), key, words[2:])
    key = key_of(name)
    if not key:
        raise CliError(_unknown(name))
    return _run(app, load(key, name), key, words[1:])


def _globals(argv: list[str]) -> tuple[App | None, list[str]]:
    """The global flags; None when they alone were the task."""
    if not argv or argv[0][:1] != "-":
        return App(), argv
    usage = ("\n\nUsage:  carrel [OPTIONS] COMMAND [ARG...]\n\n"
             "Run 'carrel --help' for more information")
    try:
        options, words = parse(GLOBAL_FLAGS, argv, interspersed=False)
    except UsageError as error:
        raise CliError(error.message + usage, 125) from None
    if options.help:
        sys.stdout.write(_help_text())
        return None, []
    if options["version"]:
        from .app import VERSION
        sys.stdout.write(f"Carrel version {VERSION}\n")
        return None, []
    if options["log-level"] not in _LEVELS:
        raise CliError(f"Unable to parse logging level: {options['log-level']}")
    hosts = options["host"]
    if len(hosts) > 1:
        raise CliError("Specify only one -H")
    return App(options["config"], hosts[0] if hosts else "", options["context"], options), words


def _run(app: App, command: Command, key: str, words: list[str]) -> int:
    try:
        options, args = parse(command.flags, words, interspersed=command.interspersed)
        _warnings(options)
        if options.help:
            sys.stdout.write(_command_help(command, key))
            return 0
        command.check_count(args)
    except UsageError as error:
        many = error.message.startswith("carrel: ") and command.most == MANY
        see = "See" if many else "Run"
        usage = command.usage_line().replace("\n", f"\n\tcarrel {command.path} ")
        raise CliError(f"{error.message}\n\nUsage:  {usage}\n\n"
                       f"{see} 'carrel {command.path} --help' for more information",
                       125 if error.code != 1 or not error.message.startswith("carrel: ") else 1
                       ) from None
    return _call(command.run, app, options, args)


def _call(function: Callable[[App, Options, list[str]], int | None], app: App, options: Options,
          args: list[str]) -> int:
    gc.freeze()  # what was imported stays; the launcher had the collector off for it
    gc.enable()
    try:
        code = function(app, options, args)
    finally:
        app.close()
    if app.config.warning:
        from .terminal import warn
        warn(app.config.warning)
    return code or 0


def _warnings(options: Options) -> None:
    for text in options.warnings:
        sys.stderr.write(text + "\n")


def _unknown(name: str) -> str:
    if name in NOT_BUILT:
        return (f"carrel: '{name}' is not built yet\n\nDocker's own tools work with Carrel: "
                "set DOCKER_HOST to its socket\n(DOCKER_HOST=unix:///run/carrel/carrel.sock)")
    return f"carrel: unknown command: carrel {name}\n\nRun 'carrel --help' for more information"


def _unknown_in_group(group: str, words: list[str]) -> int:
    if words[0] in ("--help", "-h"):
        sys.stdout.write(_group_help(group))
        return 0
    tail = f"\n\nUsage:  carrel {group}\n\nRun 'carrel {group} --help' for more information"
    flag = next((w for w in words if w.startswith("-")), "")
    if flag:
        raise CliError(f"unknown flag: {flag.partition('=')[0]}{tail}", 125)
    raise CliError(f"carrel: unknown command: carrel {group} {words[0]}{tail}")


# ---- help -------------------------------------------------------------------

def _help(app: App, words: list[str]) -> int:
    if not words:
        sys.stdout.write(_help_text())
        return 0
    if words[0] in GROUPS and len(words) == 1:
        sys.stdout.write(_group_help(words[0]))
        return 0
    path = " ".join(words)
    key = key_of(path)
    if not key:
        raise CliError(f"unknown help topic: {path}")
    sys.stdout.write(_command_help(load(key, path), key))
    return 0


def _command_help(command: Command, key: str) -> str:
    from .terminal import help_width
    _, summary, paths = COMMANDS[key]
    return command.help(summary, list(paths), help_width())


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    edge = max(len(name) for name, _ in rows) + 3
    return [f"  {name.ljust(max(edge, 12))}{text}" for name, text in rows]


def _group_help(group: str) -> str:
    lines = [f"Usage:  carrel {group} COMMAND", "", GROUPS[group], "", "Commands:",
             *_columns(members(group)), "",
             f"Run 'carrel {group} COMMAND --help' for more information on a command."]
    return "\n".join(lines) + "\n"


def _help_text() -> str:
    from .terminal import help_width
    top = dict(top_level())
    common = [(name, top.pop(name)) for name in COMMON]
    lines = ["Usage:  carrel [OPTIONS] COMMAND", "",
             "Run containers: the commands, flags and output of docker", "",
             "Common Commands:", *_columns(common), "",
             "Management Commands:", *_columns(sorted(GROUPS.items())), "",
             "Commands:", *_columns(sorted(top.items())), "",
             "Global Options:", *usage_lines(GLOBAL_FLAGS, help_width()), "",
             "Run 'carrel COMMAND --help' for more information on a command."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
