"""One suite for both transports: in process, and over gRPC on a unix socket."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from carrel import errdefs
from carrel.containerd import events as event_module
from carrel.containerd.service import Services
from carrel.proto import (
    containers_pb2,
    content_pb2,
    descriptor_pb2,
    event_types_pb2,
    events_pb2,
    image_events_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    rpc,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
)
from tests.containerd.harness import Clients, embedded, eventually, refused

HELLO = b"hello"
DIGEST = "sha256:" + hashlib.sha256(HELLO).hexdigest()
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

Both = tuple[Clients, Services]


@pytest.fixture(params=["local", "grpc"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    async with embedded(request.param, tmp_path) as made:
        yield made


async def stream(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def put(clients: Clients, data: bytes, labels: dict[str, str] | None = None) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    answers = [answer async for answer in clients.content.Write(stream(
        content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref=digest, total=len(data),
                                        expected=digest, data=data, labels=labels or {})))]
    assert answers[-1].digest == digest
    return digest


# --- namespaces ---


async def test_namespaces(both: Both) -> None:
    clients, _ = both
    request = namespaces_pb2.CreateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name="n", labels={"a": "1"}))
    await clients.namespaces.Create(request)
    with refused(errdefs.AlreadyExists):
        await clients.namespaces.Create(request)
    updated = await clients.namespaces.Update(namespaces_pb2.UpdateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name="n", labels={"b": "2"}),
        update_mask=FieldMask(paths=["labels.b"])))
    assert dict(updated.namespace.labels) == {"a": "1", "b": "2"}
    listed = await clients.namespaces.List(namespaces_pb2.ListNamespacesRequest())
    assert [n.name for n in listed.namespaces] == ["n"]
    await put(clients, HELLO)  # makes "test"
    with refused(errdefs.Conflict, 'must be empty, but it still has blobs'):
        await clients.namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name="test"))
    await clients.namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name="n"))
    with refused(errdefs.NotFound):
        await clients.namespaces.Get(namespaces_pb2.GetNamespaceRequest(name="n"))
    with refused(errdefs.InvalidParameter):
        await clients.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(
            namespace=namespaces_pb2.Namespace(name="../x")))


async def test_namespace_is_required(both: Both) -> None:
    clients = Clients(both[0].transport, "")
    with refused(errdefs.Conflict, "namespace is required"):
        await clients.images.List(images_pb2.ListImagesRequest())


# --- content ---


async def test_content(both: Both) -> None:
    clients, _ = both
    assert await put(clients, HELLO, {"a": "b"}) == DIGEST
    info = (await clients.content.Info(content_pb2.InfoRequest(digest=DIGEST))).info
    assert (info.size, dict(info.labels)) == (5, {"a": "b"})
    data = [answer.data async for answer in clients.content.Read(
        content_pb2.ReadContentRequest(digest=DIGEST, offset=1, size=3))]
    assert b"".join(data) == b"ell"
    with refused(errdefs.InvalidParameter, "must not be negative"):
        _ = [a async for a in clients.content.Read(
            content_pb2.ReadContentRequest(digest=DIGEST, offset=-1))]
    listed = [i.digest async for a in clients.content.List(
        content_pb2.ListContentRequest(filters=["labels.a==b"])) for i in a.info]
    assert listed == [DIGEST]
    updated = await clients.content.Update(content_pb2.UpdateRequest(
        info=content_pb2.Info(digest=DIGEST, labels={"c": "d"}),
        update_mask=FieldMask(paths=["labels.c"])))
    assert dict(updated.info.labels) == {"a": "b", "c": "d"}
    await clients.content.Delete(content_pb2.DeleteContentRequest(digest=DIGEST))
    with refused(errdefs.NotFound):
        await clients.content.Info(content_pb2.InfoRequest(digest=DIGEST))


async def test_large_content(both: Both) -> None:
    clients, _ = both
    data = bytes(range(256)) * 20_000  # over four megabytes: several messages either way
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    requests = [content_pb2.WriteContentRequest(
        action=content_pb2.WRITE, ref="big", offset=at, data=data[at:at + 1_000_000])
        for at in range(0, len(data), 1_000_000)]
    requests.append(content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, total=len(data), expected=digest, offset=len(data)))
    answers = [a async for a in clients.content.Write(stream(*requests))]
    assert (answers[-1].offset, answers[-1].digest) == (len(data), digest)
    read = [a async for a in clients.content.Read(content_pb2.ReadContentRequest(digest=digest))]
    assert b"".join(a.data for a in read) == data
    assert max(len(a.data) for a in read) <= 1 << 20


async def test_interrupted_write_is_gone_on_with(both: Both) -> None:
    clients, _ = both
    first = [a async for a in clients.content.Write(stream(content_pb2.WriteContentRequest(
        action=content_pb2.WRITE, ref="r", total=5, data=b"hel")))]
    assert first[0].offset == 3

    async def status() -> Any:
        return (await clients.content.Status(content_pb2.StatusRequest(ref="r"))).status

    assert ((await status()).offset, (await status()).total) == (3, 5)
    listed = await clients.content.ListStatuses(content_pb2.ListStatusesRequest(
        filters=["ref~=^r$"]))
    assert [s.ref for s in listed.statuses] == ["r"]
    with refused(errdefs.OutOfRange, "current offset"):
        _ = [a async for a in clients.content.Write(stream(content_pb2.WriteContentRequest(
            action=content_pb2.WRITE, ref="r", offset=4, data=b"o")))]
    last = [a async for a in clients.content.Write(stream(
        content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="r"),
        content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=3, data=b"lo",
                                        total=5, expected=DIGEST)))]
    assert (last[0].offset, last[1].digest) == (3, DIGEST)
    with refused(errdefs.NotFound):
        await status()


async def test_write_refusals(both: Both) -> None:
    clients, services = both
    with refused(errdefs.InvalidParameter, "must have a reference"):
        _ = [a async for a in clients.content.Write(stream(content_pb2.WriteContentRequest()))]
    with refused(errdefs.Conflict, "unexpected commit digest"):
        _ = [a async for a in clients.content.Write(stream(content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref="r", expected="sha256:" + "0" * 64, data=HELLO)))]
    await clients.content.Abort(content_pb2.AbortRequest(ref="r"))
    await put(clients, HELLO)
    with refused(errdefs.AlreadyExists):
        await put(clients, HELLO)
    assert services.content.writing == set()


# --- images, leases, collection ---


def image(name: str, digest: str = DIGEST, **labels: str) -> images_pb2.Image:
    return images_pb2.Image(name=name, labels=labels, target=descriptor_pb2.Descriptor(
        media_type="m", digest=digest, size=5))


async def test_images(both: Both) -> None:
    clients, _ = both
    made = await clients.images.Create(images_pb2.CreateImageRequest(image=image("i", a="1")))
    assert made.image.created_at.seconds > 0
    with refused(errdefs.AlreadyExists, 'image "i"'):
        await clients.images.Create(images_pb2.CreateImageRequest(image=image("i")))
    for bad in (image(""), image("x", "sha256:xyz"), image("x", "")):
        with refused(errdefs.InvalidParameter):
            await clients.images.Create(images_pb2.CreateImageRequest(image=bad))
    other = "sha256:" + "1" * 64
    updated = (await clients.images.Update(images_pb2.UpdateImageRequest(
        image=image("i", other, b="2"), update_mask=FieldMask(paths=["labels.b"])))).image
    assert (updated.target.digest, dict(updated.labels)) == (DIGEST, {"a": "1", "b": "2"})
    updated = (await clients.images.Update(images_pb2.UpdateImageRequest(
        image=image("i", other)))).image
    assert (updated.target.digest, dict(updated.labels)) == (other, {})
    await clients.images.Create(images_pb2.CreateImageRequest(image=image("j")))
    listed = await clients.images.List(images_pb2.ListImagesRequest(
        filters=[f"target.digest=={other}", "name==none"]))
    assert [i.name for i in listed.images] == ["i"]
    with refused(errdefs.NotFound):
        await clients.images.Delete(images_pb2.DeleteImageRequest(
            name="j", target=descriptor_pb2.Descriptor(digest=other)))
    await clients.images.Delete(images_pb2.DeleteImageRequest(name="j"))
    with refused(errdefs.NotFound):
        await clients.images.Get(images_pb2.GetImageRequest(name="j"))


async def test_synchronous_deletion_collects(both: Both) -> None:
    clients, _ = both
    await put(clients, HELLO)
    await clients.images.Create(images_pb2.CreateImageRequest(image=image("i")))
    await clients.images.Delete(images_pb2.DeleteImageRequest(name="i", sync=True))
    with refused(errdefs.NotFound):
        await clients.content.Info(content_pb2.InfoRequest(digest=DIGEST))


async def test_deletion_collects_soon(both: Both) -> None:
    clients, services = both
    await put(clients, HELLO)
    await clients.images.Create(images_pb2.CreateImageRequest(image=image("i")))
    await clients.images.Delete(images_pb2.DeleteImageRequest(name="i"))
    await eventually(lambda: not services.content.of("test").exists(DIGEST))


async def test_leases(both: Both) -> None:
    clients, _ = both
    await clients.leases.Create(leases_pb2.CreateRequest(id="l", labels={"a": "1"}))
    with refused(errdefs.AlreadyExists):
        await clients.leases.Create(leases_pb2.CreateRequest(id="l"))
    unnamed = await clients.leases.Create(leases_pb2.CreateRequest())
    assert unnamed.lease.id
    held = Clients(clients.transport)
    held.metadata[rpc.LEASE_HEADER] = "l"
    leased = rpc.Service(clients.transport, snapshots_pb2, "Snapshots", held.metadata)
    await leased.Prepare(snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="k"))
    await clients.leases.AddResource(leases_pb2.AddResourceRequest(
        id="l", resource=leases_pb2.Resource(id=DIGEST, type="content")))
    listed = await clients.leases.ListResources(leases_pb2.ListResourcesRequest(id="l"))
    assert [(r.type, r.id) for r in listed.resources] == [
        ("content", DIGEST), ("snapshots/overlayfs", "k")]
    await clients.leases.DeleteResource(leases_pb2.DeleteResourceRequest(
        id="l", resource=leases_pb2.Resource(id=DIGEST, type="content")))
    with refused(errdefs.NotImplementedYet):
        await clients.leases.AddResource(leases_pb2.AddResourceRequest(
            id="l", resource=leases_pb2.Resource(id="x", type="unheard-of")))
    leases = await clients.leases.List(leases_pb2.ListRequest(filters=["labels.a==1"]))
    assert [lease.id for lease in leases.leases] == ["l"]
    await clients.leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True))
    with refused(errdefs.NotFound):
        await clients.leases.Delete(leases_pb2.DeleteRequest(id="l"))


# --- snapshots ---


async def test_snapshots(both: Both) -> None:
    clients, _ = both
    prepared = await clients.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="overlayfs", key="k", labels={"a": "1"}))
    assert prepared.mounts[0].type == "bind"
    await clients.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(
        snapshotter="overlayfs", key="k", name="n"))
    view = await clients.snapshots.View(snapshots_pb2.ViewSnapshotRequest(
        snapshotter="overlayfs", key="v", parent="n"))
    again = await clients.snapshots.Mounts(snapshots_pb2.MountsRequest(
        snapshotter="overlayfs", key="v"))
    assert list(view.mounts) == list(again.mounts)
    info = (await clients.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(
        snapshotter="overlayfs", key="v"))).info
    assert (info.kind, info.parent) == (snapshots_pb2.VIEW, "n")
    listed = [i.name async for a in clients.snapshots.List(snapshots_pb2.ListSnapshotsRequest(
        snapshotter="overlayfs")) for i in a.info]
    assert listed == ["n", "v"]
    usage = await clients.snapshots.Usage(snapshots_pb2.UsageRequest(
        snapshotter="overlayfs", key="n"))
    assert usage.inodes == 1
    with refused(errdefs.Conflict, "with child"):
        await clients.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(
            snapshotter="overlayfs", key="n"))
    for key in ("v", "n"):
        await clients.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(
            snapshotter="overlayfs", key=key))
    await clients.snapshots.Cleanup(snapshots_pb2.CleanupRequest(snapshotter="overlayfs"))
    with refused(errdefs.InvalidParameter, "snapshotter not loaded: btrfs"):
        await clients.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(
            snapshotter="btrfs", key="v"))


# --- containers ---


def container(name: str, **labels: str) -> containers_pb2.Container:
    return containers_pb2.Container(
        id=name, labels=labels, image="i", snapshotter="overlayfs", snapshot_key=name,
        runtime=containers_pb2.Container.Runtime(
            name="io.containerd.carrel.v1", options=AnyMessage(type_url="o", value=b"1")),
        spec=AnyMessage(type_url=SPEC, value=b"{}"),
        extensions={"e": AnyMessage(type_url="x", value=b"y")})


async def test_containers(both: Both) -> None:
    clients, _ = both
    made = (await clients.containers.Create(containers_pb2.CreateContainerRequest(
        container=container("c", a="1")))).container
    got = (await clients.containers.Get(containers_pb2.GetContainerRequest(id="c"))).container
    assert got == made
    want = container("c", a="1")
    want.created_at.CopyFrom(got.created_at)
    want.updated_at.CopyFrom(got.updated_at)
    assert got == want
    with refused(errdefs.AlreadyExists):
        await clients.containers.Create(containers_pb2.CreateContainerRequest(
            container=container("c")))
    await clients.containers.Create(containers_pb2.CreateContainerRequest(
        container=container("d")))
    listed = await clients.containers.List(containers_pb2.ListContainersRequest(
        filters=["labels.a==1", "id==none"]))
    assert [c.id for c in listed.containers] == ["c"]
    streamed = [m.container.id async for m in clients.containers.ListStream(
        containers_pb2.ListContainersRequest(filters=['runtime.name==io.containerd.carrel.v1']))]
    assert streamed == ["c", "d"]
    await clients.containers.Delete(containers_pb2.DeleteContainerRequest(id="d"))
    with refused(errdefs.NotFound, 'container "d" in namespace "test"'):
        await clients.containers.Get(containers_pb2.GetContainerRequest(id="d"))
    with refused(errdefs.NotFound):
        await clients.containers.Delete(containers_pb2.DeleteContainerRequest(id="d"))


@pytest.mark.parametrize(("field", "text"), [
    ("id", "identifier|ID"), ("runtime", "Runtime.Name"), ("spec", "Spec"),
    ("snapshotter", "Snapshotter must be set")])
async def test_container_refusals(both: Both, field: str, text: str) -> None:
    bad = container("c")
    bad.ClearField(field)
    with refused(errdefs.InvalidParameter, text.partition("|")[2] or text):
        await both[0].containers.Create(containers_pb2.CreateContainerRequest(container=bad))


async def test_container_update(both: Both) -> None:
    clients, _ = both
    await clients.containers.Create(containers_pb2.CreateContainerRequest(
        container=container("c", a="1")))

    async def update(new: containers_pb2.Container, *paths: str) -> containers_pb2.Container:
        answer = await clients.containers.Update(containers_pb2.UpdateContainerRequest(
            container=new, update_mask=FieldMask(paths=paths)))
        result: containers_pb2.Container = answer.container
        return result

    new = containers_pb2.Container(id="c", labels={"b": "2"}, image="other",
                                   extensions={"f": AnyMessage(type_url="z")})
    result = await update(new, "labels.b", "extensions.f")
    assert dict(result.labels) == {"a": "1", "b": "2"}
    assert (set(result.extensions), result.image) == ({"e", "f"}, "i")
    result = await update(new, "labels", "image", "extensions")
    assert (dict(result.labels), result.image, set(result.extensions)) == (
        {"b": "2"}, "other", {"f"})
    with refused(errdefs.InvalidParameter, 'cannot update "id"'):
        await update(new, "id")
    changed = container("c")
    changed.runtime.name = "another"
    with refused(errdefs.InvalidParameter, "immutable"):
        await update(changed)
    got = await clients.containers.Get(containers_pb2.GetContainerRequest(id="c"))
    assert got.container.image == "other"


# --- events ---


async def collect(clients: Clients, into: list[Any], *filters: str) -> None:
    async for envelope in clients.events.Subscribe(events_pb2.SubscribeRequest(filters=filters)):
        into.append(envelope)


async def subscribed(services: Services, count: int = 1) -> None:
    await eventually(lambda: len(services.events._subscribers) == count)


async def test_events_of_objects(both: Both) -> None:
    clients, services = both
    seen: list[Any] = []
    reader = asyncio.ensure_future(collect(clients, seen))
    await subscribed(services)
    await put(clients, HELLO)
    await clients.images.Create(images_pb2.CreateImageRequest(image=image("i")))
    await clients.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="overlayfs", key="k"))
    await clients.containers.Create(containers_pb2.CreateContainerRequest(
        container=container("c")))
    await clients.containers.Delete(containers_pb2.DeleteContainerRequest(id="c"))
    await clients.images.Delete(images_pb2.DeleteImageRequest(name="i"))
    await eventually(lambda: len(seen) >= 6)
    assert [e.topic for e in seen][:6] == [
        "/content/create", "/images/create", "/snapshot/prepare", "/containers/create",
        "/containers/delete", "/images/delete"]
    assert {e.namespace for e in seen} == {"test"}
    assert seen[1].event.type_url == "containerd.services.images.v1.ImageCreate"
    assert image_events_pb2.ImageCreate.FromString(seen[1].event.value).name == "i"
    reader.cancel()
    await asyncio.wait([reader])
    await subscribed(services, 0)


async def test_publish_and_filters(both: Both) -> None:
    clients, services = both
    by_topic: list[Any] = []
    by_field: list[Any] = []
    readers = [asyncio.ensure_future(collect(clients, by_topic, "topic~=|^/a|")),
               asyncio.ensure_future(collect(clients, by_field, "event.name==wanted"))]
    await subscribed(services, 2)
    event = event_module.pack_event(image_events_pb2.ImageDelete(name="wanted"))
    for topic in ("/a/x", "/b/x"):
        await clients.events.Publish(events_pb2.PublishRequest(topic=topic, event=event))
    other = event_module.pack_event(image_events_pb2.ImageDelete(name="other"))
    envelope = event_types_pb2.Envelope(namespace="elsewhere", topic="/a/y", event=other)
    envelope.timestamp.GetCurrentTime()
    await clients.events.Forward(events_pb2.ForwardRequest(envelope=envelope))
    await eventually(lambda: (len(by_topic), len(by_field)) == (2, 2))
    assert [(e.namespace, e.topic) for e in by_topic] == [("test", "/a/x"), ("elsewhere", "/a/y")]
    assert [e.topic for e in by_field] == ["/a/x", "/b/x"]
    for bad in ("", "x", "/", "/a//b"):
        with refused(errdefs.InvalidParameter):
            await clients.events.Publish(events_pb2.PublishRequest(topic=bad, event=event))
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)


def _has(seen: list[Any], count: int) -> bool:
    return len(seen) == count


async def test_slow_subscriber_is_cut_off(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    clients, services = both
    monkeypatch.setattr(event_module, "_QUEUE_LIMIT", 10)
    fast: list[Any] = []
    reader = asyncio.ensure_future(collect(clients, fast))
    await subscribed(services)
    slow = services.events.subscribe()
    for number in range(40):
        services.events.publish("test", "/a/b", image_events_pb2.ImageDelete(name=str(number)))
        if number % 5 == 4:
            await eventually(functools.partial(_has, fast, number + 1))
    with refused(errdefs.Unavailable, "too slow"):
        async for _ in slow:
            pass
    assert len(services.events._subscribers) == 1
    reader.cancel()
    await asyncio.wait([reader])


# --- tasks without a shim, version, introspection, streams ---


async def test_task_refusals(both: Both) -> None:
    clients, _ = both
    with refused(errdefs.NotFound, 'container "none"'):
        await clients.tasks.Create(tasks_pb2.CreateTaskRequest(container_id="none"))
    with refused(errdefs.NotFound):
        await clients.tasks.Get(tasks_pb2.GetRequest(container_id="none"))
    bad = container("c")
    bad.runtime.name = "io.containerd.nonesuch.v9"
    await clients.containers.Create(containers_pb2.CreateContainerRequest(container=bad))
    for _ in range(2):  # the second finds nothing left of the first
        with refused(errdefs.InvalidParameter,
                     'binary not installed "containerd-shim-nonesuch-v9"'):
            await clients.tasks.Create(tasks_pb2.CreateTaskRequest(container_id="c"))
    with refused(errdefs.NotImplementedYet, "Checkpoint"):
        await clients.tasks.Checkpoint(tasks_pb2.CheckpointTaskRequest(container_id="c"))
    assert list((await clients.tasks.List(tasks_pb2.ListTasksRequest())).tasks) == []


async def test_version_and_introspection(both: Both) -> None:
    clients, _ = both
    version = await clients.version.Version(Empty())
    assert version.version.startswith("2.1.0+carrel")
    first = await clients.introspection.Server(Empty())
    assert first.uuid == (await clients.introspection.Server(Empty())).uuid
    assert len(first.uuid) == 36
    plugins = (await clients.introspection.Plugins(introspection_pb2.PluginsRequest(
        filters=["type==io.containerd.snapshotter.v1,id==overlayfs"]))).plugins
    assert [(p.id, p.platforms[0].os) for p in plugins] == [("overlayfs", "linux")]


async def test_streams(both: Both) -> None:
    clients, services = both
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def requests() -> AsyncIterator[Any]:
        yield event_module.pack_event(streaming_pb2.StreamInit(id="s"))
        while (message := await sent.get()) is not None:
            yield message

    answers = clients.streaming.Stream(requests())
    assert (await anext(answers)).type_url == "google.protobuf.Empty"
    stream = await services.streams.get("test", "s")
    for number in range(40):  # more than the window
        await sent.put(AnyMessage(type_url="x", value=b"%d" % number))
        received = await stream.receive()
        assert received is not None
        assert received.value == b"%d" % number
    await stream.send(AnyMessage(type_url="y", value=b"back"))
    assert (await anext(answers)).value == b"back"
    await sent.put(None)
    assert await stream.receive() is None
    await stream.send(AnyMessage(type_url="y", value=b"last"))
    stream.close()
    assert [a.value async for a in answers] == [b"last"]
    with refused(errdefs.NotFound):
        services.streams.find("test", "s")
    with refused(errdefs.InvalidParameter, "StreamInit"):
        _ = [a async for a in clients.streaming.Stream(_one(AnyMessage(type_url="x")))]


async def _one(message: Any) -> AsyncIterator[Any]:
    yield message
