"""HTTP by hand, for requests that no client would send."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any


class Answer:
    """What came back; status 0 when the connection ended without an answer."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        self.head = head.decode("latin-1")

    @property
    def json(self) -> Any:
        body = self.body
        if "chunked" in self.head:
            body = b"".join(body.split(b"\r\n")[1::2])
        return json.loads(body)


def connect(where: str | tuple[str, int], seconds: float = 30) -> socket.socket:
    """To the path of a unix socket, or to host and port."""
    sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    sock.settimeout(seconds)
    sock.connect(where)
    return sock


def raw(where: str | tuple[str, int], data: bytes, *, context: ssl.SSLContext | None = None,
        seconds: float = 30) -> Answer:
    """Send the bytes; read to the end of the connection."""
    sock = connect(where, seconds)
    if context:
        sock = context.wrap_socket(sock, server_hostname="localhost")
    got = bytearray()
    with sock:
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has seen enough; its answer may still be there
        try:
            while block := sock.recv(1 << 16):
                got += block
        except (ConnectionResetError, ssl.SSLEOFError):
            pass
    return Answer(bytes(got))


def call(where: str | tuple[str, int], method: str, path: str, body: Any = None, *,
         headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None) -> Answer:
    """One request with a JSON body (bytes are sent as they are), on its own connection."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(data)),
              **({"Content-Type": "application/json"} if body is not None else {}),
              **(headers or {})}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return raw(where, head.encode("latin-1") + b"\r\n" + data, context=context)
