"""The Task service: every request of the containerd layer, in one place."""

from __future__ import annotations

import os

from carrel.errdefs import AlreadyExists, InvalidParameter, NotFound, NotImplementedYet
from carrel.shim import loop as poll
from carrel.shim import metrics
from carrel.shim.container import Container, json_of
from carrel.shim.driver import write_record
from carrel.shim.events import Publisher, timestamp
from carrel.shim.reaper import Reaper
from carrel.shim.schema import SCHEMAS
from carrel.shim.sockets import Socket
from carrel.shim.ttrpc import Server
from carrel.shim.wire import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.shim.driver import Driver
    from carrel.shim.log import Log
    from carrel.shim.starter import Starter
    from carrel.shim.ttrpc import Methods
    from carrel.shim.wire import Message

VERSION = "carrel 0.1.0"
SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
#: after Shutdown: time for the last answers and events to leave
FAREWELL_SECONDS = 3.0


class Shim:
    """The program's state: loop, children, events, containers (nearly always one).

    Made before it is known for whom, where there is time; :meth:`open` tells it."""

    server: Server
    log: Log
    _publisher: Publisher

    def __init__(self, loop: poll.Loop) -> None:
        self.loop = loop
        self.namespace = ""
        self.reaper = Reaper(loop)
        self.containers: dict[str, Container] = {}
        self._starter: Starter | None = None
        self._creating: set[str] = set()

    def open(self, listener: Socket, namespace: str, publish: str, log: Log,
             starter: Starter | None = None) -> None:
        """Serve who connects to the listener."""
        self.namespace = namespace
        self.log = log
        self._starter = starter
        self._publisher = Publisher(self.loop, publish, namespace, log.warn)
        self.server = Server(self.loop, listener, dict.fromkeys(SERVICES, METHODS), self)
        self.loop.on_error = log.error

    def publish(self, name: str, event: Message) -> None:
        self._publisher.publish(name, event)

    def background(self, work: poll.Work) -> None:
        """Work that nobody waits for; its failure is logged."""
        poll.run(work).then(lambda later: self.log.error(later.error) if later.error else None)

    def _container(self, request: Message) -> Container:
        found = self.containers.get(request["id"])
        if found is None:
            raise NotFound("container not created")
        return found

    # -- life -------------------------------------------------------------

    def create(self, request: Message) -> poll.Work:
        identity = request["id"]
        if identity in self.containers or identity in self._creating:
            raise AlreadyExists(f"container {identity}")
        if request["checkpoint"]:
            raise NotImplementedYet("restoring a checkpoint")
        if not os.path.isabs(request["bundle"]):
            raise InvalidParameter(f"bundle path {request['bundle']!r} is not absolute")
        self._creating.add(identity)
        try:
            container = Container(self, request, self._driver(request))
            yield from container.create(request)
            self.containers[identity] = container
        finally:
            self._creating.discard(identity)
        return {"pid": container.init.pid}

    def _driver(self, request: Message) -> Driver:
        """The runtime that the options name, ours if they name none."""
        options = runtime_options(request["options"])
        record = {"binary": options["binary_name"], "root": options["root"],
                  "systemd_cgroup": options["systemd_cgroup"],
                  "no_pivot_root": options["no_pivot_root"],
                  "no_new_keyring": options["no_new_keyring"], "namespace": self.namespace}
        if record["binary"]:
            write_record(request["bundle"], record)  # the others' is written with the container
        starter, self._starter = self._starter, None
        return make_driver(self.loop, self.reaper, record, request["id"],
                           request["bundle"], starter)

    def start(self, request: Message) -> poll.Work:
        pid = yield from self._container(request).start(request["exec_id"])
        return {"pid": pid}

    def delete(self, request: Message) -> poll.Work:
        container = self._container(request)
        process = yield from container.delete(request["exec_id"])
        answer = {"pid": process.pid, "exit_status": process.exit_status,
                  "exited_at": timestamp(process.exited_at) if process.exited_at else None}
        if process is container.init:
            self.containers.pop(container.id, None)
            self.publish("TaskDelete", {"container_id": container.id, **answer})
        return answer

    def kill(self, request: Message) -> poll.Work:
        yield from self._container(request).kill(request)
        return {}

    def pause(self, request: Message) -> poll.Work:
        yield from self._container(request).pause()
        return {}

    def resume(self, request: Message) -> poll.Work:
        yield from self._container(request).resume()
        return {}

    def update(self, request: Message) -> poll.Work:
        container = self._container(request)
        container.init.state.check("update")
        yield from container.driver.update(json_of(request["resources"], "resources"))
        return {}

    def checkpoint(self, request: Message) -> Message:
        self._container(request)
        raise NotImplementedYet("checkpoint of a container")

    # -- processes --------------------------------------------------------

    def exec(self, request: Message) -> poll.Work:
        yield from self._container(request).add_exec(request)
        return {}

    def wait(self, request: Message) -> poll.Work:
        process = self._container(request).process(request["exec_id"])
        yield process.wait()
        return {"exit_status": process.exit_status, "exited_at": timestamp(process.exited_at)}

    def state(self, request: Message) -> Message:
        container = self._container(request)
        process = container.process(request["exec_id"])
        state = process.state
        if process is not container.init and container.init.state.name == "paused":
            state = container.init.state  # the whole container is
        return {"id": process.id or container.id, "bundle": container.bundle, "pid": process.pid,
                "status": state.code, "stdin": process.stdio.stdin,
                "stdout": process.stdio.stdout, "stderr": process.stdio.stderr,
                "terminal": process.stdio.terminal, "exit_status": process.exit_status,
                "exited_at": timestamp(process.exited_at) if process.exited_at else None,
                "exec_id": process.id}

    def resize_pty(self, request: Message) -> Message:
        process = self._container(request).process(request["exec_id"])
        if process.id:
            process.state.check("resize")
        if process.streams is not None:
            process.streams.resize(request["width"], request["height"])
        return {}

    def close_io(self, request: Message) -> Message:
        process = self._container(request).process(request["exec_id"])
        if request["stdin"] and process.streams is not None:
            process.streams.close_stdin()
        return {}

    def pids(self, request: Message) -> poll.Work:
        container = self._container(request)
        execs = {p.pid: p.id for p in container.execs.values() if p.pid}
        pids = yield from container.driver.pids()
        processes = []
        for pid in pids:
            info = None
            if pid in execs:
                details = encode(SCHEMAS["ProcessDetails"], {"exec_id": execs[pid]})
                info = {"type_url": "containerd.runc.v1.ProcessDetails", "value": details}
            processes.append({"pid": pid, "info": info})
        return {"processes": processes}

    def stats(self, request: Message) -> Message:
        container = self._container(request)
        return {"stats": metrics.sample(container.cgroup)}

    # -- the shim itself --------------------------------------------------

    def connect(self, request: Message) -> Message:
        container = self.containers.get(request["id"])
        return {"shim_pid": os.getpid(), "task_pid": container.init.pid if container else 0,
                "version": VERSION}

    def shutdown(self, request: Message) -> Message:
        if not self.containers and not self._creating:
            self.loop.call_soon(self._leave)
        return {}

    def _leave(self, patience: float = FAREWELL_SECONDS) -> None:
        """Stop once the last answers and events have left."""
        if patience <= 0 or (self.server.drained and self._publisher.empty):
            self.loop.stop()
        else:
            self.loop.call_later(0.01, lambda: self._leave(patience - 0.01))


def _methods() -> Methods:
    """One table for all shims: what each would make for itself is memory of its own."""
    table: dict[str, tuple[str, str, Callable[[Shim, Message], Any]]] = {
        "State": ("StateRequest", "StateResponse", Shim.state),
        "Create": ("CreateTaskRequest", "CreateTaskResponse", Shim.create),
        "Start": ("StartRequest", "StartResponse", Shim.start),
        "Delete": ("DeleteRequest", "DeleteResponse", Shim.delete),
        "Pids": ("PidsRequest", "PidsResponse", Shim.pids),
        "Pause": ("PauseRequest", "Empty", Shim.pause),
        "Resume": ("ResumeRequest", "Empty", Shim.resume),
        "Checkpoint": ("CheckpointTaskRequest", "Empty", Shim.checkpoint),
        "Kill": ("KillRequest", "Empty", Shim.kill),
        "Exec": ("ExecProcessRequest", "Empty", Shim.exec),
        "ResizePty": ("ResizePtyRequest", "Empty", Shim.resize_pty),
        "CloseIO": ("CloseIORequest", "Empty", Shim.close_io),
        "Update": ("UpdateTaskRequest", "Empty", Shim.update),
        "Wait": ("WaitRequest", "WaitResponse", Shim.wait),
        "Stats": ("StatsRequest", "StatsResponse", Shim.stats),
        "Connect": ("ConnectRequest", "ConnectResponse", Shim.connect),
        "Shutdown": ("ShutdownRequest", "Empty", Shim.shutdown),
    }
    return {name: (SCHEMAS[request], SCHEMAS[response], handler)
            for name, (request, response, handler) in table.items()}


METHODS = _methods()


def runtime_options(value: Message | None) -> Message:
    """``containerd.runc.v1.Options``, all defaults where none were sent."""
    schema = SCHEMAS["Options"]
    if value is None or not value["type_url"]:
        return decode(schema, b"")
    name = value["type_url"].rpartition("/")[2]
    if name != "containerd.runc.v1.Options":
        raise InvalidParameter(f"runtime options of type {name!r} are not known")
    return decode(schema, value["value"])


def make_driver(loop: poll.Loop, reaper: Reaper, record: Message, identity: str, bundle: str,
                starter: Starter | None = None) -> Driver:
    if record["binary"]:
        from carrel.shim.command import DEFAULT_ROOT, Command
        if starter is not None:
            starter.dismiss()
        root = os.path.join(record["root"] or DEFAULT_ROOT, record["namespace"])
        return Command(reaper, record["binary"], root, identity, bundle,
                       record["systemd_cgroup"], record["no_pivot_root"])
    from carrel.shim.inprocess import InProcess
    from carrel.shim.starter import state_root
    root = state_root(record["root"], record["namespace"], bundle)
    return InProcess(loop, reaper, starter, root, identity, bundle, record)
