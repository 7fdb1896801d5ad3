"""What the shim asks of an OCI runtime, whichever it is.

Methods are generators (``yield from driver.start()``): a runtime that is a
program takes its time, and the shim serves others meanwhile.
"""

from __future__ import annotations

import os

from carrel.oci import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.loop import Later, Work
    from carrel.shim.wire import Message


#: what Create leaves in the bundle for `delete` after a dead shim: which runtime, and how
RECORD = "carrel-shim.json"


def write_record(bundle: str, record: Message) -> None:
    fd = os.open(os.path.join(bundle, RECORD), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
                 0o600)
    try:
        os.write(fd, json.dumps(record).encode())
    finally:
        os.close(fd)


class Made:
    """A process that was made: its pid, the master of its terminal or -1, its exit if the
    driver watches for it already (it may be over by now), and the descriptor that tells
    of kills for want of memory, or -1."""

    __slots__ = ("console", "gone", "kills", "pid")

    def __init__(self, pid: int, console: int = -1, gone: Later | None = None,
                 kills: int = -1) -> None:
        self.pid = pid
        self.console = console
        self.gone = gone
        self.kills = kills


class Driver:
    """One container's runtime."""

    #: how a failure begins: "OCI runtime create failed: ..."
    failure = "OCI runtime {} failed: {}"

    def create(self, mounts: list[Message], terminal: bool,
               child: tuple[int, int, int] | None) -> Work:
        """Make the container; gives :class:`Made`; init waits for :meth:`start`."""
        raise NotImplementedError

    def start(self) -> Work:
        raise NotImplementedError

    def exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
             child: tuple[int, int, int] | None) -> Work:
        """Run another process in the container; gives :class:`Made`."""
        raise NotImplementedError

    def announce_exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
                      child: tuple[int, int, int] | None) -> None:
        """:meth:`exec` with these may follow soon: what can be done for it may be done."""

    def kill(self, signal: int, all_processes: bool) -> Work:
        raise NotImplementedError

    def pause(self) -> Work:
        raise NotImplementedError

    def resume(self) -> Work:
        raise NotImplementedError

    def update(self, resources: dict[str, Any]) -> Work:
        raise NotImplementedError

    def pids(self) -> Work:
        """Gives ``list[int]``, as seen from outside."""
        raise NotImplementedError

    def delete(self, force: bool = False) -> Work:
        """Remove the container and what it held; gone already is fine."""
        raise NotImplementedError

    def cgroup(self, pid: int) -> dict[str, str]:
        """Directories of the cgroups by controller; v2's under ``""``. ``pid`` is init's."""
        raise NotImplementedError

    def shares_pids(self) -> bool:
        """Has the container no pid namespace of its own? Then the kernel does not kill
        its other processes when init ends. Known after :meth:`create`."""
        raise NotImplementedError

    def released(self) -> None:
        """After the exit was reported: let go of what kept cleaning off that path."""
