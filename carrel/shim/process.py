"""The life of one process: a class per state, transitions spelled out.

    created --start--> running <--pause/resume--> paused
       |                  |                         |
       +------------------+--- exit ---> stopped <--+
       |                                    |
       +------------- delete --> deleted <--+

What a state does not allow is refused with the texts of containerd's own shim:
clients match on some of them.
"""

from __future__ import annotations

import time

from carrel.errdefs import Conflict, NotFound, SystemFailure
from carrel.shim import loop as poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.shim.stdio import Stdio, Streams
    from carrel.shim.wire import Message


class State:
    """What holds in one state. ``refuses``: operation -> why not."""

    name = ""
    #: containerd.v1.types.Status
    code = 0
    leads_to: tuple[str, ...] = ()
    refuses: dict[str, str] = {}

    @classmethod
    def check(cls, operation: str) -> None:
        why = cls.refuses.get(operation)
        if why is not None:
            raise Conflict(why)


class Created(State):
    name, code = "created", 1
    leads_to = ("running", "stopped", "deleted")
    refuses = {"pause": "cannot pause task in created state",
               "resume": "cannot resume task in created state"}


class Running(State):
    name, code = "running", 2
    leads_to = ("paused", "stopped")
    refuses = {"start": "cannot start a running process",
               "delete": "cannot delete a running process",
               "resume": "cannot resume a running process"}


class Paused(State):
    name, code = "paused", 4
    leads_to = ("running", "stopped")
    refuses = {"start": "cannot start a paused process",
               "delete": "cannot delete a paused process",
               "pause": "cannot pause a paused container",
               "exec": "cannot exec in a paused state"}


class Stopped(State):
    name, code = "stopped", 3
    leads_to = ("deleted",)
    refuses = {"start": "cannot start a stopped process",
               "pause": "cannot pause a stopped container",
               "resume": "cannot resume a stopped container",
               "update": "cannot update a stopped container",
               "exec": "cannot exec in a stopped state",
               "resize": "cannot resize a stopped container"}

    @classmethod
    def check(cls, operation: str) -> None:
        if operation == "kill":
            raise NotFound("process already finished")
        super().check(operation)


class Deleted(State):
    name = "deleted"

    @classmethod
    def check(cls, operation: str) -> None:
        if operation == "kill":
            raise NotFound("cannot kill a deleted process")
        raise NotFound(f"cannot {operation} a deleted process")


_STATES: dict[str, type[State]] = {
    s.name: s for s in (Created, Running, Paused, Stopped, Deleted)}


class Process:
    """The init process of a container (``id`` is empty) or one exec'd into it."""

    __slots__ = ("_waiters", "exit_status", "exited_at", "gone", "id", "lock", "pid", "reported",
                 "spec", "state", "stdio", "streams")

    def __init__(self, exec_id: str, stdio: Stdio, spec: Message | None = None) -> None:
        self.id = exec_id
        self.stdio = stdio
        #: of an exec: the OCI process that Start will run
        self.spec = spec
        self.streams: Streams | None = None
        self.pid = 0
        #: resolves with the exit code when it was reaped
        self.gone: poll.Later | None = None
        self.exit_status = 0
        self.exited_at = 0
        self.state: type[State] = Created
        #: start, delete and the handling of the exit take turns
        self.lock = poll.Lock()
        self.reported = False
        self._waiters: list[poll.Later] = []

    def go(self, name: str) -> None:
        if name not in self.state.leads_to:
            raise SystemFailure(f'invalid state transition "{self.state.name}" to "{name}"')
        self.state = _STATES[name]

    def set_exited(self, status: int) -> None:
        self.exit_status = status
        self.exited_at = time.time_ns()
        self.go("stopped")

    def wait(self) -> poll.Later:
        """Resolves once the exit was reported."""
        later = poll.Later()
        if self.reported:
            later.resolve()
        else:
            self._waiters.append(later)
        return later

    def report(self) -> None:
        """Answer everybody who waits, now and from now on."""
        self.reported = True
        waiters, self._waiters = self._waiters, []
        for later in waiters:
            later.resolve()
