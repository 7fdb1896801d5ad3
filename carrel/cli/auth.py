"""Registry credentials: config.json and the programs that keep secrets.

A credential program is named by the configuration, so its name is checked; it gets ten
seconds and a mebibyte; secrets go through its stdin and stdout, never through arguments or
the environment, and never into an error text.
"""

from __future__ import annotations

from . import jsonc
from .errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .config import Config

INDEX_SERVER = "https://index.docker.io/v1/"
_HELPER_SECONDS = 10
_HELPER_BYTES = 1 << 20
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def auth_key(domain: str) -> str:
    """How config.json calls a registry."""
    return INDEX_SERVER if domain in ("docker.io", "index.docker.io") else domain


def hostname(server: str) -> str:
    """https://host/v1/ -> host"""
    return server.partition("://")[2].partition("/")[0] if "://" in server \
        else server.partition("/")[0]


def header(config: Config, domain: str) -> str:
    """The value of X-Registry-Auth."""
    return encode(lookup(config, auth_key(domain)))


def all_header(config: Config) -> str:
    """The value of X-Registry-Config."""
    return encode({server: lookup(config, server) for server in config.mapping("auths")})


def encode(value: dict[str, Any]) -> str:
    from binascii import b2a_base64
    data = b2a_base64(jsonc.dumps(value).encode(), newline=False)
    return data.replace(b"+", b"-").replace(b"/", b"_").decode()


def lookup(config: Config, server: str) -> dict[str, str]:
    """What is known of one registry; {} for nothing."""
    helper = config.mapping("credHelpers").get(server) or config.text("credsStore")
    if helper:
        return _from_helper(str(helper), server)
    auths = config.mapping("auths")
    entry = auths.get(server)
    if entry is None:
        entry = next((v for k, v in auths.items() if hostname(k) == hostname(server)), None)
    return _from_entry(entry, server) if isinstance(entry, dict) else {}


def _from_entry(entry: dict[str, Any], server: str) -> dict[str, str]:
    from binascii import Error, a2b_base64
    found = {"serveraddress": server}
    for key in ("identitytoken", "registrytoken", "username", "password"):
        if isinstance(entry.get(key), str) and entry[key]:
            found[key] = entry[key]
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            user, colon, password = a2b_base64(encoded).decode().partition(":")
        except (Error, ValueError):
            raise CliError(f"invalid auth of {server} in the configuration file") from None
        if not colon:
            raise CliError(f"invalid auth of {server} in the configuration file")
        found["username"], found["password"] = user, password.strip("\0")
    return found if len(found) > 1 else {}


def _from_helper(name: str, server: str) -> dict[str, str]:
    answer = call_helper(name, "get", server.encode())
    if answer is None:
        return {}
    try:
        value = jsonc.loads(answer)
        user, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError):
        raise CliError(f"error getting credentials: docker-credential-{name} gave an answer "
                       "that is not understood") from None
    if user == "<token>":
        return {"identitytoken": str(secret), "serveraddress": server}
    return {"username": str(user), "password": str(secret), "serveraddress": server}


def call_helper(name: str, action: str, data: bytes) -> bytes | None:
    """Run docker-credential-NAME; None when it does not know the registry."""
    import subprocess
    if not name or set(name) - _NAME or name[0] in ".-":
        raise CliError(f"invalid credential helper name {name!r} in the configuration file")
    program = f"docker-credential-{name}"
    try:
        with subprocess.Popen([program, action], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as process:
            return _talk(process, program, data)
    except FileNotFoundError:
        raise CliError(f'error getting credentials - err: exec: "{program}": executable file '
                       "not found in $PATH, out: ``") from None
    except OSError as error:
        raise CliError(f"error getting credentials - err: {program}: {error.strerror}") from None


def _talk(process: Any, program: str, data: bytes) -> bytes | None:
    import os
    from select import POLLHUP, POLLIN, poll
    from time import monotonic
    try:
        process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:
        pass
    fd = process.stdout.fileno()
    waiter = poll()
    waiter.register(fd, POLLIN | POLLHUP)
    end = monotonic() + _HELPER_SECONDS
    out = b""
    while True:
        left = end - monotonic()
        if left <= 0 or not waiter.poll(int(left * 1000) + 1):
            process.kill()
            raise CliError(f"error getting credentials: {program} did not answer in "
                           f"{_HELPER_SECONDS} seconds")
        piece = os.read(fd, 65536)
        if not piece:
            break
        out += piece
        if len(out) > _HELPER_BYTES:
            process.kill()
            raise CliError(f"error getting credentials: {program} answered more than 1 MiB")
    try:
        status = process.wait(max(0.1, end - monotonic()))
    except Exception:
        process.kill()
        raise CliError(f"error getting credentials: {program} did not end") from None
    if status == 0:
        return out
    text = out.decode("utf-8", "replace").strip()
    if "credentials not found" in text:
        return None
    raise CliError(f"error getting credentials - err: exit status {status}, "
                   f"out: `{text[:200]}`")
