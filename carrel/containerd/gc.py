"""Garbage collection: what nothing refers to goes.

The graph: images, containers, leases and labels refer to content and
snapshots; labels of content and snapshots refer on.

    containerd.io/gc.root                     this object stays
    containerd.io/gc.expire                   ... until then (RFC 3339)
    containerd.io/gc.ref.content[.x|/x]       -> digest
    containerd.io/gc.ref.snapshot.<name>[/x]  -> snapshot key
    containerd.io/gc.ref.image[.x|/x]         -> image name
    containerd.io/gc.bref.{content,snapshot.<name>,image,container}   the way back
    containerd.io/gc.flat                     on a lease: only what it names

The marks are made on a connection of their own, without holding anybody up;
if something was committed meanwhile they are made anew, the last time under
the lock.  The rows then go in one transaction, and the files after it.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import sqlite3
import time
from dataclasses import dataclass, field

from carrel.containerd import values
from carrel.containerd.content import ContentStore, read_status, remove_ingest
from carrel.containerd.events import EventBus
from carrel.containerd.metadata import Metadata, unpack
from carrel.containerd.overlay import COMMITTED
from carrel.containerd.snapshots import Snapshotter
from carrel.proto import content_events_pb2, image_events_pb2, snapshot_events_pb2

log = logging.getLogger(__name__)

_REF = "containerd.io/gc.ref."
_BREF = "containerd.io/gc.bref."
_ROOT = "containerd.io/gc.root"
_EXPIRE = "containerd.io/gc.expire"
_FLAT = "containerd.io/gc.flat"

#: a prepared snapshot is about to get its container: it is left alone that long
_PREPARED_GRACE_NS = 60 * 1_000_000_000
#: an abandoned write without a lease
_STALE_INGEST_NS = 24 * 3600 * 1_000_000_000
_OPTIMISTIC_TRIES = 3
_LATER_SECONDS = 10.0

#: kind, namespace, key;  kinds: content, image, container, snapshots/<snapshotter>
Node = tuple[str, str, str]


def expired(labels: dict[str, str], now: int) -> bool | None:
    """Whether the label says that the object is over; None without the label."""
    text = labels.get(_EXPIRE)
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp() * 1e9 < now


def _target(namespace: str, rest: str, value: str) -> Node | None:
    """The node that a reference label (without its prefix) names."""
    if rest.startswith("snapshot."):
        name = rest[len("snapshot."):].partition("/")[0].partition(".")[0]
        return (f"snapshots/{name}", namespace, value)
    for kind in ("content", "image", "container"):
        if rest == kind or rest.startswith((kind + ".", kind + "/")):
            return (kind, namespace, value)
    return None


@dataclass(slots=True)
class _Graph:
    """Objects, who refers to whom, and where to begin."""

    now: int
    roots: list[Node] = field(default_factory=list)
    flat: set[Node] = field(default_factory=set)
    references: dict[Node, list[Node]] = field(default_factory=dict)
    leases_over: list[tuple[str, str]] = field(default_factory=list)
    images_over: list[tuple[str, str]] = field(default_factory=list)

    def refer(self, source: Node, target: Node) -> None:
        self.references.setdefault(source, []).append(target)

    def labels(self, node: Node, labels: dict[str, str]) -> None:
        """References, back references and roots by label."""
        for key, value in labels.items():
            if not key.startswith("containerd.io/gc."):
                continue
            if key.startswith(_REF):
                target = _target(node[1], key[len(_REF):], value)
                if target is not None:
                    self.refer(node, target)
            elif key.startswith(_BREF):
                source = _target(node[1], key[len(_BREF):], value)
                if source is not None:
                    self.refer(source, node)
            elif key == _ROOT or (key == _EXPIRE and expired(labels, self.now) is False):
                self.roots.append(node)

    def reachable(self) -> set[Node]:
        seen = set(self.roots)
        waiting = list(seen)
        while waiting:
            for target in self.references.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return seen | self.flat


def _read(db: sqlite3.Connection, now: int) -> _Graph:
    graph = _Graph(now)
    over: set[tuple[str, str]] = set()
    flat: set[tuple[str, str]] = set()
    for namespace, name, text in db.execute("SELECT namespace, id, labels FROM leases"):
        labels = unpack(text)
        if expired(labels, now):
            over.add((namespace, name))
        elif _FLAT in labels:
            flat.add((namespace, name))
    graph.leases_over = sorted(over)
    for namespace, lease, kind, name in db.execute(
            "SELECT namespace, lease, type, id FROM lease_resources"):
        if (namespace, lease) in over:
            continue
        node = ("image" if kind == "images" else kind, namespace, name)
        if (namespace, lease) in flat:
            graph.flat.add(node)
        else:
            graph.roots.append(node)
    for namespace, name, digest, text in db.execute(
            "SELECT namespace, name, digest, labels FROM images"):
        node, labels = ("image", namespace, name), unpack(text)
        if expired(labels, now):
            graph.images_over.append((namespace, name))
        else:
            graph.roots.append(node)
        graph.refer(node, ("content", namespace, digest))
        graph.labels(node, labels)
    for namespace, name, snapshotter, key, text in db.execute(
            "SELECT namespace, id, snapshotter, snapshot_key, labels FROM containers"):
        node = ("container", namespace, name)
        graph.roots.append(node)
        if key:
            graph.refer(node, (f"snapshots/{snapshotter}", namespace, key))
        graph.labels(node, unpack(text))
    for namespace, digest, text in db.execute(
            "SELECT namespace, digest, labels FROM blobs WHERE labels != '{}'"):
        graph.labels(("content", namespace, digest), unpack(text))
    for namespace, snapshotter, key, parent, kind, created, text in db.execute(
            "SELECT namespace, snapshotter, key, parent, kind, created, labels FROM snapshots"):
        node = (f"snapshots/{snapshotter}", namespace, key)
        if parent:
            graph.refer(node, (node[0], namespace, parent))
        if kind != COMMITTED and created > now - _PREPARED_GRACE_NS:
            graph.roots.append(node)
        graph.labels(node, unpack(text))
    return graph


@dataclass(slots=True)
class Collected:
    """What one collection took away."""

    blobs: list[tuple[str, str]] = field(default_factory=list)
    snapshots: list[tuple[str, str, int]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    ingests: int = 0
    seconds: float = 0.0


class Collector:
    """Runs collections: soon after a deletion, or now (``await collect()``)."""

    def __init__(self, metadata: Metadata, content: ContentStore, snapshotter: Snapshotter,
                 events: EventBus, delay: float = 0.5) -> None:
        self._metadata = metadata
        self._content = content
        self._snapshotter = snapshotter
        self._events = events
        self._delay = delay
        self._running = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Collected] | None = None

    def schedule(self, delay: float | None = None) -> None:
        """Collect when it is quiet; calls in between are one collection, at the earliest time."""
        loop = asyncio.get_running_loop()
        when = loop.time() + (self._delay if delay is None else delay)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._fire)

    def schedule_later(self) -> None:
        """After the removal of a container: its snapshot is mostly removed by the client."""
        self.schedule(_LATER_SECONDS)

    def _fire(self) -> None:
        self._timer = None
        self._task = asyncio.ensure_future(self.collect())
        self._task.add_done_callback(_report)

    async def collect(self) -> Collected:
        """Collect now; everything that was to go is gone when this returns."""
        async with self._running:
            result = await asyncio.to_thread(self.run)
            await self._snapshotter.directories.settled()
        return result

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    # --- the work, in a thread ---

    def run(self) -> Collected:
        """One collection."""
        begin = time.monotonic()
        result = self._sweep_rows()
        for digest in {digest for _, digest in result.blobs}:
            self._content.drop_file(digest)
        for _, _, number in result.snapshots:
            self._snapshotter.directories.remove(number)
        result.ingests = self._sweep_ingests()
        self._tell(result)
        result.seconds = time.monotonic() - begin
        return result

    def _sweep_rows(self) -> Collected:
        for _ in range(_OPTIMISTIC_TRIES):
            before = self._metadata.changes
            graph = self._mark_aside()
            with self._metadata.transaction() as db:
                if self._metadata.changes == before:
                    return _delete(db, graph)
        with self._metadata.transaction() as db:
            return _delete(db, _read(db, values.now()))

    def _mark_aside(self) -> _Graph:
        reader = sqlite3.connect(f"file:{self._metadata.path}?mode=ro", uri=True,
                                 isolation_level=None)
        try:
            reader.execute("BEGIN")
            return _read(reader, values.now())
        finally:
            reader.close()

    def _sweep_ingests(self) -> int:
        leased = {(row[0], row[1]) for row in self._metadata.rows(
            "SELECT namespace, id FROM lease_resources WHERE type = 'ingests'")}
        limit = values.now() - _STALE_INGEST_NS
        gone = 0
        with os.scandir(self._content.ingests) as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            found = read_status(path)
            if found is not None and (found[1].updated > limit
                                      or (found[0], found[1].ref) in leased):
                continue
            with self._content.lock:
                if path not in self._content.writing:
                    remove_ingest(path)
                    gone += 1
        return gone

    def sweep_files(self) -> int:
        """Remove blob files without a row (of a commit that was interrupted)."""
        known = {row[0] for row in self._metadata.rows("SELECT DISTINCT digest FROM blobs")}
        gone = 0
        for algorithm in os.listdir(self._content.blobs):
            for name in os.listdir(os.path.join(self._content.blobs, algorithm)):
                digest = f"{algorithm}:{name}"
                if digest not in known:
                    gone += self._content.drop_file(digest)
        return gone

    def _tell(self, result: Collected) -> None:
        publish = self._events.publish
        for namespace, name in result.images:
            publish(namespace, "/images/delete", image_events_pb2.ImageDelete(name=name))
        for namespace, digest in result.blobs:
            publish(namespace, "/content/delete", content_events_pb2.ContentDelete(digest=digest))
        for namespace, key, _ in result.snapshots:
            publish(namespace, "/snapshot/remove", snapshot_events_pb2.SnapshotRemove(
                key=key, snapshotter=self._snapshotter.name))


def _delete(db: sqlite3.Connection, graph: _Graph) -> Collected:
    live = graph.reachable()
    result = Collected(leases=graph.leases_over)
    result.images = [(ns, name) for ns, name in graph.images_over
                     if ("image", ns, name) not in live]
    for namespace, digest in db.execute("SELECT namespace, digest FROM blobs"):
        if ("content", namespace, digest) not in live:
            result.blobs.append((namespace, digest))
    for namespace, snapshotter, key, number in db.execute(
            "SELECT namespace, snapshotter, key, id FROM snapshots"):
        if (f"snapshots/{snapshotter}", namespace, key) not in live:
            result.snapshots.append((namespace, key, number))
    db.executemany("DELETE FROM images WHERE namespace = ? AND name = ?", result.images)
    db.executemany("DELETE FROM blobs WHERE namespace = ? AND digest = ?", result.blobs)
    db.executemany("DELETE FROM snapshots WHERE id = ?",
                   [(number,) for _, _, number in result.snapshots])
    for namespace, name in result.leases:
        db.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, name))
        db.execute("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?",
                   (namespace, name))
    return result


def _report(task: asyncio.Task[Collected]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("garbage collection: %s", error, exc_info=error)
        return
    result = task.result()
    if result.blobs or result.snapshots:
        log.info("garbage collection: %d blobs, %d snapshots in %.3f s",
                 len(result.blobs), len(result.snapshots), result.seconds)
