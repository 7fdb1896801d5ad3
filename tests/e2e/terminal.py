"""A person at a terminal: a client under a pseudo-terminal, typed at and read from."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

from tests.e2e.engine import Cli

DETACH = b"\x10\x11"    # ctrl-p ctrl-q


class Terminal:
    """``with Terminal(cli, "run", "-it", ...) as t: t.expect("/ #"); t.type("ls\\n")``"""

    def __init__(self, cli: Cli, *argv: str, rows: int = 24, columns: int = 80) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = cli.popen(*argv, stdin=slave, stdout=slave, stderr=slave,
                                 start_new_session=True,
                                 preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        os.write(self._master, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str, seconds: float = 30) -> str:
        """Read until ``text`` was shown after what earlier calls have consumed."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:     # the client has ended
                    data = b""
                assert data or text in self.seen, f"{text!r} is not in {self.seen!r}"
                self.seen += data.decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def interrupt(self, prompt: str) -> None:
        """ctrl-c, until the prompt is there: the shell may not yet have given the terminal to
        the program that is to get it."""
        for _ in range(15):
            self.type(b"\x03")
            try:
                self.expect(prompt, 2)
                return
            except AssertionError:
                continue
        raise AssertionError(f"no {prompt!r} in {self.seen!r}")

    def ends(self, seconds: float = 30) -> int:
        """The exit code; what was written on the way is in ``seen``."""
        deadline = time.monotonic() + seconds
        while True:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                    continue
                except OSError:
                    pass
            try:
                return self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"does not end: {self.seen!r}"
