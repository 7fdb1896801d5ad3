"""A daemon of our own for one test, and clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from carrel import errdefs
from carrel.containerd import service
from carrel.containerd.events import pack_event
from carrel.proto import (
    containers_pb2,
    content_pb2,
    events_pb2,
    grpc,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    rpc,
    snapshots_pb2,
    streaming_pb2,
    task_events_pb2,
    tasks_pb2,
    version_pb2,
)

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / ".venv" / "bin" / "carrel-containerd"
#: below /tmp, which the peers' root shares; short, for socket paths
_TOP = "/tmp"
_PROBE = "/test/subscribed"

_SERVICES: dict[str, tuple[ModuleType, str]] = {
    "namespaces": (namespaces_pb2, "Namespaces"), "content": (content_pb2, "Content"),
    "images": (images_pb2, "Images"), "leases": (leases_pb2, "Leases"),
    "snapshots": (snapshots_pb2, "Snapshots"), "containers": (containers_pb2, "Containers"),
    "tasks": (tasks_pb2, "Tasks"), "events": (events_pb2, "Events"),
    "version": (version_pb2, "Version"), "introspection": (introspection_pb2, "Introspection"),
    "streaming": (streaming_pb2, "Streaming"),
}


class Clients:
    """Every service of one transport, in one namespace."""

    def __init__(self, transport: rpc.Transport, namespace: str = "test") -> None:
        self.transport = transport
        self.metadata = {rpc.NAMESPACE_HEADER: namespace} if namespace else {}
        for name, (module, title) in _SERVICES.items():
            setattr(self, name, rpc.Service(transport, module, title, self.metadata))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@contextlib.asynccontextmanager
async def embedded(kind: str, root: Path) -> AsyncIterator[tuple[Clients, service.Services]]:
    """The services in this process, reached directly (``local``) or over gRPC (``grpc``)."""
    services = service.build(str(root / "root"), str(root / "state"), zygote="")
    await services.start()
    server = None
    if kind == "local":
        transport: rpc.Transport = rpc.LocalTransport(services.servicers())
    else:
        path = str(root / "grpc.sock")
        server = grpc.server(services.servicers())
        await server.start(path=path)
        transport = grpc.GrpcTransport(path)
    try:
        yield Clients(transport), services
    finally:
        transport.close()
        if server is not None:
            server.close()
            await server.wait_closed()
        await services.stop()


class Daemon:
    """``carrel-containerd`` as a process."""

    def __init__(self, *, path: str = "") -> None:
        self.top = tempfile.mkdtemp(prefix="ctd-", dir=_TOP)
        self.address = f"{self.top}/c.sock"
        self.root, self.state = f"{self.top}/root", f"{self.top}/state"
        self.fifos = f"{self.top}/fifo"
        self.runtime = "io.containerd.carrel.v1"
        os.mkdir(self.fifos)
        self.environment = {**os.environ, **({"PATH": path} if path else {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._log = os.open(f"{self.top}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, "--address", self.address, "--root", self.root, "--state", self.state,
             "--log-level", "debug"], stderr=self._log, env=self.environment)
        wait_for(lambda: os.path.exists(self.address), 30, self.log)

    def log(self) -> str:
        return Path(self.top, "log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """As a crash: no clean-up runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        os.unlink(self.address)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        os.close(self._log)
        shutil.rmtree(self.top)

    def ctr(self, *arguments: str, suite: str = "sid", check: bool = True, stdin: bytes = b"",
            namespace: str = "default", timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """The real ctr, from the peers' root."""
        done = subprocess.run(
            [REPOSITORY / "scripts" / "in-peers", "ctr", "-a", self.address, "-n", namespace,
             *arguments], check=False, input=stdin, capture_output=True, timeout=timeout,
            env={**os.environ, "PEERS_SUITE": suite})
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
        if check and result.returncode:
            raise AssertionError(f"ctr {' '.join(arguments)}: exit {result.returncode}\n"
                                 f"{result.stdout}{result.stderr}\n--- daemon\n{self.log()}")
        return result

    @contextlib.asynccontextmanager
    async def clients(self, namespace: str = "default") -> AsyncIterator[Clients]:
        transport = grpc.GrpcTransport(self.address)
        try:
            yield Clients(transport, namespace)
        finally:
            transport.close()


@contextlib.asynccontextmanager
async def subscription(clients: Clients, *filters: str) -> AsyncIterator[list[Any]]:
    """The envelopes of all events from now on: the subscription is known to be in place,
    because an event of our own has come through it."""
    seen: list[Any] = []
    ready = asyncio.Event()

    async def read() -> None:
        async for envelope in clients.events.Subscribe(events_pb2.SubscribeRequest(
                filters=[*filters, f"topic=={_PROBE}"] if filters else [])):
            if envelope.topic == _PROBE:
                ready.set()
            else:
                seen.append(envelope)

    reader = asyncio.ensure_future(read())
    probe = pack_event(task_events_pb2.TaskOOM(container_id="none"))
    async with asyncio.timeout(30):
        while not ready.is_set():
            await clients.events.Publish(events_pb2.PublishRequest(topic=_PROBE, event=probe))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ready.wait(), 0.05)
    yield seen
    reader.cancel()
    await asyncio.wait([reader])


@contextlib.contextmanager
def daemon(*, path: str = "") -> Iterator[Daemon]:
    made = Daemon(path=path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def peers(suite: str = "sid") -> str:
    """The root of the peers (made when it is missing)."""
    done = subprocess.run([REPOSITORY / "scripts" / "peers"], check=True, capture_output=True,
                          env={**os.environ, "PEERS_SUITE": suite})
    return done.stdout.decode().strip()


def wait_for(condition: Callable[[], bool], seconds: float,
             explain: Callable[[], str] = str) -> None:
    """Poll until it holds; fail with an explanation."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {explain()}")
        time.sleep(0.01)


async def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    """The same on the event loop; the condition may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def refused(kind: type[errdefs.CarrelError], text: str = "") -> Iterator[None]:
    """The call inside is refused with exactly this meaning."""
    try:
        yield
    except errdefs.CarrelError as error:
        assert error.grpc_code == kind.grpc_code, f"{type(error).__name__}: {error}"
        assert text in error.message, error.message
    else:
        raise AssertionError(f"was not refused with {kind.__name__}")


def present(directory: str | Path) -> list[str]:
    """The snapshot directories, without those that are made ahead."""
    return sorted(name for name in os.listdir(directory) if not name.startswith("pool-"))
