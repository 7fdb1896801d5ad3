"""Room for a database on a full disk: what makes room must be able to record that it did.

SQLite asks the file system for blocks in two places: for its log, and for its file where pages
are added to it.  Both get theirs ahead of time: the log its size in zeros, which SQLite reads
as the end of the log, and the file some free pages inside.  So a removal, the end of a process
or a start can be written when not one block is left.  (What is written inside a file also costs
no commit of the file system's journal at fdatasync, which halves the time of a transaction.)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3

#: the log's size; it is to be folded back before it has that many pages and their heads
LOG_BYTES = 4 << 20
FOLD_PAGES = 900
_PAGE = 4096
#: free pages in the file: a document of a container takes two
_FREE_PAGES = 128
#: what SQLite calls its shared index, for up to 4,096 pages of the log
_INDEX_BYTES = 32 << 10


def reserve(db: sqlite3.Connection, path: str) -> None:
    """Give an open database its room; where there is none, it works as well as it can."""
    with contextlib.suppress(OSError):
        _extend(path + "-wal", LOG_BYTES, sync=True)
    if db.execute("PRAGMA freelist_count").fetchone()[0] >= _FREE_PAGES // 2:
        return
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DROP TABLE IF EXISTS room")
        db.execute("CREATE TABLE room (pages BLOB)")
        db.execute("INSERT INTO room VALUES (zeroblob(?))", (_FREE_PAGES * _PAGE,))
        db.execute("COMMIT")
        # a page that is freed before it was once in the file has no block there
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        db.execute("DROP TABLE room")
    except sqlite3.OperationalError:
        if db.in_transaction:
            db.execute("ROLLBACK")


def keep(path: str) -> None:
    """After the database was closed: SQLite has deleted the log, whose blocks stay taken, so
    that the next start finds them."""
    with contextlib.suppress(OSError):
        _extend(path + "-wal", LOG_BYTES, sync=False)
        _extend(path + "-shm", _INDEX_BYTES, sync=False)


def _extend(path: str, wanted: int, *, sync: bool) -> None:
    """Make a file at least that long, with zeros that have their blocks."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size >= wanted:
            return
        while size < wanted:
            size += os.pwrite(fd, bytes(wanted - size), size)
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)
