"""A containerd layer in miniature: a ttrpc client, an event sink, bundles, a zygote.

The messages are those of the protobuf library, so that the shim's own codec is
always tested against another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from carrel.proto import shim_v2_pb2 as task
from carrel.proto import task_events_pb2, ttrpc_events_pb2
from tests.leakcheck import cgroup_parent

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = struct.Struct(">IIBB")
CGROUP_PARENT = cgroup_parent("shim")
_pool = descriptor_pool.DescriptorPool()


def _status_classes() -> tuple[Any, Any]:
    """ttrpc's Request and Response and google.rpc.Status, described here and not
    taken from the code under test."""
    from google.protobuf import descriptor_pb2
    file = descriptor_pb2.FileDescriptorProto(name="ttrpc_test.proto", package="t",
                                              syntax="proto3")
    string, integer, raw, message = 9, 5, 12, 11

    def add(name: str, *fields: tuple[int, str, int, str]) -> None:
        m = file.message_type.add(name=name)
        for number, field, kind, other in fields:
            m.field.add(name=field, number=number, type=kind, label=3 if other == "*KV" else 1,
                        type_name=f".t.{other.lstrip('*')}" if kind == message else None)
    add("Status", (1, "code", integer, ""), (2, "message", string, ""))
    add("KV", (1, "key", string, ""), (2, "value", string, ""))
    add("Request", (1, "service", string, ""), (2, "method", string, ""), (3, "payload", raw, ""),
        (4, "timeout_nano", 3, ""), (5, "metadata", message, "*KV"))
    add("Response", (1, "status", message, "Status"), (2, "payload", raw, ""))
    _pool.Add(file)
    return tuple(  # type: ignore[return-value]
        message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"t.{n}"))
        for n in ("Request", "Response"))


Request, Response = _status_classes()


class RpcError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Client:
    """Blocking ttrpc; requests may overlap (``send`` and ``receive``)."""

    def __init__(self, path: str, service: str = "containerd.task.v2.Task") -> None:
        self.service = service
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._stream = -1
        self._answers: dict[int, bytes] = {}

    def send(self, method: str, request: Message, service: str = "") -> int:
        self._stream += 2
        body = Request(service=service or self.service, method=method,
                       payload=request.SerializeToString(), timeout_nano=10**9)
        body.metadata.add(key="containerd-namespace-ttrpc", value="test")
        self.raw(self._stream, 1, body.SerializeToString())
        return self._stream

    def raw(self, stream: int, kind: int, payload: bytes, length: int | None = None) -> None:
        self._socket.sendall(
            HEADER.pack(len(payload) if length is None else length, stream, kind, 0) + payload)

    def receive(self, stream: int) -> bytes:
        while stream not in self._answers:
            length, got, kind, _ = HEADER.unpack(self._exactly(HEADER.size))
            assert kind == 2
            self._answers[got] = self._exactly(length)
        response = Response.FromString(self._answers.pop(stream))
        if response.status.code:
            raise RpcError(response.status.code, response.status.message)
        return bytes(response.payload)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the shim closed the connection")
            data += more
        return data

    def call(self, method: str, request: Message, answer: Any = None) -> Any:
        payload = self.receive(self.send(method, request))
        return answer.FromString(payload) if answer is not None else payload

    def close(self) -> None:
        self._socket.close()


class EventSink:
    """Serves ``Events/Forward`` in a thread and remembers what came."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.events: list[tuple[str, Any]] = []
        self._changed = threading.Condition()
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(8)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        with contextlib.suppress(OSError):
            while header := stream.read(HEADER.size):
                length, number, _, _ = HEADER.unpack(header)
                request = Request.FromString(stream.read(length))
                assert request.method == "Forward"
                envelope = ttrpc_events_pb2.ForwardRequest.FromString(request.payload).envelope
                name = envelope.event.type_url.rpartition(".")[2]
                event = getattr(task_events_pb2, name).FromString(envelope.event.value)
                with self._changed:
                    self.events.append((envelope.topic, event))
                    self._changed.notify_all()
                payload = Response().SerializeToString()
                connection.sendall(HEADER.pack(len(payload), number, 2, 0) + payload)

    def wait(self, topic: str, seconds: float = 30) -> Any:
        """The first event of this topic."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: next((e for t, e in self.events if t == topic), None), seconds)
        assert found is not None, f"no {topic} among {[t for t, _ in self.events]}"
        return found

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.events]

    def close(self) -> None:
        """As a daemon that was killed: listener, connections and socket file are gone."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._connections.clear()
        os.unlink(self.path)


class Zygote:
    """The warm process, as carrel-containerd starts it."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (f"import sys; sys.path[:0] = [{str(ROOT)!r}]; "
                "from carrel.shim.main import main; sys.exit(main(['zygote']))")
        self.pid = os.posix_spawn(
            sys.executable, [sys.executable, "-ISBc", code], os.environ, setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)])
        theirs.close()
        self.control.settimeout(60)
        assert json.loads(self.control.recv(65536)) == {"op": "ready"}
        self._seq = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._seq += 1
        self.control.send(json.dumps({"seq": self._seq, **request}).encode())
        answer: dict[str, Any] = json.loads(self.control.recv(65536))
        return answer

    def close(self) -> None:
        self.control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def waiting(zygote: int) -> tuple[set[int], set[int]]:
    """(shims that have no container yet, starters): clones of the zygote's mother that
    have its working directory; a shim leads a session."""
    home = os.readlink(f"/proc/{zygote}/cwd")
    shims: set[int] = set()
    starters: set[int] = set()
    for mother in _children(zygote):
        for pid in _children(mother):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/cwd") == home:
                    (shims if os.getsid(pid) == pid else starters).add(pid)
    return shims, starters


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children",
                                            encoding="ascii") as file:
        return [int(one) for one in file.read().split()]
    return []


class Machine:
    """A folder with bundles, an event sink and a zygote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sink = EventSink(str(folder / "events.sock"))
        self.zygote = Zygote()
        self.shims: list[Shim] = []

    def bundle(self, name: str, args: list[str], *, terminal: bool = False,
               **changes: Any) -> Path:
        bundle = self.folder / "io.containerd.runtime.v2.task" / "test" / name
        (bundle / "rootfs" / "bin").mkdir(parents=True)
        for folder in ("proc", "dev", "sys", "tmp", "etc"):
            (bundle / "rootfs" / folder).mkdir()
        os.link("/bin/busybox", bundle / "rootfs/bin/busybox") if same_device(
            bundle, "/bin/busybox") else shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
        for applet in ("sh", "cat", "true", "sleep", "echo", "ps", "yes", "head", "stty", "kill"):
            (bundle / "rootfs/bin" / applet).symlink_to("busybox")
        (bundle / "config.json").write_text(json.dumps(spec(name, args, terminal) | changes))
        return bundle

    def start_shim(self, name: str, args: list[str], **options: Any) -> Shim:
        bundle = self.bundle(name, args, **options)
        answer = self.zygote.ask({
            "op": "start", "namespace": "test", "id": name, "bundle": str(bundle),
            "socket": str(self.folder / f"{name}.s"), "publish": self.sink.path})
        assert "error" not in answer, answer
        shim = Shim(self, name, bundle, answer["address"], answer["pid"])
        self.shims.append(shim)
        return shim

    def close(self) -> None:
        for shim in self.shims:
            shim.destroy()
        self.zygote.close()
        self.sink.close()


def same_device(folder: Path, file: str) -> bool:
    return folder.stat().st_dev == os.stat(file).st_dev


class Shim:
    """One shim and its container, by its name."""

    def __init__(self, machine: Machine, name: str, bundle: Path, address: str, pid: int) -> None:
        self.machine = machine
        self.id = name
        self.bundle = bundle
        self.pid = pid
        self.path = address.removeprefix("unix://")
        self.client = Client(self.path)

    def create(self, **fields: Any) -> int:
        request = task.CreateTaskRequest(id=self.id, bundle=str(self.bundle), **fields)
        return int(self.client.call("Create", request, task.CreateTaskResponse).pid)

    def start(self, exec_id: str = "") -> int:
        request = task.StartRequest(id=self.id, exec_id=exec_id)
        return int(self.client.call("Start", request, task.StartResponse).pid)

    def exec(self, exec_id: str, args: list[str], **fields: Any) -> None:
        request = task.ExecProcessRequest(id=self.id, exec_id=exec_id, **fields)
        process = {"args": args, "cwd": "/", "env": ["PATH=/bin"],
                   "terminal": bool(fields.get("terminal")), "user": {"uid": 0, "gid": 0}}
        request.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        request.spec.value = json.dumps(process).encode()
        self.client.call("Exec", request)

    def wait(self, exec_id: str = "") -> int:
        request = task.WaitRequest(id=self.id, exec_id=exec_id)
        return int(self.client.call("Wait", request, task.WaitResponse).exit_status)

    def kill(self, signal: int = 9, exec_id: str = "", all: bool = False) -> None:
        self.client.call("Kill", task.KillRequest(id=self.id, exec_id=exec_id, signal=signal,
                                                  all=all))

    def state(self, exec_id: str = "") -> Any:
        return self.client.call("State", task.StateRequest(id=self.id, exec_id=exec_id),
                                task.StateResponse)

    def delete(self, exec_id: str = "") -> Any:
        return self.client.call("Delete", task.DeleteRequest(id=self.id, exec_id=exec_id),
                                task.DeleteResponse)

    def shutdown(self) -> None:
        self.client.call("Shutdown", task.ShutdownRequest(id=self.id))

    def reconnect(self) -> None:
        self.client.close()
        self.client = Client(self.path)

    def destroy(self) -> None:
        """Whatever the test left: nothing afterwards."""
        with contextlib.suppress(OSError, RpcError, ConnectionError):
            self.reconnect()
            with contextlib.suppress(RpcError):
                self.kill()
                self.wait()
            with contextlib.suppress(RpcError):
                self.delete()
            self.shutdown()
        self.client.close()
        wait_until(lambda: not os.path.exists(f"/proc/{self.pid}"))


def spec(name: str, args: list[str], terminal: bool = False) -> dict[str, Any]:
    """A small OCI configuration."""
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"]
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": args, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"], "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities)},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "mode=755"]},
                   {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666"]}],
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/{os.getpid()}-{time.monotonic_ns() % 10**9}-{name}",
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")]}}


def wait_until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    made = Machine(folder)
    try:
        yield made
    finally:
        made.close()
