"""JSON at the edge: strict on the way in, fast on the way out."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from carrel import errdefs
from carrel.engine import web

#: Docker's authorisation layer caps what it reads at 4 MiB; so do we.
MAX_BODY = 4 << 20
MAX_DEPTH = 64

encode = msgspec.json.Encoder().encode


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:64]!r}")
            seen.add(key)
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _too_deep(raw: str) -> bool:
    """Nesting is measured before parsing, so that recursion never starts."""
    if raw.count("{") + raw.count("[") <= MAX_DEPTH:
        return False
    depth = 0
    in_string = escaped = False
    for char in raw:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "{[":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif char in "}]":
            depth -= 1
    return False


def decode(raw: bytes | str) -> Any:
    """Parse; anything that two parsers could read differently is refused."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        if _too_deep(text):
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        value = _decoder.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates
    except (ValueError, RecursionError) as error:
        raise errdefs.InvalidParameter(f"invalid JSON: {error}") from None
    return value


async def read_object(request: web.Request, *, optional: bool = False) -> dict[str, Any]:
    """The request's body as a JSON object."""
    raw = await read_body(request)
    if not raw.strip():
        if optional:
            return {}
        raise errdefs.InvalidParameter("invalid JSON: got EOF while reading request body")
    kind = request.headers.get("Content-Type", "")
    if kind.split(";", 1)[0].strip().lower() != "application/json":
        raise errdefs.InvalidParameter(
            f"unsupported Content-Type header ({kind}): must be 'application/json'")
    value = decode(raw)
    if value is None and optional:
        return {}
    if not isinstance(value, dict):
        raise errdefs.InvalidParameter("invalid JSON: an object is needed")
    return value


async def read_body(request: web.Request) -> bytes:
    """The whole body, at most :data:`MAX_BODY`."""
    if (request.content_length or 0) > MAX_BODY:
        raise errdefs.InvalidParameter(f"request body is larger than {MAX_BODY} bytes")
    raw = bytearray()
    async for chunk in request.content.iter_any():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise errdefs.InvalidParameter(f"request body is larger than {MAX_BODY} bytes")
    return bytes(raw)


def response(value: Any, status: int = 200) -> web.Response:
    """A JSON answer, with the newline at its end that Docker sends."""
    return web.Response(body=encode(value) + b"\n", status=status,
                        content_type="application/json")


def error_response(status: int, message: str) -> web.Response:
    return response({"message": message}, status)


def flag(request: web.Request, name: str, default: bool = False) -> bool:
    """A boolean of the query string, as Docker reads one."""
    value = request.query.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def integer(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A decimal number of the query string."""
    value = request.query.get(name, "")
    if value == "":
        return default
    digits = value[1:] if value[:1] == "-" else value
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise errdefs.InvalidParameter(f"invalid value for {name}: {value[:64]!r} is not a number")
    return int(value)
