"""The terminal: what may be written to it, how large it is, raw mode."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: C0 (but tab and newline), DEL and C1 become visible instead of being obeyed
_CONTROLS = {c: f"\\x{c:02x}" for c in [*range(0x20), *range(0x7F, 0xA0)] if c not in (9, 10)}


def clean(text: str) -> str:
    """Text from an engine, harmless to a terminal."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size(fd: int = 1) -> tuple[int, int]:
    """Rows and columns; (0, 0) if ``fd`` is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except (OSError, ValueError):
        return 0, 0
    return rows, columns


def help_width() -> int:
    """How wide the help may be, from whichever standard stream is a terminal."""
    for fd in (0, 1, 2):
        _, columns = size(fd)
        if columns:
            return columns
    return 80


def warn(text: str) -> None:
    """One line on stderr, after what stdout has to say."""
    sys.stdout.flush()
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


def write_all(fd: int, data: bytes) -> None:
    """All of ``data``, also to a slow pipe."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            _wait_writable(fd)


def _wait_writable(fd: int) -> None:
    from select import poll
    waiter = poll()
    waiter.register(fd, 4)  # POLLOUT
    waiter.poll()


class RawMode:
    """A terminal without echo, line editing and signals, until :meth:`restore`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] | None = None

    def enter(self) -> None:
        import termios
        try:
            saved = termios.tcgetattr(self.fd)
        except termios.error:
            return
        raw = list(saved)
        raw[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
                    | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        # OPOST stays off only where output is the container's own terminal
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG
                    | termios.IEXTEN)
        control = list(raw[6])
        control[termios.VMIN] = 1
        control[termios.VTIME] = 0
        raw[6] = control
        self._saved = saved
        termios.tcsetattr(self.fd, termios.TCSANOW, raw)

    def restore(self) -> None:
        if self._saved is None:
            return
        import termios
        saved, self._saved = self._saved, None
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, saved)
        except termios.error:
            pass


def confirm(question: str) -> bool:
    """y or Y on stdin; anything else is no."""
    sys.stdout.write(question + " [y/N] ")
    sys.stdout.flush()
    answer = sys.stdin.readline().strip()
    if not answer:
        sys.stdout.write("\n")
    return answer in ("y", "Y")
