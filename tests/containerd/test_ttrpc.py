"""ttrpc: the hand-made encoding against the protobuf library, and a client against a server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from carrel import errdefs
from carrel.containerd import ttrpc
from carrel.proto import shim_v2_pb2
from carrel.proto.rpc import Context

SERVICE = "containerd.task.v2.Task"


def _library_types() -> dict[str, type]:
    """Request and Response of ttrpc as the library would have them."""
    file = descriptor_pb2.FileDescriptorProto(name="ttrpc_test.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[int, str, int, str]) -> None:
        made = file.message_type.add(name=name)
        for number, field, kind, type_name in fields:
            label = 3 if type_name == "Pair" else 1
            made.field.add(name=field, number=number, label=label, type=kind,
                           type_name=f".t.{type_name}" if type_name else None)

    message("Pair", (1, "key", 9, ""), (2, "value", 9, ""))
    message("Request", (1, "service", 9, ""), (2, "method", 9, ""), (3, "payload", 12, ""),
            (4, "timeout_nano", 3, ""), (5, "metadata", 11, "Pair"))
    message("Status", (1, "code", 5, ""), (2, "message", 9, ""))
    message("Response", (1, "status", 11, "Status"), (2, "payload", 12, ""))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))
            for name in ("Request", "Response")}


TYPES = _library_types()
texts = st.text(st.characters(codec="utf-8"), max_size=200)


@given(texts, texts, st.binary(max_size=400), st.dictionaries(texts, texts, max_size=3))
def test_request_as_the_library_reads_it(service: str, method: str, payload: bytes,
                                         metadata: dict[str, str]) -> None:
    read = TYPES["Request"].FromString(  # type: ignore[attr-defined]
        ttrpc.encode_request(service, method, payload, 1.5, metadata))
    assert (read.service, read.method, read.payload) == (service, method, payload)
    assert read.timeout_nano == 1_500_000_000
    assert {pair.key: pair.value for pair in read.metadata} == metadata


@given(st.binary(max_size=300), st.integers(0, 16), texts)
def test_response_as_the_library_reads_it(payload: bytes, code: int, text: str) -> None:
    read = TYPES["Response"].FromString(  # type: ignore[attr-defined]
        ttrpc.encode_response(payload, code, text))
    if code:
        assert (read.status.code, read.status.message) == (code, text)
    else:
        assert read.payload == payload


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    try:
        ttrpc.fields(data)
    except ValueError:
        pass


class Shim:
    """A few methods of a shim."""

    def __init__(self) -> None:
        self.cancelled = False

    async def state(self, request: shim_v2_pb2.StateRequest,
                    context: Context) -> shim_v2_pb2.StateResponse:
        return shim_v2_pb2.StateResponse(id=request.id, bundle=context.namespace)

    async def kill(self, request: shim_v2_pb2.KillRequest, context: Context) -> Empty:
        raise errdefs.NotFound(f"process {request.id}")

    async def wait(self, request: shim_v2_pb2.WaitRequest,
                   context: Context) -> shim_v2_pb2.WaitResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return shim_v2_pb2.WaitResponse()


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[tuple[Shim, ttrpc.Server, str]]:
    made = Shim()
    server = ttrpc.Server({
        f"/{SERVICE}/State": ttrpc.unary(shim_v2_pb2.StateRequest, made.state),
        f"/{SERVICE}/Kill": ttrpc.unary(shim_v2_pb2.KillRequest, made.kill),
        f"/{SERVICE}/Wait": ttrpc.unary(shim_v2_pb2.WaitRequest, made.wait)})
    path = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    sock.setblocking(False)
    await server.start(sock)
    yield made, server, path
    server.stop()


async def call_state(client: ttrpc.Client, name: str) -> str:
    answer = await client.call(SERVICE, "State", shim_v2_pb2.StateRequest(id=name),
                               shim_v2_pb2.StateResponse, {ttrpc.NAMESPACE_KEY: "ns"}, 5)
    return f"{answer.id} {answer.bundle}"


async def test_calls(shim: tuple[Shim, ttrpc.Server, str]) -> None:
    client = await ttrpc.Client.connect(shim[2])
    assert await call_state(client, "a") == "a ns"
    # side by side, over one connection, and one that is large
    names = ["x" * n for n in (1, 1000, 100_000, 2_000_000)]
    assert await asyncio.gather(*(call_state(client, n) for n in names)) == [
        f"{n} ns" for n in names]
    with pytest.raises(errdefs.NotFound, match="process p"):
        await client.call(SERVICE, "Kill", shim_v2_pb2.KillRequest(id="p"), Empty, {}, 5)
    with pytest.raises(errdefs.NotImplementedYet, match=r"/containerd.task.v2.Task/Pause"):
        await client.call(SERVICE, "Pause", shim_v2_pb2.PauseRequest(), Empty, {}, 5)
    client.close()


async def test_deadline(shim: tuple[Shim, ttrpc.Server, str]) -> None:
    client = await ttrpc.Client.connect(shim[2])
    with pytest.raises(errdefs.DeadlineExceeded, match="Wait"):
        await client.call(SERVICE, "Wait", shim_v2_pb2.WaitRequest(), shim_v2_pb2.WaitResponse,
                          {}, 0.05)
    # the connection is as good as before, and a late answer harms nobody
    assert await call_state(client, "b") == "b ns"
    client.close()


async def test_death_of_the_shim(shim: tuple[Shim, ttrpc.Server, str]) -> None:
    died = asyncio.Event()
    client = await ttrpc.Client.connect(shim[2], died.set)
    waiting = asyncio.ensure_future(client.call(
        SERVICE, "Wait", shim_v2_pb2.WaitRequest(), shim_v2_pb2.WaitResponse, {}))
    await asyncio.sleep(0.05)
    shim[1].stop()
    with pytest.raises(errdefs.Unavailable, match="closed"):
        await waiting
    await asyncio.wait_for(died.wait(), 20)
    with pytest.raises(errdefs.Unavailable):
        await call_state(client, "late")
    # and what it was doing for us was given up
    assert shim[0].cancelled


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(errdefs.Unavailable, match="connect to shim"):
        await ttrpc.Client.connect(str(tmp_path / "none"))


async def test_frame_over_the_limit_ends_the_connection(
        shim: tuple[Shim, ttrpc.Server, str]) -> None:
    reader, writer = await asyncio.open_unix_connection(shim[2])
    writer.write(b"\xff\xff\xff\xff" + b"\0\0\0\1" + b"\1\0")
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
