"""The progress that an engine streams while it pulls, pushes, loads or imports.

On a terminal every layer has a line that is rewritten in place; elsewhere only what is
final is printed, one line each.
"""

from __future__ import annotations

import sys

from .errors import CliError
from .terminal import clean, size
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TextIO

_BAR = 50
#: below this width there are numbers only
_NARROW = 110


class Display:
    """Writes messages to ``out``; ``terminal`` decides between bars and lines."""

    def __init__(self, out: TextIO, *, terminal: bool, columns: int = 200) -> None:
        self.out = out
        self.terminal = terminal
        self.columns = columns or 200
        self.lines: dict[str, int] = {}

    def show(self, message: dict[str, Any]) -> None:
        """One message of the stream."""
        progress = progress_text(message, self.columns)
        name = clean(str(message.get("id") or ""))
        if not self.terminal and progress:
            return
        text = ""
        if name and progress and self.terminal:
            self._in_place(name, self._line(message, name, progress))
            return
        if self.terminal and name and "stream" not in message:
            self._in_place(name, self._line(message, name, ""))
            return
        self.lines.clear()
        if "stream" in message:
            text = clean(str(message["stream"]))
        elif message.get("status") is not None or progress:
            text = self._line(message, name, progress) + ("\r" if progress else "\n")
        self.out.write(text)
        self.out.flush()

    def _line(self, message: dict[str, Any], name: str, progress: str) -> str:
        status = clean(str(message.get("status") or ""))
        origin = f"(from {clean(str(message['from']))}) " if message.get("from") else ""
        prefix = f"{name}: " if name else ""
        return f"{prefix}{origin}{status}{' ' + progress if progress else ''}"

    def _in_place(self, name: str, text: str) -> None:
        """Rewrite the line of one layer; a new layer gets a new line below."""
        if name not in self.lines:
            self.lines[name] = len(self.lines)
            self.out.write("\n" if len(self.lines) > 0 else "")
        up = len(self.lines) - self.lines[name]
        self.out.write(f"\x1b[{up}A\x1b[2K\r{text[:self.columns]}\r\x1b[{up}B")
        self.out.flush()


def progress_text(message: dict[str, Any], columns: int) -> str:
    """"[==>   ]  1.2MB/3.4MB", or "" when there is nothing to measure."""
    detail = message.get("progressDetail")
    if not isinstance(detail, dict):
        return ""
    current = int(detail.get("current") or 0)
    total = int(detail.get("total") or 0)
    if current <= 0 and total <= 0:
        return ""
    units = str(detail.get("units") or "")
    if units:
        shown, whole = str(current), str(total)
    else:
        shown, whole = human_size(current), human_size(total)
    if total <= 0:
        return f"{shown:>8}" + (f" {units}" if units else "")
    filled = min(_BAR, int(current * _BAR / total))
    bar = ""
    if columns > _NARROW:
        bar = "[" + "=" * filled + ">" + " " * (_BAR - filled) + "] "
    if detail.get("hidecounts"):
        return bar
    numbers = f"{shown:>8}" if current > total else f"{shown:>8}/{whole}"
    return bar + numbers + (f" {units}" if units else "")


def follow(messages: Iterable[Any], out: TextIO, fd: int,
           aux: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Show a whole stream; CliError when the engine reports an error in it."""
    terminal = out.isatty() and bool(size(fd)[1])
    display = Display(out, terminal=terminal, columns=size(fd)[1])
    for message in messages:
        if isinstance(message, dict):
            if aux is not None and isinstance(message.get("aux"), dict):
                aux(message["aux"])
            else:
                raise_error(message)
                display.show(message)


def drain(messages: Iterable[Any]) -> None:
    """Follow a stream without showing it."""
    for message in messages:
        if isinstance(message, dict):
            raise_error(message)


def raise_error(message: dict[str, Any]) -> None:
    detail = message.get("errorDetail")
    text = detail.get("message") if isinstance(detail, dict) else message.get("error")
    if text:
        sys.stdout.flush()
        raise CliError(str(text))
