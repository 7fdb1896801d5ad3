"""A runtime that stays: it forwards signals and terminal bytes, and reaps."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py needs enum: 3 ms of import
import os
from _struct import iter_unpack
from errno import EAGAIN, ECHILD, EINTR, EIO
from fcntl import F_GETFL, F_SETFL, fcntl
from select import POLLIN, poll

from carrel.errdefs import InvalidParameter
from carrel.kernel import syscalls, terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.container import Container, Process

_SIGCHLD, _SIGURG, _SIGWINCH = 17, 23, 28
#: what is not forwarded: our own children, Go's preemption, what cannot be caught
_NOT_FORWARDED = {9, 19, _SIGCHLD, _SIGURG, 13, 11, 7, 8, 4, 6, 5, 31, 18, 20, 21, 22}


_WATCHED = tuple(n for n in (*range(1, 32), *range(34, 65))
                 if n not in _NOT_FORWARDED or n == _SIGCHLD)


class Foreground:
    """Signals are blocked and read from a signalfd: two calls, where handlers take fifty,
    here and once more in the child, which must not have them."""

    __slots__ = ("_console", "_own", "_saved", "_stdin_open", "_wake")

    def __init__(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _WATCHED)
        self._wake = syscalls.signalfd(_WATCHED)
        self._console = -1
        self._own = -1
        self._saved: list[Any] | None = None
        self._stdin_open = True

    def become_subreaper(self) -> None:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)

    # --- terminal ---------------------------------------------------------------
    def prepare_terminal(self) -> None:
        """Before anything is made: without a terminal here there is none to lend."""
        self._own = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)
        if self._own < 0:
            try:
                self._own = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                raise InvalidParameter("provided file is not a console") from None

    def use_terminal(self, console: int) -> None:
        """Our own terminal becomes a raw pipe to the container's."""
        import termios
        self._console = console
        # our own terminal ends the lines; the container's must not do so as well
        modes = termios.tcgetattr(console)
        modes[1] &= ~termios.ONLCR
        _set_modes(console, modes)
        own = self._own
        if own >= 0:
            terminal.set_size(console, *terminal.size(own))
            self._saved = [own, termios.tcgetattr(own)]
            _set_modes(own, _raw(termios.tcgetattr(own)))

    def _resize(self) -> None:
        if self._saved is not None and self._console >= 0:
            terminal.set_size(self._console, *terminal.size(self._saved[0]))

    # --- waiting --------------------------------------------------------------
    def wait(self, made: Container | Process) -> int:
        """Until the process is gone; its exit status as a shell has it."""
        watch = poll()
        watch.register(self._wake, POLLIN)
        if self._console >= 0:
            watch.register(self._console, POLLIN)
            watch.register(0, POLLIN)
        status: int | None = None
        while status is None:
            status = self._reap(made.pid)
            if status is not None:
                break
            for fd, events in watch.poll():
                if fd == self._wake:
                    self._forward(made)
                elif fd == self._console:
                    if not self._copy(self._console, 1):
                        watch.unregister(self._console)
                elif fd == 0 and not (events & POLLIN and self._copy(0, self._console)):
                    watch.unregister(0)
        self._drain()
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _reap(self, pid: int) -> int | None:
        """Everything that died (we may be a subreaper); the status of ``pid``."""
        found = None
        while True:
            try:
                dead, status = os.waitpid(-1, os.WNOHANG)
            except OSError as error:
                if error.errno != ECHILD:
                    raise
                return found
            if dead == 0:
                return found
            if dead == pid:
                found = status

    def _forward(self, made: Container | Process) -> None:
        data = os.read(self._wake, 16 * syscalls.SIGNALFD_SIGINFO)
        for (number,) in iter_unpack("I124x", data):
            if number == _SIGWINCH:
                self._resize()
            elif number not in _NOT_FORWARDED:
                try:
                    syscalls.pidfd_send_signal(made.pidfd, number)
                except ProcessLookupError:
                    pass

    def _copy(self, source: int, target: int) -> bool:
        """False at the end of ``source``."""
        try:
            data = os.read(source, 16384)
        except OSError as error:
            if error.errno == EIO:  # the last process closed its end of the terminal
                return False
            raise
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(target, view):]
            except OSError as error:
                if error.errno != EAGAIN:
                    raise
                wait = poll()
                wait.register(target, 4)
                wait.poll()
        return bool(data)

    def _drain(self) -> None:
        """What the terminal still holds when its last process is gone."""
        if self._console < 0:
            return
        fcntl(self._console, F_SETFL, fcntl(self._console, F_GETFL) | os.O_NONBLOCK)
        try:
            while self._copy(self._console, 1):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self._saved is not None:
            _set_modes(self._saved[0], self._saved[1])
            self._saved = None
        os.close(self._wake)


def _set_modes(fd: int, modes: list[Any]) -> None:
    import termios
    while True:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, modes)
            return
        except termios.error as error:  # no OSError, and not retried by Python
            if error.args[0] != EINTR:
                raise OSError(*error.args) from None


def _raw(modes: list[Any]) -> list[Any]:
    """cfmakeraw, but for output, which stays processed."""
    import termios as t
    modes[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL
                  | t.IXON)
    modes[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    modes[2] = modes[2] & ~(t.CSIZE | t.PARENB) | t.CS8
    modes[6][t.VMIN], modes[6][t.VTIME] = 1, 0
    return modes


def take_stdio(path: str, console: int) -> None:
    """Send the terminal's master to whoever listens on ``path``."""
    socket = terminal.connect(path)
    try:
        terminal.send_descriptors(socket, terminal.name(console).encode(), [console])
    finally:
        socket.close()
