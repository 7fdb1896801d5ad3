"""Listening unix sockets."""

from __future__ import annotations

import os
import socket


def listen(path: str, mode: int, uid: int = 0, gid: int = 0) -> socket.socket:
    """A listening unix socket that nobody can reach before its mode is right.

    A leftover of a daemon that was killed is replaced: the lock on the root
    says that this is the only daemon.
    """
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
        sock.listen(512)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
