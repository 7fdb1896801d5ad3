"""The shim's own log: the FIFO ``log`` in the bundle, which the containerd layer reads."""

from __future__ import annotations

import os
import time


class Log:
    """One line an entry; lines that nobody reads are counted, never waited for."""

    def __init__(self, path: str, identity: str, debug: bool = False) -> None:
        self._identity = identity
        self._debug = debug
        self._lost = 0
        self._fd = -1
        if not os.access(path, os.F_OK):
            return  # no log FIFO: nobody wants to read (and an exception is memory)
        try:
            # for reading too: a FIFO without a reader is no error, and no SIGPIPE
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def debug(self, text: str) -> None:
        if self._debug:
            self._write("debug", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def warn(self, text: str) -> None:
        self._write("warning", text)

    def error(self, error: BaseException | None) -> None:
        if error is None:
            return
        text = f"{type(error).__name__}: {error}"
        if error.__traceback__ is not None:
            frame = error.__traceback__
            while frame.tb_next is not None:
                frame = frame.tb_next
            code = frame.tb_frame.f_code
            text += f" ({os.path.basename(code.co_filename)}:{frame.tb_lineno} {code.co_name})"
        self._write("error", text)

    def _write(self, level: str, text: str) -> None:
        if self._fd < 0:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lost = f" lost={self._lost}" if self._lost else ""
        line = (f'time="{stamp}" level={level} msg="{text}" id={self._identity} '
                f"runtime=io.containerd.carrel.v1{lost}\n")
        try:
            os.write(self._fd, line.encode("utf-8", "surrogateescape")[:4096])
            self._lost = 0
        except OSError:
            self._lost += 1
