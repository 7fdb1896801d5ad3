"""Push to and pull from a real registry."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from carrel import errdefs
from carrel.oci import digest as digests
from tests import images
from tests.registry.conftest import Registry, free_port
from tests.transferkit import Kit

pytestmark = [pytest.mark.root, pytest.mark.peers]


async def loaded(kit: Kit, tmp_path: Path, name: str, image: images.Image) -> None:
    images.docker_archive(tmp_path / "a.tar", {name: image})
    await kit.load(tmp_path / "a.tar")


async def test_push_then_pull(kit: Kit, other: Kit, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.address}/library/busybox:1"
    image = images.busybox()
    await loaded(kit, tmp_path, name, image)
    progress: list[Any] = []
    await kit.push(name, progress=progress)
    events = [p.event for p in progress]
    assert events[0] == "resolved" and "complete" in events
    progress = []
    await other.pull(name, progress)
    events = [p.event for p in progress]
    for earlier, later in (("resolved", "waiting"), ("waiting", "complete"),
                           ("extracting", "extracted"), ("extracted", "saved")):
        assert events.index(earlier) < events.index(later), events
    assert other.names() == [name]
    assert other.images.get(name).target.digest == kit.images.get(name).target.digest
    chain = digests.chain_id([images.digest(x) for x in image.layers])
    assert (other.layer_path(chain) / "bin/busybox").read_bytes() == Path(
        "/bin/busybox").read_bytes()
    source = f"containerd.io/distribution.source.{registry.address}"
    assert other.content.info(image.id).labels[source] == "library/busybox"
    assert other.stores.leases.walk("test") == []
    assert list(other.content.statuses()) == []


async def test_second_push_and_mount_between_repositories(
        kit: Kit, registry: Registry, tmp_path: Path) -> None:
    image = images.Image([images.layer({"x": os.urandom(1000)})])
    first, second = f"{registry.address}/one:1", f"{registry.address}/two:1"
    await loaded(kit, tmp_path, first, image)
    await kit.push(first)
    progress: list[Any] = []
    await kit.push(first, progress=progress)
    assert "already exists" in [p.event for p in progress]
    await loaded(kit, tmp_path, second, image)
    progress = []
    await kit.push(second, progress=progress)
    assert "mounted from one" in [p.event for p in progress]


async def test_missing_tag_and_repository(kit: Kit, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.address}/there:1"
    await loaded(kit, tmp_path, name, images.busybox())
    await kit.push(name)
    with pytest.raises(errdefs.NotFound, match=r"there:2 not found: manifest unknown"):
        await kit.pull(f"{registry.address}/there:2")
    with pytest.raises(errdefs.NotFound, match="not found"):
        await kit.pull(f"{registry.address}/nowhere:1")
    with pytest.raises(errdefs.Unavailable, match="connect: connection refused"):
        await kit.pull(f"127.0.0.1:{free_port()}/x:1")
    with pytest.raises(errdefs.InvalidParameter, match="invalid reference format"):
        await kit.pull("UPPER")


async def test_pull_by_digest(kit: Kit, other: Kit, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.address}/by-digest:1"
    await loaded(kit, tmp_path, name, images.busybox())
    await kit.push(name)
    digest = kit.images.get(name).target.digest
    await other.pull(f"{registry.address}/by-digest@{digest}")
    assert other.names() == [f"{registry.address}/by-digest@{digest}"]
    with pytest.raises(errdefs.NotFound):
        await other.pull(f"{registry.address}/by-digest@sha256:{'0' * 64}")


async def test_many_layers_and_pulls_at_once(kit: Kit, other: Kit, registry: Registry,
                                             tmp_path: Path) -> None:
    image = images.Image([images.layer({f"f{n}": os.urandom(300_000), f"d{n}": None})
                          for n in range(6)])
    name = f"{registry.address}/many:1"
    await loaded(kit, tmp_path, name, image)
    await kit.push(name)
    await asyncio.gather(*(other.pull(name) for _ in range(8)))
    chain = digests.chain_id([images.digest(x) for x in image.layers])
    assert (other.layer_path(chain) / "f5").stat().st_size == 300_000
    assert len(other.chains()) == 6
    assert list(other.content.statuses()) == []
