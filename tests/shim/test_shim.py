"""A shim from the zygote with our own runtime: processes, streams, exits, events."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from carrel.proto import shim_v2_pb2 as task
from tests.shim.kit import Client, Machine, RpcError, Shim, machine_in, wait_until, waiting

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def machine(leak_check: None) -> Iterator[Machine]:
    # a short path: a socket's may have 107 bytes
    with tempfile.TemporaryDirectory(prefix="shim-") as folder, machine_in(Path(folder)) as made:
        yield made


def fifos(machine: Machine, *names: str) -> list[str]:
    paths = []
    for name in names:
        path = str(machine.folder / f"{name}.fifo")
        os.mkfifo(path)
        paths.append(path)
    return paths


def reader(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def carrel_uri(machine: Machine, name: str, **options: str) -> tuple[str, Path]:
    log = machine.folder / f"{name}-json.log"
    query = {"log": "json-file", "path": str(log), **options}
    text = "&".join(f"{k}={quote(v, safe='')}" for k, v in query.items())
    return f"carrel://{machine.folder}/io/{name}.sock?{text}", log


def logged(log: Path, stream: str = "stdout") -> str:
    with log.open(encoding="utf-8", newline="\n") as file:
        entries = [json.loads(line) for line in file]
    return "".join(e["log"] for e in entries if e["stream"] == stream)


class Attach:
    """A client of the attach socket."""

    def __init__(self, machine: Machine, name: str, *, stdin: bool = False) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(machine.folder / "io" / f"{name}.sock"))
        wants = {"stdin": stdin, "stdout": True, "stderr": True}
        self.socket.sendall(json.dumps(wants).encode() + b"\n")
        assert self.exactly(3) == b"ok\n"

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, f"closed after {data!r}"
            data += more
        return data

    def frame(self) -> tuple[int, bytes] | None:
        first = self.socket.recv(1)
        if not first:
            return None
        size = struct.unpack(">I", self.exactly(7)[3:])[0]
        return first[0], self.exactly(size)

    def rest(self) -> dict[int, bytes]:
        """Everything until the shim closes the connection, by stream."""
        found = {1: b"", 2: b""}
        while (frame := self.frame()) is not None:
            found[frame[0]] += frame[1]
        return found


# ---- life ------------------------------------------------------------------

def test_a_life(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sh", "-c", "exit 7"])
    pid = shim.create()
    assert shim.state().status == 1
    assert shim.start() == pid
    assert shim.wait() == 7
    state = shim.state()
    assert (state.status, state.exit_status, state.pid, state.id) == (3, 7, pid, "a")
    assert state.exited_at.seconds > 1_700_000_000
    with pytest.raises(RpcError, match="5: process already finished: not found"):
        shim.kill()
    answer = shim.delete()
    assert (answer.exit_status, answer.pid) == (7, pid)
    with pytest.raises(RpcError, match="5: container not created: not found"):
        shim.state()
    machine.sink.wait("/tasks/delete")
    assert machine.sink.topics == ["/tasks/create", "/tasks/start", "/tasks/exit",
                                   "/tasks/delete"]
    event = machine.sink.wait("/tasks/exit")
    assert (event.container_id, event.id, event.pid, event.exit_status) == ("a", "a", pid, 7)
    shim.shutdown()
    wait_until(lambda: not os.path.exists(f"/proc/{shim.pid}"))
    assert not os.path.exists(shim.path)


def test_the_shortest_life_keeps_its_order(machine: Machine) -> None:
    for number in range(8):
        shim = machine.start_shim(f"s{number}", ["true"])
        shim.create()
        wait = shim.client.send("Wait", task.WaitRequest(id=shim.id))
        shim.start()
        assert task.WaitResponse.FromString(shim.client.receive(wait)).exit_status == 0
        shim.delete()
    wait_until(lambda: machine.sink.topics.count("/tasks/delete") == 8)
    for number in range(8):
        mine = [t for t, e in machine.sink.events if e.container_id == f"s{number}"]
        assert mine == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_what_is_refused(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    with pytest.raises(RpcError, match="5: container not created: not found"):
        shim.start()
    shim.create()
    with pytest.raises(RpcError, match="6: container a: already exists"):
        shim.create()
    with pytest.raises(RpcError, match="9: cannot pause task in created state"):
        shim.client.call("Pause", task.PauseRequest(id="a"))
    shim.start()
    with pytest.raises(RpcError, match="9: cannot delete a running process"):
        shim.delete()
    with pytest.raises(RpcError, match="9: cannot start a running process"):
        shim.start()
    with pytest.raises(RpcError, match="5: process does not exist x: not found"):
        shim.state("x")
    with pytest.raises(RpcError, match="12: checkpoint of a container: not implemented"):
        shim.client.call("Checkpoint", task.CheckpointTaskRequest(id="a"))
    shim.shutdown()  # with a task left it stays
    assert shim.state().status == 2
    shim.kill()
    assert shim.wait() == 137


def test_created_and_deleted_without_a_start(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    assert shim.delete().exit_status == 137
    shim.shutdown()


def test_a_failed_create_leaves_nothing(machine: Machine) -> None:
    shim = machine.start_shim("a", ["/does/not/exist"])
    with pytest.raises(RpcError, match=r"OCI runtime (create|start) failed: .*no such file"):
        shim.create()
        shim.start()
    shim.destroy()
    machine.shims.clear()
    assert not (machine.folder / "runtime/test/a").exists()


def test_pause_resume_update_pids_stats(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    pid = shim.create()
    shim.start()
    shim.client.call("Pause", task.PauseRequest(id="a"))
    assert shim.state().status == 4
    with pytest.raises(RpcError, match="cannot exec in a paused state"):
        shim.exec("e", ["true"])
    shim.client.call("Resume", task.ResumeRequest(id="a"))
    request = task.UpdateTaskRequest(id="a")
    request.resources.value = json.dumps({"pids": {"limit": 77}}).encode()
    shim.client.call("Update", request)
    pids = shim.client.call("Pids", task.PidsRequest(id="a"), task.PidsResponse)
    assert [p.pid for p in pids.processes] == [pid]
    stats = shim.client.call("Stats", task.StatsRequest(id="a"), task.StatsResponse).stats
    assert stats.type_url in ("io.containerd.cgroups.v1.Metrics",
                              "io.containerd.cgroups.v2.Metrics")
    from carrel.shim.schema import SCHEMAS
    from carrel.shim.wire import decode
    version = "v1" if ".v1." in stats.type_url else "v2"
    sample = decode(SCHEMAS[f"{version}.Metrics"], stats.value)
    assert sample["pids"] == {"current": 1, "limit": 77}
    usage = sample["memory"]["usage"]
    assert (usage["usage"] if version == "v1" else usage) > 0
    machine.sink.wait("/tasks/paused")
    machine.sink.wait("/tasks/resumed")


# ---- exec ------------------------------------------------------------------

def test_exec(machine: Machine) -> None:
    out, = fifos(machine, "out")
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    fd = reader(out)
    shim.exec("e1", ["sh", "-c", "echo hello; exit 3"], stdout=out)
    assert shim.state("e1").status == 1
    pid = shim.start("e1")
    assert shim.wait("e1") == 3
    assert read_all(fd) == b"hello\n"
    assert shim.delete("e1").exit_status == 3
    with pytest.raises(RpcError, match="does not exist e1"):
        shim.state("e1")
    machine.sink.wait("/tasks/exit")
    assert machine.sink.topics[2:] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert machine.sink.wait("/tasks/exit").pid == pid
    shim.exec("e2", ["/nothing"])
    with pytest.raises(RpcError, match=r"OCI runtime exec failed: exec failed: .*no such file"):
        shim.start("e2")
    shim.delete("e2")
    with pytest.raises(RpcError, match="3: bad exec id"):
        shim.exec("../x", ["true"])


def test_an_exec_may_be_started_long_after_it_was_announced(machine: Machine) -> None:
    """Its worker waits for it, and not for ever; and the newest announcement has the worker."""
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    alone = 1  # init, when the worker that started it is gone
    wait_until(lambda: len(children(shim.pid)) == alone)
    socket = str(machine.folder / "io.sock")
    for name in ("e1", "e2"):
        shim.exec(name, ["sh", "-c", f"exit {len(name)}"], stdout=f"carrel://{socket}-{name}")
    wait_until(lambda: len(children(shim.pid)) == alone + 1)
    wait_until(lambda: len(children(shim.pid)) == alone, seconds=10)
    for name in ("e2", "e1"):
        shim.start(name)
        assert shim.wait(name) == 2
        shim.delete(name)
    wait_until(lambda: len(children(shim.pid)) == alone)


def test_an_announced_exec_of_a_container_that_was_paused_meanwhile(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    shim.exec("e", ["true"], stdout=f"carrel://{machine.folder}/io.sock")
    shim.client.call("Pause", task.PauseRequest(id="a"))
    with pytest.raises(RpcError, match=r"not running|paused"):
        shim.start("e")
    shim.client.call("Resume", task.ResumeRequest(id="a"))
    shim.kill()
    assert shim.wait() == 137


def test_the_exit_of_init_is_the_last(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    for number in range(3):
        shim.exec(f"e{number}", ["sleep", "100"])
        shim.start(f"e{number}")
    shim.kill()
    assert shim.wait() == 137
    wait_until(lambda: machine.sink.topics.count("/tasks/exit") == 4)
    exits = [e.id for t, e in machine.sink.events if t == "/tasks/exit"]
    assert sorted(exits[:3]) == ["e0", "e1", "e2"]
    assert exits[3] == "a"
    with pytest.raises(RpcError, match="9: cannot exec in a stopped state"):
        shim.exec("late", ["true"])


def test_kill_an_exec(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    shim.exec("e", ["sleep", "100"])
    with pytest.raises(RpcError, match="9: process not created"):
        shim.kill(exec_id="e")
    shim.start("e")
    shim.kill(15, exec_id="e")
    assert shim.wait("e") == 143
    assert shim.state().status == 2


# ---- streams ---------------------------------------------------------------

def test_fifos(machine: Machine) -> None:
    stdin, out, err = fifos(machine, "in", "out", "err")
    shim = machine.start_shim("a", ["sh", "-c", "cat; echo problem >&2"])
    fds = reader(out), reader(err)
    shim.create(stdin=stdin, stdout=out, stderr=err)
    shim.start()
    with open(stdin, "wb") as writer:
        writer.write(b"x" * 200_000)
    time.sleep(0.05)
    assert shim.state().status == 2  # the client went away; that is not the end of stdin
    shim.client.call("CloseIO", task.CloseIORequest(id="a", stdin=True))
    assert read_all(fds[0]) == b"x" * 200_000
    assert read_all(fds[1]) == b"problem\n"
    assert shim.wait() == 0


def test_a_fifo_without_a_reader_blocks_nobody_else(machine: Machine) -> None:
    out, = fifos(machine, "out")
    shim = machine.start_shim("a", ["sh", "-c", "yes | head -c 200000; sleep 100"])
    shim.create(stdout=out)
    shim.start()
    time.sleep(0.1)
    assert shim.state().status == 2
    fd = reader(out)
    shim.kill()
    assert shim.wait() == 137
    assert len(read_all(fd)) >= 65536


def test_file_uri(machine: Machine) -> None:
    log = machine.folder / "logs" / "out"
    shim = machine.start_shim("a", ["sh", "-c", "echo out; echo err >&2; yes | head -c 300000"])
    shim.create(stdout=f"file://{log}", stderr=f"file://{log}")
    shim.start()
    assert shim.wait() == 0
    text = log.read_bytes()
    assert sorted(text[:8].split()) == [b"err", b"out"] or b"err\n" in text
    assert text.count(b"y\n") == 150000


def test_logger_program(machine: Machine) -> None:
    logger = machine.folder / "logger"
    result = machine.folder / "result"
    logger.write_text('#!/bin/sh\necho "$CONTAINER_ID $CONTAINER_NAMESPACE $1=$2" > '
                      f'{result}.part\nexec 5>&-\ncat <&3 >> {result}.part\n'
                      f'cat <&4 >> {result}.part\nmv {result}.part {result}\n')
    logger.chmod(0o755)
    shim = machine.start_shim("a", ["sh", "-c", "echo out; echo err >&2"])
    uri = f"binary://{logger}?key=value"
    shim.create(stdout=uri, stderr=uri)
    shim.start()
    assert shim.wait() == 0
    wait_until(result.exists)
    assert result.read_text() == "a test key=value\nout\nerr\n"


def test_unknown_scheme(machine: Machine) -> None:
    shim = machine.start_shim("a", ["true"])
    with pytest.raises(RpcError, match="3: unknown STDIO scheme ftp"):
        shim.create(stdout="ftp:///x")


def test_terminal(machine: Machine) -> None:
    stdin, out = fifos(machine, "in", "out")
    shim = machine.start_shim("a", ["sh", "-c", "read line; echo got $line; stty size"],
                              terminal=True)
    fd = reader(out)
    shim.create(stdin=stdin, stdout=out, terminal=True)
    shim.client.call("ResizePty", task.ResizePtyRequest(id="a", width=91, height=33))
    shim.start()
    with open(stdin, "wb") as writer:
        writer.write(b"hi\n")
    assert shim.wait() == 0
    assert read_all(fd) == b"hi\r\ngot hi\r\n33 91\r\n"


def test_exec_with_a_terminal(machine: Machine) -> None:
    stdin, out = fifos(machine, "in", "out")
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    fd = reader(out)
    shim.exec("e", ["sh", "-c", "test -t 0 && cat"], terminal=True, stdin=stdin, stdout=out)
    shim.start("e")
    with open(stdin, "wb") as writer:
        writer.write(b"x\n\x04")  # ^D ends the input of a terminal
        writer.flush()
        assert shim.wait("e") == 0
    assert read_all(fd).endswith(b"x\r\nx\r\n")


# ---- our own streams -------------------------------------------------------

def test_log_and_attach(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a", extra='{"tag":"t"}')
    shim = machine.start_shim("a", ["sh", "-c", "echo out; echo err >&2; printf partial"])
    shim.create(stdout=uri, stderr=uri)
    client = Attach(machine, "a")
    shim.start()
    assert client.rest() == {1: b"out\npartial", 2: b"err\n"}
    assert shim.wait() == 0
    assert logged(log) == "out\npartial"
    assert logged(log, "stderr") == "err\n"
    assert '"attrs":{"tag":"t"}' in log.read_text()
    assert Attach(machine, "a").rest() == {1: b"", 2: b""}  # late: only the end
    shim.delete()
    assert not (machine.folder / "io/a.sock").exists()


def test_attached_stdin(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a", **{"stdin-once": "1"})
    shim = machine.start_shim("a", ["cat"])
    shim.create(stdin=uri, stdout=uri, stderr=uri)
    assert os.stat(machine.folder / "io/a.sock").st_mode & 0o777 == 0o600
    client, watcher = Attach(machine, "a", stdin=True), Attach(machine, "a")
    shim.start()
    client.socket.sendall(b"one\n")
    assert client.frame() == (1, b"one\n")
    watcher.socket.shutdown(socket.SHUT_WR)  # it has no stdin to end
    client.socket.sendall(b"two\n" * 100_000)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.rest()[1] == b"two\n" * 100_000
    assert shim.wait() == 0
    assert watcher.rest()[1] == b"one\n" + b"two\n" * 100_000
    assert logged(log) == "one\n" + "two\n" * 100_000


def test_attached_terminal_is_raw(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a")
    shim = machine.start_shim("a", ["sh", "-c", "read x; echo got $x"], terminal=True)
    shim.create(stdin=uri, stdout=uri, terminal=True)
    client = Attach(machine, "a", stdin=True)
    shim.start()
    client.socket.sendall(b"hi\n")
    data = b""
    while more := client.socket.recv(4096):
        data += more
    assert data == b"hi\r\ngot hi\r\n"
    assert shim.wait() == 0
    assert logged(log) == "hi\r\ngot hi\r\n"


def test_what_is_typed_before_an_exec_has_its_terminal_is_kept(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    uri = f"carrel://{machine.folder}/io/e.sock"
    shim.exec("e", ["sh", "-c", "read x; read y; echo got $x $y"], terminal=True,
              stdin=uri, stdout=uri)
    client = Attach(machine, "e", stdin=True)
    client.socket.sendall(b"one\n")
    shim.state("e")  # another request is answered: the first line has arrived long ago
    time.sleep(0.05)
    shim.start("e")
    client.socket.sendall(b"two\n")
    data = b""
    while more := client.socket.recv(4096):
        data += more
    assert b"got one two" in data
    assert shim.wait("e") == 0


def test_a_client_that_does_not_read_holds_only_its_own_container(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a")
    shim = machine.start_shim("a", ["sh", "-c", "yes 0123456789abcde | head -c 8000000"])
    shim.create(stdout=uri, stderr=uri)
    slow = Attach(machine, "a")
    shim.start()
    wait_until(lambda: log.stat().st_size > 500_000)

    def rests() -> bool:
        size = log.stat().st_size
        time.sleep(0.5)
        return log.stat().st_size == size
    wait_until(rests)
    assert shim.state().status == 2
    assert slow.rest()[1] == b"0123456789abcde\n" * 500_000
    assert shim.wait() == 0
    assert logged(log) == "0123456789abcde\n" * 500_000


def test_a_client_that_is_killed_frees_the_container(machine: Machine) -> None:
    uri, _ = carrel_uri(machine, "a")
    shim = machine.start_shim("a", ["sh", "-c", "yes 0123456789abcde | head -c 8000000"])
    shim.create(stdout=uri, stderr=uri)
    slow = Attach(machine, "a")
    shim.start()
    time.sleep(0.3)
    slow.socket.close()
    assert shim.wait() == 0


def test_a_flood_is_byte_exact(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a")
    count = 200_000
    script = f"i=0; while [ $i -lt {count // 1000} ]; do cat /tmp/block; i=$((i+1)); done"
    shim = machine.start_shim("a", ["sh", "-c", script])
    block = b"".join(b'line %d <"\\>\t\xc3\xa9\n' % i for i in range(1000))
    (shim.bundle / "rootfs/tmp/block").write_bytes(block)
    shim.create(stdout=uri, stderr=uri)
    shim.start()
    assert shim.wait() == 0
    text = logged(log).encode()
    assert hashlib.sha256(text).digest() == hashlib.sha256(block * (count // 1000)).digest()


def test_a_bad_greeting_is_refused(machine: Machine) -> None:
    uri, _ = carrel_uri(machine, "a")
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create(stdout=uri, stderr=uri)
    for greeting in (b"nonsense\n", b"[]\n", b"x" * 5000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(machine.folder / "io/a.sock"))
            client.sendall(greeting)
            assert client.recv(100).startswith(b"error: ")
            assert client.recv(100) == b""
    assert shim.state().status == 1


def test_output_that_another_process_keeps_open(machine: Machine) -> None:
    uri, log = carrel_uri(machine, "a")
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create(stdout=uri, stderr=uri)
    shim.start()
    exec_uri = f"carrel://{machine.folder}/io/e.sock"
    shim.exec("e", ["sh", "-c", "sleep 100 & echo done"], stdout=exec_uri, stderr=exec_uri)
    begin = time.monotonic()
    shim.start("e")
    assert shim.wait("e") == 0
    assert 1.5 < time.monotonic() - begin < 30
    assert log.read_bytes() == b""


# ---- a daemon that comes and goes ------------------------------------------

def test_events_wait_for_the_daemon(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "0.5"])
    pid = shim.create()
    shim.start()
    machine.sink.wait("/tasks/start")
    machine.sink.close()
    shim.client.close()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    machine.sink.open()
    assert machine.sink.wait("/tasks/exit").exit_status == 0
    shim.reconnect()
    assert shim.wait() == 0


def test_the_shim_outlives_the_zygote_and_signals(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(shim.pid, number)
    os.kill(machine.zygote.pid, signal.SIGKILL)
    os.waitpid(machine.zygote.pid, 0)
    shim.reconnect()
    assert shim.state().status == 2
    assert os.getsid(shim.pid) == shim.pid
    with open(f"/proc/{shim.pid}/status", encoding="ascii") as file:
        status = dict(line.split(":\t", 1) for line in file)
    assert int(status["SigIgn"], 16) & (1 << 14) == 0  # SIGTERM: not inherited as ignored


def test_the_container_has_default_signals(machine: Machine) -> None:
    out, = fifos(machine, "out")
    shim = machine.start_shim("a", ["cat", "/proc/self/status"])
    fd = reader(out)
    shim.create(stdout=out)
    shim.start()
    shim.wait()
    status = dict(line.split(":\t", 1) for line in read_all(fd).decode().splitlines())
    own = 0b11 << 31  # 32 and 33 belong to the C library; nobody can set them
    assert int(status["SigIgn"], 16) & ~own == 0
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigCgt"], 16) == 0


# ---- the zygote ------------------------------------------------------------

@pytest.mark.parametrize(("change", "what"), [
    ({"id": None}, "bad id"), ({"bundle": "relative"}, "not an absolute path"),
    ({"bundle": "/does/not/exist"}, "No such file"), ({"op": "dance"}, "unknown operation"),
    ({"socket": "/tmp/" + "x" * 200}, "too long"),
])
def test_a_bad_request_leaves_nothing(machine: Machine, change: dict[str, object],
                                      what: str) -> None:
    bundle = machine.bundle("a", ["true"])
    request = {"op": "start", "namespace": "test", "id": "a", "bundle": str(bundle),
               "socket": str(machine.folder / "a.s"), "publish": "", **change}
    answer = machine.zygote.ask(request)
    assert what in answer["error"]
    assert answer["seq"] == 1
    assert not (machine.folder / "a.s").exists()
    answer = machine.zygote.ask({**request, "op": "start", "id": "a", "bundle": str(bundle),
                                 "socket": str(machine.folder / "a.s")})
    assert "error" not in answer
    machine.shims.append(Shim(machine, "a", bundle, answer["address"], answer["pid"]))


def test_a_bad_packet_is_answered(machine: Machine) -> None:
    machine.zygote.control.send(b"\xff{")
    assert "error" in json.loads(machine.zygote.control.recv(65536))


def test_a_shim_inherits_nothing(machine: Machine) -> None:
    shim = machine.start_shim("a", ["true"])
    held = set()
    for fd in os.listdir(f"/proc/{shim.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # one that it closes just now
            held.add(os.readlink(f"/proc/{shim.pid}/fd/{fd}"))
    kinds = {name.partition(":")[0] for name in held}
    assert kinds <= {"/dev/null", "anon_inode", "socket", "pipe"}
    # listener, our connection, starter
    assert sum(name.startswith("socket") for name in held) <= 3
    assert os.readlink(f"/proc/{shim.pid}/cwd") == str(shim.bundle)


def test_an_idle_shim_is_small(machine: Machine) -> None:
    shims = []
    for number in range(8):
        shim = machine.start_shim(f"s{number}", ["sleep", "100"])
        shim.create()
        shim.start()
        shims.append(shim)
    sizes = []
    for shim in shims:
        with open(f"/proc/{shim.pid}/smaps_rollup", encoding="ascii") as file:
            sizes += [int(line.split()[1]) for line in file if line.startswith("Pss:")]
    # 4,700 is the peers' shim; measured here: 2,320, of which 1,830 are its own pages
    assert sorted(sizes)[len(sizes) // 2] < 3300


def test_many_connections_at_once(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    clients = [Client(shim.path) for _ in range(40)]
    waits = [c.send("Wait", task.WaitRequest(id="a")) for c in clients]
    shim.kill()
    for client, stream in zip(clients, waits):
        assert task.WaitResponse.FromString(client.receive(stream)).exit_status == 137
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.callback(client.close)


def test_what_needs_the_container_s_parent_is_made_by_it(machine: Machine) -> None:
    """A user namespace: no worker can make it, the shim itself does."""
    out, = fifos(machine, "out")
    shim = machine.start_shim("a", ["cat", "/proc/self/uid_map"])
    config = json.loads((shim.bundle / "config.json").read_text())
    config["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    (shim.bundle / "config.json").write_text(json.dumps(config, indent=1))
    for folder in (machine.folder, *shim.bundle.parents[:3], shim.bundle):
        folder.chmod(0o755)
    fd = reader(out)
    shim.create(stdout=out)
    shim.start()
    assert shim.wait() == 0
    assert read_all(fd).split() == [b"0", b"100000", b"65536"]


def test_a_shared_pid_namespace_ends_with_init(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sh", "-c", "sleep 1000 & exit 3"])
    config = json.loads((shim.bundle / "config.json").read_text())
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"]
                                     if n["type"] != "pid"]
    (shim.bundle / "config.json").write_text(json.dumps(config))
    shim.create()
    shim.start()
    assert shim.wait() == 3
    shim.delete()


def test_a_paused_container_can_be_killed(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "1000"])
    shim.create()
    shim.start()
    shim.client.call("Pause", task.PauseRequest(id="a"))
    shim.kill()
    assert shim.wait() == 137


def test_out_of_memory_is_told_before_the_exit(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sh", "-c", "x=$(yes | head -c 60000000); sleep 10"])
    config = json.loads((shim.bundle / "config.json").read_text())
    limit = 8 << 20
    config["linux"]["resources"] = {"memory": {"limit": limit, "swap": limit}}
    (shim.bundle / "config.json").write_text(json.dumps(config))
    shim.create()
    shim.start()
    assert shim.wait() == 137
    machine.sink.wait("/tasks/exit")
    mine = machine.sink.topics
    assert mine.index("/tasks/oom") < mine.index("/tasks/exit")


def test_a_pool_member_takes_the_next_request(machine: Machine) -> None:
    """Shims cloned ahead: used when they are there, not missed when they were killed."""
    def members() -> set[int]:
        return waiting(machine.zygote.pid)[0]

    wait_until(lambda: len(members()) == 1)
    first = members()
    shim = machine.start_shim("a", ["true"])
    assert shim.pid in first
    wait_until(lambda: len(members()) == 1)
    for pid in members():
        os.kill(pid, signal.SIGKILL)
    other = machine.start_shim("b", ["true"])
    other.create()
    other.start()
    assert other.wait() == 0


def prepared(machine: Machine, name: str, args: list[str]) -> tuple[Shim, dict[str, object]]:
    """A shim whose worker can know its container before Create, and the mount of its root."""
    bundle = machine.bundle(name, args)
    real = machine.folder / f"{name}-root"
    (bundle / "rootfs").rename(real)
    (bundle / "rootfs").mkdir()
    answer = machine.zygote.ask({
        "op": "start", "namespace": "test", "id": name, "bundle": str(bundle),
        "socket": str(machine.folder / f"{name}.s"), "publish": machine.sink.path})
    shim = Shim(machine, name, bundle, answer["address"], answer["pid"])
    machine.shims.append(shim)
    return shim, {"type": "bind", "source": str(real), "options": ["rbind", "rw"]}


def group_of(shim: Shim) -> Path:
    """The cgroup that a process can be born into ahead of its request."""
    if not Path("/sys/fs/cgroup/unified/cgroup.procs").exists():
        pytest.skip("processes are made ahead only beside cgroup v1")
    path = json.loads((shim.bundle / "config.json").read_text())["linux"]["cgroupsPath"]
    return Path("/sys/fs/cgroup/unified") / str(path).lstrip("/")


def wait_for_a_member(machine: Machine) -> None:
    wait_until(lambda: all(waiting(machine.zygote.pid)))


def test_what_is_prepared_is_what_starts(machine: Machine) -> None:
    wait_for_a_member(machine)
    out, = fifos(machine, "out")
    shim, root = prepared(machine, "a", ["sh", "-c", "echo $$; cat /proc/1/cgroup; ls /dev"])
    group = group_of(shim)
    wait_until(lambda: group.exists() and (group / "cgroup.procs").read_text())
    born = int((group / "cgroup.procs").read_text())
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    assert shim.create(rootfs=[root], stdout=out) == born
    os.set_blocking(reader, True)
    shim.start()
    with open(reader, encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert shim.wait() == 0
    assert lines[0] == "1"
    inner = str(group).removeprefix("/sys/fs/cgroup/unified")
    for hierarchy in (":memory:", ":devices:", "0::"):
        assert [line for line in lines if hierarchy in line and line.endswith(inner)], lines
    assert {"null", "zero", "ptmx", "pts", "stdin", "full", "tty"} <= set(lines)
    shim.delete()
    assert not group.exists()


def test_what_was_changed_after_it_was_prepared_counts(machine: Machine) -> None:
    wait_for_a_member(machine)
    shim, root = prepared(machine, "a", ["sh", "-c", "exit 3"])
    group = group_of(shim)
    wait_until(group.exists)
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace("exit 3", "exit 4"))
    shim.create(rootfs=[root])
    shim.start()
    assert shim.wait() == 4
    shim.delete()
    assert not group.exists()


def test_what_was_prepared_for_nothing_is_taken_back(machine: Machine) -> None:
    wait_for_a_member(machine)
    shim, _ = prepared(machine, "a", ["true"])
    group = group_of(shim)
    wait_until(lambda: group.exists() and (group / "cgroup.procs").read_text())
    born = (group / "cgroup.procs").read_text().strip()
    os.kill(shim.pid, signal.SIGKILL)
    wait_until(lambda: not group.exists())
    wait_until(lambda: not os.path.exists(f"/proc/{born}"))


def test_a_prepared_start_fails_as_any_other(machine: Machine) -> None:
    wait_for_a_member(machine)
    shim, root = prepared(machine, "a", ["no-such-program"])
    group = group_of(shim)
    wait_until(group.exists)
    with pytest.raises(RpcError, match="executable file not found"):
        shim.create(rootfs=[root])
    assert not group.exists()
    other, root = prepared(machine, "b", ["true"])
    with pytest.raises(RpcError, match=r"mount bind on .*: no such file"):
        other.create(rootfs=[{**root, "source": "/nonexistent/root"}])
    assert not group_of(other).exists()
