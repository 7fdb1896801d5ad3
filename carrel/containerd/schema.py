"""Tables of ``meta.db``, by version.

Times are nanoseconds since the epoch; ``labels`` and ``annotations`` are JSON
objects of strings; ``*_any`` are serialised ``google.protobuf.Any``.
"""

from __future__ import annotations

_V1 = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE namespaces (name TEXT PRIMARY KEY, labels TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE images (
        namespace TEXT NOT NULL, name TEXT NOT NULL,
        media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
        annotations TEXT NOT NULL, labels TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)) WITHOUT ROWID""",
    # one row per namespace that may see the blob; the file is shared
    """CREATE TABLE blobs (
        namespace TEXT NOT NULL, digest TEXT NOT NULL,
        size INTEGER NOT NULL, labels TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)) WITHOUT ROWID""",
    "CREATE INDEX blobs_digest ON blobs (digest)",
    # AUTOINCREMENT: the id names a directory, and must never be used again
    """CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL, snapshotter TEXT NOT NULL, key TEXT NOT NULL,
        parent TEXT NOT NULL, parent_id INTEGER NOT NULL, kind INTEGER NOT NULL,
        labels TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL,
        size INTEGER NOT NULL, inodes INTEGER NOT NULL,
        UNIQUE (namespace, snapshotter, key))""",
    "CREATE INDEX snapshots_parent ON snapshots (parent_id)",
    """CREATE TABLE containers (
        namespace TEXT NOT NULL, id TEXT NOT NULL,
        labels TEXT NOT NULL, image TEXT NOT NULL,
        runtime TEXT NOT NULL, runtime_any BLOB NOT NULL, spec_any BLOB NOT NULL,
        snapshotter TEXT NOT NULL, snapshot_key TEXT NOT NULL,
        sandbox TEXT NOT NULL, extensions BLOB NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL,
        PRIMARY KEY (namespace, id))""",
    """CREATE TABLE leases (
        namespace TEXT NOT NULL, id TEXT NOT NULL,
        labels TEXT NOT NULL, created INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)) WITHOUT ROWID""",
    """CREATE TABLE lease_resources (
        namespace TEXT NOT NULL, lease TEXT NOT NULL,
        type TEXT NOT NULL, id TEXT NOT NULL,
        PRIMARY KEY (namespace, lease, type, id)) WITHOUT ROWID""",
)

MIGRATIONS: dict[int, tuple[str, ...]] = {1: _V1}
VERSION = max(MIGRATIONS)
