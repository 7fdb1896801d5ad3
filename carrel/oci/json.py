"""JSON for programs that count their imports.

The standard ``json`` package costs 5 ms to import (it needs ``re``), which is
a fifth of a whole cold start.  Its C scanner and encoder, ``_json``, do the
work here without it; :func:`loads` is stricter than the package: a duplicate
key, NaN, Infinity and trailing text are errors.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIMIT = 16 << 20
_WHITE = " \t\n\r"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidParameter(f"duplicate key {key!r}")
            seen.add(key)
    return found


def _integer(text: str) -> int:
    if len(text) > 25:
        raise InvalidParameter("number is too long")
    return int(text)


def _constant(name: str) -> float:
    raise InvalidParameter(f"{name} is not JSON")


class _Context:
    """What the C scanner reads its settings from."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
    parse_float = float
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}


_scan = make_scanner(_Context())  # type: ignore[arg-type]


def loads(data: bytes | str, what: str = "JSON") -> Any:
    """Parse a whole document; ``what`` names it in the error."""
    if len(data) > LIMIT:
        raise InvalidParameter(f"{what} is larger than {LIMIT} bytes")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        start = len(text) - len(text.lstrip(_WHITE))
        value, end = _scan(text, start)
        if text[end:].strip(_WHITE):
            raise InvalidParameter(f"{what}: text after the end, at character {end}")
    except StopIteration as stop:
        raise InvalidParameter(f"{what}: no value at character {stop.value}") from None
    except RecursionError:
        raise InvalidParameter(f"{what} is nested too deeply") from None
    except (ValueError, ImportError, SystemError) as error:
        # the scanner raises an exception of json.decoder; where that is not imported it
        # fails without one (SystemError): either way it is bad JSON
        detail = "" if isinstance(error, SystemError) else f": {error}"
        raise InvalidParameter(f"{what} is not valid{detail}") from None
    finally:
        _Context.memo.clear()
    return value


def _default(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _float(value: float) -> str:
    text = repr(value)
    if text in ("nan", "inf", "-inf"):
        raise ValueError(f"{text} is not JSON")
    return text


def dumps(value: Any, indent: str | None = None) -> str:
    """One line, or indented as Go's MarshalIndent does it."""
    if indent is not None:
        return _pretty(value, "\n", indent)
    encode = make_encoder(None, _default, encode_basestring_ascii, None, ":", ",", False, False,
                          False)
    return "".join(encode(value, 0))


def _pretty(value: Any, newline: str, indent: str) -> str:
    if isinstance(value, dict) and value:
        inner = newline + indent
        items = [f"{inner}{encode_basestring_ascii(k)}: {_pretty(v, inner, indent)}"
                 for k, v in value.items()]
        return "{" + ",".join(items) + newline + "}"
    if isinstance(value, (list, tuple)) and value:
        inner = newline + indent
        return "[" + ",".join(inner + _pretty(v, inner, indent) for v in value) + newline + "]"
    return dumps(value)
