"""A small HTTP/1.1 client for the Engine API over unix, TCP and TLS sockets.

It stands on ``_socket``, the C half of ``socket``: the Python half imports ``enum`` and
``selectors``, which cost as much as the interpreter's own start.  One request is in flight on
a connection; connections are kept and used again; a connection can be taken over (hijacked).
"""

from __future__ import annotations

from _socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    socket,
)

from . import jsonc
from .errors import Broken, CliError, ConnectError, EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from .endpoint import Endpoint

NEWEST_API = "1.51"
OLDEST_API = "1.24"
_CHUNK = 1 << 16
_MAX_HEAD = 1 << 18
#: an error page or a list is read whole; a stream never is
_MAX_BODY = 1 << 30


class Connection:
    """One socket and what was read from it too early."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.sock: Any = endpoint.connect() if endpoint.scheme == "tcp" else _unix(endpoint)
        self.tls = endpoint.tls is not None
        self.buffer = b""

    def send(self, data: bytes) -> None:
        if self.tls:
            self.sock.sendall(data)
        else:
            self.sock.sendall(data, MSG_NOSIGNAL)

    def try_send(self, data: bytes) -> int:
        """Send what the socket takes at once; how much that was."""
        try:
            if not self.tls:
                return int(self.sock.send(data, MSG_NOSIGNAL | MSG_DONTWAIT))
            self.sock.setblocking(False)
            try:
                return int(self.sock.send(data))
            finally:
                self.sock.setblocking(True)
        except BlockingIOError:
            return 0
        except OSError as error:
            # ssl.SSLWantReadError and SSLWantWriteError, without importing ssl
            if type(error).__name__.startswith("SSLWant"):
                return 0
            raise

    def receive(self, limit: int = _CHUNK) -> bytes:
        """Some bytes; empty at the end of the stream."""
        if self.buffer:
            data, self.buffer = self.buffer[:limit], self.buffer[limit:]
            return data
        try:
            data = self.sock.recv(limit)
        except ConnectionResetError:
            return b""
        return data if isinstance(data, bytes) else b""

    def line(self) -> bytes:
        """One line without its end."""
        while True:
            at = self.buffer.find(b"\n")
            if at >= 0:
                line, self.buffer = self.buffer[:at], self.buffer[at + 1:]
                return line.rstrip(b"\r")
            if len(self.buffer) > _MAX_HEAD:
                raise CliError("the engine's answer has a line that is too long")
            self.fill()

    def fill(self) -> None:
        """Read more into the buffer."""
        try:
            data = self.sock.recv(_CHUNK)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if not data:
            raise Broken("the engine closed the connection")
        self.buffer += data

    def end_input(self) -> None:
        """Tell the peer that nothing more will be sent."""
        try:
            if self.tls:
                self.sock.unwrap()
            else:
                self.sock.shutdown(SHUT_WR)
        except OSError:
            pass

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def pending(self) -> bool:
        """Whether bytes can be read without waiting for the kernel."""
        return bool(self.buffer) or (self.tls and self.sock.pending() > 0)

    def close(self) -> None:
        self.sock.close()


def _unix(endpoint: Endpoint) -> Any:
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        sock.connect(endpoint.address)
    except OSError as error:
        sock.close()
        raise endpoint.cannot_connect(error) from None
    return sock


class Response:
    """The head of an answer and a way to its body."""

    def __init__(self, engine: Engine, connection: Connection, status: int,
                 headers: dict[str, str], *, empty: bool) -> None:
        self.engine = engine
        self.connection = connection
        self.status = status
        self.headers = headers
        self.chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self.left = 0 if empty else (int(length) if length and not self.chunked else -1)
        self.in_chunk = 0
        self.done = empty or self.left == 0
        if self.done:
            self._finish()

    def _finish(self) -> None:
        self.done = True
        bounded = self.chunked or self.left != -1
        keep = bounded and self.headers.get("connection", "").lower() != "close"
        self.engine.give_back(self.connection, keep=keep)

    def read_some(self) -> bytes:
        """The next piece of the body as soon as it is there; empty at the end."""
        if self.done:
            return b""
        if self.chunked:
            return self._read_chunked()
        data = self.connection.receive(min(_CHUNK, self.left) if self.left > 0 else _CHUNK)
        if not data:
            if self.left > 0:
                self.close()
                raise CliError("unexpected EOF: the engine closed the connection")
            self._finish()
        elif self.left > 0:
            self.left -= len(data)
            if self.left == 0:
                self._finish()
        return data

    def _read_chunked(self) -> bytes:
        connection = self.connection
        try:
            if self.in_chunk == 0:
                size = connection.line().partition(b";")[0].strip()
                self.in_chunk = int(size, 16)
                if self.in_chunk == 0:
                    while connection.line():
                        pass
                    self._finish()
                    return b""
            data = connection.receive(min(_CHUNK, self.in_chunk))
            if not data:
                raise Broken
            self.in_chunk -= len(data)
            if self.in_chunk == 0:
                connection.line()
            return data
        except Broken:
            self.close()
            raise CliError("unexpected EOF: the engine closed the connection") from None
        except ValueError:
            self.close()
            raise CliError("the engine's answer is not HTTP") from None

    def chunks(self) -> Iterator[bytes]:
        while data := self.read_some():
            yield data

    def read(self) -> bytes:
        parts = []
        size = 0
        for data in self.chunks():
            parts.append(data)
            size += len(data)
            if size > _MAX_BODY:
                self.close()
                raise CliError("the engine's answer is too large")
        return b"".join(parts)

    def values(self) -> Iterator[Any]:
        """The JSON values of a stream, each as soon as it is complete."""
        text = ""
        pending = b""
        for data in self.chunks():
            pending += data
            edge = pending.rfind(b"\n") + 1
            if not edge and not pending.endswith((b"}", b"]")):
                continue
            edge = edge or len(pending)
            text += pending[:edge].decode("utf-8", "replace")
            pending = pending[edge:]
            at = 0
            while text[at:].strip():
                try:
                    value, at = jsonc.scan(text, at)
                except ValueError:
                    break
                yield value
            text = text[at:]
        text += pending.decode("utf-8", "replace")
        if text.strip():
            try:
                yield jsonc.loads(text)
            except ValueError:
                raise CliError("the engine's answer is not JSON: " + text[:200]) from None

    def close(self) -> None:
        """Stop reading; the connection is of no more use."""
        if not self.done:
            self.done = True
            self.connection.close()


class Engine:
    """Requests to one engine."""

    def __init__(self, endpoint: Endpoint, headers: dict[str, str], version: str = "") -> None:
        self.endpoint = endpoint
        self.extra = headers
        self.idle: list[Connection] = []
        self.version = version
        self.fixed_version = bool(version)
        self.pinged: dict[str, str] | None = None

    # -- versions

    def ping(self) -> dict[str, str]:
        """What /_ping says of the engine, asked once; settles the API version."""
        if self.pinged is None:
            response = self._exchange("HEAD", "/_ping", {}, None)
            if response.status >= 400:
                response.read()
                response = self._exchange("GET", "/_ping", {}, None)
            response.read()
            self.pinged = response.headers
            if not self.fixed_version:
                self.version = negotiate(response.headers.get("api-version", ""))
        return self.pinged

    @property
    def os_type(self) -> str:
        return self.ping().get("ostype", "linux") or "linux"

    def at_least(self, wanted: str) -> bool:
        self.ping()
        return _version(self.version) >= _version(wanted)

    # -- requests

    def call(self, method: str, path: str, query: dict[str, Any] | None = None,
             body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The JSON answer to one request; None if there is none."""
        data = self.open(method, path, query, body, headers).read()
        if not data.strip():
            return None
        try:
            return jsonc.loads(data)
        except ValueError:
            raise CliError("the engine's answer is not JSON: "
                           + data[:200].decode("utf-8", "replace")) from None

    def open(self, method: str, path: str, query: dict[str, Any] | None = None,
             body: Any = None, headers: dict[str, str] | None = None) -> Response:
        """The answer's head, its body unread; EngineError for an error status.

        ``body`` is sent as JSON, or as it is when it is bytes or yields bytes."""
        response = self._exchange(method, self.target(path, query), headers or {}, body)
        if response.status >= 400:
            raise self.error_of(response, method, path)
        return response

    def target(self, path: str, query: dict[str, Any] | None = None) -> str:
        if not self.version:
            self.ping()
        return f"/v{self.version}{path}" + encode_query(query)

    def error_of(self, response: Response, method: str, path: str) -> EngineError:
        """The engine's own words for what went wrong."""
        data = response.read()
        message = ""
        if response.headers.get("content-type", "").startswith("application/json"):
            try:
                value = jsonc.loads(data)
                message = str(value.get("message", "")) if isinstance(value, dict) else ""
            except ValueError:
                message = ""
        if not message:
            message = data.decode("utf-8", "replace").strip()
        if not message:
            message = f"request returned status {response.status} for {method} {path}"
        return EngineError(response.status, message.strip())

    def exchange(self, method: str, path: str) -> Response:
        """Any answer, also an error, from a path without an API version."""
        return self._exchange(method, path, {}, None)

    def _exchange(self, method: str, target: str, headers: dict[str, str],
                  body: Any) -> Response:
        again = bool(self.idle) and (body is None or isinstance(body, (bytes, dict, list)))
        connection = self.idle.pop() if self.idle else Connection(self.endpoint)
        try:
            return self._send(connection, method, target, headers, body)
        except (Broken, BrokenPipeError, ConnectionResetError):
            connection.close()
            if not again:
                raise self.endpoint.cannot_connect(None) from None
        # a kept connection may have been closed by the engine meanwhile: once more
        connection = Connection(self.endpoint)
        try:
            return self._send(connection, method, target, headers, body)
        except (Broken, BrokenPipeError, ConnectionResetError):
            connection.close()
            raise self.endpoint.cannot_connect(None) from None

    def _send(self, connection: Connection, method: str, target: str,
              headers: dict[str, str], body: Any) -> Response:
        self.write_request(connection, method, target, headers, body)
        return self.read_head(connection, method)

    def write_request(self, connection: Connection, method: str, target: str,
                      headers: dict[str, str], body: Any) -> None:
        """Send a request; a streamed body that the engine refuses is cut short."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.endpoint.host_header}",
                 "User-Agent: Carrel-Client/0.1.0 (linux)"]
        lines += [f"{k}: {v}" for k, v in self.extra.items() if k.lower() != "user-agent"]
        lines += [f"{k}: {v}" for k, v in headers.items()]
        if body is None:
            if method not in ("GET", "HEAD", "DELETE"):
                lines.append("Content-Length: 0")
            connection.send(_head(lines))
        elif isinstance(body, (dict, list)):
            data = jsonc.dumps(body).encode("utf-8", "surrogateescape")
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
            connection.send(_head(lines) + data)
        elif isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
            connection.send(_head(lines) + body)
        else:
            lines.append("Transfer-Encoding: chunked")
            connection.send(_head(lines))
            self._send_chunks(connection, body)

    @staticmethod
    def _send_chunks(connection: Connection, body: Iterable[bytes]) -> None:
        try:
            for piece in body:
                if piece:
                    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the engine has answered already: its error is the one to show

    def read_head(self, connection: Connection, method: str) -> Response:
        """The status line and the headers; interim answers are skipped."""
        while True:
            parts = connection.line().split(b" ", 2)
            if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
                raise CliError(
                    "the answer is not HTTP: is this an engine's socket, and does it want TLS?")
            status = int(parts[1])
            headers: dict[str, str] = {}
            while line := connection.line():
                name, _, value = line.partition(b":")
                headers[name.strip().lower().decode("latin-1")] = \
                    value.strip().decode("latin-1")
            if status != 100:
                break
        empty = method == "HEAD" or status in (204, 304)
        if status == 101:
            return Response(self, connection, status, {"connection": "close", **headers},
                            empty=False)
        return Response(self, connection, status, headers, empty=empty)

    def give_back(self, connection: Connection, *, keep: bool) -> None:
        if keep and len(self.idle) < 2:
            self.idle.append(connection)
        else:
            connection.close()

    # -- connections of their own

    def begin(self, method: str, path: str, query: dict[str, Any] | None = None) -> Connection:
        """Send a request on a new connection; :meth:`read_head` gets the answer."""
        target = self.target(path, query)
        connection = Connection(self.endpoint)
        self.write_request(connection, method, target, {}, None)
        return connection

    def open_new(self, method: str, path: str, query: dict[str, Any] | None = None) -> Response:
        """As :meth:`open`, on a connection of its own, which stays busy for long."""
        response = self.read_head(self.begin(method, path, query), method)
        if response.status >= 400:
            raise self.error_of(response, method, path)
        return response

    def hijack_begin(self, path: str, query: dict[str, Any] | None, body: Any) -> Connection:
        """Ask for a raw stream; the answer is read by :meth:`hijack_end`."""
        target = self.target(path, query)
        connection = Connection(self.endpoint)
        self.write_request(connection, "POST", target,
                           {"Connection": "Upgrade", "Upgrade": "tcp"}, body)
        return connection

    def hijack_end(self, connection: Connection, path: str) -> Connection:
        """The stream of :meth:`hijack_begin`, once the engine agreed to it."""
        try:
            response = self.read_head(connection, "POST")
        except Broken:
            raise self.endpoint.cannot_connect(None) from None
        if response.status >= 400:
            raise self.error_of(response, "POST", path)
        if response.chunked:
            raise CliError("unable to upgrade to tcp, received 200")
        return connection

    def close(self) -> None:
        for connection in self.idle:
            connection.close()
        self.idle.clear()


def _head(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def negotiate(server: str) -> str:
    """The API version that both sides know."""
    if not server:
        return OLDEST_API
    if _version(server) < _version(OLDEST_API):
        raise ConnectError(f"the engine's API version {server} is too old: "
                           f"carrel speaks {OLDEST_API} to {NEWEST_API}")
    return min(server, NEWEST_API, key=_version)


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(p) for p in text.lstrip("v").split("."))
    except ValueError:
        return (0,)


_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


def escape(text: str, safe: str = "") -> str:
    """Percent-encoding for one part of a URL."""
    out = []
    for char in text:
        if char in _SAFE or char in safe:
            out.append(char)
        else:
            out += [f"%{b:02X}" for b in char.encode("utf-8", "surrogateescape")]
    return "".join(out)


def encode_query(query: dict[str, Any] | None) -> str:
    """"?a=1&b=x"; None and False are left out, True is 1, a list is repeated."""
    if not query:
        return ""
    parts = []
    for key in sorted(query):
        value = query[key]
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        for item in values:
            text = "1" if item is True else str(item)
            parts.append(f"{escape(key)}={escape(text)}")
    return "?" + "&".join(parts) if parts else ""


def filters_json(filters: dict[str, list[str]]) -> str | None:
    """Filters as the API wants them: {"name": {"value": true}}."""
    if not filters:
        return None
    return jsonc.dumps({k: dict.fromkeys(sorted(set(v)), True)
                        for k, v in sorted(filters.items())})
