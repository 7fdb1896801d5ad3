"""The daemon's own log: lines on stderr, as logfmt, for journald or a terminal."""

from __future__ import annotations

import sys
import time
import traceback

LEVELS = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "warning": 2, "error": 3,
          "fatal": 4, "panic": 4}
_threshold = 1


def configure(level: str) -> None:
    global _threshold
    _threshold = LEVELS[level]


def _write(level: str, message: str) -> None:
    if LEVELS[level] < _threshold:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    text = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    try:
        sys.stderr.write(f'time="{stamp}.{int(now % 1 * 1e9):09d}Z" level={level} msg="{text}"\n')
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads the log any more: the daemon's work goes on


def debug(message: str) -> None:
    _write("debug", message)


def info(message: str) -> None:
    _write("info", message)


def warning(message: str) -> None:
    _write("warning", message)


def error(message: str, cause: BaseException | None = None) -> None:
    """An error that nobody else will tell of; with debug, where it came from."""
    _write("error", message)
    if cause is not None and _threshold == 0:
        _write("error", "".join(traceback.format_exception(cause)))
