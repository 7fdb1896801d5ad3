"""The engine's state: JSON documents by kind and id, in SQLite.

    documents(kind, id, doc)            what is known
    names(kind, key, id)                unique names, so a name has one owner

WAL with ``synchronous=FULL``: what was acknowledged survives a power cut.
It works on a full disk too (:mod:`carrel.kernel.room`): what makes room can be recorded.
Transactions are short and run on the event loop: a commit is one fsync of the
log, and handing it to a thread would cost more than it hides.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from carrel import errdefs
from carrel.kernel import room

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, id TEXT NOT NULL, doc BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (
    kind TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_by_id ON names (kind, id);
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Store:
    """Documents by kind and id. Only the engine's event loop uses it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._depth = 0
        fresh = not os.path.exists(path)
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=64)
        if fresh:
            os.chmod(path, 0o600)
        run = self._db.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA busy_timeout=2000")
        run(f"PRAGMA wal_autocheckpoint={room.FOLD_PAGES}")
        version = run("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise errdefs.SystemFailure(
                f"{path} was written by a newer Carrel (schema {version}, known {SCHEMA_VERSION})",
                hint="start the newer version, or another --data-root")
        if version < SCHEMA_VERSION:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        run(statement)
                run(f"PRAGMA user_version={SCHEMA_VERSION}")
        room.reserve(self._db, path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is one commit; nested use joins the outer one.

        There must be no ``await`` inside: the transaction belongs to the
        thread, and another task would write into it.
        """
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        else:
            self._db.execute("COMMIT")
        finally:
            self._depth = 0

    def get(self, kind: str, ident: str) -> dict[str, Any] | None:
        row = self._db.execute(
            "SELECT doc FROM documents WHERE kind=? AND id=?", (kind, ident)).fetchone()
        return _decode(row[0]) if row else None

    def put(self, kind: str, ident: str, doc: Any) -> None:
        """Write or replace a document (a commit of its own outside a transaction)."""
        self._db.execute("INSERT OR REPLACE INTO documents VALUES (?,?,?)",
                         (kind, ident, _encode(doc)))

    def delete(self, kind: str, ident: str) -> bool:
        """Remove a document and its names; False if there was none."""
        with self.transaction():
            self._db.execute("DELETE FROM names WHERE kind=? AND id=?", (kind, ident))
            # a name that somebody else took meanwhile stays: it has another id
            return self._db.execute("DELETE FROM documents WHERE kind=? AND id=?",
                                    (kind, ident)).rowcount > 0

    def all(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        rows = self._db.execute("SELECT id, doc FROM documents WHERE kind=?", (kind,))
        return [(ident, _decode(doc)) for ident, doc in rows]

    def ids(self, kind: str) -> list[str]:
        return [row[0] for row in
                self._db.execute("SELECT id FROM documents WHERE kind=?", (kind,))]

    def claim(self, kind: str, key: str, ident: str) -> None:
        """Take a unique name; AlreadyExists when somebody else has it."""
        owner = self.owner(kind, key)
        if owner is not None and owner != ident:
            raise errdefs.AlreadyExists(f"{kind} name {key!r} is in use by {owner}")
        self.take(kind, key, ident)

    def take(self, kind: str, key: str, ident: str) -> None:
        """Give a name to this id, whoever had it: the caller knows that it is free."""
        self._db.execute("INSERT OR REPLACE INTO names VALUES (?,?,?)", (kind, key, ident))

    def release(self, kind: str, key: str) -> None:
        self._db.execute("DELETE FROM names WHERE kind=? AND key=?", (kind, key))

    def owner(self, kind: str, key: str) -> str | None:
        row = self._db.execute("SELECT id FROM names WHERE kind=? AND key=?",
                               (kind, key)).fetchone()
        return row[0] if row else None

    def names(self, kind: str) -> dict[str, str]:
        """All names of a kind: name -> id."""
        return dict(self._db.execute("SELECT key, id FROM names WHERE kind=?", (kind,)))

    def close(self) -> None:
        self._db.close()
        room.keep(self.path)
