"""Sizes and durations, read and written as Docker's users are used to."""

from __future__ import annotations

_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_BINARY_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_DECIMAL_NAMES = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9,
                "m": 60 * 10**9, "h": 3600 * 10**9}


def ram_in_bytes(text: str) -> int:
    """"64m", "1.5GiB", "32 kb" -> bytes; the units are powers of 1024."""
    problem = ValueError(f"invalid size: '{text}'")
    edge = 0
    for i, char in enumerate(text):
        if char in "0123456789.":
            edge = i + 1
    number, unit = text[:edge], text[edge:].lower()
    if unit[:1] == " ":
        unit = unit[1:]
    if unit not in ("", "b"):
        stem = unit[:-2] if unit.endswith("ib") else unit.removesuffix("b")
        if len(stem) != 1 or stem not in _BINARY:
            raise ValueError(f"invalid suffix: '{unit}'") if number else problem
    else:
        stem = ""
    try:
        if "_" in number or not number.isascii() or not number.strip(" ") == number:
            raise problem
        value = float(number)
    except ValueError:
        raise problem from None
    if value < 0:
        raise problem
    return int(value * _BINARY.get(stem, 1))


def four_digits(value: float, precision: int = 4) -> str:
    """A number as Go's %.4g prints it."""
    return f"{value:.{precision}g}"


def _scaled(size: float, base: float, names: tuple[str, ...], precision: int) -> str:
    i = 0
    while size >= base and i < len(names) - 1:
        size /= base
        i += 1
    return four_digits(size, precision) + names[i]


def human_size(size: float, precision: int = 4) -> str:
    """Powers of 1000: "1.98MB"."""
    return _scaled(float(size), 1000.0, _DECIMAL_NAMES, precision)


def bytes_size(size: float) -> str:
    """Powers of 1024: "7.67GiB"."""
    return _scaled(float(size), 1024.0, _BINARY_NAMES, 4)


def human_duration(seconds: float) -> str:
    """"Less than a second", "About an hour", "3 weeks"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def parse_duration(text: str) -> int:
    """"1h30m", "1.5s" -> nanoseconds, as Go's time.ParseDuration."""
    problem = ValueError(f'time: invalid duration "{text}"')
    rest = text
    sign = 1
    if rest[:1] in ("+", "-"):
        sign = -1 if rest[0] == "-" else 1
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise problem
    total = 0.0
    whole = 0
    while rest:
        i = 0
        while i < len(rest) and rest[i] in "0123456789.":
            i += 1
        number, rest = rest[:i], rest[i:]
        if not number or number.count(".") > 1 or number == ".":
            raise problem
        i = 0
        while i < len(rest) and rest[i] not in "0123456789.":
            i += 1
        unit, rest = rest[:i], rest[i:]
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _NANOSECONDS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        if "." in number:
            total += float(number) * _NANOSECONDS[unit]
        else:
            whole += int(number) * _NANOSECONDS[unit]
    return sign * (whole + int(total))


def nano_cpus(text: str) -> int:
    """"1.5" or "3/2" CPUs in billionths."""
    from fractions import Fraction
    try:
        exact = Fraction(text) * 10**9
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if exact.denominator != 1:
        raise ValueError("value is too precise")
    return exact.numerator


def epoch_of(stamp: str) -> tuple[int, int]:
    """RFC 3339 -> (seconds, nanoseconds) since 1970."""
    date, _, clock = stamp.replace("t", "T").partition("T")
    try:
        year, month, day = (int(p) for p in date.split("-"))
        zone = 0
        if clock[-1:] in ("Z", "z"):
            clock = clock[:-1]
        else:
            for mark in "+-":
                if mark in clock:
                    clock, _, offset = clock.partition(mark)
                    hours, _, minutes = offset.partition(":")
                    zone = (int(hours) * 3600 + int(minutes or 0) * 60) * (-1 if mark == "-" else 1)
        clock, _, fraction = clock.partition(".")
        hour, minute, second = (int(p) for p in clock.split(":"))
    except ValueError:
        raise ValueError(f'invalid time "{stamp}"') from None
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - zone
    return seconds, int((fraction + "0" * 9)[:9]) if fraction else 0


def _days(year: int, month: int, day: int) -> int:
    """Days between 1970-01-01 and a date of the Gregorian calendar."""
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 \
        + day_of_year - 719468


def rfc3339_nano(seconds: int, nanoseconds: int, *, local: bool = True, fixed: bool = True) -> str:
    """Local time with nine digits of fraction, as `docker events` shows it."""
    import time
    moment = time.localtime(seconds) if local else time.gmtime(seconds)
    offset = moment.tm_gmtoff
    hours, minutes = abs(offset) // 3600, abs(offset) % 3600 // 60
    zone = f"{'-' if offset < 0 else '+'}{hours:02d}:{minutes:02d}" if offset else "Z"
    fraction = f".{nanoseconds:09d}" if fixed else (f".{nanoseconds:09d}".rstrip("0").rstrip("."))
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + fraction + zone


def go_time(seconds: int) -> str:
    """A moment as Go prints a time.Time: "2026-11-24 07:24:58 +0000 UTC"."""
    import time
    moment = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S %z ", moment) + (moment.tm_zone or "UTC")


def timestamp(text: str, now: float) -> str:
    """--since/--until: a Go duration before now, seconds, or a date -> seconds.nanoseconds."""
    if not text or text == "0":  # which is 1970, though it is a duration too
        return text
    try:
        ago = parse_duration(text)
    except ValueError:
        pass
    else:
        nanoseconds = int(now * 10**9) - ago
        return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"
    if text.replace(".", "", 1).isdigit():
        return text
    return _date_timestamp(text)


def _date_timestamp(text: str) -> str:
    import time
    date, _, clock = text.partition("T")
    problem = ValueError(f'failed to parse value as time or duration: "{text}"')
    try:
        if clock.endswith("Z") or "+" in clock or "-" in clock:
            clock_only = clock.rstrip("Z")
            if clock_only.count(":") == 1 and clock.endswith("Z"):
                clock = clock_only + ":00Z"
            seconds, nanoseconds = epoch_of(f"{date}T{clock}")
        else:
            clock, _, fraction = (clock or "00:00:00").partition(".")
            parts = [int(p) for p in clock.split(":")] + [0, 0]
            year, month, day = (int(p) for p in date.split("-"))
            seconds = int(time.mktime((year, month, day, parts[0], parts[1], parts[2], 0, 0, -1)))
            nanoseconds = int((fraction + "0" * 9)[:9])
    except (ValueError, OverflowError):
        raise problem from None
    return f"{seconds}.{nanoseconds:09d}"
