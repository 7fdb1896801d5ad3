"""The content store in process: digests, resuming, sharing, leases."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.containerd.archive_import import store_blob
from carrel.containerd.content import ContentStore, NamespacedContent
from carrel.containerd.leases import LeaseStore
from carrel.containerd.metadata import Metadata

HELLO = b"hello"
DIGEST = "sha256:" + hashlib.sha256(HELLO).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    metadata = Metadata(str(tmp_path))
    yield ContentStore(str(tmp_path / "content"), metadata)
    metadata.close()


@pytest.fixture
def view(store: ContentStore) -> NamespacedContent:
    return store.of("default")


def put(view: NamespacedContent, data: bytes, ref: str = "ref") -> str:
    with view.writer(ref) as writer:
        writer.write(data)
        return writer.commit(len(data))


def test_write_and_read(view: NamespacedContent) -> None:
    with view.writer("r", DIGEST, 5) as writer:
        writer.write(b"hel")
        assert view.status("r").offset == 3
        writer.write(b"lo")
        assert writer.commit(5, DIGEST, {"a": "b"}) == DIGEST
    assert view.read(DIGEST) == HELLO
    assert view.info(DIGEST).labels == {"a": "b"}
    assert os.stat(view.store.path(DIGEST)).st_mode & 0o777 == 0o444
    assert os.listdir(view.store.ingests) == []
    with pytest.raises(errdefs.AlreadyExists):
        view.writer("r2", DIGEST)


def test_sha512(view: NamespacedContent) -> None:
    digest = "sha512:" + hashlib.sha512(HELLO).hexdigest()
    with view.writer("r") as writer:
        writer.write(HELLO)
        assert writer.commit(0, digest) == digest
    assert view.read(digest) == HELLO


def test_wrong_digest_and_size_commit_nothing(view: NamespacedContent) -> None:
    wrong = "sha256:" + "0" * 64
    with view.writer("r") as writer:
        writer.write(HELLO)
        with pytest.raises(errdefs.Conflict, match=f"unexpected commit digest {DIGEST}"):
            writer.commit(0, wrong)
        with pytest.raises(errdefs.Conflict, match="size"):
            writer.commit(6)
        assert list(view.walk()) == []
        writer.commit(5, DIGEST)
    assert [info.digest for info in view.walk()] == [DIGEST]


@pytest.mark.parametrize("digest", [
    "", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "md5:" + "a" * 32,
    "sha256:../../../../etc/passwd", "sha256:" + "a" * 63 + "\n", "sha256:" + "a" * 64 + "\n",
    "sha512:" + "a" * 64, "a" * 64, "sha256:" + "/" * 64])
def test_bad_digests(view: NamespacedContent, digest: str) -> None:
    for call in (view.info, view.delete, view.open, view.store.path):
        with pytest.raises(errdefs.InvalidParameter):
            call(digest)


def test_resume_over_a_restart(tmp_path: Path) -> None:
    metadata = Metadata(str(tmp_path))
    view = ContentStore(str(tmp_path / "content"), metadata).of("default")
    with view.writer("r", size=5) as writer:
        writer.write(b"hel")
    metadata.close()
    metadata = Metadata(str(tmp_path))
    view = ContentStore(str(tmp_path / "content"), metadata).of("default")
    assert [(s.ref, s.offset, s.total) for s in view.statuses()] == [("r", 3, 5)]
    with view.writer("r") as writer:
        assert writer.offset == 3
        writer.write(b"lo")
        assert writer.commit(5, DIGEST) == DIGEST
    metadata.close()


def test_one_writer_a_ref(view: NamespacedContent) -> None:
    with view.writer("r"), pytest.raises(errdefs.Unavailable, match="locked"):
        view.writer("r")
    view.writer("r").close()
    # refs are of their namespace
    with view.writer("r"):
        view.store.of("other").writer("r").close()


def test_abort(view: NamespacedContent) -> None:
    with view.writer("r") as writer:
        writer.write(HELLO)
    view.abort("r")
    with pytest.raises(errdefs.NotFound):
        view.status("r")
    with pytest.raises(errdefs.NotFound):
        view.abort("r")


def test_namespaces_see_their_own_and_share_the_file(view: NamespacedContent) -> None:
    put(view, HELLO)
    other = view.store.of("other")
    with pytest.raises(errdefs.NotFound):
        other.info(DIGEST)
    # the blob is on the disk: nothing needs to be sent
    with other.writer("r", DIGEST, 5) as writer:
        assert (writer.offset, writer.digest) == (5, DIGEST)
        writer.commit(5, DIGEST)
    assert other.read(DIGEST) == HELLO
    view.delete(DIGEST)
    assert other.read(DIGEST) == HELLO
    other.delete(DIGEST)
    assert not os.path.exists(view.store.path(DIGEST))


def test_shared_blob_written_again(view: NamespacedContent) -> None:
    put(view, HELLO)
    with view.store.of("other").writer("r", DIGEST) as writer:
        writer.truncate(0)
        writer.write(HELLO)
        writer.commit(5, DIGEST)
    assert view.store.of("other").read(DIGEST) == HELLO


def test_shared_blob_removed_meanwhile(view: NamespacedContent) -> None:
    """The collector takes the row first and the file later: a write may fall between."""
    put(view, HELLO)
    with view.store.of("other").writer("r", DIGEST, 5) as writer:
        assert writer.offset == 5
        view.delete(DIGEST)
        assert not os.path.exists(view.store.path(DIGEST))
        writer.commit(5, DIGEST)
    assert view.store.of("other").read(DIGEST) == HELLO


def test_import_of_a_blob_whose_file_is_there(view: NamespacedContent) -> None:
    put(view, HELLO)
    with view.store.metadata.transaction() as db:
        db.execute("DELETE FROM blobs")
    assert store_blob(view, [HELLO], DIGEST, 5) == (DIGEST, 5)
    assert view.read(DIGEST) == HELLO


def test_reader_outlives_deletion(view: NamespacedContent) -> None:
    put(view, HELLO)
    with view.open(DIGEST) as file:
        view.delete(DIGEST)
        assert file.read() == HELLO


def test_missing_file_is_said(view: NamespacedContent) -> None:
    put(view, HELLO)
    os.unlink(view.store.path(DIGEST))
    with pytest.raises(errdefs.NotFound, match="file is missing"):
        view.open(DIGEST)


def test_lease_holds_what_is_written(store: ContentStore) -> None:
    leases = LeaseStore(store.metadata)
    leases.create("default", "l")
    view = store.of("default", "l")
    with view.writer("r") as writer:
        assert leases.resources("default", "l") == [("ingests", "r")]
        writer.write(HELLO)
        writer.commit()
    assert leases.resources("default", "l") == [("content", DIGEST)]
    with pytest.raises(errdefs.NotFound, match="lease"):
        store.of("default", "none").writer("x")


def test_labels(view: NamespacedContent) -> None:
    put(view, HELLO)
    view.update_labels(DIGEST, {"a": "1", "b": "2"})
    assert view.update_labels(DIGEST, {"a": "", "c": "3"}).labels == {"b": "2", "c": "3"}
    with pytest.raises(errdefs.InvalidParameter, match="maximum size"):
        view.update_labels(DIGEST, {"x": "y" * 5000})
    assert view.info(DIGEST).labels == {"b": "2", "c": "3"}
