"""Times as Docker writes and reads them: RFC 3339 with nanoseconds, UTC."""

from __future__ import annotations

import calendar
import re
import time

from carrel import errdefs

ZERO = "0001-01-01T00:00:00Z"
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"(?:[Zz]|([+-])(\d\d):?(\d\d))?)?\Z", re.ASCII)
_UNIX = re.compile(r"(-?\d{1,18})(?:\.(\d{1,9}))?\Z", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000,
          "m": 60_000_000_000, "h": 3_600_000_000_000}


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch, without trailing zeros, as Go prints them."""
    seconds, rest = divmod(ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{stamp}{fraction}Z"


def now() -> str:
    return rfc3339(time.time_ns())


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since the epoch."""
    match = _RFC3339.match(text)
    if not match:
        raise errdefs.InvalidParameter(f"invalid time: {text[:64]!r}")
    year, month, day, hour, minute, second, fraction, sign, off_h, off_m = match.groups()
    try:
        seconds = calendar.timegm((int(year), int(month), int(day), int(hour or 0),
                                   int(minute or 0), int(second or 0)))
    except (ValueError, OverflowError):
        raise errdefs.InvalidParameter(f"invalid time: {text[:64]!r}") from None
    if sign:
        offset = int(off_h) * 3600 + int(off_m) * 60
        seconds += -offset if sign == "+" else offset
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def parse_point(text: str | None) -> int | None:
    """``since`` and ``until``: unix time (with fraction), RFC 3339, or a duration ago."""
    if text is None or text in ("", "0"):
        return None
    match = _UNIX.match(text)
    if match:
        whole = int(match[1]) * 1_000_000_000
        return whole + int((match[2] or "0").ljust(9, "0"))
    if text[-1] in "smh" and "-" not in text:
        return time.time_ns() - parse_duration(text)
    return parse_rfc3339(text)


def parse_duration(text: str) -> int:
    """Go's durations: ``1h30m``, ``1.5s``."""
    position = total = 0
    if len(text) <= 64:
        for match in _DURATION.finditer(text):
            if match.start() != position:
                break
            total += int(float(match[1]) * _UNITS[match[2]])
            position = match.end()
    if not position or position != len(text):
        raise errdefs.InvalidParameter(f"invalid duration: {text[:64]!r}")
    return total


def human(seconds: float) -> str:
    """Docker's coarse durations: ``Up 5 minutes``."""
    second = int(seconds)
    if second < 1:
        return "Less than a second"
    if second == 1:
        return "1 second"
    if second < 60:
        return f"{second} seconds"
    minute = second // 60
    if minute == 1:
        return "About a minute"
    if minute < 60:
        return f"{minute} minutes"
    hour = int(seconds / 3600 + 0.5)
    if hour == 1:
        return "About an hour"
    if hour < 48:
        return f"{hour} hours"
    if hour < 24 * 7 * 2:
        return f"{hour // 24} days"
    if hour < 24 * 30 * 2:
        return f"{hour // 24 // 7} weeks"
    if hour < 24 * 365 * 2:
        return f"{hour // 24 // 30} months"
    return f"{hour // 24 // 365} years"
