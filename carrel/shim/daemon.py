"""A serving shim: the same after a cold start and from the zygote."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import os

from carrel.kernel import syscalls as k
from carrel.shim.birth import (
    Config,
    adjust_oom_score,
    leave_parent,
    open_listener,
    socket_path,
    write_file,
)
from carrel.shim.log import Log
from carrel.shim.loop import Loop
from carrel.shim.service import Shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from carrel.shim.sockets import Socket
    from carrel.shim.worker import Worker

__all__ = ["Config", "adjust_oom_score", "leave_parent", "open_listener", "serve", "socket_path"]


def prepare() -> Shim:
    """A shim that does not know its container yet."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # a handler and not SIG_IGN: that one would be inherited by programs we start
        signal.signal(number, _ignore)
    k.prctl(k.PR_SET_CHILD_SUBREAPER, 1)
    return Shim(Loop())


def serve(config: Config, listener: Socket, worker: Worker | None = None,
          shim: Shim | None = None) -> None:
    """Be the shim. Returns after Shutdown."""
    shim = shim or prepare()
    log = Log(os.path.join(config.bundle, "log"), config.id, config.debug)
    shim.open(listener, config.namespace, config.publish, log, worker)
    write_file(os.path.join(config.bundle, "shim.pid"), str(os.getpid()))
    try:
        shim.loop.run()
    finally:
        shim.server.close()
        try:
            os.unlink(config.socket)
        except FileNotFoundError:
            pass


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """The shim ends when its container does."""
