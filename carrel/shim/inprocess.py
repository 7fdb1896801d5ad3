"""Our own runtime, called as a library: a start is a clone and the system calls."""

from __future__ import annotations

import os

from carrel.errdefs import CarrelError, Conflict, NotFound, SystemFailure
from carrel.runtime import api
from carrel.runtime.container import CREATED
from carrel.runtime.create import read_config
from carrel.shim import explain
from carrel.shim.driver import Driver, Made, write_record
from carrel.shim.starter import (
    Died,
    groups_with_controllers,
    make_settings,
    open_mount_namespace,
    shares_pids,
)
from carrel.shim.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.loop import Loop, Timer, Work
    from carrel.shim.reaper import Reaper
    from carrel.shim.starter import Starter
    from carrel.shim.wire import Message

#: how long the worker of an announced exec waits for it; then one is made when it is there
ANNOUNCED_SECONDS = 2.0
#: how long the starter is held for the start of what it created; then the shim does it
CREATED_SECONDS = 2.0


class InProcess(Driver):
    """Create and start by the shim's starter if it has one, an exec by a worker, the rest
    by calls that return within milliseconds."""

    def __init__(self, loop: Loop, reaper: Reaper, starter: Starter | None, root: str,
                 identity: str, bundle: str, record: Message) -> None:
        self._loop = loop
        self._reaper = reaper
        self._starter = starter
        self._kept: Timer | None = None
        #: born from the zygote: its pages are worth saving
        self._forks = starter is not None
        self._root = root
        self._id = identity
        self._bundle = bundle
        self._record = record
        self._container: api.Container | None = None
        self._pid = 0
        self._cgroup: dict[str, str] = {}
        self._shares_pids = False
        self._mount_namespace = -1
        #: a process that was announced, and the worker that has planned it
        self._announced: tuple[str, Worker] | None = None

    @property
    def container(self) -> api.Container:
        if self._container is None:
            self._container = api.load(self._id, self._root)
        return self._container

    def create(self, mounts: list[Message], terminal: bool,
               child: tuple[int, int, int] | None) -> Work:
        try:
            made: Made | None = None
            if self._starter is not None:
                made = yield from self._create_by_starter(self._starter, mounts, terminal, child)
            if made is None:
                made = self._create_here(mounts, terminal, child)
        except Exception as error:
            raise self._failed("create", error) from error
        self._pid = made.pid
        return made

    def _create_by_starter(self, starter: Starter, mounts: list[Message], terminal: bool,
                           child: tuple[int, int, int] | None) -> Work:
        self._reaper.hold()
        try:
            try:
                answer, fds = yield from starter.ask({
                    "op": "create", "id": self._id, "bundle": self._bundle, "root": self._root,
                    "terminal": terminal, "mounts": mounts, "record": self._record},
                    child or ())
            except ConnectionError:
                answer, fds = {"unsuitable": True}, []  # it died before: nothing was made
            if "unsuitable" in answer:
                self._dismiss()
                return None
            self._cgroup = answer["cgroup"]
            self._shares_pids = answer["shares_pids"]
            self._kept = self._loop.call_later(CREATED_SECONDS, self._dismiss)
            self._mount_namespace = fds[0]
            return Made(answer["pid"], fds[1] if answer["console"] else -1,
                        self._reaper.expect(answer["pid"]), fds[-1] if answer["kills"] else -1)
        finally:
            self._reaper.unhold()

    def _create_here(self, mounts: list[Message], terminal: bool,
                     child: tuple[int, int, int] | None) -> Made:
        write_record(self._bundle, self._record)
        explain.begin(read_config(self._bundle))
        made = api.create(self._id, self._bundle, self._root, stdio=child, terminal=terminal,
                          rootfs_mounts=mounts or None, settings=make_settings(self._record))
        self._container = made
        console, made.console = made.console, -1
        self._cgroup = groups_with_controllers(made)
        self._mount_namespace = open_mount_namespace(made.pid)
        self._shares_pids = shares_pids(made.spec)
        return Made(made.pid, console)

    def _dismiss(self) -> None:
        if self._kept is not None:
            self._kept.cancel()
            self._kept = None
        if self._starter is not None:
            self._starter.dismiss()
            self._starter = None

    def start(self) -> Work:
        try:
            if self._starter is None or not (yield from self._start_by_starter(self._starter)):
                self.container.start()
                explain.save(self._bundle)
        except Exception as error:
            raise self._failed("start", error) from error

    def _start_by_starter(self, starter: Starter) -> Work:
        """Gives False where it died before it did it."""
        if self._kept is not None:
            self._kept.cancel()
        try:
            yield from starter.ask({"op": "start"})
            return True
        except (ConnectionError, Died):
            return self.container.status != CREATED
        finally:
            self._dismiss()

    def exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
             child: tuple[int, int, int] | None) -> Work:
        try:
            if self._forks:
                return (yield from self._exec_by_worker(exec_id, process, terminal, child))
            made = self.container.exec(process, child, terminal)
        except Exception as error:
            raise self._failed("exec", error) from error
        os.close(made.pidfd)
        return Made(made.pid, made.console)

    def announce_exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
                      child: tuple[int, int, int] | None) -> None:
        if self._forks:
            self._forget_announced()
            worker = self._plan_exec(process, terminal, child)
            self._announced = exec_id, worker
            self._loop.call_later(ANNOUNCED_SECONDS, lambda: self._forget_announced(worker))

    def _plan_exec(self, process: dict[str, Any], terminal: bool,
                   child: tuple[int, int, int] | None) -> Worker:
        worker = Worker()
        worker.tell({"op": "plan exec", "id": self._id, "root": self._root, "process": process,
                     "terminal": terminal}, child or ())
        return worker

    def _forget_announced(self, which: Worker | None = None) -> None:
        """Any, or this one if it is still the one."""
        if self._announced is not None and which in (None, self._announced[1]):
            self._announced[1].dismiss()
            self._announced = None

    def _exec_by_worker(self, exec_id: str, process: dict[str, Any], terminal: bool,
                        child: tuple[int, int, int] | None) -> Work:
        if self._announced is not None and self._announced[0] == exec_id:
            worker, self._announced = self._announced[1], None
        else:
            worker = self._plan_exec(process, terminal, child)
        self._reaper.hold()  # its process may end before we hear of it
        try:
            answer, fds = yield from worker.ask(self._loop, {"op": "exec"})
            pid = answer["pid"]
            return Made(pid, fds[0] if fds else -1, self._reaper.expect(pid))
        finally:
            self._reaper.unhold()
            worker.dismiss()

    @staticmethod
    def _failed(what: str, error: Exception) -> CarrelError:
        """The error as it travels, with the beginning that Docker's clients know."""
        text = api.message(error)
        if what == "exec":
            text = f"exec failed: {text}"
        kind = type(error) if isinstance(error, CarrelError) else SystemFailure
        failed = kind(Driver.failure.format(what, text))
        for note in getattr(error, "__notes__", ()):
            failed.add_note(note)
        return failed

    def kill(self, signal: int, all_processes: bool) -> Work:
        yield from ()
        try:
            if all_processes:
                self.container.kill(signal, all=True)
            else:
                os.kill(self._pid, signal)  # our unreaped child: the pid is nobody else's
        except (Conflict, ProcessLookupError):
            raise NotFound("process already finished") from None

    def pause(self) -> Work:
        yield from ()
        self.container.pause()

    def resume(self) -> Work:
        yield from ()
        self.container.resume()

    def update(self, resources: dict[str, Any]) -> Work:
        yield from ()
        self.container.update(resources)

    def pids(self) -> Work:
        yield from ()
        return self.container.pids()

    def delete(self, force: bool = False) -> Work:
        yield from ()
        self._dismiss()
        self._forget_announced()
        self.released()
        try:
            self.container.delete(force=force)
        except NotFound:
            pass
        self._container = None

    def cgroup(self, pid: int) -> dict[str, str]:
        return self._cgroup

    def shares_pids(self) -> bool:
        return self._shares_pids

    def released(self) -> None:
        if self._mount_namespace >= 0:
            os.close(self._mount_namespace)
            self._mount_namespace = -1
