"""A serving shim: the same after a cold start and from the zygote."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import os

from carrel.kernel import syscalls as k
from carrel.shim.birth import (
    Config,
    adjust_oom_score,
    leave_all,
    leave_parent,
    open_listener,
    socket_path,
)
from carrel.shim.log import Log
from carrel.shim.loop import Loop
from carrel.shim.service import Shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from carrel.shim.sockets import Socket
    from carrel.shim.starter import Starter

__all__ = ["Config", "adjust_oom_score", "ignore_signals", "leave_all", "leave_parent",
           "open_listener", "prepare", "serve", "socket_path"]


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # a handler and not SIG_IGN: that one would be inherited by programs we start
        signal.signal(number, _ignore)


def prepare() -> Shim:
    """A shim that does not know its container yet."""
    k.prctl(k.PR_SET_CHILD_SUBREAPER, 1)
    return Shim(Loop())


def serve(config: Config, listener: Socket, helper: Socket | None = None,
          shim: Shim | None = None) -> None:
    """Be the shim. Returns after Shutdown. ``helper``: a starter's other end."""
    if shim is None:
        shim = prepare()
    starter: Starter | None = None
    if helper is not None:
        from carrel.shim.starter import Starter
        starter = Starter(shim.loop, helper)
    log = Log(os.path.join(config.bundle, "log"), config.id, config.debug)
    shim.open(listener, config.namespace, config.publish, log, starter)
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
