"""The content store: files named by their digest.

    content/blobs/<algorithm>/<hex>       finished, read-only, shared by the namespaces
    content/ingest/<hash of ref>/data     being written; survives a restart
                                 /status  JSON: namespace, ref, total, expected, started

A blob is visible in a namespace when that namespace has a row for it.  The
order of a commit is: data on the disk, rename, directory on the disk, row;
so a row never names a file that a power cut could take away, and a file
without a row is swept by the garbage collector.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from carrel import errdefs
from carrel.containerd import values
from carrel.containerd.events import EventBus
from carrel.containerd.leases import add_resource, remove_resource
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.proto import content_events_pb2


@dataclass(slots=True)
class Info:
    """A finished blob as one namespace sees it."""

    digest: str
    size: int
    created: int
    updated: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Status:
    """A write in progress."""

    ref: str
    offset: int
    total: int
    expected: str
    started: int
    updated: int


class ContentStore:
    """Blobs and ingests under ``root``; :meth:`of` gives one namespace's view."""

    def __init__(self, root: str, metadata: Metadata, events: EventBus | None = None) -> None:
        self.root = root
        self.blobs = os.path.join(root, "blobs")
        self.ingests = os.path.join(root, "ingest")
        self.metadata = metadata
        self.events = events
        for algorithm in ("sha256", "sha512"):
            os.makedirs(os.path.join(self.blobs, algorithm), mode=0o755, exist_ok=True)
        os.makedirs(self.ingests, mode=0o755, exist_ok=True)
        #: ingests that a writer holds now
        self.writing: set[str] = set()
        self.lock = threading.Lock()

    def of(self, namespace: str, lease: str = "") -> NamespacedContent:
        """The store as ``namespace`` sees it; what is written joins ``lease``."""
        return NamespacedContent(self, namespace, lease)

    def path(self, digest: str) -> str:
        """Where a blob is (whether or not it exists); the digest is checked."""
        algorithm, _, digits = values.check_digest(digest).partition(":")
        return os.path.join(self.blobs, algorithm, digits)

    def ingest_path(self, namespace: str, ref: str) -> str:
        name = hashlib.sha256(f"{namespace}\0{ref}".encode()).hexdigest()
        return os.path.join(self.ingests, name)

    def drop_file(self, digest: str) -> bool:
        """Remove the file of a blob that no namespace has a row for; True if it went.

        Runs inside a transaction, so that a commit of the same blob cannot fall between.
        """
        with self.metadata.transaction() as db:
            if db.execute("SELECT 1 FROM blobs WHERE digest = ? LIMIT 1", (digest,)).fetchone():
                return False
            try:
                os.unlink(self.path(digest))
            except FileNotFoundError:
                return False
            return True


class NamespacedContent:
    """What one namespace (and lease) does with the content store."""

    def __init__(self, store: ContentStore, namespace: str, lease: str = "") -> None:
        self.store = store
        self.namespace = namespace
        self.lease = lease

    # --- blobs ---

    def info(self, digest: str) -> Info:
        row = self.store.metadata.row(
            "SELECT digest, size, created, updated, labels FROM blobs"
            " WHERE namespace = ? AND digest = ?", (self.namespace, values.check_digest(digest)))
        if row is None:
            raise errdefs.NotFound(f"content {digest}: not found")
        return Info(row[0], row[1], row[2], row[3], unpack(row[4]))

    def exists(self, digest: str) -> bool:
        return self.store.metadata.row(
            "SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?",
            (self.namespace, digest)) is not None

    def walk(self) -> Iterator[Info]:
        for row in self.store.metadata.rows(
                "SELECT digest, size, created, updated, labels FROM blobs WHERE namespace = ?"
                " ORDER BY digest", (self.namespace,)):
            yield Info(row[0], row[1], row[2], row[3], unpack(row[4]))

    def open(self, digest: str) -> BinaryIO:
        """The blob, unbuffered; stays readable when it is deleted meanwhile."""
        self.info(digest)
        try:
            return open(self.store.path(digest), "rb", buffering=0)
        except FileNotFoundError as error:
            raise errdefs.NotFound(f"content {digest}: the file is missing",
                                   hint="pull the image again") from error

    def read(self, digest: str, limit: int = 8 << 20) -> bytes:
        """A small blob (manifest, config) as a whole; a larger one is refused."""
        info = self.info(digest)
        if info.size > limit:
            raise errdefs.InvalidParameter(
                f"content {digest}: {info.size} bytes is more than the limit of {limit}")
        with self.open(digest) as file:
            data = file.read(info.size + 1)
        if len(data) != info.size:
            raise errdefs.SystemFailure(f"content {digest}: {len(data)} bytes, not {info.size}")
        return data

    def update(self, digest: str, labels: Mapping[str, str] | None) -> Info:
        """Replace the labels (``None`` leaves them)."""
        with self.store.metadata.transaction() as db:
            info = self.info(digest)
            if labels is not None:
                values.check_labels(labels)
                info.labels = dict(labels)
            info.updated = values.now()
            db.execute("UPDATE blobs SET labels = ?, updated = ?"
                       " WHERE namespace = ? AND digest = ?",
                       (pack(info.labels), info.updated, self.namespace, digest))
        return info

    def update_labels(self, digest: str, changes: Mapping[str, str]) -> Info:
        """Set (or, with an empty value, remove) single labels."""
        with self.store.metadata.transaction():
            labels = {**self.info(digest).labels, **changes}
            return self.update(digest, {k: v for k, v in labels.items() if v})

    def delete(self, digest: str) -> None:
        """Take the blob out of this namespace; the file goes with its last row."""
        with self.store.metadata.transaction() as db:
            self.info(digest)
            db.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?",
                       (self.namespace, digest))
        self.store.drop_file(digest)
        if self.store.events is not None:
            self.store.events.publish(self.namespace, "/content/delete",
                                      content_events_pb2.ContentDelete(digest=digest))

    # --- writing ---

    def writer(self, ref: str, expected_digest: str = "", size: int = 0) -> ContentWriter:
        """Begin, or go on with, the write called ``ref``.

        AlreadyExists if the namespace has ``expected_digest``; Unavailable if somebody
        else writes under the same ref now.
        """
        if not ref:
            raise errdefs.InvalidParameter("ref must not be empty")
        shared = -1
        metadata = self.store.metadata
        if expected_digest:
            if self.exists(expected_digest):
                if self.lease:
                    with metadata.transaction() as db:
                        add_resource(db, self.namespace, self.lease, "content", expected_digest)
                raise errdefs.AlreadyExists(f"content {expected_digest}: already exists")
            shared, size = self._share(expected_digest, size)
        writer = ContentWriter(self, ref, expected_digest, size, shared)
        if self.lease:
            with metadata.transaction() as db:
                add_resource(db, self.namespace, self.lease, "ingests", ref)
        return writer

    def _share(self, digest: str, size: int) -> tuple[int, int]:
        """(descriptor of the blob's file, size), where the file is there without a row of
        ours: another namespace has it, or it is about to be removed.  -1: it is not."""
        try:
            fd = os.open(self.store.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1, size
        there = os.fstat(fd).st_size
        if size in (0, there):
            return fd, there
        os.close(fd)
        return -1, size

    def statuses(self) -> Iterator[Status]:
        """The writes in progress."""
        with os.scandir(self.store.ingests) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            found = read_status(os.path.join(self.store.ingests, name))
            if found is not None and found[0] == self.namespace:
                yield found[1]

    def status(self, ref: str) -> Status:
        found = read_status(self.store.ingest_path(self.namespace, ref))
        if found is None:
            raise errdefs.NotFound(f"ref {ref}: not found")
        return found[1]

    def abort(self, ref: str) -> None:
        """Give a write up; its data is removed."""
        path = self.store.ingest_path(self.namespace, ref)
        if not os.path.isdir(path):
            raise errdefs.NotFound(f"ref {ref}: not found")
        remove_ingest(path)
        self.forget_ingest(ref)

    def forget_ingest(self, ref: str) -> None:
        with self.store.metadata.transaction() as db:
            remove_resource(db, self.namespace, "ingests", ref)


class ContentWriter:
    """One write: ``write`` any number of times, then ``commit`` or ``abort``.

    Not thread-safe by itself; it may be used from any one thread at a time.
    """

    def __init__(self, view: NamespacedContent, ref: str, expected: str, total: int,
                 shared: int) -> None:
        """``shared``: descriptor of a file with this very content, or -1."""
        self._view = view
        self._store = view.store
        self.ref = ref
        self.expected = expected
        self.total = total
        self.offset = 0
        self._path = self._store.ingest_path(view.namespace, ref)
        self._fd = -1
        #: the blob's file is there already: no data need be sent.  It may be removed at any
        #: time, so it is held open.
        self._shared_fd = shared
        algorithm = expected.partition(":")[0] or "sha256"
        self._hash = hashlib.new(algorithm)
        self.started = self.updated = values.now()
        with self._store.lock:
            if self._path in self._store.writing:
                if shared >= 0:
                    os.close(shared)
                raise errdefs.Unavailable(f"ref {ref} locked: unavailable",
                                          hint="another client writes it now")
            self._store.writing.add(self._path)
        try:
            if self._shared:
                self.offset = total
            else:
                self._open()
        except BaseException:
            self.close()
            raise

    @property
    def _shared(self) -> bool:
        return self._shared_fd >= 0

    @property
    def digest(self) -> str:
        """The digest of what was written so far."""
        if self._shared:
            return self.expected
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def _open(self) -> None:
        os.makedirs(self._path, mode=0o755, exist_ok=True)
        found = read_status(self._path)
        if found is not None:
            self.started = found[1].started
            self.total = self.total or found[1].total
        status = {"namespace": self._view.namespace, "ref": self.ref, "total": self.total,
                  "expected": self.expected, "started": self.started}
        replacement = os.path.join(self._path, "status.new")
        with open(replacement, "w", encoding="utf-8") as file:
            json.dump(status, file)
        os.rename(replacement, os.path.join(self._path, "status"))
        self._fd = os.open(os.path.join(self._path, "data"),
                           os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._rehash(os.fstat(self._fd).st_size)

    def _rehash(self, size: int) -> None:
        """Take up what an earlier writer left."""
        self._hash = hashlib.new(self._hash.name)
        self.offset = 0
        while self.offset < size:
            chunk = os.pread(self._fd, min(1 << 20, size - self.offset), self.offset)
            if not chunk:
                break
            self._hash.update(chunk)
            self.offset += len(chunk)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; the number of bytes (always all) is returned."""
        if self._shared:
            if not len(data):
                return 0
            # the client sends it nevertheless: begin behind what is there, as containerd does
            self._unshare(self.total)
        view = memoryview(data)
        self._hash.update(view)
        at = 0
        while at < len(view):
            at += os.pwrite(self._fd, view[at:], self.offset + at)
        self.offset += at
        self.updated = values.now()
        return at

    def truncate(self, size: int) -> None:
        """Go back to ``size``."""
        if self._shared:
            self._unshare(size)
            return
        if size > self.offset:
            raise errdefs.InvalidParameter(
                f"truncate {self.ref} to {size}: only {self.offset} bytes are there")
        os.ftruncate(self._fd, size)
        self._rehash(size)

    def _unshare(self, size: int) -> None:
        source, self._shared_fd = self._shared_fd, -1
        try:
            self._open()
            os.ftruncate(self._fd, 0)
            self._rehash(0)
            while self.offset < size:
                chunk = os.pread(source, min(1 << 20, size - self.offset), self.offset)
                if not chunk:
                    break
                self.write(chunk)
        finally:
            os.close(source)

    def sync(self) -> None:
        """Bring the data to the disk (``commit`` does it too, but takes the lock)."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def commit(self, size: int = 0, expected: str = "",
               labels: Mapping[str, str] | None = None) -> str:
        """Make it a blob and return its digest.

        A wrong size or digest leaves the write as it is; content that exists
        raises AlreadyExists, and the write is over.
        """
        labels = dict(labels or {})
        values.check_labels(labels)
        expected = expected or self.expected
        digest = self._verify(size, expected)
        view, metadata = self._view, self._store.metadata
        self.sync()
        metadata.ensure_namespace(view.namespace)
        with metadata.transaction() as db:
            exists = view.exists(digest)
            if not exists:
                self._place(digest)
                moment = values.now()
                db.execute(
                    "INSERT INTO blobs(namespace, digest, size, labels, created, updated)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (view.namespace, digest, self.offset, pack(labels), moment, moment))
            if view.lease:
                add_resource(db, view.namespace, view.lease, "content", digest)
            remove_resource(db, view.namespace, "ingests", self.ref)
        remove_ingest(self._path)
        self.close()
        if exists:
            raise errdefs.AlreadyExists(f"content {digest}: already exists")
        if self._store.events is not None:
            self._store.events.publish(view.namespace, "/content/create",
                                       content_events_pb2.ContentCreate(
                                           digest=digest, size=self.offset))
        return digest

    def _verify(self, size: int, expected: str) -> str:
        if size and size != self.offset:
            raise errdefs.Conflict(
                f"{self.ref} failed size validation: {self.offset} != {size}")
        if not expected:
            return self.digest
        values.check_digest(expected)
        algorithm = expected.partition(":")[0]
        if algorithm != self._hash.name and not self._shared:
            self._hash = hashlib.new(algorithm)
            self._rehash(self.offset)
        if self.digest != expected:
            raise errdefs.Conflict(
                f"unexpected commit digest {self.digest}, expected {expected}")
        return expected

    def _place(self, digest: str) -> None:
        target = self._store.path(digest)
        if os.path.exists(target):
            return  # another namespace has it; the copy goes with the ingest
        if self._shared:
            # it was removed while we relied on it; only the descriptor still has it
            self._unshare(self.total)
            self._verify(self.total, digest)
            self.sync()
        os.fchmod(self._fd, 0o444)
        os.rename(os.path.join(self._path, "data"), target)
        fd = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def abort(self) -> None:
        """Throw away what was written."""
        remove_ingest(self._path)
        self._view.forget_ingest(self.ref)
        self.close()

    def close(self) -> None:
        """Let go of the ref; what was written stays and can be gone on with."""
        for fd in (self._fd, self._shared_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._shared_fd = -1
        with self._store.lock:
            self._store.writing.discard(self._path)

    def __enter__(self) -> ContentWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_status(path: str) -> tuple[str, Status] | None:
    """Namespace and status of the ingest in this directory, if it is one."""
    try:
        with open(os.path.join(path, "status"), encoding="utf-8") as file:
            raw = json.load(file)
        data = os.stat(os.path.join(path, "data"))
        return raw["namespace"], Status(
            ref=raw["ref"], offset=data.st_size, total=raw["total"], expected=raw["expected"],
            started=raw["started"], updated=data.st_mtime_ns)
    except (OSError, ValueError, KeyError):
        return None


def remove_ingest(path: str) -> None:
    """An ingest is a directory of our own with at most three plain files."""
    for name in ("data", "status", "status.new"):
        try:
            os.unlink(os.path.join(path, name))
        except FileNotFoundError:
            pass
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
