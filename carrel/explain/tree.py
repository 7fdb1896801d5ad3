"""The record of a start as a tree: seven steps, what each did, how long it took."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_TEXT = 200


def render(record: dict[str, Any], *, columns: int = 0) -> str:
    """Lines of text; ``columns`` cuts them, 0 does not."""
    steps = [s for s in record.get("steps") or [] if isinstance(s, dict)]
    lines = []
    total = 0
    for n, step in enumerate(steps):
        last = n == len(steps) - 1
        calls = [c for c in step.get("calls") or [] if isinstance(c, dict)]
        spent = _span(calls)
        total += spent
        branch, trunk = ("└─ ", "   ") if last else ("├─ ", "│  ")
        word = "call" if len(calls) == 1 else "calls"
        lines.append(f"{branch}{_clean(str(step.get('step') or '?'))}  "
                     f"({len(calls)} {word}, {duration(spent)})")
        for i, call in enumerate(calls):
            twig = "└─ " if i == len(calls) - 1 else "├─ "
            lines.append(f"{trunk}{twig}{call_text(call)}")
    dropped = record.get("dropped")
    head = f"{sum(len(s.get('calls') or []) for s in steps)} calls in {len(steps)} steps, " \
           f"{duration(total)}"
    if dropped:
        head += f" ({dropped} more were not kept)"
    text = [head, *lines]
    if columns > 20:
        text = [line if len(line) <= columns else line[:columns - 1] + "…" for line in text]
    return "".join(line + "\n" for line in text)


def _span(calls: list[dict[str, Any]]) -> int:
    """From the first call's start to the last one's end, where calls overlap; a step that
    was not measured takes no time."""
    starts = [c["start_ns"] for c in calls if isinstance(c.get("start_ns"), int)]
    if not starts:
        return sum(_ns(c) for c in calls)
    ends = [c["start_ns"] + _ns(c) for c in calls if isinstance(c.get("start_ns"), int)]
    return max(0, int(max(ends)) - int(min(starts)))


def _ns(call: dict[str, Any]) -> int:
    value = call.get("ns")
    return value if isinstance(value, int) else 0


def call_text(call: dict[str, Any]) -> str:
    """One call as it would be written down: ``mount("proc", ...) = 0  12 µs``."""
    name = _clean(str(call.get("call") or "?"))
    arguments = call.get("args")
    if isinstance(arguments, (list, tuple)):
        shown = ", ".join(argument(a) for a in arguments)
    else:
        shown = "" if arguments is None else argument(arguments)
    text = f"{name}({shown})"
    errno = call.get("errno")
    result = call.get("result")
    if errno:
        text += f" = {errno_name(int(errno))}"
    elif result is not None and result != "" and not (result == 0 and result is not False):
        text += f" = {argument(result)}"
    if _ns(call):
        text += f"  {duration(_ns(call))}"
    return text


def argument(value: object) -> str:
    text = _clean(value if isinstance(value, str) else str(value))
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT - 1] + "…"


def _clean(text: str) -> str:
    """No control character of a container's making reaches the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256
                   else f"\\u{ord(c):04x}" for c in text)


def errno_name(number: int) -> str:
    from errno import errorcode
    from os import strerror
    return f"-1 {errorcode.get(number, number)} ({strerror(number)})"


def duration(nanoseconds: int) -> str:
    """"850 ns", "12 µs", "3.4 ms", "1.25 s" """
    if nanoseconds < 1000:
        return f"{nanoseconds} ns"
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1000:.0f} µs"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1_000_000:.1f} ms"
    return f"{nanoseconds / 1_000_000_000:.2f} s"
