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

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import gc
import os
import select
import sys

from carrel import runtime
from carrel.kernel import cgroup, memory
from carrel.kernel import syscalls as k
from carrel.oci import json
from carrel.shim import daemon, heap, rehearse, worker
from carrel.shim.sockets import Socket, pair
from carrel.shim.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from carrel.shim.service import Shim

CONTROL_FD = 3
PACKET_MAX = 65536
#: how many shims wait while starts follow each other, and how long nothing must have happened
#: before one is made
POOL_SIZE = 2
IDLE_MS = 20
#: after this long without a request one shim waits, not more: each holds 4 MiB of its own
CALM_MS = 2000
CPUS = len(os.sched_getaffinity(0))


def main() -> int:
    k.close_range(CONTROL_FD + 1, 0xFFFFFFFF)
    try:
        control = Socket(fileno=CONTROL_FD)
    except OSError as error:
        os.write(2, f"zygote: descriptor 3 is not a socket: {error.strerror}\n".encode())
        return 1
    os.set_inheritable(CONTROL_FD, False)
    warm()
    # children are adopted by whoever reaps after us; here they just must not pile up
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    heap.fill_holes()
    memory.trim()
    gc.freeze()
    heap.leave_room(rehearse.run_container)
    ready = select.poll()
    ready.register(control, select.POLLIN)
    pool = Pool(control, ready)
    try:
        control.send(b'{"op": "ready"}')
        while True:
            found = ready.poll(pool.patience)
            if not found:
                pool.idle()
            for fd, _events in found:
                if fd != CONTROL_FD:
                    pool.answered(fd)
                    continue
                packet = control.recv(PACKET_MAX)
                if not packet:
                    return 0
                # Little more happens here: every page that this process writes to
                # is one that it no longer shares with its shims.
                if not pool.give(packet):
                    clone(control, packet)
    except (BrokenPipeError, ConnectionResetError):
        return 0


class Pool:
    """Shims that were cloned ahead, while there was nothing to do, and wait for a
    request. They end with the zygote. Without one a start is slower, never wrong."""

    __slots__ = ("_control", "_given", "_lately", "_members", "_ready", "_size")

    def __init__(self, control: Socket, ready: select.poll) -> None:
        self._control = control
        self._ready = ready
        self._members: list[Socket] = []
        #: requests that were handed over and are not answered yet
        self._given: dict[int, tuple[Socket, bytes]] = {}
        #: how many shall wait; one for a single start now and then
        self._size = 1
        self._lately = False

    @property
    def patience(self) -> int | None:
        """Milliseconds without anything, and then :meth:`idle`."""
        if len(self._members) < self._size:
            return IDLE_MS
        return CALM_MS if self._lately else None

    def idle(self) -> None:
        if len(self._members) < self._size:
            if not busy():
                self.add()
            return
        self._lately, self._size = False, 1
        while len(self._members) > 1:
            self._members.pop(0).close()    # it ends

    def add(self) -> None:
        ours, theirs = pair()
        clone(self._control, b"", theirs)
        theirs.close()
        self._members.append(ours)

    def give(self, packet: bytes) -> bool:
        """Hand a request to a waiting shim; False when there is none."""
        if self._lately:
            self._size = POOL_SIZE
        self._lately = True
        while self._members:
            member = self._members.pop()
            try:
                member.send(packet)
            except OSError:
                member.close()  # somebody killed it while it waited
                continue
            self._given[member.fileno()] = member, packet
            self._ready.register(member, select.POLLIN)
            return True
        return False

    def answered(self, fd: int) -> None:
        """The shim says that it has answered; or it died before it could."""
        member, packet = self._given.pop(fd)
        self._ready.unregister(fd)
        try:
            done = member.recv(1)
        except ConnectionResetError:
            done = b""
        member.close()
        if not done:
            clone(self._control, packet)


def busy() -> bool:
    """Are there more that want to run than processors?"""
    fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = os.read(fd, 128).split()[3].partition(b"/")[0]
    finally:
        os.close(fd)
    return int(running) > CPUS


def clone(control: Socket, packet: bytes, own: Socket | None = None) -> None:
    pid, pidfd = k.clone(0)
    if pid == 0:
        child(control, packet, own)
    os.close(pidfd)


#: what a shim imports only when it is needed
_LAZY = ("carrel.runtime.childplan", "carrel.shim.capture", "carrel.shim.command",
         "carrel.shim.inprocess", "encodings.ascii")


def warm() -> None:
    """Import and prepare what a shim will use, so that no child has to."""
    from importlib import import_module

    from carrel.runtime import rehearse as starts
    runtime.warm()
    mode = cgroup.layout().mode
    versions = [f"carrel.kernel.cgroup_{v}{part}" for part in ("", "_limits") for v in (
        ["v2"] if mode == "unified" else ["v1"])]
    for name in (*_LAZY, *versions):
        import_module(name)
    config = starts.text()
    for _ in range(rehearse.TIMES):
        json.dumps({"seq": 1, "pid": 1, "address": parse(json.loads(
            '{"op": "start", "seq": 1, "namespace": "n", "id": "i", "bundle": "/b", '
            '"socket": "/s", "publish": "/p", "debug": false}')).address})
    try:
        for _ in range(rehearse.TIMES):
            starts.once(config)
        worker.rehearsal = config
    except Exception as error:  # it costs time, nothing else
        os.write(2, f"zygote: the rehearsal of a start failed: {error}\n".encode())
    sys._clear_type_cache()
    # Last, so that the interpreter's caches hold what a shim looks up: a worker rehearses
    # again, a shim does not, and what it replaces in them is memory of its own.
    try:
        rehearse.rehearse((main, child, start, daemon.leave_parent, daemon.adjust_oom_score,
                           daemon.prepare, Worker.__init__, Worker.foresee, k.clone, k.prctl))
    except Exception as error:  # as above
        os.write(2, f"zygote: the rehearsal of a shim failed: {error}\n".encode())


def child(control: Socket, packet: bytes, own: Socket | None) -> NoReturn:
    """The life of one shim, from the request to its end.

    A raw clone and not ``os.fork``, whose at-fork handlers cost half a
    millisecond and as much memory; see ``syscalls.clone`` for why that is safe.
    """
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        daemon.leave_parent(control.fileno(), *([own.fileno()] if own is not None else []))
        daemon.adjust_oom_score()
        helper: Worker | None = None
        shim: Shim | None = None
        if own is not None:
            helper = Worker(ahead=True)
            shim = daemon.prepare()
            packet = own.recv(PACKET_MAX)
            if packet:
                helper.foresee(packet)
        started = start(control, packet) if packet else None
        control.close()
        if own is not None:
            try:
                own.send(b"k")
            except OSError:
                pass  # the zygote is gone; the shim lives
            own.close()
        if started is not None:
            daemon.serve(*started, helper or Worker(), shim)
        code = 0
    finally:
        os._exit(code)


def start(control: Socket,
          packet: bytes) -> tuple[daemon.Config, Socket] | None:
    """Answer the request; None when it failed, and then nothing is left of it."""
    seq: object = None
    config: daemon.Config | None = None
    listener: Socket | None = None
    try:
        request = json.loads(packet)
        seq = request["seq"]
        config = parse(request)
        listener = daemon.open_listener(config)
        os.chdir(config.bundle)
        control.send(json.dumps({"seq": seq, "pid": os.getpid(),
                                 "address": config.address}).encode())
        return config, listener
    except Exception as error:
        text = f"missing {error}" if isinstance(error, KeyError) else str(error)
        if config is not None and listener is not None:
            os.unlink(config.socket)
        control.send(json.dumps({"seq": seq, "error": text or type(error).__name__}).encode())
        return None


def parse(request: dict[str, Any]) -> daemon.Config:
    if request["op"] != "start":
        raise ValueError(f"unknown operation {request['op']!r}")
    return daemon.Config(
        _text(request, "namespace"), _text(request, "id"), _text(request, "bundle"),
        _text(request, "socket"), str(request.get("publish", "")),
        bool(request.get("debug", False)))


def _text(request: dict[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"bad {name}: {value!r}")
    if name in ("bundle", "socket") and not value.startswith("/"):
        raise ValueError(f"{name} is not an absolute path: {value!r}")
    return value
