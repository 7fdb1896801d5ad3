"""JSON without importing ``json``: that package needs ``re`` and ``enum``, which cost
more time than a whole ``carrel ps``.  The C accelerator underneath has all we need."""

from __future__ import annotations

from _json import encode_basestring, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: C1 controls and DEL would reach the terminal through a JSON string
_CONTROLS = {c: f"\\u{c:04x}" for c in range(0x7F, 0xA0)}


class _Context:
    """The attributes that the C scanner reads from a JSONDecoder."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"invalid JSON constant {name}")


_scan = make_scanner(_Context())  # type: ignore[arg-type]
_SPACE = " \t\r\n"


def loads(data: bytes | str) -> Any:
    """One JSON value; ValueError on anything else."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    value, end = scan(text, 0)
    if text[end:].strip(_SPACE):
        raise ValueError("unexpected data after a JSON value")
    return value


def scan(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at ``start`` (white space skipped) and the index after it."""
    length = len(text)
    while start < length and text[start] in _SPACE:
        start += 1
    try:
        return _scan(text, start)
    except (StopIteration, SystemError):
        # SystemError: before Python 3.13 the scanner cannot make its own error unless
        # json.decoder was imported
        raise ValueError("invalid JSON") from None


def quote(text: str) -> str:
    """A JSON string, with every control character escaped."""
    quoted = encode_basestring(text)
    return quoted if quoted.isascii() and "\x7f" not in quoted else quoted.translate(_CONTROLS)


def _refuse(value: object) -> str:
    raise TypeError(f"not JSON: {type(value).__name__}")


_encode = make_encoder(None, _refuse, quote, None, ":", ",", False, False, False)


def dumps(value: object) -> str:
    """Compact JSON."""
    return "".join(_encode(value, 0))


def pretty(value: object, indent: str = "    ") -> str:
    """JSON indented as Go's encoding/json does it."""
    out: list[str] = []
    _pretty(value, "\n", indent, out)
    return "".join(out)


def _pretty(value: object, newline: str, indent: str, out: list[str]) -> None:
    if isinstance(value, dict) and value:
        inner = newline + indent
        mark = "{"
        for key, item in value.items():
            out.append(f"{mark}{inner}{quote(str(key))}: ")
            _pretty(item, inner, indent, out)
            mark = ","
        out.append(newline + "}")
    elif isinstance(value, list) and value:
        inner = newline + indent
        mark = "["
        for item in value:
            out.append(mark + inner)
            _pretty(item, inner, indent, out)
            mark = ","
        out.append(newline + "]")
    else:
        out.append(dumps(value))
