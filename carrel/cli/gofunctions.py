"""The functions that a --format template can call, and how Go prints values."""

from __future__ import annotations

from .flags import go_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Null:
    """A null whose Go type is known: prints as that type's zero value.

    ``absent``: the engine did not send the field, so JSON does not show it either."""

    __slots__ = ("absent", "text")

    def __init__(self, text: str, *, absent: bool = False) -> None:
        self.text = text
        self.absent = absent

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def go_type(value: Any) -> str:
    return {str: "string", int: "int", float: "float64", bool: "bool",
            list: "[]interface {}", dict: "map[string]interface {}"}.get(
                type(value), "interface {}")


def true(value: Any) -> bool:
    return bool(value) or not isinstance(
        value, (str, int, float, bool, list, dict, type(None), Null))


def printed(value: Any) -> str:
    """A value as Go's %v."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, Null):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, list):
        return "[" + " ".join(_inner(v) for v in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_inner(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, int):
        return str(value)
    return printed(value.as_dict()) if hasattr(value, "as_dict") else ""


def _inner(value: Any) -> str:
    return "<nil>" if value is None else printed(value)


def _float(value: float) -> str:
    if value == int(value) and abs(value) < 1e21:
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:g}" if value % 1e5 == 0 \
            else repr(value).removesuffix(".0")
    return repr(value)


def plain(value: Any) -> Any:
    """A value that JSON knows."""
    if isinstance(value, Null):
        return None
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()
                if not (isinstance(v, Null) and v.absent)}
    return plain(value.as_dict()) if hasattr(value, "as_dict") else value


def _json(value: Any) -> str:
    from .jsonc import dumps
    text = dumps(plain(value))
    if hasattr(value, "as_dict"):
        # Go's JSON of a row is safe for HTML, that of a plain value is not
        for char, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
            text = text.replace(char, escaped)
    return text


def _strings(value: Any) -> list[str]:
    if isinstance(value, Null) or value is None:
        return []
    if not isinstance(value, list):
        raise TypeError
    return [printed(v) for v in value]


def _join(value: Any, separator: str) -> str:
    return separator.join(_strings(value))


def _split(value: str, separator: str) -> list[str]:
    if not isinstance(value, str):
        raise TypeError
    return value.split(separator) if separator else list(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _title(value: Any) -> str:
    return " ".join(w[:1].upper() + w[1:] for w in _text(value).split(" "))


def _pad(value: Any, left: int, right: int) -> str:
    text = _text(value)
    return " " * min(left, 1024) + text + " " * min(right, 1024) if text else text


def _truncate(value: Any, length: int) -> str:
    return _text(value)[:max(0, length)]


def _print(*values: Any) -> str:
    out = ""
    for i, value in enumerate(values):
        if i and not isinstance(value, str) and not isinstance(values[i - 1], str):
            out += " "
        out += printed(value)
    return out


def _println(*values: Any) -> str:
    return " ".join(printed(v) for v in values) + "\n"


def _printf(pattern: str, *values: Any) -> str:
    out = []
    left = list(values)
    i = 0
    text = _text(pattern)
    while i < len(text):
        if text[i] != "%":
            out.append(text[i])
            i += 1
            continue
        end = i + 1
        while end < len(text) and text[end] in "-+ #0123456789.":
            end += 1
        verb, options = text[end:end + 1], text[i + 1:end]
        i = end + 1
        if verb == "%":
            out.append("%")
        elif not left:
            out.append(f"%!{verb}(MISSING)")
        else:
            out.append(_verb(verb, options, left.pop(0)))
    return "".join(out)


def _verb(verb: str, options: str, value: Any) -> str:
    digits = "".join(c for c in options if c.isdigit())
    if len(digits) > 4:
        raise ValueError("width is too large")
    if verb in ("s", "v"):
        text = printed(value)
    elif verb == "q":
        text = go_quote(printed(value))
    elif (verb in ("d", "x", "X", "o", "c") and isinstance(value, int)) or (
            verb in ("f", "g", "e") and isinstance(value, (int, float))):
        return str(f"%{options}{verb}" % value)
    elif verb == "t" and isinstance(value, bool):
        text = printed(value)
    else:
        return f"%!{verb}({go_type(value)}={printed(value)})"
    return str(f"%{options.replace('0', '', 1) if options[:1] == '0' else options}s" % text)


def _len(value: Any) -> int:
    if isinstance(value, (list, dict, Null)):
        return len(value)
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    raise ValueError("len of nil pointer" if value is None else f"len of type {go_type(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "" if value and all(
                isinstance(v, str) for v in value.values()) else None)
        elif isinstance(value, (list, str)):
            if isinstance(key, bool) or not isinstance(key, int):
                raise ValueError(f"cannot index slice/array with type {go_type(key)}")
            if not 0 <= key < len(value):
                raise ValueError(f"index out of range: {key}")
            value = value[key]
        elif isinstance(value, Null):
            value = None
        else:
            raise ValueError("index of untyped nil" if value is None else
                             f"can't index item of type {go_type(value)}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, (list, str)):
        raise ValueError(f"can't slice item of type {go_type(value)}")
    start, end = [*bounds, *[0, len(value)][len(bounds):]][:2]
    if not 0 <= start <= end <= len(value):
        raise ValueError(f"index out of range: {end}")
    return value[start:end]


def _comparable(a: Any, b: Any) -> None:
    numbers = (int, float)
    same = isinstance(a, bool) == isinstance(b, bool) and (
        (isinstance(a, numbers) and isinstance(b, numbers)) or type(a) is type(b)
        or a is None or b is None)
    if not same:
        raise ValueError("incompatible types for comparison")


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    for other in others:
        _comparable(first, other)
        if first == other:
            return True
    return False


def _less(a: Any, b: Any) -> bool:
    _comparable(a, b)
    return bool(a < b)


FUNCTIONS: dict[str, Any] = {
    "json": _json, "join": _join, "split": _split, "lower": lambda v: _text(v).lower(),
    "upper": lambda v: _text(v).upper(), "title": _title, "pad": _pad, "truncate": _truncate,
    "print": _print, "println": _println, "printf": _printf, "len": _len, "index": _index,
    "slice": _slice, "eq": _eq, "ne": lambda a, b: not _eq(a, b), "lt": _less,
    "le": lambda a, b: not _less(b, a), "gt": lambda a, b: _less(b, a),
    "ge": lambda a, b: not _less(a, b), "not": lambda v: not true(v),
}
#: what a header does with these functions: nothing
HEADER_KEEPS = frozenset(("json", "split", "join", "title", "lower", "upper", "pad", "truncate"))
