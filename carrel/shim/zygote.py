"""The zygote: a warm interpreter that becomes a shim by one fork.

    containerd-shim-carrel-v1 zygote        a SOCK_SEQPACKET on descriptor 3

    -> {"op": "start", "seq": 1, "namespace": "...", "id": "...", "bundle": "/abs",
        "socket": "/abs", "publish": "...", "debug": false}
    <- {"seq": 1, "pid": 123, "address": "unix:///abs"}    or {"seq": 1, "error": "..."}
    <- {"op": "ready"}                                      once, after start

It holds no secret and no descriptor but that socket, runs one thread, and has
imported everything that a shim and the runtime need.  ``gc.freeze`` moves it
all out of the collector's sight, so that a child never writes to it.  It ends
when the socket does; the shims, in sessions of their own, do not.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket

from carrel.errdefs import CarrelError
from carrel.kernel import syscalls as k
from carrel.shim import daemon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTROL_FD = 3
PACKET_MAX = 65536
IDLE_SECONDS = 0.2


def main() -> int:
    k.close_range(CONTROL_FD + 1, 0xFFFFFFFF)
    try:
        control = socket.socket(fileno=CONTROL_FD)
    except OSError as error:
        os.write(2, f"zygote: descriptor 3 is not a socket: {error.strerror}\n".encode())
        return 1
    control.set_inheritable(False)
    warm()
    # children are adopted by whoever reaps after us; here they just must not pile up
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    try:
        control.send(b'{"op": "ready"}')
        while True:
            packet = control.recv(PACKET_MAX)
            if not packet:
                return 0
            control.send(json.dumps(handle(packet, control)).encode())
    except (BrokenPipeError, ConnectionResetError):
        return 0


def warm() -> None:
    """Import and prepare what a shim will use, so that no child has to."""
    import urllib.parse  # noqa: F401

    from carrel.shim import (  # noqa: F401
        capture,
        cleanup,
        command,
        container,
        inprocess,
        jsonlog,
        metrics,
        service,
    )


def handle(packet: bytes, control: socket.socket) -> dict[str, Any]:
    """One request, one answer; never an exception."""
    seq: object = None
    try:
        request = json.loads(packet)
        seq = request["seq"]
        if request["op"] != "start":
            raise ValueError(f"unknown operation {request['op']!r}")
        config = daemon.Config(
            _text(request, "namespace"), _text(request, "id"), _text(request, "bundle"),
            _text(request, "socket"), str(request.get("publish", "")),
            bool(request.get("debug", False)))
        return {"seq": seq, "pid": fork_shim(config, control), "address": config.address}
    except (CarrelError, OSError, ValueError, KeyError, TypeError) as error:
        text = f"missing {error}" if isinstance(error, KeyError) else str(error)
        return {"seq": seq, "error": text}


def _text(request: dict[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"bad {name}: {value!r}")
    if name in ("bundle", "socket") and not value.startswith("/"):
        raise ValueError(f"{name} is not an absolute path: {value!r}")
    return value


def fork_shim(config: daemon.Config, control: socket.socket) -> int:
    """The pid of a shim that listens already; nothing is left when this raises."""
    listener = daemon.open_listener(config)
    try:
        pid = os.fork()
    except BaseException:
        os.unlink(config.socket)
        listener.close()
        raise
    if pid:
        listener.close()
        return pid
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.detach()
        daemon.become_daemon(config, listener.fileno())
        daemon.adjust_oom_score()
        daemon.serve(config, listener)
        code = 0
    finally:
        os._exit(code)
