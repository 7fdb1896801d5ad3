"""What a shim will do, done once more by the zygote, to nobody's container.

CPython rewrites byte code and fills caches the first times that it runs a
function.  Done in a shim, that makes pages private that could be shared; done
here, before the fork, every shim has them for nothing.  The zygote plays
containerd to a shim in itself: requests over a socket pair, answered by errors.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import os

from carrel.kernel import syscalls as k
from carrel.oci import json
from carrel.runtime.mounts import new_filesystem
from carrel.shim.events import Publisher
from carrel.shim.jsonlog import JsonLog
from carrel.shim.log import Log
from carrel.shim.loop import Loop, run
from carrel.shim.process import Process
from carrel.shim.schema import SCHEMAS
from carrel.shim.service import SERVICES, Shim
from carrel.shim.sockets import pair, receive_descriptors, unix
from carrel.shim.stdio import Stdio, split_uri
from carrel.shim.ttrpc import REQUEST, frame
from carrel.shim.wire import encode
from carrel.shim.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.shim.loop import Work
    from carrel.shim.wire import Message

#: CPython 3.11 specializes a function's byte code after eight calls
TIMES = 10
_ID = {"id": "rehearsal"}
_CREATE: Message = {
    **_ID, "bundle": "not absolute", "stdin": "/i", "stdout": "/o", "stderr": "/e",
    "rootfs": [{"type": "overlay", "source": "overlay", "options": ["lowerdir=/a:/b"]}],
    "options": {"type_url": "containerd.runc.v1.Options", "value": b""}}
_REQUESTS: tuple[tuple[str, str, Message], ...] = (
    ("State", "StateRequest", _ID), ("Start", "StartRequest", _ID), ("Wait", "WaitRequest", _ID),
    ("Kill", "KillRequest", {**_ID, "signal": 9}), ("Delete", "DeleteRequest", _ID),
    ("Connect", "ConnectRequest", _ID), ("Pids", "PidsRequest", _ID),
    ("Create", "CreateTaskRequest", _CREATE),
)


def rehearse() -> None:
    """Leaves nothing: no file, no handler, no descriptor."""
    for _ in range(TIMES):
        _one_life()


def _one_life() -> None:
    loop = Loop()
    listener = unix()
    listener.bind("")  # an abstract name that the kernel picks; nobody is told it
    listener.listen(1)
    shim = Shim(loop)
    shim.open(listener, "rehearsal", "", Log("/dev/null", "rehearsal"))
    client = unix()
    try:
        client.connect(listener.getsockname())
        loop.turn()
        for number, (method, schema, message) in enumerate(_REQUESTS):
            request = {"service": SERVICES[number % 2], "method": method,
                       "payload": encode(SCHEMAS[schema], message), "timeout_nano": 1,
                       "metadata": [{"key": "containerd-namespace-ttrpc", "value": "x"}]}
            client.sendall(frame(2 * number + 1, REQUEST, encode(SCHEMAS["Request"], request)))
            loop.turn()
            client.recv(65536)
        _parts(loop)
        _container(shim)
    finally:
        client.close()
        loop.turn()
        shim.server.close()
        shim.reaper.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        loop.close()


def _container(shim: Shim) -> None:
    """A container's life, in a folder that nobody else can see, with answers that lie
    ready where its worker would be."""
    try:
        place = new_filesystem(k, "tmpfs", "rehearsal", (), (), 0)
    except OSError:
        return  # not root
    loop, bundle = shim.loop, f"/proc/self/fd/{place}"
    worker = Worker.__new__(Worker)
    worker._socket, theirs = pair()
    shim._worker = worker
    output = f"carrel://{bundle}/io.sock?log=json-file&path={bundle}/json.log"
    request = {**_CREATE, "bundle": bundle, "terminal": False, "stdin": "", "stdout": output,
               "stderr": output, "checkpoint": ""}
    init = {"id": "rehearsal", "exec_id": ""}
    try:
        for answer in ({"pid": os.getpid(), "cgroup": {}, "shares_pids": False}, {}):
            theirs.send(json.dumps(answer).encode())
        _through(loop, shim.create(request))
        for fd in receive_descriptors(theirs, 65536, 3)[1]:
            os.close(fd)  # the process would have ended: its output is at its end
        _through(loop, shim.start(init))
        waiting = run(shim.wait(init))
        gone = shim.containers["rehearsal"].init.gone
        assert gone is not None
        gone.resolve(0)
        while not waiting.done:
            loop.turn()
        loop.call_soon(lambda: None)
        loop.turn()  # what was put off until after the answer
        _through(loop, shim.delete(init))
    finally:
        theirs.close()
        os.close(place)


def _through(loop: Loop, work: Work) -> None:
    done = run(work)
    while not done.done:
        loop.turn()
    if done.error is not None:
        raise done.error


def _parts(loop: Loop) -> None:
    """What the requests above do not reach."""
    publisher = Publisher(loop, "/nonexistent/rehearsal", "rehearsal", lambda _text: None)
    publisher.publish("TaskExit", {"container_id": "rehearsal", "id": "rehearsal", "pid": 1,
                                   "exit_status": 0, "exited_at": {"seconds": 1, "nanos": 1}})
    loop.turn()
    publisher.close()
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
