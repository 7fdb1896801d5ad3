"""What the garbage collector keeps and what it takes."""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from carrel.containerd import gc, service
from carrel.containerd.images import Descriptor, Image
from carrel.containerd.service import Services
from carrel.proto import containers_pb2
from tests.containerd.harness import eventually, present

NS = "default"


@pytest.fixture
async def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setattr(gc, "_PREPARED_GRACE_NS", 0)
    services = service.build(str(tmp_path / "root"), str(tmp_path / "state"), zygote="")
    return services


def blob(services: Services, text: str, labels: dict[str, str] | None = None, *,
         namespace: str = NS, lease: str = "") -> str:
    with services.content.of(namespace, lease).writer(text) as writer:
        writer.write(text.encode())
        return writer.commit(0, "", labels)


def blobs(services: Services, namespace: str = NS) -> set[str]:
    return {info.digest for info in services.content.of(namespace).walk()}


def image(services: Services, name: str, digest: str, labels: dict[str, str] | None = None) -> None:
    services.images.of(NS).create(Image(name, Descriptor("m", digest, 1), labels or {}))


def stamp(seconds: int) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def snapshots(services: Services) -> set[str]:
    return {info.name for info in services.snapshotter.of(NS).walk()}


def chain(services: Services, *names: str, labels: dict[str, str] | None = None) -> None:
    view, parent = services.snapshotter.of(NS), ""
    for name in names:
        view.prepare(f"{name}-key", parent)
        view.commit(name, f"{name}-key", labels, sync=False)
        parent = name


async def test_image_holds_its_tree(layer: Services) -> None:
    config, data = blob(layer, "config", {"containerd.io/gc.ref.snapshot.overlayfs": "L2"}), blob(
        layer, "layer")
    manifest = blob(layer, "manifest", {"containerd.io/gc.ref.content.config": config,
                                        "containerd.io/gc.ref.content.l.0": data})
    lost = blob(layer, "lost")
    chain(layer, "L1", "L2", "L3")
    image(layer, "i", manifest)
    result = await layer.collector.collect()
    assert blobs(layer) == {config, data, manifest}
    assert snapshots(layer) == {"L1", "L2"}
    assert result.blobs == [(NS, lost)]
    assert not os.path.exists(layer.content.path(lost))
    assert present(layer.snapshotter.directories.root) == ["1", "2"]
    layer.images.of(NS).delete("i")
    await layer.collector.collect()
    assert blobs(layer) == set()
    assert snapshots(layer) == set()
    assert present(layer.snapshotter.directories.root) == []
    assert os.listdir(f"{layer.content.blobs}/sha256") == []


async def test_other_spellings_and_back_references(layer: Services) -> None:
    a = blob(layer, "a")
    b = blob(layer, "b")
    c = blob(layer, "c", {"containerd.io/gc.bref.content.parent": sha("m")})
    blob(layer, "d", {"containerd.io/gc.bref.content": sha("nobody")})
    m = blob(layer, "m", {"containerd.io/gc.ref.content": a, "containerd.io/gc.ref.content/x": b})
    e = blob(layer, "e", {"containerd.io/gc.bref.image": "i"})
    image(layer, "i", m)
    await layer.collector.collect()
    assert blobs(layer) == {a, b, c, m, e}


async def test_roots_and_expiry(layer: Services) -> None:
    root = blob(layer, "root", {"containerd.io/gc.root": stamp(0)})
    young = blob(layer, "young", {"containerd.io/gc.expire": stamp(100)})
    blob(layer, "old", {"containerd.io/gc.expire": stamp(-100)})
    image(layer, "gone", blob(layer, "of-gone"), {"containerd.io/gc.expire": stamp(-1)})
    image(layer, "stays", stays := blob(layer, "of-stays"),
          {"containerd.io/gc.expire": stamp(100)})
    await layer.collector.collect()
    assert blobs(layer) == {root, young, stays}
    assert [i.name for i in layer.images.of(NS).walk()] == ["stays"]


async def test_leases(layer: Services) -> None:
    child = blob(layer, "child")
    layer.leases.create(NS, "l")
    tree = blob(layer, "tree", {"containerd.io/gc.ref.content": child}, lease="l")
    layer.leases.create(NS, "flat", {"containerd.io/gc.flat": "true"})
    other = blob(layer, "other-child")
    flat = blob(layer, "flat", {"containerd.io/gc.ref.content": other}, lease="flat")
    layer.leases.create(NS, "over", {"containerd.io/gc.expire": stamp(-5)})
    blob(layer, "over", lease="over")
    layer.snapshotter.of(NS, "l").prepare("leased")
    layer.snapshotter.of(NS).prepare("loose")
    await layer.collector.collect()
    assert blobs(layer) == {child, tree, flat}
    assert snapshots(layer) == {"leased"}
    assert [lease.id for lease in layer.leases.walk(NS)] == ["flat", "l"]
    layer.leases.delete(NS, "l")
    layer.leases.delete(NS, "flat")
    await layer.collector.collect()
    assert blobs(layer) == set()
    assert snapshots(layer) == set()


async def test_container_holds_its_snapshot(layer: Services) -> None:
    chain(layer, "L1")
    layer.snapshotter.of(NS).prepare("c", "L1")
    container = containers_pb2.Container(
        id="c", spec=AnyMessage(type_url="x"), snapshotter="overlayfs", snapshot_key="c",
        runtime=containers_pb2.Container.Runtime(name="r"))
    layer.containers.create(NS, container)
    await layer.collector.collect()
    assert snapshots(layer) == {"L1", "c"}
    layer.containers.delete(NS, "c")
    await layer.collector.collect()
    assert snapshots(layer) == set()


async def test_prepared_snapshot_has_time_to_find_its_container(
        layer: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "_PREPARED_GRACE_NS", 60_000_000_000)
    chain(layer, "L1")
    layer.snapshotter.of(NS).prepare("c", "L1")
    await layer.collector.collect()
    assert snapshots(layer) == {"L1", "c"}


async def test_namespaces_are_separate(layer: Services) -> None:
    digest = blob(layer, "x")
    image(layer, "i", digest)
    blob(layer, "x", namespace="other")
    await layer.collector.collect()
    assert blobs(layer) == {digest}
    assert blobs(layer, "other") == set()
    assert layer.content.of(NS).read(digest) == b"x"


async def test_writes_in_progress_are_left_alone(layer: Services,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "_STALE_INGEST_NS", -10_000_000_000)
    view = layer.content.of(NS)
    with view.writer("open") as writer:
        writer.write(b"x")
        with view.writer("abandoned") as abandoned:
            abandoned.write(b"y")
        layer.leases.create(NS, "l")
        layer.content.of(NS, "l").writer("leased").close()
        result = await layer.collector.collect()
        assert result.ingests == 1
        assert {s.ref for s in view.statuses()} == {"open", "leased"}
        writer.commit(1)


async def test_a_change_meanwhile_makes_it_look_again(layer: Services,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that is made between mark and sweep is seen."""
    digest = blob(layer, "x")
    real = layer.collector._mark_aside

    def mark() -> gc._Graph:
        graph = real()
        if not list(layer.images.of(NS).walk()):
            image(layer, "i", digest)
        return graph

    monkeypatch.setattr(layer.collector, "_mark_aside", mark)
    await layer.collector.collect()
    assert blobs(layer) == {digest}


async def test_files_without_a_row_are_swept(layer: Services) -> None:
    digest = blob(layer, "x")
    orphan = layer.content.path("sha256:" + "0" * 64)
    Path(orphan).write_bytes(b"interrupted")
    assert layer.collector.sweep_files() == 1
    assert not os.path.exists(orphan)
    assert layer.content.of(NS).read(digest) == b"x"


async def test_scheduling(layer: Services) -> None:
    """Many calls are one collection, at the earliest of their times."""
    runs: list[float] = []
    real = layer.collector.run

    def run() -> gc.Collected:
        runs.append(1)
        return real()

    layer.collector.run = run  # type: ignore[method-assign]
    layer.collector.schedule_later()
    blob(layer, "x")
    for _ in range(5):
        layer.collector.schedule(0.05)
    await eventually(lambda: blobs(layer) == set())
    assert len(runs) == 1
    await layer.collector.stop()
