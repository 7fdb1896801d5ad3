"""Every step of a start fails once, and a start is cancelled: nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from carrel import errdefs
from carrel.kernel import netns, nftables, rtnetlink
from carrel.network import operations
from carrel.network.api import NetworkSpec, PortBinding
from carrel.network.controller import Controller
from carrel.network.nsthread import Lost, NamespaceThread
from tests.network.support import engine, fetch_here, free_port, server, spec

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "exec")


def state(net: Controller, root: str) -> tuple[object, ...]:
    """Everything that a failed start must not change."""
    boxes = net._sandboxes
    return (sorted(os.listdir(f"{root}/netns")), sorted(os.listdir(f"{root}/network")),
            sorted(boxes.live), len(boxes.zone), sorted(boxes.ports._taken),
            [pool.used for addresses in boxes.networks.addresses.values()
             for pool in addresses.pools], sorted(os.listdir("/proc/self/fd")))


@pytest.mark.parametrize("pool_size", [0, 1])
@pytest.mark.parametrize("step", [
    "MakeNamespace", "AddInterface", "OpenResolver", "Publish", "WriteRecord", "_configure",
    "bind"])
async def test_failing_step(root: str, monkeypatch: pytest.MonkeyPatch, step: str,
                            pool_size: int) -> None:
    async with engine(root, pool_size=pool_size) as net:
        await net.create_network(NetworkSpec(name="front"))
        port = free_port()
        wish = spec(1, "bridge", "front", ports=(PortBinding(container_port=80, host_port=port),))
        # one whole cycle first: what is made lazily is there
        await net.create_sandbox(wish)
        await net.remove_sandbox(wish.id)
        # what is made ahead, after a while, would be taken for a change
        while net._refill is not None or (net._filling and not net._filling.done()):
            await asyncio.sleep(0.01)
        net._sandboxes.pool.drain()
        net._sandboxes.pool.size = 0
        before = state(net, root)
        with monkeypatch.context() as patch:
            if step == "bind":
                _fail(patch, netns, "bind")
            elif step == "_configure":
                _fail(patch, operations.AddInterface, "_configure")
            else:
                _fail(patch, getattr(operations, step), "execute")
            with pytest.raises(OSError, match="injected"):
                await net.create_sandbox(wish)
        assert state(net, root) == before
        box = await net.create_sandbox(wish)
        async with server(box.netns_path, "web"):
            assert (await fetch_here("127.0.0.1", port)).startswith("web")


def _fail(patch: pytest.MonkeyPatch, target: Any, name: str) -> None:
    def broken(*args: object, **options: object) -> None:
        raise OSError(5, "injected")

    patch.setattr(target, name, broken)


async def test_failing_network(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(root) as net:
        for target, name in ((nftables.Ruleset, "run"), (rtnetlink, "set_link")):
            with monkeypatch.context() as patch:
                _fail(patch, target, name)
                with pytest.raises(OSError, match="injected"):
                    await net.create_network(NetworkSpec(name="front"))
            assert [n.name for n in net.networks()] == ["host", "none", "bridge"]
        await net.create_network(NetworkSpec(name="front"))


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.002])
async def test_cancelled_start(root: str, after: float) -> None:
    async with engine(root) as net:
        await net.create_network(NetworkSpec(name="front"))
        wish = spec(1, "front", ports=(PortBinding(container_port=80),))
        await net.create_sandbox(wish)
        await net.remove_sandbox(wish.id)
        before = state(net, root)
        task = asyncio.create_task(net.create_sandbox(wish))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():  # it was faster
            await net.remove_sandbox(wish.id)
        assert state(net, root) == before


async def test_lost_thread_does_no_more() -> None:
    thread = NamespaceThread()
    thread.start()

    def lose(kernel: object) -> None:
        raise Lost("test")

    with pytest.raises(errdefs.SystemFailure, match="test"):
        await thread.run(lose)
    with pytest.raises(errdefs.SystemFailure, match="has ended"):
        await thread.run(lambda kernel: None)
    thread.stop()
