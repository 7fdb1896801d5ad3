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
from carrel.runtime import launch
from carrel.shim import daemon, heap, rehearse, starter
from carrel.shim.sockets import Socket, pair, receive_descriptors, send_descriptors
from carrel.shim.starter import IDLE
from carrel.shim.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from carrel.shim.service import Shim

CONTROL_FD = 3
PACKET_MAX = 65536
#: how many shims wait while starts follow each other, and how long nothing must have happened
#: before one is made
POOL_SIZE = 2
IDLE_MS = 20
#: after this long without a request one shim and one starter wait, not more: each holds
#: megabytes of its own
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
    mother = Mother(control)
    ready = select.poll()
    ready.register(control, select.POLLIN)
    starters = Starters(mother, ready)
    pool = Pool(mother, ready, starters)
    try:
        control.send(b'{"op": "ready"}')
        while True:
            found = ready.poll(pool.patience)
            if not found:
                pool.idle()
            for fd, _events in found:
                if fd in starters.busy:
                    lost = starters.said(fd)
                    if lost:
                        pool.give(lost, last=True)
                    continue
                if fd != CONTROL_FD:
                    pool.answered(fd)
                    continue
                packet = control.recv(PACKET_MAX)
                if not packet:
                    return 0
                pool.give(packet)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except TimeoutError:
        os.write(2, b"zygote: a clone did not answer\n")
        return 1


#: within which a clone must have told its pid
ANSWER_SECONDS = 10.0
SHIM, WAITING_SHIM, STARTER, WAITING_STARTER = b"s", b"S", b"t", b"T"


class Mother:
    """Where shims and starters are cloned: a process that does nothing else, because every
    page that it writes to between two clones is one that they do not share. So the clone
    itself takes what it gets, and tells its pid."""

    __slots__ = ("_bell", "_socket")

    def __init__(self, control: Socket) -> None:
        self._socket, theirs = pair()
        self._socket.settimeout(ANSWER_SECONDS)
        heard, self._bell = os.pipe2(os.O_CLOEXEC)
        with theirs:
            pid, pidfd = k.clone(0)
            if pid == 0:
                self._live(heard, theirs, control)
            os.close(pidfd)
        os.close(heard)

    def clone(self, what: bytes, end: Socket) -> int:
        """One that has this end of a socket; gives its pid."""
        send_descriptors(self._socket, what, [end.fileno()])
        os.write(self._bell, b"c")
        answer = self._socket.recv(16)
        if not answer:
            raise ConnectionResetError
        return int(answer)

    def _live(self, heard: int, theirs: Socket, control: Socket) -> NoReturn:
        try:
            # as a shim is to be: what it inherits it need not do
            daemon.leave_all(heard, theirs.fileno(), control.fileno())
            daemon.adjust_oom_score()
            daemon.ignore_signals()
            heap.leave_room(rehearse.run_container)
            if k.clone_at_each(heard):
                os.close(heard)
                child(theirs, control)
        finally:
            os._exit(0)


class Starters:
    """Processes that make one shim's container after the other (shim/starter.py). As many as
    are needed at once; they end with the zygote."""

    __slots__ = ("_idle", "_mother", "_ready", "busy")

    def __init__(self, mother: Mother, ready: select.poll) -> None:
        self._mother = mother
        self._ready = ready
        self._idle: list[Socket] = []
        #: each with the request that it was given
        self.busy: dict[int, tuple[Socket, bytes]] = {}

    def give(self, packet: bytes, shim: int, end: Socket, last: bool) -> None:
        """The request to one of them, with the end of a socket to the shim that is for it.
        ``last``: whoever gets it may have killed the one before."""
        while True:
            one = self._idle.pop() if self._idle else self._made(STARTER)
            try:
                send_descriptors(one, b"%d\0%b" % (shim, packet), [end.fileno()])
            except OSError:
                one.close()  # somebody killed it while it waited
                continue
            self.busy[one.fileno()] = one, b"" if last else packet
            self._ready.register(one, select.POLLIN)
            return

    def said(self, fd: int) -> bytes:
        """That it is idle, or that it ends; or it died: then its request is to be given to
        another. (If it was answered already, the second shim finds the first one's socket.)"""
        one, packet = self.busy.pop(fd)
        self._ready.unregister(fd)
        word = last_word(one)
        if word == IDLE:
            self._idle.append(one)
        else:
            one.close()
        return b"" if word else packet

    def lack(self) -> bool:
        return not self._idle and not self.busy

    def add(self) -> None:
        self._idle.append(self._made(WAITING_STARTER))

    def leave_one(self) -> None:
        while len(self._idle) + len(self.busy) > 1 and self._idle:
            self._idle.pop(0).close()   # it ends

    def _made(self, what: bytes) -> Socket:
        ours, theirs = pair()
        with theirs:
            self._mother.clone(what, theirs)
        return ours


class Pool:
    """Shims that were cloned ahead, while there was nothing to do, and wait for a
    request. They end with the zygote. Without one a start is slower, never wrong."""

    __slots__ = ("_given", "_lately", "_members", "_mother", "_ready", "_size", "_starters")

    def __init__(self, mother: Mother, ready: select.poll, starters: Starters) -> None:
        self._mother = mother
        self._ready = ready
        self._starters = starters
        self._members: list[tuple[int, Socket]] = []
        #: requests that were handed over and are not answered yet
        self._given: dict[int, tuple[Socket, bytes]] = {}
        #: how many shall wait; one for a single start now and then
        self._size = 1
        self._lately = False

    @property
    def patience(self) -> int | None:
        """Milliseconds without anything, and then :meth:`idle`."""
        if len(self._members) < self._size or self._starters.lack():
            return IDLE_MS
        return CALM_MS if self._lately else None

    def idle(self) -> None:
        if len(self._members) < self._size or self._starters.lack():
            if not busy():
                self.add()
            return
        self._lately, self._size = False, 1
        self._starters.leave_one()
        while len(self._members) > 1:
            self._members.pop(0)[1].close()     # it ends

    def add(self) -> None:
        if self._starters.lack():
            self._starters.add()
            return
        ours, theirs = pair()
        with theirs:
            self._members.append((self._mother.clone(WAITING_SHIM, theirs), ours))

    def give(self, packet: bytes, last: bool = False) -> None:
        """Hand a request to a starter, and to a waiting shim or to a new one."""
        if self._lately:
            self._size = POOL_SIZE
        self._lately = True
        ours, theirs = pair()
        with ours, theirs:
            self._starters.give(packet, self._shim(packet, ours), theirs, last)

    def _shim(self, packet: bytes, helper: Socket) -> int:
        """One with this socket to its starter; gives its pid."""
        while self._members:
            pid, member = self._members.pop()
            try:
                send_descriptors(member, b"s", [helper.fileno()])
            except OSError:
                member.close()  # somebody killed it while it waited
                continue
            self._given[member.fileno()] = member, packet
            self._ready.register(member, select.POLLIN)
            return pid
        return self._mother.clone(SHIM, helper)

    def answered(self, fd: int) -> None:
        """The shim says that it has its task; or it died before that."""
        member, packet = self._given.pop(fd)
        self._ready.unregister(fd)
        done = last_word(member)
        member.close()
        if not done:
            self.give(packet)


def last_word(end: Socket) -> bytes:
    """One byte; none from a process that died."""
    try:
        return end.recv(1)
    except ConnectionResetError:
        return b""


def busy() -> bool:
    """Are there more that want to run than processors?"""
    fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = os.read(fd, 128).split()[3].partition(b"/")[0]
    finally:
        os.close(fd)
    return int(running) > CPUS


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
    try:
        for _ in range(rehearse.TIMES):
            starts.once(config)
        starter.rehearsal = config
    except Exception as error:  # it costs time, nothing else
        os.write(2, f"zygote: the rehearsal of a start failed: {error}\n".encode())
    sys._clear_type_cache()
    # Last, so that the interpreter's caches hold what a shim looks up: a starter rehearses
    # again, a shim does not, and what it replaces in them is memory of its own.
    try:
        rehearse.rehearse(be_shim, (child, daemon.prepare, Worker.__init__, starter.Starter._bear,
                           launch.clone_into, launch.clone_single_threaded, k.clone, k.prctl))
    except Exception as error:  # as above
        os.write(2, f"zygote: the rehearsal of a shim failed: {error}\n".encode())


def child(told: Socket, control: Socket) -> NoReturn:
    """A new process. It is told what it is to be, with an end of a socket: of a starter that to
    the zygote, of a shim that to its starter; if it waits, over it that one will come.

    A raw clone and not ``os.fork``, whose at-fork handlers cost half a
    millisecond and as much memory; see ``syscalls.clone`` for why that is safe.
    """
    code = 1
    try:
        what, fds = receive_descriptors(told, 1, 1)
        told.send(b"%d" % os.getpid())
        told.close()
        end = Socket(fileno=fds[0])
        if what in (STARTER, WAITING_STARTER):
            starter.live(end, control, what == WAITING_STARTER)
        os.setsid()
        if what == SHIM:
            be_shim(control, end)
        else:
            shim = daemon.prepare()
            fds = receive_descriptors(end, 1, 1)[1]
            if fds:
                be_shim(control, Socket(fileno=fds[0]), shim, end)
        code = 0
    finally:
        os._exit(code)


def be_shim(control: Socket, helper: Socket, shim: Shim | None = None,
            waited: Socket | None = None) -> None:
    """What it is, the starter tells it."""
    packet, fds = receive_descriptors(helper, PACKET_MAX, 1)
    config: daemon.Config | None = None
    if packet:
        answer, *told = os.fsdecode(packet).split("\0")
        config = daemon.Config.told(told)
        os.chdir(config.bundle)
        control.send(answer.encode())
    control.close()
    if waited is not None:
        try:
            waited.send(b"k")
        except OSError:
            pass  # the zygote is gone; the shim lives
        waited.close()
    if config is not None:
        daemon.serve(config, Socket(fileno=fds[0]), helper, shim)
