"""An exec by a process of its own, so that the shim stays small.

Making a process in a container runs so much Python that it writes to a megabyte of the
pages that a shim shares with the zygote (each reference count is a write).  So a
shim that was born warm clones itself, and this worker makes the process, with
CLONE_PARENT: it is the child of the shim.  Then the worker is gone, and its pages with it.

    shim -> worker   {"op": "plan exec", ...} + the process's descriptors, {"op": "exec"}
    worker -> shim   {"pid": ...} (+ the terminal's master)
                     {"error": {"kind": ..., "text": ...}}
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import gc
import marshal
import os

from carrel.kernel import syscalls as k
from carrel.runtime import api, enter
from carrel.runtime.child import close_all_but
from carrel.shim import loop as poll
from carrel.shim.sockets import Socket, pair, receive_descriptors, send_descriptors
from carrel.shim.starter import ANSWER_MAX, PACKET_MAX, failure, read_answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Answer = dict[str, Any]


class Worker:
    """The shim's end."""

    __slots__ = ("_socket", "pid")

    def __init__(self) -> None:
        ours, theirs = pair()
        pid, pidfd = k.clone(0)
        if pid == 0:
            _work(theirs)
        os.close(pidfd)
        theirs.close()
        self.pid = pid
        self._socket = ours

    def tell(self, request: Answer, fds: tuple[int, ...] = ()) -> None:
        """What has no answer."""
        send_descriptors(self._socket, marshal.dumps(request), list(fds))

    def ask(self, loop: poll.Loop, request: Answer, fds: tuple[int, ...] = ()) -> poll.Work:
        """Gives the answer and the descriptors that came with it; its error is raised."""
        answered = poll.Later()
        self.tell(request, fds)
        loop.add(self._socket.fileno(), poll.IN, answered.resolve)
        try:
            yield answered
        finally:
            loop.remove(self._socket.fileno())
        packet, got = receive_descriptors(self._socket, ANSWER_MAX, 1)
        return read_answer(packet), got

    def dismiss(self) -> None:
        self._socket.close()


class Sibling:
    """The kernel as the worker sees it: what it clones is the shim's child."""

    def __init__(self) -> None:
        self.__dict__.update(vars(k))
        self.__dict__["clone"] = clone_sibling


def clone_sibling(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    return k.clone(flags | k.CLONE_PARENT, cgroup_fd)


def _work(control: Socket) -> NoReturn:
    code = 1
    try:
        close_all_but(k, [control.fileno()], 0)
        signal.set_wakeup_fd(-1)  # the shim's, and closed just now
        gc.disable()  # this process ends before it would pay
        serve(control, Sibling())
        code = 0
    finally:
        os._exit(code)


def serve(control: Socket, kernel: Sibling) -> None:
    """Do what is asked until the shim needs nothing more."""
    planned: PlannedExec | None = None
    while True:
        packet, fds = receive_descriptors(control, PACKET_MAX, 3)
        if not packet:
            return
        try:
            request = marshal.loads(packet)
            if request["op"] == "plan exec":
                planned = PlannedExec(request, fds, kernel)
                continue
            assert planned is not None
            planned.execute(control)
        except Exception as error:
            answer(control, failure(error))


def answer(control: Socket, found: Answer, console: int = -1) -> None:
    send_descriptors(control, marshal.dumps(found), [console] if console >= 0 else [])


class PlannedExec:
    """Another process in the container, planned when it was announced. What was wrong with
    it is told when it is asked for."""

    def __init__(self, request: Answer, fds: list[int], kernel: Sibling) -> None:
        self._fds = fds
        self._error: Exception | None = None
        try:
            self._container = api.load(request["id"], request["root"])
            self._entry = self._container.plan_exec(
                request["process"], (fds[0], fds[1], fds[2]) if fds else None,
                request["terminal"], kernel=kernel)
        except Exception as error:
            self._error = error

    def execute(self, control: Socket) -> None:
        if self._error is not None:
            raise self._error
        enter.check(self._container)
        process = self._entry.execute()
        answer(control, {"pid": process.pid}, process.console)
        for fd in self._fds:
            os.close(fd)
