"""A process's standard streams, from the URIs that came with its request.

``Streams.child`` are the three descriptors that the process gets, or None when
it has a terminal; then the runtime's console master is handed to
:meth:`Streams.use_console`.  What can be given to the process directly (FIFO,
``/dev/null``, a logger's pipe) is, so that the shim sleeps while it writes.
"""

from __future__ import annotations

import os
import stat
import struct
from fcntl import F_DUPFD_CLOEXEC, fcntl, ioctl
from termios import TIOCSWINSZ

from carrel.errdefs import InvalidParameter, SystemFailure
from carrel.shim import loop as poll
from carrel.shim.streams import STDERR, STDIN, STDOUT, FileSink, Pump, Sink, Writer

LOGGER_READY_SECONDS = 10.0


class Stdio:
    """What the request said."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal


class Streams:
    """One process's streams; the base holds what all kinds share."""

    def __init__(self, loop: poll.Loop, stdio: Stdio) -> None:
        self.loop = loop
        self.stdio = stdio
        self.child: tuple[int, int, int] | None = None
        self.console = -1
        self.drained = poll.Later()
        self._child_fds: list[int] = []
        self._held: list[int] = []
        self._stdin_held = -1
        self._stdin_writer = -1
        self._pumps: list[Pump] = []
        self._sinks: list[Sink] = []
        self._stdin_pump: Pump | None = None
        self.logger_pid = 0

    # -- building ---------------------------------------------------------

    def prepare(self) -> None:
        """Open what stdin, stdout and stderr name."""
        if self.stdio.terminal:
            return
        self.child = (self._child_stdin(), self._child_output(STDOUT, self.stdio.stdout),
                      self._child_output(STDERR, self.stdio.stderr))

    def _keep(self, fd: int) -> int:
        self._child_fds.append(fd)
        return fd

    def _null(self, flags: int) -> int:
        return self._keep(os.open("/dev/null", flags | os.O_CLOEXEC))

    def _child_stdin(self) -> int:
        path = self.stdio.stdin
        if not path:
            return self._null(os.O_RDONLY)
        if not is_fifo(path):
            return self._keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        # A pipe, and the FIFO is opened only when the process is made: a client
        # like ctr cannot tell us of the end of its stdin before Create has answered.
        reader, self._stdin_writer = os.pipe2(os.O_CLOEXEC)
        return self._keep(reader)

    def _pump_stdin(self, writer: Writer) -> None:
        path = self.stdio.stdin
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # our own writer: the client may come and go, the end comes by CloseIO
        self._stdin_held = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stdin_pump = Pump(self.loop, fd, writer, STDIN)

    def _child_output(self, stream: int, uri: str) -> int:
        if not uri:
            return self._null(os.O_WRONLY)
        path = uri_path(uri)
        if is_fifo(path) and not uri.startswith("file:"):
            # held open for reading and writing: a reader that comes late or
            # leaves is neither an error nor a SIGPIPE for the process
            self._held.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            return self._keep(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        if is_device(path):
            return self._keep(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._keep(writer)
        try:
            sink = self._file_sink(path)
        except BaseException:
            os.close(reader)
            raise
        self._pump(reader, sink, stream)
        return writer

    def _file_sink(self, path: str) -> Sink:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        sink = FileSink(fd, self._warn)
        self._sinks.append(sink)
        return sink

    def _warn(self, text: str) -> None:
        if self.loop.on_error is not None:
            self.loop.on_error(SystemFailure(text))

    def _pump(self, fd: int, sink: Sink, stream: int) -> Pump:
        pump = Pump(self.loop, fd, sink, stream)
        pump.on_end = self._check_drained
        self._pumps.append(pump)
        return pump

    def use_console(self, master: int) -> None:
        """The runtime made the terminal; ``master`` is ours from here on."""
        self.console = master
        sink = self._console_sink()
        self._pump(os.dup(master), sink, STDOUT)
        self._console_stdin(Writer(self.loop, os.dup(master)))

    def _console_sink(self) -> Sink:
        uri = self.stdio.stdout
        if not uri:
            return self._file_sink("/dev/null")
        path = uri_path(uri)
        if is_fifo(path) and not uri.startswith("file:"):
            sink = Writer(self.loop, os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            self._sinks.append(sink)
            return sink
        return self._file_sink(path)

    def _console_stdin(self, writer: Writer) -> None:
        self._sinks.append(writer)
        if self.stdio.stdin:
            self._pump_stdin(writer)

    # -- life -------------------------------------------------------------

    def started(self) -> None:
        """The process is made and has its copies: close ours, let its stdin in."""
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()
        self.child = None
        if self._stdin_writer >= 0:
            writer = Writer(self.loop, self._stdin_writer)
            self._stdin_writer = -1
            self._sinks.append(writer)
            self._pump_stdin(writer)

    def _drop_child(self) -> None:
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()
        self.child = None
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    def resize(self, width: int, height: int) -> None:
        if self.console >= 0:
            ioctl(self.console, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        if self._stdin_held >= 0:
            os.close(self._stdin_held)
            self._stdin_held = -1

    def exited(self) -> None:
        """The process is gone; what it wrote may still be on its way."""
        self.close_stdin()
        if self._stdin_pump is not None:
            self._stdin_pump.stop()
        for fd in self._held:
            os.close(fd)  # the reader of the FIFO sees the end
        self._held.clear()
        self._check_drained()

    def _check_drained(self) -> None:
        if all(pump.ended for pump in self._pumps) and not self._held:
            self.drained.resolve()

    def stop_waiting(self) -> None:
        """Another process keeps the output open: go on without the rest of it."""
        self.drained.resolve()

    def close(self) -> None:
        """Give everything back; idempotent."""
        self._drop_child()
        self.close_stdin()
        if self._stdin_pump is not None:
            self._stdin_pump.stop()
        for pump in self._pumps:
            pump.stop()
        for sink in self._sinks:
            if isinstance(sink, Writer):
                sink.close_when_empty()
            else:
                sink.close()
        self._sinks.clear()
        for fd in self._held:
            os.close(fd)
        self._held.clear()
        if self.console >= 0:
            os.close(self.console)
            self.console = -1
        self.drained.resolve()


class LoggerStreams(Streams):
    """``binary:///path?key=value``: a logger program reads the output.

    It gets stdout, stderr and a pipe to say that it is ready as descriptors 3,
    4 and 5, and ``CONTAINER_ID`` and ``CONTAINER_NAMESPACE`` in its environment.
    """

    def __init__(self, loop: poll.Loop, stdio: Stdio, container: str, namespace: str) -> None:
        super().__init__(loop, stdio)
        self._container = container
        self._namespace = namespace
        self._writers = (-1, -1)

    def start_logger(self) -> poll.Work:
        """Start it, wait until it is ready."""
        scheme, path, query = split_uri(self.stdio.stdout)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        ready_r, ready_w = os.pipe2(os.O_CLOEXEC)
        self._writers = (out_w, err_w)
        argv = [path]
        for key, value in query.items():
            argv += [key, value]
        env = {"CONTAINER_ID": self._container, "CONTAINER_NAMESPACE": self._namespace}
        try:
            self.logger_pid = spawn(path, argv, env, {3: out_r, 4: err_r, 5: ready_w})
        except OSError as error:
            os.close(ready_r)
            raise SystemFailure(f"failed to start binary process: {error.strerror} {path}"
                                ) from error
        finally:
            for fd in (out_r, err_r, ready_w):
                os.close(fd)
        ready = poll.Later()
        self.loop.add(ready_r, poll.IN, ready.resolve)
        timer = self.loop.call_later(LOGGER_READY_SECONDS, ready.resolve)
        try:
            yield ready
            timer.cancel()
            os.set_blocking(ready_r, False)
            try:
                said = os.read(ready_r, 1)
            except BlockingIOError:
                raise SystemFailure(f"logging binary {path} is not ready after "
                                    f"{LOGGER_READY_SECONDS:.0f} s") from None
            if scheme == "binary-v2" and not said:
                raise SystemFailure("logging binary did not call ready "
                                    "(it may have crashed or exited prematurely)")
        finally:
            self.loop.remove(ready_r)
            os.close(ready_r)

    def _child_output(self, stream: int, uri: str) -> int:
        return self._keep(self._writers[0 if stream == STDOUT else 1])

    def _console_sink(self) -> Sink:
        sink = Writer(self.loop, self._writers[0])
        os.close(self._writers[1])
        self._sinks.append(sink)
        return sink


def spawn(path: str, argv: list[str], env: dict[str, str], fds: dict[int, int]) -> int:
    """Start a program with exactly these descriptors (new number -> ours)."""
    # first out of the way of the new numbers, then into place
    high = {new: fcntl(old, F_DUPFD_CLOEXEC, 64) for new, old in fds.items()}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, old, new) for new, old in high.items()]
        null = [(os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0) for n in range(3)
                if n not in fds]
        return os.posix_spawn(path, argv, env, file_actions=[*null, *actions],
                              setsigdef=(13, 25), setsigmask=())
    finally:
        for fd in high.values():
            os.close(fd)


def split_uri(uri: str) -> tuple[str, str, dict[str, str]]:
    """Scheme, path and the query's first value of each key."""
    if "://" not in uri:
        return "fifo", uri, {}
    # not urllib.parse: half a megabyte of every shim for these lines
    scheme, _, rest = uri.partition("://")
    rest, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        options.setdefault(_unquote(key.replace("+", " ")), _unquote(value.replace("+", " ")))
    return scheme, _unquote(rest), options


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    parts = [first]
    for part in rest:
        try:
            parts.append(bytes.fromhex(part[:2].decode("ascii")) + part[2:])
        except ValueError:
            parts.append(b"%" + part)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def uri_path(uri: str) -> str:
    """The path of a FIFO or file URI; other schemes are refused here."""
    scheme, path, _ = split_uri(uri)
    if scheme not in ("fifo", "file"):
        raise InvalidParameter(f"unknown STDIO scheme {scheme}")
    return path


def is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def open_streams(loop: poll.Loop, stdio: Stdio, container: str, namespace: str) -> poll.Work:
    """The streams of one process, ready to be given to it."""
    scheme = split_uri(stdio.stdout)[0] if stdio.stdout else ""
    streams: Streams
    if scheme in ("binary", "binary-v2"):
        streams = LoggerStreams(loop, stdio, container, namespace)
        yield from streams.start_logger()
    elif scheme == "carrel":
        from carrel.shim.capture import CaptureStreams
        streams = CaptureStreams(loop, stdio)
    else:
        streams = Streams(loop, stdio)
    try:
        streams.prepare()
    except BaseException:
        streams.close()
        raise
    return streams


