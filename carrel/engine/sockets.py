"""Where the API listens: ``unix://``, ``tcp://`` (with TLS), ``fd://``."""

from __future__ import annotations

import grp
import os
import socket
import ssl
from typing import NamedTuple

from carrel import errdefs
from carrel.engine import log
from carrel.engine.config import Config

_GROUPS = ("docker", "carrel")


class Listener(NamedTuple):
    """One listening socket."""

    sock: socket.socket
    context: ssl.SSLContext | None = None
    #: the socket's file when it is ours to remove
    path: str = ""


def open_all(config: Config) -> list[Listener]:
    """Bound and listening sockets; all or none."""
    result: list[Listener] = []
    try:
        for host in config.hosts:
            result += _open(config, host)
    except BaseException:
        for listener in result:
            listener.sock.close()
        raise
    return result


def _open(config: Config, host: str) -> list[Listener]:
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "tcp", host
    if scheme == "unix":
        return [Listener(_unix(config, rest), path=rest)]
    if scheme == "fd":
        return [Listener(s) if s.family == socket.AF_UNIX else
                Listener(s, _secured(config, "fd://")) for s in inherited()]
    if scheme == "tcp":
        return [_tcp(config, rest)]
    raise errdefs.InvalidParameter(f"invalid bind address: {host[:80]!r} (unix://, tcp://, fd://)")


def _unix(config: Config, path: str) -> socket.socket:
    """Nobody can connect before mode and group are right: bound under a strict umask."""
    if not path.startswith("/"):
        raise errdefs.InvalidParameter(f"invalid socket path: {path[:80]!r}")
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(old)
    gid = _group(config.group)
    if gid is not None:
        os.chown(path, 0 if os.geteuid() == 0 else -1, gid)
    os.chmod(path, 0o660)
    sock.listen(512)
    return sock


def _remove_stale(path: str) -> None:
    """A socket of a dead daemon is replaced; one that answers is somebody's."""
    if not os.path.lexists(path):
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        os.unlink(path)
    else:
        raise errdefs.Conflict(f"can't create unix socket {path}: it is in use")
    finally:
        probe.close()


def _group(name: str) -> int | None:
    for candidate in ((name,) if name else _GROUPS):
        if candidate.isdigit():
            return int(candidate)
        try:
            return grp.getgrnam(candidate).gr_gid
        except KeyError:
            continue
    if name:
        raise errdefs.InvalidParameter(f"group {name[:40]} not found")
    return None


def inherited() -> list[socket.socket]:
    """Socket activation: LISTEN_FDS from fd 3 on."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise errdefs.InvalidParameter("fd://: no sockets were passed by systemd")
    count = int(os.environ.get("LISTEN_FDS", "0") or 0)
    if count < 1:
        raise errdefs.InvalidParameter("fd://: no sockets were passed by systemd")
    result = []
    for fd in range(3, 3 + count):
        os.set_inheritable(fd, False)
        result.append(socket.socket(fileno=fd))
    return result


def _tcp(config: Config, address: str) -> Listener:
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 <= int(port) < 65536):
        raise errdefs.InvalidParameter(f"invalid bind address: tcp://{address[:80]}")
    context = _secured(config, f"tcp://{address}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host.strip("[]") or "127.0.0.1", int(port)))
    sock.listen(512)
    return Listener(sock, context)


def _secured(config: Config, address: str) -> ssl.SSLContext | None:
    """What protects a TCP listener; none only when that was said twice."""
    context = _tls(config)
    if context is None:
        if not config.allow_insecure_tcp:
            raise errdefs.InvalidParameter(
                f"{address} without TLS gives root on this machine to whoever reaches it",
                hint="use --tlsverify with certificates, or --allow-insecure-tcp")
        log.warning(f"the API listens on {address} without TLS: whoever reaches it is root "
                    "on this machine")
    elif not config.tlsverify:
        log.warning(f"the API listens on {address} with TLS but admits every client: whoever "
                    "reaches it is root on this machine (--tlsverify)")
    return context


def _tls(config: Config) -> ssl.SSLContext | None:
    if not (config.tls or config.tlsverify):
        return None
    if not config.tlscert or not config.tlskey or (config.tlsverify and not config.tlscacert):
        raise errdefs.InvalidParameter(
            "--tls needs --tlscert and --tlskey, --tlsverify also --tlscacert")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tlscert, config.tlskey)
    if config.tlsverify:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(config.tlscacert)
    return context
