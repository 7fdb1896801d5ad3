"""An engine that answers from a table and remembers what it was asked.

Both the docker command (when the golden data is made) and ``carrel`` (in the tests) talk to
it, so that their requests and what they print can be compared without a daemon.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

API = "1.51"


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def as_json(self) -> dict[str, Any]:
        """What is compared: no connection details."""
        shown: dict[str, Any] = {"method": self.method, "path": self.path}
        if self.query:
            shown["query"] = {
                k: json.loads(v) if v.startswith(("{", "[")) else v for k, v in self.query.items()}
        if self.body:
            try:
                shown["body"] = json.loads(self.body)
            except ValueError:
                shown["body"] = f"{len(self.body)} bytes"
        if "x-registry-auth" in self.headers:
            shown["auth"] = self.headers["x-registry-auth"]
        return shown


@dataclass
class Answer:
    """What is sent back: JSON, bytes, or a raw stream after an upgrade."""

    body: Any = None
    status: int = 200
    raw: bytes = b""
    hijack: bool = False
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Answer]


class FakeEngine:
    """Serve ``handler`` on a unix socket, or with TLS on a port, until :meth:`close`."""

    def __init__(self, path: str, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.path = path
        self.handler = handler
        self.requests: list[Request] = []
        self.tls = tls
        if tls is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(path)
        else:
            self._socket = socket.socket()
            self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(16)
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        if self.tls is not None:
            return f"tcp://localhost:{self._socket.getsockname()[1]}"
        return f"unix://{self.path}"

    def close(self) -> None:
        self._open = False
        self._socket.close()

    def take(self) -> list[dict[str, Any]]:
        """The requests since the last call, pings left out."""
        found = [r.as_json() for r in self.requests if r.path != "/_ping"]
        self.requests.clear()
        return found

    def _accept(self) -> None:
        while self._open:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection, connection.makefile("rb") as stream:
            while True:
                try:
                    request = _read(stream)
                except (OSError, ValueError):
                    return
                if request is None:
                    return
                self.requests.append(request)
                answer = _ping() if request.path == "/_ping" else self.handler(request)
                try:
                    if not _write(connection, request, answer):
                        return
                except OSError:
                    return


def _ping() -> Answer:
    return Answer("OK", headers={"Api-Version": API, "OSType": "linux", "Builder-Version": "2",
                                 "Docker-Experimental": "false"})


def _read(stream: Any) -> Request | None:
    first = stream.readline()
    if not first.strip():
        return None
    method, target, _ = first.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := stream.readline().decode().strip()):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while (size := int(stream.readline().strip() or b"0", 16)):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    parts = urlsplit(target)
    path = re.sub(r"^/v[0-9.]+", "", parts.path)
    return Request(method, path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers,
                   body)


def _write(connection: socket.socket, request: Request, answer: Answer) -> bool:
    if answer.hijack:
        connection.sendall(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: "
                           b"application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n"
                           b"Upgrade: tcp\r\n\r\n" + answer.raw)
        time.sleep(0.01)
        return False
    if answer.raw:
        data = answer.raw
        kind = answer.headers.pop("Content-Type", "application/octet-stream")
    elif answer.body is None:
        data, kind = b"", ""
    elif isinstance(answer.body, str):
        data, kind = answer.body.encode(), "text/plain"
    else:
        data, kind = json.dumps(answer.body, separators=(",", ":")).encode(), "application/json"
    lines = [f"HTTP/1.1 {answer.status} Status", f"Api-Version: {API}", "Ostype: linux"]
    if kind:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{k}: {v}" for k, v in answer.headers.items()]
    if answer.status not in (204, 304):
        lines.append(f"Content-Length: {len(data)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    connection.sendall(head + (b"" if request.method == "HEAD" else data))
    return True
