"""Moving bytes between a process and the world, without ever blocking the shim.

A :class:`Pump` reads a descriptor and hands what it read to a sink.  A sink
that is full says so, and the pump rests until there is room: that is how a
slow reader holds up the output of its own container and nothing else.
"""

from __future__ import annotations

import errno
import os

from carrel.shim import loop as poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STDIN, STDOUT, STDERR = 0, 1, 2
CHUNK = 65536
#: what waits in a sink before its pump rests
BUFFER_MAX = 1 << 20


class Sink:
    """Where output goes. ``write`` takes everything; ``full`` asks for a rest."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        return False

    def write(self, stream: int, data: bytes) -> None:
        raise NotImplementedError

    def on_room(self, callback: Callable[[], None]) -> None:
        self._waiting.append(callback)

    def _has_room(self) -> None:
        callbacks, self._waiting = self._waiting, []
        for callback in callbacks:
            callback()

    def end(self, stream: int) -> None:
        """The process's output on this stream is complete."""

    def close(self) -> None:
        raise NotImplementedError


class FileSink(Sink):
    """Appends to a file, byte for byte.

    The process gets a pipe and not the file itself: a container that held the
    descriptor could truncate or rewrite its own log.
    """

    __slots__ = ("_fd", "_warn")

    def __init__(self, fd: int, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._fd = fd
        self._warn = warn

    def write(self, stream: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view):]
        except OSError as error:
            self._warn(f"{len(view)} bytes of output lost: {error.strerror}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Writer(Sink):
    """A descriptor that may be full: a FIFO, a pipe, a terminal, a socket."""

    __slots__ = ("_buffer", "_ending", "_fd", "_loop", "_registered", "broken", "limit",
                 "on_broken")

    def __init__(self, loop: poll.Loop, fd: int, limit: int = BUFFER_MAX) -> None:
        super().__init__()
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._buffer = bytearray()
        self._registered = False
        self._ending = False
        self.limit = limit
        self.broken = False
        self.on_broken: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        return len(self._buffer) >= self.limit

    @property
    def empty(self) -> bool:
        return not self._buffer

    def write(self, stream: int, data: bytes) -> None:
        if self.broken or self._fd < 0:
            return
        if not self._buffer:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._break()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._buffer += data
        if not self._registered:
            self._registered = True
            self._loop.add(self._fd, poll.OUT, self._writable)

    def _writable(self, _events: int) -> None:
        try:
            del self._buffer[:os.write(self._fd, self._buffer)]
        except BlockingIOError:
            return
        except OSError:
            self._break()
            return
        if not self._buffer:
            self._unregister()
            if self._ending:
                self.close()
        if not self.full:
            self._has_room()

    def _break(self) -> None:
        """The other side is gone: what comes is thrown away, as with a closed terminal."""
        self.broken = True
        self._buffer.clear()
        self._unregister()
        if self._ending:
            self.close()
        self._has_room()
        if self.on_broken is not None:
            self.on_broken()

    def end(self, stream: int) -> None:
        self.close_when_empty()

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self._loop.remove(self._fd)

    def close_when_empty(self) -> None:
        """Close after what is buffered has left."""
        self._ending = True
        if not self._buffer:
            self.close()

    def close(self) -> None:
        self._unregister()
        self._buffer.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._has_room()


class Pump:
    """Reads ``fd`` to its end into a sink; owns ``fd``."""

    __slots__ = ("_fd", "_loop", "_sink", "_stream", "ended", "on_end", "resting")

    def __init__(self, loop: poll.Loop, fd: int, sink: Sink, stream: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._sink = sink
        self._stream = stream
        self.ended = False
        self.resting = False
        self.on_end: Callable[[], None] | None = None
        loop.add(fd, poll.IN, self._readable)

    def _readable(self, _events: int) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO and self._loop.on_error is not None:
                self._loop.on_error(error)  # EIO: the last process left the terminal
            data = b""
        if not data:
            self.stop()
            return
        self._sink.write(self._stream, data)
        if self._sink.full:
            # not only masked: epoll reports a hang-up whatever the mask says
            self.resting = True
            self._loop.remove(self._fd)
            self._sink.on_room(self._resume)

    def _resume(self) -> None:
        if self.resting and not self.ended:
            if self._sink.full:
                self._sink.on_room(self._resume)
                return
            self.resting = False
            self._loop.add(self._fd, poll.IN, self._readable)

    def stop(self) -> None:
        """End of input, or the end of our patience with it."""
        if self.ended:
            return
        self.ended = True
        self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._sink.end(self._stream)
        if self.on_end is not None:
            self.on_end()
