"""Where the engine is: -H, contexts, environment, and how to reach it."""

from __future__ import annotations

import os

from .errors import CliError, ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_HOST = "unix:///run/carrel/carrel.sock"


class Tls:
    """Files of a TLS client; ``verify`` checks the engine's certificate."""

    __slots__ = ("ca", "cert", "key", "verify")

    def __init__(self, ca: str, cert: str, key: str, *, verify: bool) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key
        self.verify = verify


class Endpoint:
    """A parsed engine address."""

    __slots__ = ("address", "host", "host_header", "scheme", "tls")

    def __init__(self, host: str, tls: Tls | None = None) -> None:
        self.host = host
        self.tls = tls
        scheme, mark, rest = host.partition("://")
        if not mark:
            scheme, rest = "tcp", host
            self.host = "tcp://" + host
        self.scheme = scheme
        self.address = rest
        self.host_header = "api.carrel.localhost"
        if scheme == "tcp":
            self.address = rest.split("/", 1)[0] or "localhost"
            self.host_header = self.address
        elif scheme == "unix":
            self.address = rest or DEFAULT_HOST.partition("://")[2]
        elif scheme == "ssh":
            raise CliError("ssh:// endpoints are not built yet",
                           hint="forward the socket instead: "
                                "ssh -L /tmp/engine.sock:/run/carrel/carrel.sock HOST")
        else:
            raise CliError("Failed to initialize: unable to resolve docker endpoint: "
                           f"invalid bind address format: {host}")

    def connect(self) -> Any:
        """A connected TCP socket, inside TLS if so configured."""
        from _socket import (
            IPPROTO_TCP,
            SOCK_CLOEXEC,
            SOCK_STREAM,
            TCP_NODELAY,
            getaddrinfo,
            socket,
        )
        host, port = self.host_and_port()
        if self.tls is not None:
            return self._connect_tls(host, port)
        problem: OSError | None = None
        try:
            found = getaddrinfo(host, port, 0, SOCK_STREAM)
        except OSError as error:
            raise self.cannot_connect(error) from None
        for family, kind, protocol, _, address in found:
            sock = socket(family, kind | SOCK_CLOEXEC, protocol)
            try:
                sock.connect(address)
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
                return sock
            except OSError as error:
                problem = error
                sock.close()
        raise self.cannot_connect(problem) from None

    def host_and_port(self) -> tuple[str, int]:
        """The two halves of a tcp address, 2375 or 2376 by default."""
        address = self.address
        port = "2376" if self.tls is not None else "2375"
        host = address
        if address.startswith("["):
            host, _, rest = address[1:].partition("]")
            port = rest[1:] or port
        elif address.count(":") == 1:
            host, _, named = address.partition(":")
            port = named or port
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise CliError(f"invalid bind address format: {self.host}")
        return host or "localhost", int(port)

    def _connect_tls(self, host: str, port: int) -> Any:
        import socket
        import ssl
        tls = self.tls
        assert tls is not None
        try:
            context = ssl.create_default_context(cafile=tls.ca or None)
            if not tls.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if tls.cert and tls.key:
                context.load_cert_chain(tls.cert, tls.key)
            plain = socket.create_connection((host, port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return context.wrap_socket(plain, server_hostname=host)
        except ssl.SSLError as error:
            raise ConnectError(f"cannot speak TLS with {self.host}: {error}") from None
        except OSError as error:
            if error.filename or isinstance(error, FileNotFoundError):
                raise CliError(f"could not read the TLS files: {error}") from None
            raise self.cannot_connect(error) from None

    def cannot_connect(self, error: OSError | None) -> ConnectError:
        """The one error that every new user meets."""
        if isinstance(error, PermissionError):
            return ConnectError(
                f"permission denied while trying to connect to the Carrel daemon socket at "
                f"{self.host}: {error.strerror}",
                hint="become root, or a member of the group that owns the socket")
        text = f"Cannot connect to the Carrel daemon at {self.host}. Is carreld running?"
        if self.host == DEFAULT_HOST:
            return ConnectError(text, hint=(
                "start it with 'sudo carreld', or name another engine with -H or DOCKER_HOST, "
                "as in DOCKER_HOST=unix:///var/run/docker.sock"))
        return ConnectError(text)


def from_environment(env_tls: bool, paths: Tls) -> Tls | None:
    return paths if env_tls else None


def home() -> str:
    return os.environ.get("HOME") or "/"
