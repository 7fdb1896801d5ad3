"""Streams of our own engine: a log file and attach clients, both served by the shim.

    carrel:///run/carrel/io/<id>/init.sock?log=json-file&path=...&max-size=...

The engine may be slow, stopped or replaced meanwhile: output goes to the log
from here.  docs/ARCHITECTURE.md describes the URI and the attach protocol.
"""

from __future__ import annotations

import os
import struct

from carrel.errdefs import InvalidParameter
from carrel.oci import json
from carrel.shim import loop as poll
from carrel.shim.jsonlog import JsonLog
from carrel.shim.sockets import Socket, listen
from carrel.shim.stdio import Stdio, Streams, split_uri
from carrel.shim.streams import STDERR, STDIN, STDOUT, Sink, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: the line in which a client says what it wants
GREETING_MAX = 4096
_FRAME = struct.Struct(">BxxxI")


class CaptureSink(Sink):
    """Everything that the process prints, to the log and to all clients."""

    __slots__ = ("_log", "clients")

    def __init__(self, log: JsonLog | None) -> None:
        super().__init__()
        self._log = log
        self.clients: list[AttachClient] = []

    @property
    def full(self) -> bool:
        return any(client.full for client in self.clients)

    def write(self, stream: int, data: bytes) -> None:
        if self._log is not None:
            self._log.write(stream, data)
        for client in list(self.clients):
            client.output(stream, data)

    def client_has_room(self) -> None:
        if not self.full:
            self._has_room()

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


class AttachClient:
    """One connection to the attach socket."""

    def __init__(self, streams: CaptureStreams, connection: Socket) -> None:
        connection.setblocking(False)
        self._streams = streams
        self._socket = connection
        self._greeting = bytearray()
        self._wants: dict[str, bool] | None = None
        # a descriptor of its own, so that epoll knows reading and writing apart
        self._writer = Writer(streams.loop, os.dup(connection.fileno()))
        self._writer.on_broken = self.close
        self._registered = True
        #: input that came before there was a place for it
        self._early = b""
        streams.loop.add(connection.fileno(), poll.IN, self._ready)

    @property
    def full(self) -> bool:
        return self._writer.full

    def _ready(self, events: int) -> None:
        if events & poll.IN:
            self._read()
        elif events & (poll.HUP | poll.ERR):
            self.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._input_ended()
            return
        if self._wants is None:
            self._greeting += data
            line, newline, rest = self._greeting.partition(b"\n")
            if not newline:
                if len(self._greeting) > GREETING_MAX:
                    self._refuse("the first line is too long")
                return
            if not self._greet(bytes(line)):
                return
            data = bytes(rest)
        if data and self._wants is not None and self._wants["stdin"]:
            self._input(data)

    def _greet(self, line: bytes) -> bool:
        try:
            wants = json.loads(line)
            if not isinstance(wants, dict):
                raise InvalidParameter("not an object")
        except InvalidParameter as error:
            self._refuse(f"the first line is not JSON: {error}")
            return False
        self._wants = {name: bool(wants.get(name)) for name in ("stdin", "stdout", "stderr")}
        self._greeting.clear()
        self._writer.write(STDOUT, b"ok\n")
        self._streams.client_ready(self)
        return True

    def _refuse(self, why: str) -> None:
        self._writer.write(STDOUT, f"error: {why}\n".encode())
        self.close()

    def _input(self, data: bytes) -> None:
        stdin = self._streams.stdin
        if stdin is None:
            if self._streams.awaits_console:
                # typed ahead: nothing more is read until the terminal is there
                self._early = data
                self._unregister()
            return
        stdin.write(STDIN, data)
        if stdin.full:
            self._unregister()
            stdin.on_room(self._resume)

    def console_is_there(self) -> None:
        early, self._early = self._early, b""
        if early:
            self._resume()
            self._input(early)

    def _resume(self) -> None:
        if not self._registered and self._socket.fileno() >= 0:
            self._registered = True
            self._streams.loop.add(self._socket.fileno(), poll.IN, self._ready)

    def _input_ended(self) -> None:
        """The client has shut down its side; from here on only a hang-up is news."""
        if self._wants is None:
            self.close()
            return
        self._streams.loop.modify(self._socket.fileno(), 0)
        if self._wants["stdin"]:
            self._streams.client_stdin_ended()

    def output(self, stream: int, data: bytes) -> None:
        if self._wants is None or not self._wants["stderr" if stream == STDERR else "stdout"]:
            return
        if not self._streams.stdio.terminal:
            data = _FRAME.pack(stream, len(data)) + data
        self._writer.write(stream, data)
        if self._writer.full:
            self._writer.on_room(self._streams.sink.client_has_room)

    def finish(self) -> None:
        """The output is complete: close once it has left."""
        self._unregister()
        if self._socket.fileno() >= 0:
            if self._writer.empty:
                self.close()
            else:
                self._writer.on_room(self._finish_if_empty)
                self._writer.limit = 1  # so that "room" means "empty"

    def _finish_if_empty(self) -> None:
        self.close()

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self._streams.loop.remove(self._socket.fileno())

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._unregister()
        self._writer.close()
        self._socket.close()
        self._streams.client_left(self)


class CaptureStreams(Streams):
    """Pipes (or the console) to a :class:`CaptureSink`, stdin from the clients."""

    def __init__(self, loop: poll.Loop, stdio: Stdio) -> None:
        super().__init__(loop, stdio)
        _, self._path, options = split_uri(stdio.stdout or stdio.stderr or stdio.stdin)
        self._stdin_once = options.get("stdin-once") == "1"
        self.stdin: Writer | None = None
        self._ended = False
        self._pending: list[AttachClient] = []
        self._listener: Socket | None = None
        self.sink = CaptureSink(_open_log(options, self._warn))
        self._sinks.append(self.sink)

    def prepare(self) -> None:
        if not os.path.isabs(self._path):
            raise InvalidParameter(f"attach socket {self._path!r} is not an absolute path")
        os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
        self._listener = listen(self._path)
        self._listener.setblocking(False)
        self.loop.add(self._listener.fileno(), poll.IN, self._accept)
        super().prepare()

    def _child_stdin(self) -> int:
        if not self.stdio.stdin:
            return self._null(os.O_RDONLY)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.stdin = Writer(self.loop, writer)
        return self._keep(reader)

    def _child_output(self, stream: int, uri: str) -> int:
        if not uri:
            return self._null(os.O_WRONLY)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pump(reader, self.sink, stream)
        return self._keep(writer)

    def _console_sink(self) -> Sink:
        return self.sink

    @property
    def awaits_console(self) -> bool:
        """Attached to before the start: the process's terminal is still to come."""
        return self.stdio.terminal and self.console < 0 and not self._ended

    def _console_stdin(self, writer: Writer) -> None:
        self._sinks.append(writer)
        self.stdin = writer
        for client in list(self.sink.clients):
            client.console_is_there()

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            connection = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # out of descriptors: rest instead of spinning
            self.loop.remove(self._listener.fileno())
            self.loop.call_later(0.1, self._listen_again)
            return
        self._pending.append(AttachClient(self, connection))

    def _listen_again(self) -> None:
        if self._listener is not None:
            self.loop.add(self._listener.fileno(), poll.IN, self._accept)

    def client_ready(self, client: AttachClient) -> None:
        self._pending.remove(client)
        if self._ended:
            client.finish()
        else:
            self.sink.clients.append(client)

    def client_left(self, client: AttachClient) -> None:
        for group in (self._pending, self.sink.clients):
            if client in group:
                group.remove(client)
        self.sink.client_has_room()

    def client_stdin_ended(self) -> None:
        if self._stdin_once:
            self.close_stdin()

    def close_stdin(self) -> None:
        if self.stdin is not None and not self.stdio.terminal:
            self.stdin.close_when_empty()
            self.stdin = None

    def exited(self) -> None:
        super().exited()
        self.drained.then(lambda _later: self._end())

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.sink.flush()
            for client in list(self.sink.clients):
                client.finish()

    def close(self) -> None:
        if self._listener is not None:
            self.loop.remove(self._listener.fileno())
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
        if self.stdin is not None and not self.stdio.terminal:
            self.stdin.close()
        super().close()
        self._end()
        for client in list(self._pending):
            client.close()


def _open_log(options: dict[str, str], warn: Callable[[str], None]) -> JsonLog | None:
    kind = options.get("log", "none")
    if kind == "none":
        return None
    if kind != "json-file":
        raise InvalidParameter(f"unknown log {kind!r}: json-file or none")
    path = options.get("path", "")
    if not os.path.isabs(path):
        raise InvalidParameter(f"log path {path!r} is not absolute")
    try:
        max_size = int(options.get("max-size", "0"))
        max_files = int(options.get("max-file", "1"))
        return JsonLog(path, warn, max(0, max_size), max_files, options.get("extra", ""))
    except ValueError as error:
        raise InvalidParameter(f"bad log option: {error}") from error
