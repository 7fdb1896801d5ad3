"""The log file that callers of a runtime read: text or one JSON object a line."""

from __future__ import annotations

import os
import sys
import time

from carrel.oci import json

_fd = -1
_format = "text"
debug_on = False


def setup(path: str, form: str, debug: bool) -> None:
    global _fd, _format, debug_on
    from carrel.errdefs import InvalidParameter
    if form not in ("text", "json"):
        raise InvalidParameter(f'invalid log-format: "{form}"')
    _format, debug_on = form, debug
    if path:
        _fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def error(text: str, *, plain: bool = False) -> None:
    """To the log and, when that is a file, to stderr as well. ``plain``: on stderr
    as the container's own program would say it."""
    if _fd >= 0:
        _write("error", text)
    if _fd >= 0 or plain:
        sys.stderr.write(text + "\n")
    else:
        _write("error", text)


def warning(text: str) -> None:
    _write("warning", text)


def debug(text: str) -> None:
    if debug_on:
        _write("debug", text)


def _write(level: str, text: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if _format == "json":
        line = json.dumps({"level": level, "msg": text, "time": now})
    else:
        line = f'time="{now}" level={level} msg={_quoted(text)}'
    data = (line + "\n").encode("utf-8", "surrogateescape")
    os.write(_fd if _fd >= 0 else 2, data)


def _quoted(text: str) -> str:
    plain = all(c.isalnum() or c in "-._/@^+" for c in text)
    return text if text and plain else json.dumps(text)
