"""Namespaces: separate sets of everything, for separate clients of one daemon."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import sqlite3

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import values
from carrel.containerd.events import EventBus
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.proto import namespace_events_pb2, namespaces_pb2
from carrel.proto.rpc import Context

#: what makes a namespace not empty: table and how a person calls it
_CONTENTS = (("images", "images"), ("blobs", "blobs"), ("containers", "containers"),
             ("snapshots", 'snapshots on "overlayfs" snapshotter'), ("leases", "leases"))


class NamespacesService:
    """``containerd.services.namespaces.v1.Namespaces``"""

    def __init__(self, metadata: Metadata, events: EventBus) -> None:
        self._metadata = metadata
        self._events = events

    def _labels(self, name: str) -> dict[str, str]:
        row = self._metadata.row("SELECT labels FROM namespaces WHERE name = ?", (name,))
        if row is None:
            raise errdefs.NotFound(f'namespace "{name}": not found')
        return unpack(row[0])

    async def Get(self, request: namespaces_pb2.GetNamespaceRequest, context: Context,
                  ) -> namespaces_pb2.GetNamespaceResponse:
        return namespaces_pb2.GetNamespaceResponse(namespace=namespaces_pb2.Namespace(
            name=request.name, labels=self._labels(request.name)))

    async def List(self, request: namespaces_pb2.ListNamespacesRequest, context: Context,
                   ) -> namespaces_pb2.ListNamespacesResponse:
        rows = self._metadata.rows("SELECT name, labels FROM namespaces ORDER BY name")
        return namespaces_pb2.ListNamespacesResponse(namespaces=[
            namespaces_pb2.Namespace(name=name, labels=unpack(labels)) for name, labels in rows])

    async def Create(self, request: namespaces_pb2.CreateNamespaceRequest, context: Context,
                     ) -> namespaces_pb2.CreateNamespaceResponse:
        name, labels = request.namespace.name, dict(request.namespace.labels)
        values.check_identifier(name, "namespace")
        values.check_labels(labels)
        with self._metadata.transaction() as db:
            try:
                db.execute("INSERT INTO namespaces(name, labels) VALUES (?, ?)",
                           (name, pack(labels)))
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(f'namespace "{name}": already exists') from None
        self._events.publish(name, "/namespaces/create",
                             namespace_events_pb2.NamespaceCreate(name=name, labels=labels))
        return namespaces_pb2.CreateNamespaceResponse(namespace=request.namespace)

    async def Update(self, request: namespaces_pb2.UpdateNamespaceRequest, context: Context,
                     ) -> namespaces_pb2.UpdateNamespaceResponse:
        name = request.namespace.name
        paths = list(request.update_mask.paths)
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise errdefs.InvalidParameter(
                    f'cannot update "{path}" field on namespace "{name}"')
        with self._metadata.transaction() as db:
            old = self._labels(name)
            labels = values.masked_labels(old, request.namespace.labels, paths or ["labels"]) or {}
            db.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (pack(labels), name))
        self._events.publish(name, "/namespaces/update",
                             namespace_events_pb2.NamespaceUpdate(name=name, labels=labels))
        return namespaces_pb2.UpdateNamespaceResponse(
            namespace=namespaces_pb2.Namespace(name=name, labels=labels))

    async def Delete(self, request: namespaces_pb2.DeleteNamespaceRequest, context: Context,
                     ) -> Empty:
        name = request.name
        with self._metadata.transaction() as db:
            self._labels(name)
            kept = [word for table, word in _CONTENTS if db.execute(
                f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()]
            if kept:
                raise errdefs.Conflict(
                    f'namespace "{name}" must be empty, but it still has {", ".join(kept)}')
            db.execute("DELETE FROM namespaces WHERE name = ?", (name,))
        self._metadata.forget_namespace(name)
        self._events.publish(name, "/namespaces/delete",
                             namespace_events_pb2.NamespaceDelete(name=name))
        return Empty()
