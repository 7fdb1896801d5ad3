"""Snapshots: file systems of images and containers, by key.

A *view* or *active* snapshot is prepared from a parent under a key; an active
one can be committed under a name, which others may then have as parent.
Names and keys are one set per namespace and snapshotter.  There is one
snapshotter, ``overlayfs``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carrel import errdefs
from carrel.containerd import filters, removal, values
from carrel.containerd.events import EventBus
from carrel.containerd.leases import add_resource, remove_resource
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.containerd.overlay import ACTIVE, COMMITTED, VIEW, Directories
from carrel.proto import mount_pb2, snapshot_events_pb2

NAME = "overlayfs"
#: containerd's mark of a snapshot that a layer is unpacked into; its value is the chain ID
LAYER_LABEL = "containerd.io/snapshot.ref"
_COLUMNS = "key, parent, kind, created, updated, labels, id, parent_id, size, inodes"
_KINDS = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}


@dataclass(slots=True)
class SnapshotInfo:
    name: str
    parent: str
    kind: int
    created: int
    updated: int
    labels: dict[str, str] = field(default_factory=dict)
    #: number of the directory, and of the parent's (0: none)
    id: int = 0
    parent_id: int = 0
    size: int = -1
    inodes: int = -1


class Snapshotter:
    """The overlay snapshotter under ``root``; :meth:`of` gives one namespace's view."""

    name = NAME

    def __init__(self, root: str, metadata: Metadata, events: EventBus | None = None) -> None:
        self.metadata = metadata
        self.events = events
        self.directories = Directories(root)
        #: ancestors of a snapshot never change and ids are never used again
        self._chains: dict[int, tuple[int, ...]] = {0: ()}
        self._recover()

    def of(self, namespace: str, lease: str = "") -> NamespacedSnapshots:
        """The snapshots of ``namespace``; what is prepared joins ``lease``."""
        return NamespacedSnapshots(self, namespace, lease)

    def _recover(self) -> None:
        rows = self.metadata.rows("SELECT id, kind, parent_id FROM snapshots")
        self.directories.sweep({row[0] for row in rows})
        for number, kind, parent in rows:
            # a power cut may take a directory that was made just before it
            if kind != COMMITTED:
                try:
                    self.directories.create(number, kind, parent)
                except FileExistsError:
                    pass
                except FileNotFoundError:
                    continue  # the parent is gone: said when the snapshot is used

    def chain(self, number: int) -> tuple[int, ...]:
        """The snapshot itself and its ancestors, nearest first; () for 0."""
        found = self._chains.get(number)
        if found is not None:
            return found
        path: list[int] = []
        at = number
        while (known := self._chains.get(at)) is None:
            path.append(at)
            row = self.metadata.row("SELECT parent_id FROM snapshots WHERE id = ?", (at,))
            if row is None:
                raise errdefs.NotFound(f"snapshot directory {at}: not found")
            at = row[0]
        result = known
        for at in reversed(path):
            result = (at, *result)
            # only committed ones can be parents: the rest would fill the memory
        if len(self._chains) > 4096:
            self._chains = {0: ()}
        self._chains[number] = result
        return result

    def close(self) -> None:
        self.directories.close()


class NamespacedSnapshots:
    """What one namespace does with its snapshots.  May be used from any thread."""

    def __init__(self, snapshotter: Snapshotter, namespace: str, lease: str = "") -> None:
        self._snapshotter = snapshotter
        self._metadata = snapshotter.metadata
        self._directories = snapshotter.directories
        self.namespace = namespace
        self.lease = lease

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None,
                ) -> list[mount_pb2.Mount]:
        """A writable snapshot on top of the committed ``parent``."""
        return self._create(key, parent, labels or {}, ACTIVE)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None,
             ) -> list[mount_pb2.Mount]:
        """A read-only one."""
        return self._create(key, parent, labels or {}, VIEW)

    def _create(self, key: str, parent: str, labels: Mapping[str, str], kind: int,
                ) -> list[mount_pb2.Mount]:
        _check_key(key)
        values.check_labels(labels)
        moment = values.now()
        self._metadata.ensure_namespace(self.namespace)
        with self._metadata.transaction() as db:
            parent_id = self._parent(parent)
            try:
                number = db.execute(
                    "INSERT INTO snapshots(namespace, snapshotter, key, parent, parent_id, kind,"
                    " labels, created, updated, size, inodes)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, -1, -1)",
                    (self.namespace, NAME, key, parent, parent_id, kind, pack(labels),
                     moment, moment)).lastrowid or 0
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(f'snapshot "{key}": already exists') from None
            if self.lease:
                add_resource(db, self.namespace, self.lease, f"snapshots/{NAME}", key)
            parents = self._snapshotter.chain(parent_id)
            self._make_directories(number, kind, parent_id, parent, LAYER_LABEL in labels)
        self._tell("/snapshot/prepare", snapshot_events_pb2.SnapshotPrepare(
            key=key, parent=parent, snapshotter=NAME))
        return self._directories.mounts(number, kind, parents)

    def _parent(self, parent: str) -> int:
        if not parent:
            return 0
        try:
            info = self.stat(parent)
        except errdefs.NotFound:
            raise errdefs.NotFound(f"parent snapshot {parent} does not exist: not found") from None
        if info.kind != COMMITTED:
            raise errdefs.InvalidParameter(f'parent "{parent}" is not committed snapshot')
        return info.id

    def _make_directories(self, number: int, kind: int, parent_id: int, parent: str,
                          layer: bool) -> None:
        try:
            self._directories.create(number, kind, parent_id, layer=layer)
        except FileExistsError:
            # of a transaction that was rolled back after the directories were made
            self._directories.discard(number)
            self._directories.create(number, kind, parent_id, layer=layer)
        except FileNotFoundError as error:
            raise errdefs.SystemFailure(
                f"layer directory of snapshot {parent} is missing: {error}",
                hint="the image's layers were damaged: remove and pull the image again") from error

    def mounts(self, key: str) -> list[mount_pb2.Mount]:
        """The mounts of a prepared snapshot."""
        info = self.stat(key)
        if info.kind == COMMITTED:
            raise errdefs.Conflict(f'snapshot "{key}" is committed: it has no mounts')
        return self._directories.mounts(info.id, info.kind,
                                        self._snapshotter.chain(info.parent_id))

    def path(self, key: str) -> str:
        """The directory that holds the snapshot's own files."""
        return self._directories.upper(self.stat(key).id)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None,
               sync: bool = True, measured: tuple[int, int] | None = None,
               parent: str = "") -> None:
        """Make the active ``key`` the committed ``name``.

        ``parent`` gives a snapshot that was prepared without one its place on top of
        that one (layers unpacked side by side are stacked so).

        The files are brought to the disk first, so that a committed layer is
        whole after a power cut; who commits many layers in a row passes
        ``sync=False`` and calls :meth:`sync` before the last.  ``measured`` is
        (bytes, inodes), where the caller counted them while writing.
        """
        _check_key(name)
        values.check_labels(labels or {})
        info = self.stat(key)
        _must_be_active(info)
        if sync:
            self._directories.sync()
        size, inodes = measured or removal.usage(self._directories.upper(info.id))
        with self._metadata.transaction() as db:
            info = self.stat(key)
            _must_be_active(info)
            if parent and parent != info.parent:
                if info.parent:
                    raise errdefs.InvalidParameter(
                        f'snapshot "{key}" has the parent "{info.parent}", not "{parent}"')
                info.parent, info.parent_id = parent, self._parent(parent)
            moment = values.now()
            try:
                db.execute("UPDATE snapshots SET key = ?, kind = ?, labels = ?, created = ?,"
                           " updated = ?, size = ?, inodes = ?, parent = ?, parent_id = ?"
                           " WHERE id = ?",
                           (name, COMMITTED, pack(labels or {}), moment, moment, size, inodes,
                            info.parent, info.parent_id, info.id))
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(f'snapshot "{name}": already exists') from None
            remove_resource(db, self.namespace, f"snapshots/{NAME}", key)
            if self.lease:
                add_resource(db, self.namespace, self.lease, f"snapshots/{NAME}", name)
        self._tell("/snapshot/commit", snapshot_events_pb2.SnapshotCommit(
            key=key, name=name, snapshotter=NAME))

    def sync(self) -> None:
        """Bring all layers to the disk."""
        self._directories.sync()

    def remove(self, key: str) -> None:
        """Forget the snapshot; its directories go in the background."""
        with self._metadata.transaction() as db:
            info = self.stat(key)
            if db.execute("SELECT 1 FROM snapshots WHERE parent_id = ? LIMIT 1",
                          (info.id,)).fetchone():
                raise errdefs.Conflict(f'cannot remove snapshot "{key}" with child')
            db.execute("DELETE FROM snapshots WHERE id = ?", (info.id,))
            remove_resource(db, self.namespace, f"snapshots/{NAME}", key)
        # the row went first: a directory without a row is swept, a row without one is damage
        self._directories.remove(info.id)
        self._tell("/snapshot/remove", snapshot_events_pb2.SnapshotRemove(
            key=key, snapshotter=NAME))

    def stat(self, key: str) -> SnapshotInfo:
        row = self._metadata.row(
            f"SELECT {_COLUMNS} FROM snapshots"
            " WHERE namespace = ? AND snapshotter = ? AND key = ?", (self.namespace, NAME, key))
        if row is None:
            raise errdefs.NotFound(f"snapshot {key} does not exist: not found")
        return _info(row)

    def exists(self, key: str) -> bool:
        return self._metadata.row(
            "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
            (self.namespace, NAME, key)) is not None

    def update(self, key: str, labels: Mapping[str, str],
               paths: Iterable[str] = ()) -> SnapshotInfo:
        """Change labels: all of them, or those that the field mask names."""
        paths = list(paths)
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise errdefs.InvalidParameter(
                    f'cannot update "{path}" field on snapshot "{key}"')
        with self._metadata.transaction() as db:
            info = self.stat(key)
            changed = values.masked_labels(info.labels, labels, paths or ["labels"])
            info.labels = info.labels if changed is None else changed
            info.updated = values.now()
            db.execute("UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                       (pack(info.labels), info.updated, info.id))
        return info

    def walk(self, wanted: Sequence[str] = ()) -> Iterator[SnapshotInfo]:
        accept = filters.compile_all(wanted)
        for row in self._metadata.rows(
                f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ?"
                " ORDER BY key", (self.namespace, NAME)):
            info = _info(row)
            if accept(_lookup(info)):
                yield info

    def usage(self, key: str) -> tuple[int, int]:
        """(bytes, inodes) of the snapshot without its parents."""
        info = self.stat(key)
        if info.kind == COMMITTED and info.size >= 0:
            return info.size, info.inodes
        return removal.usage(self._directories.upper(info.id))

    def cleanup(self) -> None:
        """Remove directories that belong to nothing."""
        with self._metadata.transaction():
            rows = self._metadata.rows("SELECT id FROM snapshots")
            self._directories.sweep({row[0] for row in rows})

    def _tell(self, topic: str, event: snapshot_events_pb2.SnapshotPrepare
              | snapshot_events_pb2.SnapshotCommit | snapshot_events_pb2.SnapshotRemove) -> None:
        if self._snapshotter.events is not None:
            self._snapshotter.events.publish(self.namespace, topic, event)


def _check_key(key: str) -> None:
    if not key:
        raise errdefs.InvalidParameter("snapshot key must not be empty")
    if len(key) > 4096 or "\0" in key:
        raise errdefs.InvalidParameter("snapshot key is too long or holds a NUL byte")


def _must_be_active(info: SnapshotInfo) -> None:
    if info.kind != ACTIVE:
        raise errdefs.Conflict(f'snapshot "{info.name}" is not active')


def _info(row: tuple[Any, ...]) -> SnapshotInfo:
    key, parent, kind, created, updated, labels, number, parent_id, size, inodes = row
    return SnapshotInfo(key, parent, kind, created, updated, unpack(labels), number, parent_id,
                        size, inodes)


def _lookup(info: SnapshotInfo) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "kind":
            return _KINDS[info.kind], True
        if path[0] == "name":
            return info.name, True
        if path[0] == "parent":
            return info.parent, True
        if path[0] == "labels":
            return filters.in_labels(info.labels, path[1:])
        return "", False

    return find
