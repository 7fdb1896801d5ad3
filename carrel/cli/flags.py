"""Flags declared as tables, parsed by the rules of Go's pflag, which Docker's users know.

``--name=value``, ``--name value``, ``-abc`` for booleans, ``-p8080:80`` and ``-p=8080:80``
for the rest, ``--`` ends the flags.  A command that runs another program (run, exec, create)
takes everything after its first argument as that program's.
"""

from __future__ import annotations

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[str], Any]

#: kinds that collect their values
_COLLECTING = {"list": list, "strings": list, "map": dict, "stringToString": dict,
               "filter": dict, "ulimit": dict, "mount": list, "network": list,
               "gpu-request": list}
_ZERO: dict[str, object] = {"bool": False, "string": "", "int": 0, "int64": 0, "uint16": 0,
                            "uint64": 0, "bytes": 0, "decimal": 0, "duration": 0, "ip": ""}
#: how a kind is called in the help
_SHOWN = {"int64": "int", "uint64": "uint"}


class Flag:
    """One flag: ``check`` turns the text into the value or raises ValueError."""

    __slots__ = ("check", "default", "deprecated", "hidden", "kind", "name", "short", "target",
                 "text")

    def __init__(self, name: str, short: str, kind: str, text: str, default: Any = None, *,
                 check: Check | None = None, hidden: bool = False, target: str = "",
                 deprecated: str = "") -> None:
        self.name = name
        self.short = short
        self.kind = kind
        self.text = text
        self.default = default
        self.check = check
        self.hidden = hidden
        self.target = target or name
        self.deprecated = deprecated

    def zero(self) -> Any:
        if self.kind in _COLLECTING:
            return _COLLECTING[self.kind]()
        return _ZERO[self.kind] if self.default is None else self.default

    def title(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Options:
    """The parsed flags: ``options["memory"]``, ``options.changed("memory")``."""

    __slots__ = ("_changed", "_values", "help", "warnings")

    def __init__(self, flags: tuple[Flag, ...]) -> None:
        self._values: dict[str, Any] = {}
        for f in flags:
            if f.target == f.name:
                self._values[f.name] = f.zero()
        self._changed: set[str] = set()
        self.help = False
        self.warnings: list[str] = []

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def changed(self, name: str) -> bool:
        return name in self._changed

    def set(self, flag: Flag, text: str) -> None:
        """Take one value from the command line."""
        if flag.deprecated and flag.name not in self._changed:
            self.warnings.append(f"Flag --{flag.name} has been deprecated, {flag.deprecated}")
        try:
            self._store(flag, text)
        except ValueError as error:
            raise UsageError(
                f'invalid argument {go_quote(text)} for "{flag.title()}" flag: {error}'
            ) from None
        self._changed.add(flag.target)

    def _store(self, flag: Flag, text: str) -> None:
        kind = flag.kind
        value = flag.check(text) if flag.check is not None else _PARSERS[kind](text)
        values = self._values
        if kind in ("list", "mount", "network", "gpu-request"):
            values[flag.target].append(value)
        elif kind == "strings":
            values[flag.target].extend(value)
        elif kind == "map":
            key, _, rest = value.partition("=")
            values[flag.target][key] = rest
        elif kind == "stringToString":
            values[flag.target].update(value)
        elif kind == "filter":
            if value is not None:
                values[flag.target].setdefault(value[0], []).append(value[1])
        elif kind == "ulimit":
            values[flag.target][value["Name"]] = value
        else:
            values[flag.target] = value


def parse(flags: tuple[Flag, ...], argv: list[str], *, interspersed: bool = True,
          ) -> tuple[Options, list[str]]:
    """Flags and positional arguments of ``argv``."""
    long = {f.name: f for f in flags}
    short = {f.short: f for f in flags if f.short}
    options = Options(flags)
    args: list[str] = []
    i = 0
    count = len(argv)
    while i < count:
        word = argv[i]
        i += 1
        if len(word) < 2 or word[0] != "-":
            args.append(word)
            if not interspersed:
                args += argv[i:]
                break
        elif word == "--":
            args += argv[i:]
            break
        elif word[1] == "-":
            i = _long(word, argv, i, long, options)
        else:
            i = _shorts(word, argv, i, short, options)
        if options.help:
            break
    return options, args


def _long(word: str, argv: list[str], i: int, flags: dict[str, Flag], options: Options) -> int:
    name, equals, text = word[2:].partition("=")
    if not name or name[0] == "-":
        raise UsageError(f"bad flag syntax: {word}")
    if name == "help":
        options.help = True
        return i
    flag = flags.get(name)
    if flag is None:
        raise UsageError(f"unknown flag: --{name}")
    if not equals:
        if flag.kind == "bool":
            text = "true"
        elif i < len(argv):
            text = argv[i]
            i += 1
        else:
            raise UsageError(f"flag needs an argument: --{name}")
    options.set(flag, text)
    return i


def _shorts(word: str, argv: list[str], i: int, flags: dict[str, Flag], options: Options) -> int:
    rest = word[1:]
    while rest:
        letter = rest[0]
        flag = flags.get(letter)
        if flag is None:
            if letter == "h":
                options.help = True
                options.warnings.append("Flag shorthand -h has been deprecated, use --help")
                return i
            raise UsageError(f"unknown shorthand flag: '{letter}' in -{rest}")
        if len(rest) > 2 and rest[1] == "=":
            text, rest = rest[2:], ""
        elif flag.kind == "bool":
            text, rest = "true", rest[1:]
        elif len(rest) > 1:
            text, rest = rest[1:], ""
        elif i < len(argv):
            text, rest = argv[i], ""
            i += 1
        else:
            raise UsageError(f"flag needs an argument: '{letter}' in -{rest}")
        options.set(flag, text)
    return i


# ---- values ---------------------------------------------------------------

def go_quote(text: str) -> str:
    """A string as Go's %q prints it."""
    out = ['"']
    for char in text:
        code = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif 0x20 <= code < 0x7F or (code > 0x9F and char.isprintable()):
            out.append(char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    out.append('"')
    return "".join(out)


_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
            "\v": "\\v"}


def parse_bool(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"strconv.ParseBool: parsing {go_quote(text)}: invalid syntax")


def integer(text: str, low: int, high: int, function: str = "ParseInt") -> int:
    """A whole number as strconv reads it with base 0."""
    problem = f"strconv.{function}: parsing {go_quote(text)}: "
    digits = text[1:] if text[:1] in "+-" and low < 0 else text
    if not digits.isascii() or not digits[:1].isdigit():
        raise ValueError(problem + "invalid syntax")
    try:
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            digits = "0o" + digits[1:]
        value = int(digits, 0)
    except ValueError:
        raise ValueError(problem + "invalid syntax") from None
    if text[:1] == "-":
        value = -value
    if not low <= value <= high:
        raise ValueError(problem + "value out of range")
    return value


def _int(text: str) -> int:
    return integer(text, -(1 << 63), (1 << 63) - 1)


def _uint16(text: str) -> int:
    return integer(text, 0, 0xFFFF, "ParseUint")


def _uint64(text: str) -> int:
    return integer(text, 0, (1 << 64) - 1, "ParseUint")


def _string(text: str) -> str:
    return text


def csv_fields(text: str) -> list[str]:
    """The fields of one CSV line, quoted fields as in Go's encoding/csv."""
    if '"' not in text:
        return text.split(",")
    fields = []
    rest = text
    while True:
        if rest[:1] != '"':
            field, comma, rest = rest.partition(",")
            if '"' in field:
                raise ValueError(
                    f'parse error on line 1, column {text.index(chr(34)) + 1}: '
                    'bare " in non-quoted field')
        else:
            field, comma, rest = _quoted_field(text, rest[1:])
        fields.append(field)
        if not comma:
            return fields


def _quoted_field(whole: str, rest: str) -> tuple[str, str, str]:
    parts = []
    while True:
        part, quote, rest = rest.partition('"')
        parts.append(part)
        if not quote or rest[:1] not in ('"', ",", ""):
            raise ValueError('parse error on line 1, column '
                             f'{len(whole) - len(rest) + 1}: extraneous or missing " in '
                             'quoted-field')
        if rest[:1] == '"':
            parts.append('"')
            rest = rest[1:]
            continue
        return "".join(parts), rest[:1], rest[1:]


def _strings(text: str) -> list[str]:
    return csv_fields(text) if text else []


def _string_map(text: str) -> dict[str, str]:
    found = {}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise ValueError(f"{field} must be formatted as key=value")
        found[key] = value
    return found


def _filter(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def _bytes(text: str) -> int:
    from .units import ram_in_bytes
    return ram_in_bytes(text)


def _duration(text: str) -> int:
    from .units import parse_duration
    return parse_duration(text)


def _decimal(text: str) -> int:
    from .units import nano_cpus
    return nano_cpus(text)


_PARSERS: dict[str, Check] = {
    "bool": parse_bool, "string": _string, "int": _int, "int64": _int, "uint16": _uint16,
    "uint64": _uint64, "list": _string, "strings": _strings, "map": _string,
    "stringToString": _string_map, "filter": _filter, "bytes": _bytes, "duration": _duration,
    "decimal": _decimal, "ip": _string,
}


# ---- help -----------------------------------------------------------------

def usage_lines(flags: tuple[Flag, ...], width: int) -> list[str]:
    """The option list of the help, wrapped to ``width`` columns."""
    rows = []
    for f in sorted(flags, key=lambda f: f.name):
        if f.hidden or f.deprecated:
            continue
        left = f"  -{f.short}, --{f.name}" if f.short else f"      --{f.name}"
        if f.kind != "bool":
            left += " " + _SHOWN.get(f.kind, f.kind)
        rows.append((left, f.text + _default_text(f)))
    edge = max((len(left) for left, _ in rows), default=0) + 3
    lines = []
    for left, text in rows:
        first = True
        for line in text.split("\n"):
            for piece in _wrap(line, max(24, width - edge)):
                lines.append((left.ljust(edge) if first else " " * edge) + piece)
                first = False
    return lines


def _default_text(flag: Flag) -> str:
    kind = flag.kind
    if kind in ("map",):
        return " (default map[])"
    if kind in ("ulimit", "stringToString"):
        return " (default [])"
    if kind == "duration":
        return f" (default {flag.default or '0s'})"
    if not flag.default or flag.default == "":
        return ""
    if kind == "bool":
        return " (default true)"
    if kind == "string":
        return f" (default {go_quote(flag.default)})"
    return f" (default {flag.default})"


def _wrap(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    lines = []
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    return lines
