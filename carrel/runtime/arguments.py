"""Command line parsing by tables: argparse costs a third of a cold start.

An option is ``"name": (kind, alias...)``; ``flag`` takes no value, ``value`` one,
``list`` may be repeated.  ``--name=value``, ``--name value`` and one dash are all
accepted. As with runc, options may follow the arguments (``update ID --memory 1m``),
except where the arguments are another program's (``exec``, ``ps``).
"""

from __future__ import annotations

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Option = tuple[str, str, str, str]  # (name, kind, aliases with commas, help)


class Help(Exception):
    """The user asked for help."""


class Parsed:
    """Values by name; missing ones are False, "" or []."""

    __slots__ = ("given", "rest", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.given: set[str] = set()
        self.rest: list[str] = []

    def flag(self, name: str) -> bool:
        return bool(self.values[name])

    def text(self, name: str) -> str:
        return str(self.values[name])

    def texts(self, name: str) -> list[str]:
        return list(self.values[name])

    def number(self, name: str, default: int = 0) -> int:
        text = self.text(name)
        if not text:
            return default
        if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit():
            raise InvalidParameter(f'invalid value "{text}" for flag -{name}: parse error')
        return int(text)


def parse(words: list[str], options: tuple[Option, ...], *, mixed: bool = False) -> Parsed:
    """Split ``words`` into options and the rest; ``mixed``: in any order."""
    result = Parsed()
    names: dict[str, tuple[str, str]] = {}
    for name, kind, aliases, _ in options:
        result.values[name] = False if kind == "flag" else [] if kind == "list" else ""
        for alias in (name, *(a for a in aliases.split(",") if a)):
            names[alias] = (name, kind)
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            index += 1
            break
        if not word.startswith("-") or word == "-":
            if not mixed:
                break
            result.rest.append(word)
            index += 1
            continue
        index += 1
        key, equals, value = word.lstrip("-").partition("=")
        if key in ("h", "help") and key not in names:
            raise Help
        if key not in names:
            raise InvalidParameter(f"flag provided but not defined: -{key}")
        name, kind = names[key]
        result.given.add(name)
        if kind == "flag":
            result.values[name] = _boolean(value, key) if equals else True
            continue
        if not equals:
            if index >= len(words):
                raise InvalidParameter(f"flag needs an argument: -{key}")
            value = words[index]
            index += 1
        if kind == "list":
            result.values[name].append(value)
        else:
            result.values[name] = value
    result.rest += words[index:]
    return result


def _boolean(value: str, key: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f'invalid boolean value "{value}" for -{key}: parse error')


def describe(options: tuple[Option, ...]) -> str:
    """The OPTIONS section of a help text."""
    rows = []
    for name, kind, aliases, text in options:
        forms = [f"--{name}", *(("-" if len(a) == 1 else "--") + a
                                for a in aliases.split(",") if a)]
        rows.append((", ".join(f + (" value" if kind != "flag" else "") for f in forms), text))
    rows.append(("--help, -h", "show help"))
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"   {left.ljust(width)}  {text}" for left, text in rows)
