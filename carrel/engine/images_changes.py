"""``--change`` of commit and import: a few Dockerfile instructions applied to a configuration."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from typing import Any

from carrel import errdefs
from carrel.engine import timefmt

Config = dict[str, Any]
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*", re.ASCII)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)


def apply(config: Config, changes: list[str]) -> Config:
    """A copy of ``config`` (the API's Config object) with the changes in it."""
    changed = {key: (dict(value) if isinstance(value, dict) else
                     list(value) if isinstance(value, list) else value)
               for key, value in config.items()}
    for change in changes:
        for line in change.splitlines():
            if line.strip():
                _one(changed, line.strip())
    return changed


def _one(config: Config, line: str) -> None:
    keyword, _, rest = line.partition(" ")
    handler = _HANDLERS.get(keyword.upper())
    if handler is None:
        raise errdefs.InvalidParameter(f"{keyword.upper()} is not a valid change command")
    rest = rest.strip()
    if not rest:
        raise errdefs.InvalidParameter(f"{keyword.upper()} requires at least one argument")
    handler(config, rest)


def _unquote(word: str) -> str:
    """A word without its quotes; a backslash keeps the next character."""
    out: list[str] = []
    quote, position = "", 0
    while position < len(word):
        char = word[position]
        if char == "\\" and quote != "'" and position + 1 < len(word):
            position += 1
            out.append(word[position])
        elif char == quote:
            quote = ""
        elif char in "\"'" and not quote:
            quote = char
        else:
            out.append(char)
        position += 1
    return "".join(out)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _strings(text: str) -> list[str] | None:
    """The exec form, a JSON list of strings; None for anything else."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(x, str) for x in value) else None


def _command(config: Config, text: str) -> list[str]:
    shell = config.get("Shell") or ["/bin/sh", "-c"]
    return _strings(text) or [*shell, text]


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(config, text)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(config, text)


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    words = _words(text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value:
            raise errdefs.InvalidParameter(f"{what} must have two arguments")
        return [(_unquote(key), _unquote(value.strip()))]
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise errdefs.InvalidParameter(
                f"Syntax error - can't find = in \"{word[:80]}\". Must be of the form: name=value")
        pairs.append((_unquote(key), _unquote(value)))
    return pairs


def _env(config: Config, text: str) -> None:
    entries = list(config.get("Env") or [])
    for key, value in _pairs(text, "ENV"):
        entries = [e for e in entries if e.partition("=")[0] != key] + [f"{key}={value}"] if not (
            any(e.partition("=")[0] == key for e in entries)) else [
            f"{key}={value}" if e.partition("=")[0] == key else e for e in entries]
    config["Env"] = entries


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text, "LABEL"))}


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        match = _PORT.fullmatch(word)
        if not match or not 0 < int(match[1]) <= int(match[2] or match[1]) < 65536:
            raise errdefs.InvalidParameter(f"invalid containerPort: {word[:80]}")
        for port in range(int(match[1]), int(match[2] or match[1]) + 1):
            ports[f"{port}/{match[3] or 'tcp'}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: Config, text: str) -> None:
    names = _strings(text) or [_unquote(w) for w in _words(text)]
    if not all(name.strip() for name in names):
        raise errdefs.InvalidParameter("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{name: {} for name in names}}


def _user(config: Config, text: str) -> None:
    config["User"] = _unquote(text)


def _workdir(config: Config, text: str) -> None:
    config["WorkingDir"] = posixpath.normpath(
        posixpath.join("/", config.get("WorkingDir") or "/", _unquote(text)))


def _onbuild(config: Config, text: str) -> None:
    keyword = text.split(None, 1)[0].upper()
    if keyword in ("ONBUILD", "FROM", "MAINTAINER"):
        raise errdefs.InvalidParameter(f"{keyword} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _stopsignal(config: Config, text: str) -> None:
    config["StopSignal"] = _unquote(text)


def _shell(config: Config, text: str) -> None:
    value = _strings(text)
    if not value:
        raise errdefs.InvalidParameter("SHELL requires the arguments to be in JSON form")
    config["Shell"] = value


_DURATIONS = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
              "start-interval": "StartInterval"}


def _healthcheck(config: Config, text: str) -> None:
    check: dict[str, Any] = {}
    while match := _FLAG.match(text):
        name, value = match[1], match[2]
        if name in _DURATIONS:
            check[_DURATIONS[name]] = timefmt.parse_duration(value)
        elif name == "retries" and value.isascii() and value.isdigit():
            check["Retries"] = int(value)
        else:
            raise errdefs.InvalidParameter(f"Unknown flag: {name}")
        text = text[match.end():]
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE" and not rest.strip():
        check = {"Test": ["NONE"]}
    elif kind.upper() == "CMD" and rest.strip():
        command = _strings(rest.strip())
        check["Test"] = ["CMD", *command] if command else ["CMD-SHELL", rest.strip()]
    else:
        raise errdefs.InvalidParameter(f"Unknown type \"{kind[:40]}\" in HEALTHCHECK (try CMD)")
    config["Healthcheck"] = check


_HANDLERS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "LABEL": _label, "EXPOSE": _expose,
    "VOLUME": _volume, "USER": _user, "WORKDIR": _workdir, "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal, "SHELL": _shell, "HEALTHCHECK": _healthcheck,
}
