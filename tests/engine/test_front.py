"""The containerd layer inside ``carreld``: it has its gRPC door all the same, and a
``carrel-containerd`` that survived its daemon is used as it is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from carrel.proto import grpc, rpc, tasks_pb2, version_pb2
from tests.engine.stack import IMAGE, Stack, clean, start_stack

pytestmark = pytest.mark.root


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    stack = start_stack(tmp_path)
    yield stack
    clean(stack)


def _layers(stack: Stack) -> list[str]:
    return subprocess.run(["pgrep", "-f", f"carrel-containerd --address {stack.exec_root}/"],
                          text=True, capture_output=True, check=False).stdout.split()


async def _tasks(stack: Stack) -> list[str]:
    transport = grpc.GrpcTransport(f"{stack.exec_root}/containerd/containerd.sock")
    try:
        metadata = {rpc.NAMESPACE_HEADER: "carrel"}
        version = await rpc.Service(transport, version_pb2, "Version", metadata).Version(Empty())
        assert version.version
        answer = await rpc.Service(transport, tasks_pb2, "Tasks", metadata).List(
            tasks_pb2.ListTasksRequest())
        return [task.id for task in answer.tasks]
    finally:
        transport.close()


async def test_the_door(own: Stack) -> None:
    own.flags += ["--containerd", "embedded"]
    own.restart()
    assert not _layers(own)
    ident = own.out("run", "-d", IMAGE, "sleep", "1000")
    for _ in range(2):
        assert await _tasks(own) == [ident]
    path = Path(own.exec_root, "containerd", "containerd.sock")
    assert path.stat().st_mode & 0o777 == 0o660
    own.docker("rm", "-f", ident)
    own.stop()
    assert not path.exists()


async def test_a_survivor_is_used(own: Stack) -> None:
    ident = own.out("run", "-d", IMAGE, "sleep", "1000")
    (layer,) = _layers(own)
    own.kill()
    own.flags += ["--containerd", "embedded"]
    own.start()
    assert _layers(own) == [layer]
    assert own.out("exec", ident, "echo", "here") == "here"
    own.docker("rm", "-f", ident)
    own.restart()       # with an end that is seen to: now the layer moves in
    assert not _layers(own)
    assert own.out("run", "--rm", IMAGE, "echo", "new") == "new"
