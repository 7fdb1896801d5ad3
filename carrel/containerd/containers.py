"""Containers: records of what to run.  A record does nothing until it has a task."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.containerd.events import EventBus
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.proto import container_events_pb2, containers_pb2
from carrel.proto.rpc import Context

_COLUMNS = ("id, labels, image, runtime, runtime_any, spec_any, snapshotter, snapshot_key,"
            " sandbox, extensions, created, updated")
_SELECT = f"SELECT {_COLUMNS} FROM containers WHERE namespace = ?"

Container = containers_pb2.Container


class ContainerStore:
    """Container records of every namespace.

    The message type of the protocol is the record: there is nothing to hide.
    """

    def __init__(self, metadata: Metadata, events: EventBus | None = None) -> None:
        self._metadata = metadata
        self._events = events

    def get(self, namespace: str, name: str) -> Container:
        row = self._metadata.row(f"{_SELECT} AND id = ?", (namespace, name))
        if row is None:
            raise errdefs.NotFound(f'container "{name}" in namespace "{namespace}": not found')
        return _message(row)

    def walk(self, namespace: str, wanted: Sequence[str] = ()) -> Iterator[Container]:
        accept = filters.compile_all(wanted)
        for row in self._metadata.rows(f"{_SELECT} ORDER BY id", (namespace,)):
            container = _message(row)
            if accept(_lookup(container)):
                yield container

    def create(self, namespace: str, container: Container) -> Container:
        _validate(container)
        moment = values.now()
        self._metadata.ensure_namespace(namespace)
        with self._metadata.transaction() as db:
            try:
                db.execute(f"INSERT INTO containers(namespace, {_COLUMNS})"
                           " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                           _row(namespace, container, moment, moment))
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(
                    f'container "{container.id}": already exists') from None
        made = Container()
        made.CopyFrom(container)
        made.created_at.CopyFrom(values.stamp(moment))
        made.updated_at.CopyFrom(values.stamp(moment))
        if self._events is not None:
            self._events.publish(namespace, "/containers/create",
                                 container_events_pb2.ContainerCreate(
                                     id=made.id, image=made.image,
                                     runtime=container_events_pb2.ContainerCreate.Runtime(
                                         name=made.runtime.name, options=made.runtime.options)))
        return made

    def update(self, namespace: str, container: Container, paths: Sequence[str]) -> Container:
        with self._metadata.transaction() as db:
            old = self.get(namespace, container.id)
            new = _masked(old, container, paths) if paths else _replaced(old, container)
            _validate(new)
            moment = values.now()
            new.updated_at.CopyFrom(values.stamp(moment))
            db.execute(f"INSERT OR REPLACE INTO containers(namespace, {_COLUMNS})"
                       " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       _row(namespace, new, new.created_at.ToNanoseconds(), moment))
        if self._events is not None:
            self._events.publish(namespace, "/containers/update",
                                 container_events_pb2.ContainerUpdate(
                                     id=new.id, image=new.image, labels=new.labels,
                                     snapshot_key=new.snapshot_key))
        return new

    def delete(self, namespace: str, name: str) -> None:
        with self._metadata.transaction() as db:
            cursor = db.execute("DELETE FROM containers WHERE namespace = ? AND id = ?",
                                (namespace, name))
            if not cursor.rowcount:
                raise errdefs.NotFound(f'container "{name}": not found')
        if self._events is not None:
            self._events.publish(namespace, "/containers/delete",
                                 container_events_pb2.ContainerDelete(id=name))


def _row(namespace: str, container: Container, created: int, updated: int) -> tuple[Any, ...]:
    holder = Container()
    for key, value in container.extensions.items():
        holder.extensions[key].CopyFrom(value)
    return (namespace, container.id, pack(container.labels), container.image,
            container.runtime.name, container.runtime.options.SerializeToString(),
            container.spec.SerializeToString(), container.snapshotter, container.snapshot_key,
            container.sandbox, holder.SerializeToString(), created, updated)


def _message(row: tuple[Any, ...]) -> Container:
    (name, labels, image, runtime, runtime_any, spec_any, snapshotter, snapshot_key, sandbox,
     extensions, created, updated) = row
    container = Container.FromString(extensions)
    container.id = name
    container.labels.update(unpack(labels))
    container.image = image
    container.runtime.name = runtime
    if runtime_any:
        container.runtime.options.ParseFromString(runtime_any)
    container.spec.ParseFromString(spec_any)
    container.snapshotter = snapshotter
    container.snapshot_key = snapshot_key
    container.sandbox = sandbox
    container.created_at.CopyFrom(values.stamp(created))
    container.updated_at.CopyFrom(values.stamp(updated))
    return container


def _validate(container: Container) -> None:
    values.check_identifier(container.id, "container.ID")
    for key in container.extensions:
        if not key:
            raise errdefs.InvalidParameter("container.Extensions keys must not be empty")
    values.check_labels(container.labels)
    if not container.runtime.name:
        raise errdefs.InvalidParameter("container.Runtime.Name must be set")
    if not container.HasField("spec"):
        raise errdefs.InvalidParameter("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise errdefs.InvalidParameter(
            "container.Snapshotter must be set if container.SnapshotKey is set")


def _replaced(old: Container, new: Container) -> Container:
    """An update without a mask: everything but what makes the container this one."""
    if new.snapshotter != old.snapshotter:
        raise errdefs.InvalidParameter("container.Snapshotter field is immutable")
    if new.runtime.name != old.runtime.name:
        raise errdefs.InvalidParameter("container.Runtime.Name field is immutable")
    result = Container()
    result.CopyFrom(new)
    result.created_at.CopyFrom(old.created_at)
    return result


#: field mask path -> field of the message
_MASK = {"image": "image", "spec": "spec", "snapshotkey": "snapshot_key",
         "snapshot_key": "snapshot_key", "sandbox": "sandbox"}


def _masked(old: Container, new: Container, paths: Sequence[str]) -> Container:
    result = Container()
    result.CopyFrom(old)
    labels = values.masked_labels(old.labels, new.labels, paths)
    if labels is not None:
        result.labels.clear()
        result.labels.update(labels)
    for path in paths:
        head, _, rest = path.partition(".")
        if head == "labels":
            continue
        if head == "extensions":
            for key in [rest] if rest else {*old.extensions, *new.extensions}:
                if key in new.extensions:
                    result.extensions[key].CopyFrom(new.extensions[key])
                else:
                    result.extensions.pop(key, None)
        elif path == "runtime.options":
            result.runtime.options.CopyFrom(new.runtime.options)
        elif path in _MASK:
            value = getattr(new, _MASK[path])
            if isinstance(value, AnyMessage):
                result.spec.CopyFrom(value)
            else:
                setattr(result, _MASK[path], value)
        else:
            raise errdefs.InvalidParameter(
                f'cannot update "{path}" field on container "{old.id}"')
    return result


def _lookup(container: Container) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "labels":
            return filters.in_labels(container.labels, path[1:])
        value = ""
        if path[0] == "id":
            value = container.id
        elif path[0] == "image":
            value = container.image
        elif list(path) == ["runtime", "name"]:
            value = container.runtime.name
        return value, bool(value)

    return find


class ContainersService:
    """``containerd.services.containers.v1.Containers``"""

    def __init__(self, store: ContainerStore, collect: Callable[[], object]) -> None:
        self._store = store
        self._collect = collect

    async def Get(self, request: containers_pb2.GetContainerRequest, context: Context,
                  ) -> containers_pb2.GetContainerResponse:
        return containers_pb2.GetContainerResponse(
            container=self._store.get(context.namespace, request.id))

    async def List(self, request: containers_pb2.ListContainersRequest, context: Context,
                   ) -> containers_pb2.ListContainersResponse:
        return containers_pb2.ListContainersResponse(
            containers=self._store.walk(context.namespace, request.filters))

    async def ListStream(self, request: containers_pb2.ListContainersRequest, context: Context,
                         ) -> AsyncIterator[containers_pb2.ListContainerMessage]:
        for container in self._store.walk(context.namespace, request.filters):
            yield containers_pb2.ListContainerMessage(container=container)

    async def Create(self, request: containers_pb2.CreateContainerRequest, context: Context,
                     ) -> containers_pb2.CreateContainerResponse:
        return containers_pb2.CreateContainerResponse(
            container=self._store.create(context.namespace, request.container))

    async def Update(self, request: containers_pb2.UpdateContainerRequest, context: Context,
                     ) -> containers_pb2.UpdateContainerResponse:
        if not request.container.id:
            raise errdefs.InvalidParameter("container.ID required")
        return containers_pb2.UpdateContainerResponse(container=self._store.update(
            context.namespace, request.container, list(request.update_mask.paths)))

    async def Delete(self, request: containers_pb2.DeleteContainerRequest, context: Context,
                     ) -> Empty:
        self._store.delete(context.namespace, request.id)
        self._collect()
        return Empty()
