"""What a shim will do, done once more by the zygote, to nobody's container.

CPython rewrites byte code and fills caches the first times that it runs a
function.  Done in a shim, that makes pages private that could be shared; done
here, before the fork, every shim has them for nothing.  The zygote plays
containerd to a shim in itself: requests and events over sockets, as in earnest.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import marshal
import os
import select

from carrel.kernel import syscalls as k
from carrel.runtime.mounts import new_filesystem
from carrel.shim.birth import Config, open_listener, write_file
from carrel.shim.jsonlog import JsonLog
from carrel.shim.log import Log
from carrel.shim.loop import Loop
from carrel.shim.oom import OomWatch
from carrel.shim.process import Process
from carrel.shim.schema import SCHEMAS
from carrel.shim.service import METHODS, SERVICES, Shim
from carrel.shim.sockets import Socket, pair, receive_descriptors, send_descriptors, unix
from carrel.shim.starter import BIRTH, Starter
from carrel.shim.stdio import Stdio, split_uri
from carrel.shim.ttrpc import REQUEST, RESPONSE, frame
from carrel.shim.wire import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from carrel.shim.wire import Message

#: CPython 3.11 specializes a function's byte code after eight calls
TIMES = 10
#: an answer or an event takes a few turns of the loop
_TURNS = 50
_ID = {"id": "rehearsal"}
_INIT = {**_ID, "exec_id": ""}
_CREATE: Message = {
    **_ID, "bundle": "not absolute", "stdin": "/i", "stdout": "/o", "stderr": "/e",
    "rootfs": [{"type": "overlay", "source": "overlay", "options": ["lowerdir=/a:/b"]}],
    "options": {"type_url": "containerd.runc.v1.Options", "value": b""}}
#: answered by errors, as there is no such container
_REFUSED: tuple[tuple[str, Message], ...] = (
    ("State", _ID), ("Start", _ID), ("Wait", _ID), ("Kill", {**_ID, "signal": 9}),
    ("Delete", _ID), ("Connect", _ID), ("Pids", _ID), ("Create", _CREATE))


def rehearse(be_shim: Callable[..., None], once: Iterable[Any] = ()) -> None:
    """Leaves nothing: no file, no handler, no descriptor. ``be_shim``: the zygote's; ``once``:
    functions that run once in a shim's life, and cannot be rehearsed."""
    for _ in range(TIMES):
        _one_life(be_shim)
    # CPython keeps what it found (or not) under a name, by type, in one table: a shim that looks
    # there for the first time copies the table's page, and the page of the name.
    for function in once:
        for name in function.__code__.co_names:
            getattr(os, name, None)
    for name in ("si_pid", "si_code", "si_status"):
        getattr(os.waitid_result, name)
    _one_life(be_shim)


def run_container() -> None:
    """What nearly every shim does until its container runs: for a clone that ends after it."""
    stage = _Stage()
    with _folder() as place:
        stage.start(place)
        stage.ask("Wait", _INIT, answered=False)


def _one_life(be_shim: Callable[..., None]) -> None:
    stage = _Stage()
    try:
        for method, message in _REFUSED:
            stage.ask(method, message)
        os.kill(os.getpid(), signal.SIGCHLD)
        stage.turn()
        _parts(stage.loop)
        with _folder() as place:
            _watch(stage.loop, place)
            _birth(place, be_shim)
            stage.start(place)
            stage.end()
    finally:
        stage.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _folder:  # noqa: N801  (reads as a statement)
    """A folder that nobody else can see."""

    def __init__(self) -> None:
        self._place = new_filesystem(k, "tmpfs", "rehearsal", (), (), 0)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._place}"

    def __exit__(self, *_error: object) -> None:
        os.close(self._place)


class _Stage:
    """A shim, and what containerd and the starter are to it."""

    def __init__(self) -> None:
        self.loop = Loop()
        listener = _listen()
        self._events = _listen()
        self._events.setblocking(False)
        self._told: Socket | None = None
        self._starter: Socket | None = None
        self._taken = 1
        self._asked = 1
        self._client = unix()
        self._client.connect(listener.getsockname())
        self._client.setblocking(False)
        self.shim = Shim(self.loop)
        self.shim.open(listener, "rehearsal", self._events.getsockname().decode(),
                       Log("/dev/null", "rehearsal"))

    def turn(self) -> None:
        """One turn of the loop, which waits for nothing, and the events that it told."""
        self.loop.call_soon(_nothing)
        self.loop.turn()
        self._make_what_is_asked()
        try:
            if self._told is None:
                self._told = self._events.accept()
                self._told.setblocking(False)
            while self._told.recv(65536):
                self._told.sendall(frame(self._taken, RESPONSE, encode(SCHEMAS["Response"], {})))
                self._taken += 2
        except BlockingIOError:
            pass

    def _make_what_is_asked(self) -> None:
        """As a starter does it; the process gets no plan, and ends."""
        if self._starter is None:
            return
        try:
            packet, fds = receive_descriptors(self._starter, 65536, 3)
        except BlockingIOError:
            return
        if packet.startswith(BIRTH):  # it has our descriptors until it ends
            gone = select.poll()
            gone.register(fds[0], select.POLLIN)
            gone.poll(1000)
        for fd in fds:
            os.close(fd)  # also its streams: what was captured of it is at its end
        if packet.startswith(BIRTH):
            space, kills = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.eventfd(0)
            send_descriptors(self._starter, marshal.dumps(
                {"pid": os.getpid(), "cgroup": {"memory": ""}, "shares_pids": False,
                 "console": False, "kills": True}), [space, kills])
            os.close(space)
            os.close(kills)
        elif fds:
            ours, theirs = pair()
            send_descriptors(self._starter, b"%b0 0 0" % BIRTH, [theirs.fileno()])
            ours.close()
            theirs.close()
        elif packet:
            self._starter.send(marshal.dumps({}))

    def ask(self, method: str, message: Message, answered: bool = True) -> None:
        request = {"service": SERVICES[self._asked // 2 % 2], "method": method,
                   "payload": encode(METHODS[method][0], message), "timeout_nano": 1,
                   "metadata": [{"key": "containerd-namespace-ttrpc", "value": "x"}]}
        self._client.sendall(frame(self._asked, REQUEST, encode(SCHEMAS["Request"], request)))
        self._asked += 2
        if answered:
            self.until(self._client_is_answered)
        else:
            self.turn()

    def _client_is_answered(self) -> bool:
        try:
            return bool(self._client.recv(65536))
        except BlockingIOError:
            return False

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(_TURNS):
            self.turn()
            if done():
                return
        raise RuntimeError("the rehearsal of a shim does not get on")

    def start(self, bundle: str) -> None:
        """A container that runs, with answers that lie ready where its starter would be."""
        ours, self._starter = pair()
        self._starter.setblocking(False)
        self.shim._starter = Starter(self.loop, ours)
        output = f"carrel://{bundle}/io.sock?log=json-file&path={bundle}/json.log"
        self.ask("Create", {**_CREATE, "bundle": bundle, "terminal": False, "stdin": "",
                            "stdout": output, "stderr": output, "checkpoint": ""})
        self.ask("Start", _INIT)

    def end(self) -> None:
        self.ask("Wait", _INIT, answered=False)
        gone = self.shim.containers["rehearsal"].init.gone
        assert gone is not None
        gone.resolve(0)
        self.until(self._client_is_answered)
        self.ask("Delete", _INIT)
        self.turn()

    def close(self) -> None:
        for end in (self._client, self._told, self._events, self._starter):
            if end is not None:
                end.close()
        self.loop.call_soon(_nothing)
        self.loop.turn()
        self.shim.server.close()
        self.shim.log.close()
        self.shim.reaper.close()
        self.loop.close()


def _listen() -> Socket:
    """At an abstract name that the kernel picks; nobody is told it."""
    listener = unix()
    listener.bind("")
    listener.listen(1)
    return listener


def _nothing() -> None:
    """So that a turn of the loop does not wait."""


def _birth(bundle: str, be_shim: Callable[..., None]) -> None:
    """A shim that is told who it is, and to end at once."""
    config = Config("rehearsal", "rehearsal", bundle, f"{bundle}/s", "")
    shim = Shim(Loop())
    shim.loop.call_soon(shim.loop.stop)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    control, daemon = pair()
    helper, starter = pair()
    waited, zygote = pair()
    with daemon, starter, zygote:
        with open_listener(config) as listener:
            send_descriptors(starter, os.fsencode("\0".join(["answer", *config.fields()])),
                             [listener.fileno()])
        be_shim(control, helper, shim, waited)
    os.fchdir(here)
    os.close(here)
    helper.close()
    shim.log.close()
    shim.reaper.close()
    shim.loop.close()


def _watch(loop: Loop, folder: str) -> None:
    """Files that stand for those of a cgroup."""
    for name in ("memory.oom_control", "memory.events", "cgroup.event_control"):
        write_file(f"{folder}/{name}", "oom_kill 0")
    for directories in ({"memory": folder}, {"": folder}):
        watch = OomWatch(loop, directories, _nothing, os.eventfd(0, os.EFD_CLOEXEC))
        watch.check()
        watch.close()


def _parts(loop: Loop) -> None:
    """What the requests above do not reach."""
    process = Process("", Stdio("", "", "", False))
    process.wait()
    process.go("running")
    process.set_exited(0)
    process.report()
    split_uri("carrel:///x?log=json-file&path=%2Fx")
    log = JsonLog("/dev/null", lambda _text: None)
    log.write(1, b"rehearsal\n")
    log.close()
    os.close(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
