"""Leases: what holds a lease is not collected.

A lease holds resources (``content``, ``snapshots/<snapshotter>``, ``ingests``,
``images``) by their id, until it is deleted or its label
``containerd.io/gc.expire`` has passed.  With ``containerd.io/gc.flat`` it holds
only those, not what they refer to.
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.proto import leases_pb2
from carrel.proto.rpc import Context


def add_resource(db: sqlite3.Connection, namespace: str, lease: str, kind: str, name: str) -> None:
    """Let ``lease`` hold a resource; inside a transaction."""
    if not db.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?",
                      (namespace, lease)).fetchone():
        raise errdefs.NotFound(f"lease does not exist: {lease}: not found")
    db.execute("INSERT OR IGNORE INTO lease_resources(namespace, lease, type, id)"
               " VALUES (?, ?, ?, ?)", (namespace, lease, kind, name))


def remove_resource(db: sqlite3.Connection, namespace: str, kind: str, name: str) -> None:
    """No lease holds the resource any more; inside a transaction."""
    db.execute("DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND id = ?",
               (namespace, kind, name))


@dataclass(slots=True)
class Lease:
    id: str
    created: int
    labels: dict[str, str] = field(default_factory=dict)


class LeaseStore:
    """Leases of every namespace."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def create(self, namespace: str, lease: str = "",
               labels: Mapping[str, str] | None = None) -> Lease:
        labels = dict(labels or {})
        values.check_labels(labels)
        made = Lease(lease or f"carrel-{secrets.token_hex(8)}", values.now(), labels)
        self._metadata.ensure_namespace(namespace)
        with self._metadata.transaction() as db:
            try:
                db.execute("INSERT INTO leases(namespace, id, labels, created) VALUES (?, ?, ?, ?)",
                           (namespace, made.id, pack(labels), made.created))
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(f'lease "{lease}": already exists') from None
        return made

    def walk(self, namespace: str, wanted: Sequence[str] = ()) -> list[Lease]:
        accept = filters.compile_all(wanted)
        rows = self._metadata.rows("SELECT id, created, labels FROM leases WHERE namespace = ?"
                                   " ORDER BY id", (namespace,))
        leases = [Lease(row[0], row[1], unpack(row[2])) for row in rows]
        return [lease for lease in leases if accept(_lookup(lease))]

    def delete(self, namespace: str, lease: str) -> None:
        with self._metadata.transaction() as db:
            cursor = db.execute("DELETE FROM leases WHERE namespace = ? AND id = ?",
                                (namespace, lease))
            if not cursor.rowcount:
                raise errdefs.NotFound(f'lease "{lease}": not found')
            db.execute("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?",
                       (namespace, lease))

    def add(self, namespace: str, lease: str, kind: str, name: str) -> None:
        _check_kind(kind)
        with self._metadata.transaction() as db:
            add_resource(db, namespace, lease, kind, name)

    def remove(self, namespace: str, lease: str, kind: str, name: str) -> None:
        _check_kind(kind)
        self._must_exist(namespace, lease)
        with self._metadata.transaction() as db:
            db.execute("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?"
                       " AND type = ? AND id = ?", (namespace, lease, kind, name))

    def resources(self, namespace: str, lease: str) -> list[tuple[str, str]]:
        """``(type, id)`` of everything that the lease holds."""
        self._must_exist(namespace, lease)
        rows = self._metadata.rows(
            "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ?"
            " ORDER BY type, id", (namespace, lease))
        return [(row[0], row[1]) for row in rows]

    def _must_exist(self, namespace: str, lease: str) -> None:
        if self._metadata.row("SELECT 1 FROM leases WHERE namespace = ? AND id = ?",
                              (namespace, lease)) is None:
            raise errdefs.NotFound(f'lease "{lease}": not found')


def _check_kind(kind: str) -> None:
    base, slash, rest = kind.partition("/")
    if base == "snapshots" and slash and rest and "/" not in rest:
        return
    if base in ("content", "ingests", "images") and not slash:
        return
    raise errdefs.NotImplementedYet(f"unknown resource type for a lease: {kind}")


def _lookup(lease: Lease) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return lease.id, bool(lease.id)
        if path[0] == "labels":
            return filters.in_labels(lease.labels, path[1:])
        return "", False

    return find


class LeasesService:
    """``containerd.services.leases.v1.Leases``"""

    def __init__(self, store: LeaseStore, collect: Callable[[], object],
                 collect_now: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._collect = collect
        self._collect_now = collect_now

    async def Create(self, request: leases_pb2.CreateRequest, context: Context,
                     ) -> leases_pb2.CreateResponse:
        lease = self._store.create(context.namespace, request.id, request.labels)
        return leases_pb2.CreateResponse(lease=_message(lease))

    async def Delete(self, request: leases_pb2.DeleteRequest, context: Context) -> Empty:
        self._store.delete(context.namespace, request.id)
        if request.sync:
            await self._collect_now()
        else:
            self._collect()
        return Empty()

    async def List(self, request: leases_pb2.ListRequest, context: Context,
                   ) -> leases_pb2.ListResponse:
        found = self._store.walk(context.namespace, request.filters)
        return leases_pb2.ListResponse(leases=[_message(lease) for lease in found])

    async def AddResource(self, request: leases_pb2.AddResourceRequest, context: Context) -> Empty:
        self._store.add(context.namespace, request.id, request.resource.type, request.resource.id)
        return Empty()

    async def DeleteResource(self, request: leases_pb2.DeleteResourceRequest,
                             context: Context) -> Empty:
        self._store.remove(context.namespace, request.id, request.resource.type,
                           request.resource.id)
        return Empty()

    async def ListResources(self, request: leases_pb2.ListResourcesRequest, context: Context,
                            ) -> leases_pb2.ListResourcesResponse:
        found = self._store.resources(context.namespace, request.id)
        return leases_pb2.ListResourcesResponse(
            resources=[leases_pb2.Resource(type=kind, id=name) for kind, name in found])


def _message(lease: Lease) -> leases_pb2.Lease:
    return leases_pb2.Lease(id=lease.id, created_at=values.stamp(lease.created),
                            labels=lease.labels)
