"""create, run, exec."""

from __future__ import annotations

import os

from carrel.errdefs import CarrelError, InvalidParameter
from carrel.oci import json
from carrel.runtime import container as containers
from carrel.runtime import create as creation
from carrel.runtime import errors, log, state
from carrel.runtime.foreground import Foreground, take_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.arguments import Parsed
    from carrel.runtime.main import Context

_CREATE = (
    ("bundle", "value", "b", "path to the root of the bundle directory, defaults to the current "
                             "directory"),
    ("console-socket", "value", "", "path to an AF_UNIX socket which will receive a file "
                                    "descriptor referencing the master end of the console"),
    ("pidfd-socket", "value", "", "path to an AF_UNIX socket which will receive a file "
                                  "descriptor referencing the init process"),
    ("pid-file", "value", "", "specify the file to write the process id to"),
    ("no-pivot", "flag", "", "do not use pivot root to jail process inside rootfs"),
    ("no-new-keyring", "flag", "", "do not create a new session keyring for the container"),
    ("preserve-fds", "value", "", "pass N additional file descriptors to the container"),
)
OPTIONS = {
    "create": _CREATE,
    "run": (*_CREATE,
            ("detach", "flag", "d", "detach from the container's process"),
            ("keep", "flag", "", "do not delete the container after it exits"),
            ("no-subreaper", "flag", "", "disable the use of the subreaper used to reap "
                                         "reparented processes")),
    "exec": (
        ("console-socket", "value", "", "path to an AF_UNIX socket which will receive a file "
                                        "descriptor referencing the master end of the console"),
        ("pidfd-socket", "value", "", "path to an AF_UNIX socket which will receive a file "
                                      "descriptor referencing the exec process"),
        ("cwd", "value", "", "current working directory in the container"),
        ("env", "list", "e", "set environment variables"),
        ("tty", "flag", "t", "allocate a pseudo-TTY"),
        ("user", "value", "u", "UID (format: <uid>[:<gid>])"),
        ("additional-gids", "list", "g", "additional gids"),
        ("process", "value", "p", "path to the process.json"),
        ("detach", "flag", "d", "detach from the container's process"),
        ("pid-file", "value", "", "specify the file to write the process id to"),
        ("process-label", "value", "", "set the asm process label for the process"),
        ("apparmor", "value", "", "set the apparmor profile for the process"),
        ("no-new-privs", "flag", "", "set the no new privileges value for the process"),
        ("cap", "list", "c", "add a capability to the bounding set for the process"),
        ("preserve-fds", "value", "", "pass N additional file descriptors to the container"),
        ("cgroup", "list", "", "run the process in an (existing) sub-cgroup(s)"),
        ("ignore-paused", "flag", "", "allow exec in a paused container"),
    ),
}
USAGE = {"create": "<container-id>", "run": "<container-id>",
         "exec": "<container-id> <command> [command options]  || -p process.json <container-id>"}
ARGUMENTS = {"create": (1, 1), "run": (1, 1), "exec": (1, -1)}


def run_create(context: Context, given: Parsed) -> int:
    try:
        made = _create(context, given, detached=True)
    except (OSError, RuntimeError) as error:
        raise _renamed(error, f"{context.program} create failed") from error
    made.close()
    return 0


def run_run(context: Context, given: Parsed) -> int:
    detached = given.flag("detach")
    try:
        return _run(context, given, detached)
    except OSError as error:
        raise _renamed(error, f"{context.program} run failed") from error


def _run(context: Context, given: Parsed, detached: bool) -> int:
    foreground = None if detached else Foreground()
    if foreground is not None and not given.flag("no-subreaper"):
        foreground.become_subreaper()
    made = _create(context, given, detached=detached, foreground=foreground)
    try:
        made.start()
    except BaseException:
        _destroy(made)
        raise
    if foreground is None:
        made.close()
        return 0
    try:
        status = foreground.wait(made)
    finally:
        foreground.close()
        if given.flag("keep"):
            made.close()
        else:
            _destroy(made)
    return status


def _destroy(made: containers.Container) -> None:
    if made.pid and made.alive:
        made.kill(9)
    try:
        os.waitpid(made.pid, 0)
    except ChildProcessError:
        pass
    made.delete(force=True)


def _create(context: Context, given: Parsed, *, detached: bool,
            foreground: Foreground | None = None) -> containers.Container:
    bundle = os.path.abspath(given.text("bundle") or ".")
    spec, _ = creation.load_spec(bundle)
    process = spec.get("process") or {}
    if _listen_fds():
        process["env"] = [*(process.get("env") or ()), f"LISTEN_FDS={_listen_fds()}",
                          "LISTEN_PID=1"]
    socket = given.text("console-socket")
    _check_terminal(bool(process.get("terminal")), detached, socket)
    settings = creation.Settings(
        no_pivot=given.flag("no-pivot"), no_new_keyring=given.flag("no-new-keyring"),
        preserve_fds=_preserved(given), systemd_cgroup=context.systemd_cgroup)
    stdio = None
    if foreground is not None and process.get("terminal"):
        foreground.prepare_terminal()
    if log.debug_on:
        _describe(spec)
    made = creation.create(given.rest[0], bundle, context.root, spec=spec, stdio=stdio,
                           settings=settings)
    try:
        _hand_out(given, made, made.pid, foreground)
    except BaseException:
        _destroy(made)
        raise
    return made


def _describe(spec: dict[str, Any]) -> None:
    """What a --debug reader asks first."""
    linux = spec.get("linux") or {}
    log.debug("namespaces: " + ", ".join(n["type"] + (f"={n['path']}" if n.get("path") else "")
                                         for n in linux.get("namespaces") or ()))
    if linux.get("seccomp"):
        from carrel.kernel import seccomp
        log.debug(f"seccomp filter flags: {seccomp.flags(linux['seccomp'])}")


def _hand_out(given: Parsed, made: containers.Container | containers.Process, pid: int,
              foreground: Foreground | None) -> None:
    """The terminal, the pidfd and the pid file go where the caller wants them."""
    if made.console >= 0:
        if given.text("console-socket"):
            take_stdio(given.text("console-socket"), made.console)
            os.close(made.console)
            made.console = -1
        elif foreground is not None:
            foreground.use_terminal(made.console)
    if given.text("pidfd-socket"):
        from carrel.kernel import terminal
        pidfd = made.open_pidfd() if isinstance(made, containers.Container) else made.pidfd
        socket = terminal.connect(given.text("pidfd-socket"))
        terminal.send_descriptors(socket, b"pidfd", [pidfd])
        socket.close()
    if given.text("pid-file"):
        path = os.path.abspath(given.text("pid-file"))
        state.write(os.path.dirname(path), os.path.basename(path), str(pid).encode())
        os.chmod(path, 0o644)


def _check_terminal(terminal: bool, detached: bool, socket: str) -> None:
    if detached and terminal and not socket:
        raise InvalidParameter("cannot allocate tty if runc will detach without setting console "
                               "socket".replace("runc", "the runtime"))
    if socket and not terminal:
        raise InvalidParameter("cannot use console socket if the runtime will not detach or "
                               "allocate tty")
    if socket and not detached:
        raise InvalidParameter("cannot use console socket if the runtime will not detach or "
                               "allocate tty")


def _preserved(given: Parsed) -> int:
    """--preserve-fds, and the sockets of systemd's socket activation before them."""
    count = given.number("preserve-fds") + _listen_fds()
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidParameter(f"file descriptor {fd} (preserved) is not open") from None
    return count


def _listen_fds() -> int:
    text = os.environ.get("LISTEN_FDS", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0


def _renamed(error: BaseException, prefix: str) -> OSError:
    """The same error under the name of the command, as callers match on it."""
    text = errors.message(error)
    if getattr(error, "carrel_step", "") == "exec" and text.startswith("exec /"):
        prefix = ""
    found = OSError(getattr(error, "errno", 0) or 0, f"{prefix}: {text}" if prefix else text)
    found.plain = not prefix  # type: ignore[attr-defined]
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


# --- exec ---------------------------------------------------------------------

def run_exec(context: Context, given: Parsed) -> int:
    try:
        found = containers.load(given.rest[0], context.root)
        if "CAP_SYS_PTRACE" in json.dumps(found.spec):
            from carrel.kernel import seal
            seal.ensure()
        try:
            return _exec(given, found, given.flag("detach"))
        finally:
            found.close()
    except CarrelError as error:
        error.exit_code = 255  # type: ignore[attr-defined]  # 1 may be the program's own
        raise
    except OSError as error:
        failure = _renamed(error, "exec failed")
        failure.exit_code = 255  # type: ignore[attr-defined]
        raise failure from error


def _exec(given: Parsed, found: containers.Container, detached: bool) -> int:
    process = _process(given, found)
    socket = given.text("console-socket")
    _check_terminal(bool(process.get("terminal")), detached, socket)
    foreground = None if detached else Foreground()
    if foreground is not None:
        foreground.become_subreaper()
        if process.get("terminal"):
            foreground.prepare_terminal()
    made = found.exec(process, preserve_fds=_preserved(given),
                      ignore_paused=given.flag("ignore-paused"),
                      cgroups=given.texts("cgroup"))
    _hand_out(given, made, made.pid, foreground)
    if foreground is None:
        return 0
    try:
        return foreground.wait(made)
    finally:
        foreground.close()


def _process(given: Parsed, found: containers.Container) -> dict[str, object]:
    if given.text("process"):
        raw = state.read(given.text("process"), follow=True)
        process = json.loads(raw, given.text("process"))
        if not isinstance(process, dict):
            raise InvalidParameter("process.json is not an object")
        return process
    words = given.rest[1:]
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise InvalidParameter("process args cannot be empty")
    process = dict(found.spec.get("process") or {})
    process["args"] = words
    process["terminal"] = given.flag("tty")
    process.pop("consoleSize", None)
    if given.text("cwd"):
        process["cwd"] = given.text("cwd")
    if given.texts("env"):
        process["env"] = [*(process.get("env") or []), *given.texts("env")]
    if given.text("apparmor"):
        process["apparmorProfile"] = given.text("apparmor")
    if given.text("process-label"):
        process["selinuxLabel"] = given.text("process-label")
    if given.flag("no-new-privs") or "no-new-privs" in given.given:
        process["noNewPrivileges"] = given.flag("no-new-privs")
    _add_capabilities(process, given.texts("cap"))
    _set_user(process, given)
    return process


def _add_capabilities(process: dict[str, object], names: list[str]) -> None:
    if not names:
        return
    sets = process.get("capabilities")
    own: dict[str, list[str]] = {k: list(v or ()) for k, v in sets.items()} \
        if isinstance(sets, dict) else {}
    for kind in ("bounding", "effective", "permitted", "ambient"):
        if kind == "ambient" and not own.get("inheritable"):
            continue
        own[kind] = [*own.get(kind, []), *names]
    process["capabilities"] = own


def _set_user(process: dict[str, object], given: Parsed) -> None:
    base = process.get("user")
    user: dict[str, object] = dict(base) if isinstance(base, dict) else {}
    text = given.text("user")
    if text:
        uid, _, gid = text.partition(":")
        user["uid"] = _id(uid, "uid")
        if gid:
            user["gid"] = _id(gid, "gid")
    extra = [_id(g, "additional gid") for word in given.texts("additional-gids")
             for g in word.split(",")]
    if extra:
        known = user.get("additionalGids")
        user["additionalGids"] = [*(known if isinstance(known, list) else []), *extra]
    process["user"] = user


def _id(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) >= 2**31:
        raise InvalidParameter(f"bad {what} {text!r}: it must be a number below 2147483648")
    return int(text)


