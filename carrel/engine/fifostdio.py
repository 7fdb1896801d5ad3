"""Standard streams through FIFOs, for shims that know nothing else.

The engine reads both FIFOs, writes the log and hands the output to whoever is
attached.  A client that is slow stops the reading, which in the end holds up
the process: as in Docker, no output is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable

from carrel.engine import jsonlog
from carrel.engine.streams import STDERR, STDOUT, Session

_CHUNK = 64 << 10
_DRAIN_SECONDS = 2.0


class FifoStdio:
    """Three FIFOs in a folder of their own."""

    early = False

    def __init__(self, folder: str, *, stdin: bool, terminal: bool, stdin_once: bool = False,
                 log: jsonlog.Writer | None = None,
                 close_stdin: Callable[[], Awaitable[None]] | None = None) -> None:
        self._folder = folder
        self.stdin = f"{folder}/stdin" if stdin else ""
        self.stdout = f"{folder}/stdout"
        self.stderr = "" if terminal else f"{folder}/stderr"
        self._stdin_once = stdin_once
        self._log = log
        self._close_stdin = close_stdin
        self._sessions: list[Session] = []
        self._readers: dict[int, int] = {}      # fd -> stream
        self._keepers: list[int] = []
        self._held = False
        self._ended = asyncio.Event()
        self._shim_ready = False
        self._stdin_ended = False
        self._writer: _StdinWriter | None = None

    async def open(self, *, existing: bool = False) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        loop = asyncio.get_running_loop()
        for path in filter(None, (self.stdin, self.stdout, self.stderr)):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
        if self.stdin:
            self._writer = _StdinWriter(os.open(self.stdin, os.O_RDWR | os.O_NONBLOCK))
        for path, stream in ((self.stdout, STDOUT), (self.stderr, STDERR)):
            if not path:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self._readers[fd] = stream
            if existing:
                self._shim_ready = True
            else:
                # a writer of our own keeps the FIFO open until the shim has it
                self._keepers.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            loop.add_reader(fd, self._read, fd)

    async def created(self) -> None:
        self._shim_ready = True
        while self._keepers:
            os.close(self._keepers.pop())
        if self._stdin_ended:
            self.end_stdin()

    async def attach(self, session: Session, creating: asyncio.Future[int] | None = None) -> None:
        self._sessions.append(session)
        session.on_drain = self._resume
        session.on_close = lambda: self._leave(session)
        if session.stdin and self._writer:
            session.set_input(_SessionInput(self, session))
        if self._ended.is_set():
            session.finish()

    def _leave(self, session: Session) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
        if session.stdin and self._stdin_once and not session.detached:
            self.end_stdin()
        self._resume()

    def _read(self, fd: int) -> None:
        stream = self._readers[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._eof(fd)
            return
        if self._log:
            self._log.write("stderr" if stream == STDERR else "stdout", data, time.time_ns())
        for session in self._sessions:
            session.output(stream, data)
        if any(s.stuck for s in self._sessions) and not self._held:
            self._held = True
            for reader in self._readers:
                asyncio.get_running_loop().remove_reader(reader)

    def _resume(self) -> None:
        if self._held and not any(s.stuck for s in self._sessions):
            self._held = False
            for reader in self._readers:
                asyncio.get_running_loop().add_reader(reader, self._read, reader)

    def _eof(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        del self._readers[fd]
        os.close(fd)
        if not self._readers:
            self._finish()

    def _finish(self) -> None:
        self._ended.set()
        if self._log:
            self._log.flush()
        for session in list(self._sessions):
            session.finish()

    def write_stdin(self, data: bytes, session: Session) -> None:
        if self._writer:
            self._writer.write(data, session)

    def end_stdin(self) -> None:
        """Close the process's stdin, after what was written.

        A FIFO forgets what is in it when nobody has it open, so our end stays
        open until the shim has opened its own.
        """
        self._stdin_ended = True
        if self._writer and self._shim_ready:
            writer, self._writer = self._writer, None
            writer.finish(self._close_stdin)

    @property
    def stdin_once(self) -> bool:
        return self._stdin_once

    async def drained(self) -> None:
        await self.created()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _DRAIN_SECONDS)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in list(self._readers):
            loop.remove_reader(fd)
            os.close(fd)
        self._readers.clear()
        while self._keepers:
            os.close(self._keepers.pop())
        if self._writer:
            self._writer.finish(None)
            self._writer = None
        self._finish()
        if self._log:
            self._log.close()
            self._log = None
        for path in filter(None, (self.stdin, self.stdout, self.stderr)):
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)


class _SessionInput:
    def __init__(self, stdio: FifoStdio, session: Session) -> None:
        self._stdio, self._session = stdio, session

    def write(self, data: bytes) -> None:
        self._stdio.write_stdin(data, self._session)

    def eof(self) -> None:
        if self._stdio.stdin_once or not self._session.tty:
            self._stdio.end_stdin()


class _StdinWriter:
    """Writes into the stdin FIFO as far as it takes it; the rest waits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._waiting: Session | None = None
        self._armed = False
        self._ending = False
        self._then: Callable[[], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, data: bytes, session: Session) -> None:
        self._buffer += data
        self._flush()
        if len(self._buffer) > _CHUNK:
            self._waiting = session
            session.pause_input()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._buffer:
            try:
                count = os.write(self._fd, self._buffer[:_CHUNK])
            except BlockingIOError:
                if not self._armed:
                    self._armed = True
                    loop.add_writer(self._fd, self._flush)
                return
            except OSError:
                self._buffer.clear()
                break
            del self._buffer[:count]
        if self._armed:
            self._armed = False
            loop.remove_writer(self._fd)
        if self._waiting:
            self._waiting.resume_input()
            self._waiting = None
        if self._ending:
            self._shut()

    def finish(self, then: Callable[[], Awaitable[None]] | None) -> None:
        self._ending, self._then = True, then
        if then is None:
            self._buffer.clear()
        self._flush()

    def _shut(self) -> None:
        self._ending = False
        os.close(self._fd)
        if self._then:
            task = asyncio.ensure_future(_quietly(self._then()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _quietly(work: Awaitable[None]) -> None:
    from carrel import errdefs

    with contextlib.suppress(errdefs.CarrelError):
        await work
