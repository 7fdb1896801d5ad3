"""Signals by name or number, as Docker takes them."""

from __future__ import annotations

import signal

from carrel import errdefs

_BY_NAME = {s.name[3:]: int(s) for s in signal.Signals if s.name.startswith("SIG")}
_BY_NAME |= {"CLD": int(signal.SIGCHLD), "POLL": int(signal.SIGIO), "IOT": int(signal.SIGABRT),
             "UNUSED": int(signal.SIGSYS), "STKFLT": 16}
_BY_NAME |= {f"RTMIN+{n}": 34 + n for n in range(1, 16)}
_BY_NAME |= {f"RTMAX-{n}": 64 - n for n in range(1, 15)}
_BY_NAME |= {"RTMIN": 34, "RTMAX": 64}


def parse(text: str) -> int:
    """``9``, ``KILL``, ``SIGKILL``, ``RTMIN+3``."""
    if text.isascii() and text.isdigit() and len(text) < 4:
        number = int(text)
        if 0 < number <= 64:
            return number
    else:
        found = _BY_NAME.get(text.upper().removeprefix("SIG"))
        if found:
            return found
    raise errdefs.InvalidParameter(f"invalid signal: {text[:40]}")
