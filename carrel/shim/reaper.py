"""The exits of all children of the shim, its own and those it adopted.

The shim is a subreaper: what another runtime leaves behind becomes its child.
Every child is reaped here and only here, so a pid in our hands is never
somebody else's.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import os

from carrel.shim import loop as poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: exits of yet unknown children, kept while a runtime's program may still name them
EARLY_MAX = 256


class Reaper:
    """SIGCHLD wakes the loop through a pipe; ``waitid`` collects."""

    def __init__(self, loop: poll.Loop) -> None:
        self._expected: dict[int, poll.Later] = {}
        self._early: dict[int, int] = {}
        self._holds = 0
        self._wake, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        loop.add(self._wake, poll.IN, self._woken)

    def expect(self, pid: int) -> poll.Later:
        """The exit code of a child, 128 + N when signal N ended it."""
        later = self._expected.get(pid)
        if later is None:
            later = self._expected[pid] = poll.Later()
            if pid in self._early:
                self._settle(pid, self._early.pop(pid))
        return later

    def hold(self) -> None:
        """From here on remember unknown exits: one of them may be the process being made."""
        self._holds += 1

    def unhold(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._early.clear()

    def _woken(self, _events: int) -> None:
        try:
            while len(os.read(self._wake, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        self.collect()

    def collect(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if found is None:
                return
            code = found.si_status
            if found.si_code != os.CLD_EXITED:
                code += 128
            if found.si_pid in self._expected:
                self._settle(found.si_pid, code)
            elif self._holds and len(self._early) < EARLY_MAX:
                self._early[found.si_pid] = code

    def _settle(self, pid: int, code: int) -> None:
        later = self._expected.pop(pid)
        later.resolve(code)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._write)


def _nothing(_signal: int, _frame: FrameType | None) -> None:
    """Present, so that the kernel delivers SIGCHLD; the wake-up pipe does the rest."""
