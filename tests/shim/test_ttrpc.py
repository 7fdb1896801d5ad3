"""Framing, errors and states, without a container."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.proto import shim_v2_pb2 as task
from carrel.shim import loop as poll
from carrel.shim import process as states
from carrel.shim.schema import SCHEMAS
from carrel.shim.sockets import listen
from carrel.shim.stdio import Stdio, split_uri
from carrel.shim.ttrpc import MESSAGE_MAX, Server, status_of
from tests.shim.kit import Client, Response, RpcError

NAME = "containerd.task.v2.Task"


class Echo:
    """A server in a thread with a few methods that are enough to see the rules."""

    def __init__(self, path: str) -> None:
        self.loop = poll.Loop()
        self.held: list[poll.Later] = []
        empty = SCHEMAS["Empty"]
        start = SCHEMAS["StartRequest"]
        self.server = Server(self.loop, listen(path), {NAME: {
            "Start": (start, SCHEMAS["StartResponse"], lambda _, r: {"pid": len(r["id"])}),
            "Kill": (start, empty, self._missing),
            "Update": (start, empty, self._bug),
            "Wait": (start, SCHEMAS["WaitResponse"], self._hold),
            "Resume": (start, empty, self._release),
        }}, self)
        self._running = True
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def _missing(self, _owner: object, _request: object) -> object:
        raise errdefs.NotFound("process already finished")

    def _bug(self, _owner: object, _request: object) -> object:
        raise RuntimeError("oh")

    def _hold(self, _owner: object, _request: object) -> poll.Work:
        self.held.append(poll.Later())
        return (yield self.held[-1])

    def _release(self, _owner: object, _request: object) -> object:
        for later in self.held:
            later.resolve({"exit_status": 3, "exited_at": None})
        return {}

    def stop(self) -> None:
        self.loop.stop()
        with socket.socket(socket.AF_UNIX) as wake, pytest.MonkeyPatch.context():
            wake.connect(self.path)
        self.thread.join(5)
        self.server.close()
        self.loop.close()

    path = ""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "s")
    made = Echo(path)
    made.path = path
    yield path
    made.stop()


def start(text: str = "abc") -> task.StartRequest:
    return task.StartRequest(id=text)


def test_call(echo: str) -> None:
    assert os.stat(echo).st_mode & 0o777 == 0o600
    client = Client(echo)
    assert client.call("Start", start(), task.StartResponse).pid == 3
    assert client.call("Start", start("x" * 100000), task.StartResponse).pid == 100000


def test_errors_have_their_code_and_text(echo: str) -> None:
    client = Client(echo)
    with pytest.raises(RpcError, match=r"^5: process already finished: not found$"):
        client.call("Kill", start())
    with pytest.raises(RpcError, match=r"^2: RuntimeError: oh$"):
        client.call("Update", start())
    with pytest.raises(RpcError, match=r"^12: method Nope$"):
        client.call("Nope", start())
    client.service = "x.Y"
    with pytest.raises(RpcError, match=r"^12: service x\.Y$"):
        client.call("Start", start())


def test_answers_come_in_any_order(echo: str) -> None:
    client, other = Client(echo), Client(echo)
    first = client.send("Wait", start())
    second = other.send("Wait", start())
    assert client.call("Start", start(), task.StartResponse).pid == 3
    other.call("Resume", start())
    assert task.WaitResponse.FromString(client.receive(first)).exit_status == 3
    assert task.WaitResponse.FromString(other.receive(second)).exit_status == 3


def test_a_client_that_leaves_before_its_answer(echo: str) -> None:
    client = Client(echo)
    client.send("Wait", start())
    client.close()
    other = Client(echo)
    other.call("Resume", start())
    assert other.call("Start", start(), task.StartResponse).pid == 3


def test_frames_in_pieces_and_in_one_piece(echo: str) -> None:
    from tests.shim.kit import HEADER, Request
    body = Request(service=NAME, method="Start",
                   payload=start().SerializeToString()).SerializeToString()
    frames = b"".join(HEADER.pack(len(body), n, 1, 0) + body for n in (1, 3, 5))
    client = Client(echo)
    for byte in frames[:30]:
        client._socket.sendall(bytes((byte,)))
    client._socket.sendall(frames[30:])
    for stream in (1, 3, 5):
        assert task.StartResponse.FromString(client.receive(stream)).pid == 3


@pytest.mark.parametrize(("stream", "kind", "code", "what"), [
    (2, 1, 3, "must be odd"), (1, 9, 3, "unexpected message type"),
], ids=["even stream", "type"])
def test_bad_frames_are_answered(echo: str, stream: int, kind: int, code: int,
                                 what: str) -> None:
    client = Client(echo)
    client.raw(stream, kind, b"")
    with pytest.raises(RpcError, match=what) as caught:
        client.receive(stream)
    assert caught.value.code == code


def test_garbage_hurts_only_its_own_request(echo: str) -> None:
    client = Client(echo)
    client.raw(1, 1, b"\xff\xff\xff")
    with pytest.raises(RpcError):
        client.receive(1)
    client._stream = 1
    assert client.call("Start", start(), task.StartResponse).pid == 3
    client.raw(3, 1, b"")
    with pytest.raises(RpcError, match="re-used"):
        client.receive(3)


def test_a_message_that_is_too_large(echo: str) -> None:
    client = Client(echo)
    client.raw(1, 1, b"x" * 100, length=MESSAGE_MAX + 1)
    with pytest.raises(RpcError, match="exceed maximum message size") as caught:
        client.receive(1)
    assert caught.value.code == 8
    client._socket.sendall(b"x" * (MESSAGE_MAX + 1 - 100))
    client._stream = 1
    assert client.call("Start", start(), task.StartResponse).pid == 3


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listen(path).close()
    second = listen(path)
    with pytest.raises(OSError, match="in use"):
        listen(path)
    second.close()


def test_response_of_success_has_no_error(echo: str) -> None:
    client = Client(echo)
    stream = client.send("Start", start())
    while stream not in client._answers:
        from tests.shim.kit import HEADER
        length, got, _, _ = HEADER.unpack(client._exactly(HEADER.size))
        client._answers[got] = client._exactly(length)
    assert Response.FromString(client._answers[stream]).status.code == 0


@pytest.mark.parametrize(("error", "status"), [
    (errdefs.SystemFailure("OCI runtime create failed: x"), (2, "OCI runtime create failed: x")),
    (errdefs.AlreadyExists("id e"), (6, "id e: already exists")),
    (errdefs.NotImplementedYet("checkpoint"), (12, "checkpoint: not implemented")),
    (FileNotFoundError(2, "No such file or directory", "/x"),
     (2, "no such file or directory '/x'")),
])
def test_status(error: Exception, status: tuple[int, str]) -> None:
    assert status_of(error) == status


# ---- states ----------------------------------------------------------------

REFUSED = {
    "created": {"pause", "resume"},
    "running": {"start", "delete", "resume"},
    "paused": {"start", "delete", "pause", "exec"},
    "stopped": {"start", "pause", "resume", "update", "exec", "resize", "kill"},
    "deleted": {"start", "pause", "resume", "update", "exec", "resize", "kill", "delete"},
}
OPERATIONS = sorted({operation for row in REFUSED.values() for operation in row})


@pytest.mark.parametrize("state", REFUSED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_each_state_refuses(state: str, operation: str) -> None:
    kind = states._STATES[state]
    if operation in REFUSED[state]:
        with pytest.raises((errdefs.Conflict, errdefs.NotFound)) as caught:
            kind.check(operation)
        assert (operation == "kill" or state == "deleted") == isinstance(
            caught.value, errdefs.NotFound)
    else:
        kind.check(operation)


def test_transitions() -> None:
    process = states.Process("", Stdio("", "", "", False))
    process.go("running")
    process.go("paused")
    process.go("running")
    with pytest.raises(errdefs.SystemFailure, match='"running" to "deleted"'):
        process.go("deleted")
    told: list[str] = []
    process.wait().then(lambda _later: told.append("exit"))
    process.set_exited(7)
    assert process.exit_status == 7
    assert told == []
    process.report()
    assert told == ["exit"]
    assert process.wait().done


@pytest.mark.parametrize(("uri", "parts"), [
    ("/a/b", ("fifo", "/a/b", {})),
    ("file:///a%20b", ("file", "/a b", {})),
    ("binary:///x?a=1&b=%26%3D&a=2", ("binary", "/x", {"a": "1", "b": "&="})),
    ("carrel:///s?extra=%7B%22t%22%3A%22%C3%BC%22%7D&bad=%zz",
     ("carrel", "/s", {"extra": '{"t":"ü"}', "bad": "%zz"})),
])
def test_uris(uri: str, parts: tuple[str, str, dict[str, str]]) -> None:
    assert split_uri(uri) == parts


# ---- the loop --------------------------------------------------------------

def test_later_and_lock() -> None:
    lock, order = poll.Lock(), []
    gate = poll.Later()

    def work(name: str) -> poll.Work:
        yield from lock.acquire()
        try:
            order.append(f"{name} in")
            yield gate
            order.append(f"{name} out")
        finally:
            lock.release()
        return name

    first, second = poll.run(work("a")), poll.run(work("b"))
    assert order == ["a in"]
    gate.resolve()
    assert order == ["a in", "a out", "b in", "b out"]
    assert (first.value, second.value) == ("a", "b")


def test_an_error_is_thrown_into_the_waiting_work() -> None:
    gate = poll.Later()

    def work() -> poll.Work:
        try:
            yield gate
        except ValueError as error:
            return f"caught {error}"

    result = poll.run(work())
    gate.fail(ValueError("x"))
    assert result.value == "caught x"


def test_timers_run_in_order() -> None:
    loop, order = poll.Loop(), []
    loop.call_later(0.02, lambda: order.append("late"))
    loop.call_later(0.0, lambda: order.append("early"))
    cancelled = loop.call_later(0.01, lambda: order.append("never"))
    cancelled.cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    loop.close()
    assert order == ["early", "late"]


# ---- events ----------------------------------------------------------------

def test_the_event_queue_is_bounded_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    from carrel.shim.events import QUEUE_MAX, Publisher
    from tests.shim.kit import EventSink
    warnings: list[str] = []
    loop = poll.Loop()
    path = str(tmp_path / "events")
    publisher = Publisher(loop, path, "n", warnings.append)
    for number in range(QUEUE_MAX + 5):
        publisher.publish("TaskStart", {"container_id": "c", "pid": number})
    assert publisher.dropped == len(warnings) == 5
    sink = EventSink(path)
    while not publisher.empty:
        loop.turn()
    assert [e.pid for _, e in sink.events] == list(range(5, QUEUE_MAX + 5))
    publisher.close()
    sink.close()
    loop.close()


def test_events_that_are_refused_are_dropped_in_the_end(tmp_path: Path) -> None:
    from carrel.shim.events import REFUSALS_MAX, Publisher
    warnings: list[str] = []
    loop = poll.Loop()
    refused: list[object] = []

    def refuse(_owner: object, request: object) -> object:
        refused.append(request)
        raise errdefs.NotFound("no such namespace")

    forward = SCHEMAS["ForwardRequest"]
    server = Server(loop, listen(str(tmp_path / "e")), {
        "containerd.services.events.ttrpc.v1.Events": {
            "Forward": (forward, SCHEMAS["Empty"], refuse)}}, None)
    publisher = Publisher(loop, str(tmp_path / "e"), "n", warnings.append)
    publisher.publish("TaskOOM", {"container_id": "c"})
    while not publisher.empty:
        loop.turn()
    assert len(refused) == REFUSALS_MAX
    assert warnings == ["event refused and dropped: no such namespace: not found"]
    publisher.close()
    server.close()
    loop.close()


def test_a_handler_that_fails_is_not_called_without_end() -> None:
    loop = poll.Loop()
    errors: list[Exception] = []
    loop.on_error = errors.append
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def broken(_events: int) -> None:
        raise ValueError("always")

    loop.add(reader, poll.IN, broken)
    loop.call_later(0.1, loop.stop)
    loop.run()
    assert len(errors) == 1
    loop.close()
    os.close(reader)
    os.close(writer)
