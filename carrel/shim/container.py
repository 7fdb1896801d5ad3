"""One container: its processes, its runtime, the order of its events."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import os

from carrel.errdefs import AlreadyExists, Conflict, InvalidParameter, NotFound, SystemFailure
from carrel.oci import json
from carrel.shim.events import timestamp
from carrel.shim.oom import OomWatch
from carrel.shim.process import Process
from carrel.shim.stdio import Stdio, open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.driver import Driver, Made
    from carrel.shim.loop import Work
    from carrel.shim.service import Shim
    from carrel.shim.wire import Message

#: how long the exit waits for output that another process keeps open
DRAIN_SECONDS = 2.0
#: after the exit of init was told, its mounts are let go, if no Delete came before
RELEASE_SECONDS = 0.02
#: the exit of init waits for the exits of its container's other processes
EXEC_EXIT_SECONDS = 10.0


class Container:
    """Made by Create, gone with Delete."""

    def __init__(self, shim: Shim, request: Message, driver: Driver) -> None:
        self.shim = shim
        self.id: str = request["id"]
        self.bundle: str = request["bundle"]
        self.driver = driver
        self.init = Process("", Stdio(request["stdin"], request["stdout"], request["stderr"],
                                      request["terminal"]))
        self.execs: dict[str, Process] = {}
        #: its cgroup directories by controller
        self.cgroup: dict[str, str] = {}
        self._oom: OomWatch | None = None
        #: signals for init that wait for its thaw, with whether they are for all
        self._held: list[tuple[int, bool]] = []

    def process(self, exec_id: str) -> Process:
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            raise NotFound(f"process does not exist {exec_id}")
        return found

    # -- create and start -------------------------------------------------

    def create(self, request: Message) -> Work:
        init = self.init
        streams = init.streams = yield from open_streams(
            self.shim.loop, init.stdio, self.id, self.shim.namespace)
        try:
            made = yield from self.driver.create(request["rootfs"], init.stdio.terminal,
                                                 streams.child)
            init.pid = made.pid
            if made.console >= 0:
                streams.use_console(made.console)
        except BaseException:
            streams.close()
            raise
        streams.started()
        self.shim.publish("TaskCreate", {
            "container_id": self.id, "bundle": self.bundle, "rootfs": request["rootfs"],
            "io": {"stdin": request["stdin"], "stdout": request["stdout"],
                   "stderr": request["stderr"], "terminal": request["terminal"]},
            "checkpoint": request["checkpoint"], "pid": init.pid})
        self.cgroup = self.driver.cgroup(init.pid)
        self._oom = OomWatch(self.shim.loop, self.cgroup, self._out_of_memory, made.kills)
        self._watch(init, made)

    def start(self, exec_id: str) -> Work:
        """Gives the pid."""
        process = self.process(exec_id)
        yield from process.lock.acquire()
        try:
            process.state.check("start")
            if process is self.init:
                yield from self.driver.start()
                process.go("running")
                self.shim.publish("TaskStart", {"container_id": self.id, "pid": process.pid})
            else:
                yield from self._start_exec(process)
        finally:
            # the exit of a short-lived process is handled after the answer has left
            self.shim.loop.call_soon(process.lock.release)
        return process.pid

    def _start_exec(self, process: Process) -> Work:
        if self.init.state.name not in ("running", "created"):
            raise Conflict(f"container {self.id} init process is not running")
        if process.streams is None:
            process.streams = yield from open_streams(
                self.shim.loop, process.stdio, self.id, self.shim.namespace)
        streams = process.streams
        assert process.spec is not None
        try:
            made = yield from self.driver.exec(process.id, process.spec, process.stdio.terminal,
                                               streams.child)
            process.pid = made.pid
            if made.console >= 0:
                streams.use_console(made.console)
        except BaseException:
            streams.close()
            raise
        streams.started()
        process.go("running")
        self.shim.publish("TaskExecStarted", {"container_id": self.id, "exec_id": process.id,
                                              "pid": process.pid})
        self._watch(process, made)

    def add_exec(self, request: Message) -> Work:
        exec_id = request["exec_id"]
        self.init.state.check("exec")
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}")
        if not exec_id or "/" in exec_id or exec_id in (".", ".."):
            raise InvalidParameter(f"bad exec id {exec_id!r}")
        stdio = Stdio(request["stdin"], request["stdout"], request["stderr"], request["terminal"])
        process = Process(exec_id, stdio, json_of(request["spec"], "process"))
        self.execs[exec_id] = process
        if stdio.stdout.startswith("carrel:"):
            # clients attach before the start, so that they see all of the output
            try:
                process.streams = yield from open_streams(
                    self.shim.loop, stdio, self.id, self.shim.namespace)
            except BaseException:
                del self.execs[exec_id]
                raise
            self.shim.loop.call_soon(lambda: self._announce(process))  # the answer first
        self.shim.publish("TaskExecAdded", {"container_id": self.id, "exec_id": exec_id})

    def _announce(self, process: Process) -> None:
        if self.execs.get(process.id) is process and process.state.name == "created":
            assert process.spec is not None and process.streams is not None
            self.driver.announce_exec(process.id, process.spec, process.stdio.terminal,
                                      process.streams.child)

    def _out_of_memory(self) -> None:
        self.shim.publish("TaskOOM", {"container_id": self.id})

    # -- exit -------------------------------------------------------------

    def _watch(self, process: Process, made: Made) -> None:
        process.gone = made.gone or self.shim.reaper.expect(process.pid)
        process.gone.then(
            lambda later: self.shim.background(self._exited(process, later.value)))

    def _exited(self, process: Process, code: int) -> Work:
        """Exit status first; cleaning later. The exit of init is the last one reported."""
        yield from process.lock.acquire()
        try:
            if process.state.name == "deleted":
                return
            process.set_exited(code)
            if process.streams is not None:
                process.streams.exited()
        finally:
            process.lock.release()
        if process is self.init:
            if self.driver.shares_pids():
                yield from self._kill_rest()
            yield from self._execs_reported()
        if process.streams is not None and not process.streams.drained.done:
            timer = self.shim.loop.call_later(DRAIN_SECONDS, process.streams.stop_waiting)
            yield process.streams.drained
            timer.cancel()
        if self._oom is not None:
            self._oom.check()  # its event comes before the exit's
        self.shim.publish("TaskExit", {
            "container_id": self.id, "id": process.id or self.id, "pid": process.pid,
            "exit_status": process.exit_status, "exited_at": timestamp(process.exited_at)})
        process.report()
        if process is self.init:
            # later: letting go of the last mounts waits for the kernel, and the exit waits
            # behind the events before it, which are not answered yet
            self.shim.loop.call_later(RELEASE_SECONDS, self.driver.released)

    def _kill_rest(self) -> Work:
        try:
            yield from self.driver.kill(signal.SIGKILL, True)
        except (NotFound, Conflict):
            pass
        except Exception as error:
            self.shim.log.warn(f"failed to kill init's children: {error}")

    def _execs_reported(self) -> Work:
        for process in list(self.execs.values()):
            yield from process.lock.acquire()  # a start that is under way comes to its end
            process.lock.release()
            if process.state.name in ("running", "paused") or (
                    process.state.name == "stopped" and not process.reported):
                waiting = process.wait()
                timer = self.shim.loop.call_later(EXEC_EXIT_SECONDS, waiting.resolve)
                yield waiting
                timer.cancel()

    # -- the rest ---------------------------------------------------------

    def kill(self, request: Message) -> Work:
        process = self.process(request["exec_id"])
        process.state.check("kill")
        number = request["signal"]
        if not 0 <= number <= 64:
            raise InvalidParameter(f"signal {number} is unknown")
        if process is self.init:
            try:
                yield from self.driver.kill(number, request["all"])
            except SystemFailure:  # runsc takes none while it is paused; the kernel keeps them
                if self.init.state.name != "paused":
                    raise
                self._held.append((number, request["all"]))
            if number == signal.SIGKILL and self.init.state.name == "paused":
                yield from self._thaw_to_die()
            return
        if not process.pid:
            raise Conflict("process not created")
        try:
            os.kill(process.pid, number)  # our unreaped child: the pid is nobody else's
        except ProcessLookupError:
            raise NotFound("process already finished") from None

    def _thaw_to_die(self) -> Work:
        """A frozen process of cgroup v1 takes even SIGKILL only when it is thawed."""
        try:
            yield from self._thaw()
        except Exception as error:
            self.shim.log.debug(f"resume after SIGKILL: {error}")  # it thawed, or died, already
        if self.init.state.name == "paused":
            self.init.go("running")

    def _thaw(self) -> Work:
        yield from self.driver.resume()
        held, self._held = self._held, []
        for number, everyone in held:
            try:
                yield from self.driver.kill(number, everyone)
            except (NotFound, SystemFailure) as error:  # the one before ended it
                self.shim.log.debug(f"signal {number} after the thaw: {error}")

    def pause(self) -> Work:
        self.init.state.check("pause")
        yield from self.driver.pause()
        self.init.go("paused")
        self.shim.publish("TaskPaused", {"container_id": self.id})

    def resume(self) -> Work:
        self.init.state.check("resume")
        yield from self._thaw()
        if self.init.state.name == "paused":  # else it had a signal waiting, and is gone already
            self.init.go("running")
        self.shim.publish("TaskResumed", {"container_id": self.id})

    def _end_created(self, process: Process) -> Work:
        """Delete before Start: init waits for a start that will not come."""
        try:
            yield from self.driver.kill(signal.SIGKILL, False)
        except NotFound:
            pass
        except SystemFailure:  # runsc sends no signal to what was never started
            yield from self.driver.delete(force=True)
        assert process.gone is not None
        process.set_exited((yield process.gone))

    def delete(self, exec_id: str) -> Work:
        """Gives the process as it was."""
        process = self.process(exec_id)
        yield from process.lock.acquire()
        try:
            process.state.check("delete")
            if process is self.init:
                if process.state.name == "created":
                    yield from self._end_created(process)
                if self._oom is not None:
                    self._oom.close()
                yield from self.driver.delete()
                for other in self.execs.values():
                    if other.streams is not None:
                        other.streams.close()
                self.execs.clear()
            else:
                self.execs.pop(exec_id, None)
            if process.streams is not None:
                process.streams.close()
            process.go("deleted")
        finally:
            process.lock.release()
        return process


def json_of(value: Message | None, what: str) -> dict[str, Any]:
    """The JSON object that travels inside an Any."""
    if value is None or not value["value"]:
        raise InvalidParameter(f"no {what} given")
    found = json.loads(value["value"], what)
    if not isinstance(found, dict):
        raise InvalidParameter(f"{what} is not a JSON object")
    return found
