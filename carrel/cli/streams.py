"""Joining a terminal or pipes to a process in a container.

One thread and one poll loop: the process's output, our stdin, signals and the answer of
``/wait`` are all descriptors.  What we send is never waited for while output is unread, or
``cat | carrel run -i image cat`` would lock up on both sides.
"""

from __future__ import annotations

import os
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll

from .errors import CliError, Detached
from .terminal import RawMode, is_terminal, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .client import Connection, Response

_READ = 1 << 16
_HEADER = 8
SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM = 1, 2, 3, 10, 12, 14, 15
SIGCONT, SIGTSTP, SIGWINCH = 18, 20, 28
_NAMES = {SIGHUP: "HUP", SIGINT: "INT", SIGQUIT: "QUIT", SIGUSR1: "USR1", SIGUSR2: "USR2",
          SIGALRM: "ALRM", SIGTERM: "TERM", SIGCONT: "CONT", SIGTSTP: "TSTP"}
#: so many requests to end that are not obeyed end the client
_PATIENCE = 3


def parse_detach_keys(text: str) -> bytes:
    """"ctrl-p,ctrl-q" -> the bytes that a terminal sends."""
    keys = bytearray()
    for part in (text or "ctrl-p,ctrl-q").split(","):
        if part.startswith("ctrl-"):
            key = part[5:].lower()
            if len(key) == 1 and key in "abcdefghijklmnopqrstuvwxyz":
                keys.append(ord(key) - ord("a") + 1)
            elif key in ("@", "[", "\\", "]", "^", "_"):
                keys.append("@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_".index(key))
            else:
                raise CliError(f"invalid detach keys ({text}): Unknown character: '{part}'")
        elif len(part) == 1 and part.isascii():
            keys.append(ord(part))
        elif part == "DEL":
            keys.append(127)
        else:
            raise CliError(f"invalid detach keys ({text}): Unknown character: '{part}'")
    return bytes(keys)


class Signals:
    """Signals as bytes on a pipe, while the object is active."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        # the C half of ``signal``: the other half needs ``enum``
        import _signal  # type: ignore[import-not-found]
        self._signal = _signal
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = writer
        self._before = {n: _signal.signal(n, self._ignore) for n in numbers}
        self._wakeup = _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    @staticmethod
    def _ignore(number: int, frame: object) -> None:
        """The number arrives through the wake-up pipe."""

    def take(self) -> bytes:
        try:
            return os.read(self.reader, 512)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self._signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            self._signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)


class Session:
    """One attachment.  ``stdin`` is a descriptor or -1."""

    def __init__(self, connection: Connection, *, tty: bool, stdin: int = -1, stdout: int = 1,
                 stderr: int = 2, detach_keys: bytes = b"", output: bool = True) -> None:
        self.connection = connection
        self.tty = tty
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.output = output
        self.keys = detach_keys
        self.matched = 0
        self.pending = b""
        self.input_done = False
        self.frame = bytearray()
        self.left = 0
        self.target = stdout
        self.signals: Signals | None = None
        self.forward: Callable[[str], None] | None = None
        self.resize: Callable[[], None] | None = None
        self.wait: Response | None = None
        self.wait_data = b""
        self.raw = RawMode(stdin)
        self.ends = 0

    # -- set-up

    def begin(self, *, forward: Callable[[str], None] | None = None,
              resize: Callable[[], None] | None = None) -> None:
        """Raw mode and signal handling, before the process starts."""
        self.forward = forward
        self.resize = resize if self.tty and is_terminal(self.stdout) else None
        numbers = tuple(_NAMES) if forward else ()
        if self.resize is not None:
            numbers += (SIGWINCH,)
        if numbers:
            self.signals = Signals(numbers)
        if self.tty and self.stdin >= 0:
            self.raw.enter()
        if self.stdin < 0:
            self.finish_input()

    def end(self) -> None:
        self.raw.restore()
        if self.signals is not None:
            self.signals.close()
            self.signals = None
        self.connection.close()

    # -- the loop

    def run(self, wait: Response | None = None) -> bytes:
        """Copy until the output ends (and ``wait`` has answered); the answer's body."""
        self.wait = wait
        connection = self.connection
        output = self.output
        while output or self.wait is not None:
            if output and connection.pending():
                output = self.read_output()
                continue
            for fd, events in self.poll():
                if fd == connection.fileno():
                    if events & POLLOUT:
                        self.flush()
                    if events & (POLLIN | POLLHUP | POLLERR) and output:
                        output = self.read_output()
                elif fd == self.stdin:
                    self.read_input()
                elif self.signals is not None and fd == self.signals.reader:
                    self.handle_signals()
                elif self.wait is not None:
                    self.read_wait()
        return self.wait_data

    def poll(self) -> list[tuple[int, int]]:
        if self.wait is not None and self.wait.connection.pending():
            return [(self.wait.connection.fileno(), POLLIN)]
        waiter = poll()
        waiter.register(self.connection.fileno(),
                        (POLLIN if self.output else 0) | (POLLOUT if self.pending else 0))
        if self.stdin >= 0 and not self.pending and not self.input_done:
            waiter.register(self.stdin, POLLIN)
        if self.signals is not None:
            waiter.register(self.signals.reader, POLLIN)
        if self.wait is not None:
            waiter.register(self.wait.connection.fileno(), POLLIN)
        return waiter.poll()

    def read_wait(self) -> None:
        assert self.wait is not None
        try:
            data = self.wait.read_some()
        except CliError:
            data = b""  # the engine went away: what there is of the answer tells
        if data:
            self.wait_data += data
        if not data or self.wait.done:
            self.wait = None

    # -- output

    def read_output(self) -> bool:
        """Pass some output on; False at its end."""
        data = self.connection.receive(_READ)
        if not data:
            self.output = False
            return False
        if self.tty:
            write_all(self.stdout, data)
        else:
            self.demultiplex(data)
        return True

    def demultiplex(self, data: bytes) -> None:
        """Frames of ``stream, 0, 0, 0, size (4 bytes), payload``."""
        at = 0
        while at < len(data):
            if self.left:
                piece = data[at:at + self.left]
                write_all(self.target, piece)
                self.left -= len(piece)
                at += len(piece)
                continue
            need = _HEADER - len(self.frame)
            self.frame += data[at:at + need]
            at += need
            if len(self.frame) == _HEADER:
                stream = self.frame[0]
                if stream > 3:
                    raise CliError(f"unrecognized stream: {stream}")
                self.target = self.stdout if stream < 2 else self.stderr
                self.left = int.from_bytes(self.frame[4:], "big")
                self.frame.clear()

    # -- input

    def read_input(self) -> None:
        try:
            data = os.read(self.stdin, _READ)
        except OSError:
            data = b""
        if not data:
            self.finish_input()
            return
        if self.tty and self.keys:
            data = self.filter_keys(data)
        self.pending += data
        self.flush()

    def filter_keys(self, data: bytes) -> bytes:
        """Hold the bytes of the detach sequence back; Detached when it is complete."""
        out = bytearray()
        for byte in data:
            if byte == self.keys[self.matched]:
                self.matched += 1
                if self.matched == len(self.keys):
                    self.pending += bytes(out)
                    self.flush()
                    raise Detached
                continue
            if self.matched:
                out += self.keys[:self.matched]
                self.matched = 0
                if byte == self.keys[0]:
                    self.matched = 1
                    continue
            out.append(byte)
        return bytes(out)

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        if not self.pending:
            return
        try:
            sent = self.connection.try_send(self.pending)
        except OSError:
            # the process no longer reads: not an error
            self.pending = b""
            self.input_done = True
            return
        self.pending = self.pending[sent:]
        if not self.pending and self.input_done:
            self.connection.end_input()

    def finish_input(self) -> None:
        self.input_done = True
        if not self.pending:
            self.connection.end_input()

    # -- signals

    def handle_signals(self) -> None:
        assert self.signals is not None
        for number in self.signals.take():
            if number == SIGWINCH:
                if self.resize is not None:
                    self.resize()
                continue
            if number in (SIGINT, SIGTERM):
                self.ends += 1
                if self.ends >= _PATIENCE:
                    raise CliError("got 3 SIGTERM/SIGINTs, forcefully exiting")
            if self.forward is not None and number in _NAMES:
                try:
                    self.forward(_NAMES[number])
                except CliError:
                    pass  # the process may have ended meanwhile


def check_tty(stdin: bool, tty: bool) -> None:
    """A terminal in the container needs one here, when it is to be typed into."""
    if stdin and tty and not is_terminal(0):
        raise CliError("the input device is not a TTY")
