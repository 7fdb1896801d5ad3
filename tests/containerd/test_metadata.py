"""The database: all or nothing, nesting, the lock on the root, versions."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.containerd.images import Descriptor, Image, ImageStore
from carrel.containerd.metadata import Metadata
from carrel.containerd.schema import VERSION
from tests.containerd.harness import REPOSITORY

DIGEST = "sha256:" + "a" * 64


def names(metadata: Metadata) -> list[str]:
    return [row[0] for row in metadata.rows("SELECT name FROM namespaces ORDER BY name")]


def test_all_or_nothing(tmp_path: Path) -> None:
    metadata = Metadata(str(tmp_path))
    with pytest.raises(ZeroDivisionError), metadata.transaction() as db:
        db.execute("INSERT INTO namespaces VALUES ('a', '{}')")
        raise ZeroDivisionError
    assert names(metadata) == []
    # the memory of made namespaces must not outlive a rollback
    with pytest.raises(ZeroDivisionError), metadata.transaction():
        metadata.ensure_namespace("b")
        raise ZeroDivisionError
    metadata.ensure_namespace("b")
    assert names(metadata) == ["b"]
    metadata.close()


def test_failed_inner_transaction_undoes_the_outer(tmp_path: Path) -> None:
    metadata = Metadata(str(tmp_path))
    with pytest.raises(errdefs.SystemFailure, match="undone"), metadata.transaction() as db:
        db.execute("INSERT INTO namespaces VALUES ('outer', '{}')")
        with pytest.raises(ZeroDivisionError), metadata.transaction() as inner:
            inner.execute("INSERT INTO namespaces VALUES ('inner', '{}')")
            raise ZeroDivisionError
    assert names(metadata) == []
    metadata.close()


def test_second_daemon_is_refused(tmp_path: Path) -> None:
    first = Metadata(str(tmp_path))
    with pytest.raises(errdefs.Unavailable, match="in use"):
        Metadata(str(tmp_path))
    first.close()
    Metadata(str(tmp_path)).close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    Metadata(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / "meta.db") as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(errdefs.Conflict, match="this program knows"):
        Metadata(str(tmp_path))
    # and the lock was let go of
    with sqlite3.connect(tmp_path / "meta.db") as db:
        db.execute(f"PRAGMA user_version={VERSION}")
    Metadata(str(tmp_path)).close()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "meta.db").write_bytes(b"no database" * 1000)
    with pytest.raises(errdefs.SystemFailure, match=r"meta\.db"):
        Metadata(str(tmp_path))


def test_threads(tmp_path: Path) -> None:
    metadata = Metadata(str(tmp_path))
    images = ImageStore(metadata)

    def work(worker: int) -> None:
        view = images.of(f"ns{worker}")
        for number in range(25):
            view.create(Image(f"image{number}", Descriptor("m", DIGEST, 1)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(list(images.of(f"ns{n}").walk())) for n in range(4)] == [25] * 4
    metadata.close()


_WRITER = """
import sys
sys.path[:0] = {path!r}
from carrel.containerd.metadata import Metadata
from carrel.containerd.images import Descriptor, Image, ImageStore
images = ImageStore(Metadata({root!r})).of("default")
for number in range(100000):
    images.create(Image(f"i{{number}}", Descriptor("m", {digest!r}, 1)))
    print(number, flush=True)
"""


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
    """What was said to be written is there after a SIGKILL in the middle of the next write."""
    script = _WRITER.format(path=[str(REPOSITORY), *sys.path[1:]], root=str(tmp_path),
                            digest=DIGEST)
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = -1
    for line in writer.stdout:
        said = int(line)
        if said >= 50:
            break
    os.kill(writer.pid, signal.SIGKILL)
    said = max([said, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    writer.wait()
    writer.stdout.close()
    metadata = Metadata(str(tmp_path))
    have = {image.name for image in ImageStore(metadata).of("default").walk()}
    assert {f"i{number}" for number in range(said + 1)} <= have
    assert len(have) <= said + 2
    assert metadata.rows("PRAGMA integrity_check") == [("ok",)]
    metadata.close()


def test_log_has_its_size_and_begins_anew(tmp_path: Path) -> None:
    """A commit never makes the log longer, as long as it is folded back now and then."""
    metadata = Metadata(str(tmp_path))
    log = metadata.path + "-wal"
    size = os.stat(log).st_size
    assert size >= 4 << 20
    images = ImageStore(metadata).of("default")
    for batch in range(6):
        for number in range(150):
            images.create(Image(f"{batch}-{number}", Descriptor("m", DIGEST, 1), {"x": "y" * 4000}))
        assert metadata.checkpoint() is True
        assert metadata.checkpoint() is False
    assert os.stat(log).st_size == size
    metadata.close()
    # and what lies behind the end of the log is no part of it
    metadata = Metadata(str(tmp_path))
    assert len(list(ImageStore(metadata).of("default").walk())) == 900
    assert metadata.rows("PRAGMA integrity_check") == [("ok",)]
    metadata.close()
