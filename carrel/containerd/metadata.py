"""The metadata database: one SQLite file, one connection, short transactions.

Every record of the layer (images, blobs, snapshots, containers, leases) lives
in ``meta.db``.  Rules:

* a call that changes something is one transaction; ``COMMIT`` returns only
  when the write-ahead log is on the disk (``synchronous=FULL``), so that an
  acknowledged write survives a power cut (measured: a commit takes 0.3 to
  0.5 ms, which is why it may run on the event loop);
* transactions nest: an inner one joins the outer one;
* the lock is re-entrant and may be taken from the threads that write blobs
  and unpack layers; it also orders file operations that must not interleave
  with the garbage collector (``with metadata.transaction(): rename; insert``);
* the log is folded back into the file by :meth:`Metadata.checkpoint` on a
  connection of its own, off the path of any call.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from carrel import errdefs
from carrel.containerd.schema import MIGRATIONS, VERSION
from carrel.kernel import room

#: the log may grow to this many 4 KiB pages before SQLite itself folds it back, which
#: only happens when :meth:`Metadata.checkpoint` cannot keep up
_AUTOCHECKPOINT_PAGES = 16_384


class _Transaction:
    """``with metadata.transaction() as db:``; a class, as it is on the path of every call."""

    __slots__ = ("_metadata",)

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def __enter__(self) -> sqlite3.Connection:
        return self._metadata._begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._metadata._end(error is None)


class Metadata:
    """``meta.db`` under ``root``, which is locked against a second daemon.

    ``root/``
        the directory itself carries the flock
    ``root/meta.db``
        the database; ``PRAGMA user_version`` is the version of its schema
    """

    def __init__(self, root: str) -> None:
        os.makedirs(root, mode=0o711, exist_ok=True)
        self.root = os.path.abspath(root)
        self.path = os.path.join(self.root, "meta.db")
        self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._root_fd)
            raise errdefs.Unavailable(
                f"{self.root} is in use by another carrel-containerd",
                hint="stop the other daemon or choose another --root") from error
        self._lock = threading.RLock()
        self._depth = 0
        self._failed = False
        self._namespaces: set[str] = set()
        self._folded = 0
        #: counts the commits of this process: the collector sees by it that all stood still
        self.changes = 0
        try:
            self._db = self._open()
        except BaseException:
            os.close(self._root_fd)
            raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False,
                             cached_statements=256)
        try:
            os.chmod(self.path, 0o600)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA wal_autocheckpoint={_AUTOCHECKPOINT_PAGES}")
            db.execute("PRAGMA cache_size=-1024")
            self._migrate(db)
            room.reserve(db, self.path)
        except sqlite3.DatabaseError as error:
            db.close()
            raise errdefs.SystemFailure(
                f"open metadata database {self.path}: {error}",
                hint="the file is damaged or is no Carrel database") from error
        except BaseException:
            db.close()
            raise
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise errdefs.Conflict(
                f"{self.path} has schema version {found}, this program knows {VERSION}",
                hint="it was written by a newer Carrel: upgrade this one")
        for number in range(found + 1, VERSION + 1):
            script = "".join(s + ";" for s in MIGRATIONS[number])
            db.executescript(f"BEGIN;{script}PRAGMA user_version={number};COMMIT;")

    # --- transactions ---

    def transaction(self) -> _Transaction:
        """All or nothing; on the disk when the ``with`` block is left."""
        return _Transaction(self)

    def _begin(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
                self._failed = False
            self._depth += 1
        except BaseException:
            self._lock.release()
            raise
        return self._db

    def _end(self, success: bool) -> None:
        try:
            self._depth -= 1
            self._failed = self._failed or not success
            if self._depth:
                return
            if self._failed:
                # also when an inner block failed and the outer one went on: what
                # the inner one did in part must not be kept
                self._db.execute("ROLLBACK")
                self._namespaces.clear()
                if success:
                    raise errdefs.SystemFailure("a nested transaction failed; all was undone")
                return
            try:
                self._db.execute("COMMIT")
                self.changes += 1
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._namespaces.clear()
                raise errdefs.SystemFailure(f"write {self.path}: {error}") from error
        finally:
            self._lock.release()

    def locked(self) -> threading.RLock:
        """For reads of several statements that must see one state."""
        return self._lock

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of one query, or None."""
        with self._lock:
            found: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return found

    # --- what several tables share ---

    def ensure_namespace(self, name: str) -> None:
        """Namespaces come into being with the first thing in them, as in containerd."""
        if name not in self._namespaces:
            with self.transaction() as db:
                db.execute("INSERT OR IGNORE INTO namespaces(name, labels) VALUES (?, '{}')",
                           (name,))
            self._namespaces.add(name)

    def forget_namespace(self, name: str) -> None:
        """After a namespace was deleted."""
        self._namespaces.discard(name)

    def uuid(self) -> str:
        """The identity of this root, made once."""
        with self.transaction() as db:
            found = db.execute("SELECT value FROM settings WHERE key = 'uuid'").fetchone()
            if found:
                return str(found[0])
            made = str(uuid.uuid4())
            db.execute("INSERT INTO settings(key, value) VALUES ('uuid', ?)", (made,))
            return made

    def checkpoint(self) -> bool:
        """Fold the log back into the file; call it from a thread, off any path.

        True when the log begins anew with the next transaction.
        """
        changes = self.changes
        if changes == self._folded:
            return False
        other = sqlite3.connect(self.path, isolation_level=None)
        try:
            other.execute("PRAGMA synchronous=FULL")
            _, frames, done = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            other.close()
        self._folded = changes
        return bool(frames == done)

    def close(self) -> None:
        """Close the database and let go of the root."""
        with self._lock:
            self._db.close()
            room.keep(self.path)
            os.close(self._root_fd)


def pack(labels: Mapping[str, str]) -> str:
    """Labels as they are stored: JSON, so that a person can query them."""
    return json.dumps(dict(labels), ensure_ascii=False, separators=(",", ":")) if labels else "{}"


def unpack(text: str) -> dict[str, str]:
    """The labels of a stored row."""
    if text == "{}":
        return {}
    labels: dict[str, str] = json.loads(text)
    return labels
