"""``carrel run --explain``: what was really done for one start, in the seven steps of the story.

A client asks for it with the header ``X-Carrel-Explain: 1`` on create and start.
While such a request runs, :data:`CURRENT` holds its :class:`Trace`; the calls to the
containerd layer are noted by the transport, those to the kernel by
:mod:`carrel.kernel.record`: the network's in this process, the runtime's in the
shim, which writes them beside the bundle when the spec carries :data:`ANNOTATION`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from carrel.engine.config import Config
from carrel.kernel import record
from carrel.proto import rpc

#: in the spec of a container whose runtime shall keep its record
ANNOTATION = "io.carrel.explain"
#: annotations that are the engine's own: no user and no image may set them
RESERVED = "io.carrel."
HEADER = "X-Carrel-Explain"
#: where the shim writes it, in the bundle
FILE = "explain.jsonl"
#: traces that are kept after their start
KEPT = 64
_MAX_BYTES = 4 << 20

STEPS = (
    "1 request: what the client asked for",
    "2 image: the reference becomes a config and layers",
    "3 containerd: snapshot, container record, task",
    "4 shim: the container's parent",
    "5 process: namespaces, mounts, rights, execve",
    "6 cgroup: the budget",
    "7 network: namespace, veth, addresses, rules",
)

Call = dict[str, Any]


class Trace:
    """The calls of one start, by step (1 to 7)."""

    def __init__(self) -> None:
        self.calls: dict[int, list[Call]] = {n: [] for n in range(1, 8)}
        self.dropped = 0

    def note(self, step: int, call: str, args: tuple[object, ...], start_ns: int,
             result: object = None, errno: int = 0) -> None:
        """Something that has just ended."""
        self.calls[step].append({
            "call": call, "args": [_printable(a) for a in args], "result": _printable(result),
            "errno": errno, "start_ns": start_ns, "ns": time.monotonic_ns() - start_ns})

    def note_rpc(self, path: str, request: Any, start_ns: int, failed: bool) -> None:
        service, _, method = path.rpartition("/")
        service = service.rpartition(".")[2]
        step = 2 if service in ("Images", "Content", "Transfer") else 3
        subject = next((str(getattr(request, name)) for name in
                        ("container_id", "key", "id", "name") if getattr(request, name, "")), "")
        self.note(step, f"{service}.{method}", (subject,), start_ns,
                  "failed" if failed else None)

    def note_records(self, step: int, recorder: record.Recorder) -> None:
        self.dropped += recorder.dropped
        for _, call, args, result, errno, start_ns, ns in recorder.records:
            self.calls[step].append({
                "call": call, "args": [_printable(a) for a in args],
                "result": _printable(result), "errno": errno, "start_ns": start_ns, "ns": ns})

    def read(self, path: str) -> None:
        """The record of the shim and the runtime: a JSON array a line."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with open(fd, "rb") as file:
            lines = file.read(_MAX_BYTES).splitlines()
        for line in lines:
            try:
                where, call, args, result, errno, start_ns, ns = json.loads(line)
            except ValueError:
                self.dropped += 1
                continue
            step = 6 if "cgroup" in where else 4 if where.startswith("shim") else 5
            self.calls[step].append({"call": call, "args": args, "result": result,
                                     "errno": errno, "start_ns": start_ns, "ns": ns})

    def document(self) -> dict[str, Any]:
        """As the API gives it."""
        for calls in self.calls.values():
            calls.sort(key=lambda c: c["start_ns"])
        return {"steps": [{"step": title, "calls": self.calls[n]}
                          for n, title in enumerate(STEPS, 1)], "dropped": self.dropped}


def path_of(config: Config, container_id: str) -> str:
    """Where the shim of our own containerd layer leaves the record of a start."""
    return (f"{config.exec_root}/containerd/io.containerd.runtime.v2.task/"
            f"{config.containerd_namespace}/{container_id}/{FILE}")


def _printable(value: object) -> object:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return "&..."


CURRENT: ContextVar[Trace | None] = ContextVar("explain", default=None)


def asked(headers: Mapping[str, str]) -> Trace | None:
    """A new trace, if the client wants one."""
    return Trace() if headers.get(HEADER) == "1" else None


class Traces:
    """The last traces, by container id; one for the whole engine."""

    def __init__(self) -> None:
        self._kept: dict[str, Trace] = {}

    def keep(self, container_id: str, trace: Trace) -> None:
        self._kept.pop(container_id, None)
        self._kept[container_id] = trace
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def find(self, container_id: str) -> Trace | None:
        return self._kept.get(container_id)


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """While the block runs, calls to the containerd layer are noted."""
    if trace is None:
        yield
        return
    token = CURRENT.set(trace)
    observer = rpc.OBSERVER.set(trace.note_rpc)
    try:
        yield
    finally:
        rpc.OBSERVER.reset(observer)
        CURRENT.reset(token)


@contextmanager
def kernel_calls(step: int) -> Iterator[None]:
    """While the block runs, this process's calls to the kernel are noted.

    The recorder is one for the process: what another start does meanwhile may be
    in the record too, which is why only an explained start pays for it.
    """
    trace = CURRENT.get()
    if trace is None:
        yield
        return
    recorder = record.start()
    try:
        yield
    finally:
        record.stop()
        trace.note_records(step, recorder)
