"""login, logout"""

from __future__ import annotations

import sys

from . import auth
from .command import Command
from .errors import CliError
from .flags import Flag
from .terminal import RawMode, clean, is_terminal, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .config import Config
    from .flags import Options


def _server(args: list[str]) -> str:
    if not args or args[0] in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        return auth.INDEX_SERVER
    return args[0] if args[0] == auth.INDEX_SERVER else auth.hostname(args[0])


def _login(app: App, options: Options, args: list[str]) -> None:
    user, password = options["username"], options["password"]
    if options["password"]:
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
        if options["password-stdin"]:
            raise CliError("--password and --password-stdin are mutually exclusive")
    if options["password-stdin"]:
        if not user:
            raise CliError("Must provide --username with --password-stdin")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    server = _server(args)
    known = {} if user or password else auth.lookup(app.config, server)
    if known.get("password") or known.get("identitytoken"):
        user, password = known.get("username", ""), known.get("password", "")
        print(f"Authenticating with existing credentials... [Username: {clean(user)}]")
    elif not user or not password:
        user, password = _ask(user, password)
    body = {"username": user, "password": password, "serveraddress": server}
    if known.get("identitytoken"):
        body = {"username": user, "identitytoken": known["identitytoken"],
                "serveraddress": server}
    answer = app.engine.call("POST", "/auth", body=body) or {}
    if answer.get("IdentityToken"):
        body = {"username": "", "identitytoken": str(answer["IdentityToken"]),
                "serveraddress": server}
    _store(app.config, server, body)
    if answer.get("Status"):
        print(clean(str(answer["Status"])))


def _ask(user: str, password: str) -> tuple[str, str]:
    if not is_terminal(0):
        raise CliError("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        sys.stdout.write("Username: ")
        sys.stdout.flush()
        user = sys.stdin.readline().strip()
        if not user:
            raise CliError("Error: Non-null Username Required")
    if not password:
        sys.stdout.write("Password: ")
        sys.stdout.flush()
        password = _hidden_line()
        sys.stdout.write("\n")
        if not password:
            raise CliError("Error: Password Required")
    return user, password


def _hidden_line() -> str:
    """A line from the terminal that is not shown."""
    import termios
    mode = RawMode(0)
    saved = termios.tcgetattr(mode.fd)
    hidden = list(saved)
    hidden[3] &= ~termios.ECHO
    termios.tcsetattr(mode.fd, termios.TCSADRAIN, hidden)
    try:
        return sys.stdin.readline().rstrip("\r\n")
    finally:
        termios.tcsetattr(mode.fd, termios.TCSADRAIN, saved)


def _store(config: Config, server: str, credentials: dict[str, str]) -> None:
    """Keep credentials: with the configured helper, else in config.json."""
    from binascii import b2a_base64

    from .jsonc import dumps
    helper = config.mapping("credHelpers").get(server) or config.text("credsStore")
    values = config.values
    auths: dict[str, Any] = values.setdefault("auths", {})
    token = credentials.get("identitytoken")
    if helper:
        secret = token or credentials["password"]
        name = "<token>" if token else credentials["username"]
        auth.call_helper(str(helper), "store", dumps(
            {"ServerURL": server, "Username": name, "Secret": secret}).encode())
        auths[server] = {}
    else:
        plain = f"{credentials['username']}:{credentials.get('password', '')}".encode()
        entry = {"auth": b2a_base64(plain, newline=False).decode()}
        if token:
            entry["identitytoken"] = token
        auths[server] = entry
        sys.stdout.flush()
        sys.stderr.write(
            f"\nWARNING! Your credentials are stored unencrypted in '{config.path}'.\n"
            "Configure a credential helper (credsStore) to change that.\n\n")
    config.save()


def _logout(app: App, options: Options, args: list[str]) -> None:
    server = _server(args)
    config = app.config
    auths = config.values.get("auths")
    names = [server, *(p + server for p in ("https://", "http://"))]
    helper = config.mapping("credHelpers").get(server) or config.text("credsStore")
    known = [n for n in names if isinstance(auths, dict) and n in auths]
    print(f"Removing login credentials for {auth.hostname(server) or server}")
    if helper:
        for name in names:
            try:
                auth.call_helper(str(helper), "erase", name.encode())
            except CliError as error:
                if name == server:
                    warn(f"WARNING: could not erase credentials:\n{error.message}")
    for name in known:
        del config.values["auths"][name]
    if known:
        config.save()


COMMANDS = {
    "login": Command(_login, "[OPTIONS] [SERVER]", 0, 1, (
        Flag("password", "p", "string", "Password or access token"),
        Flag("password-stdin", "", "bool", "Read the password or access token from stdin"),
        Flag("username", "u", "string", "User name"))),
    "logout": Command(_logout, "[SERVER]", 0, 1),
}
