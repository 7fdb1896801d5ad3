"""`docker load` and `docker save` through the transfer service."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.oci import digest as digests
from tests import images
from tests.transferkit import Kit

pytestmark = pytest.mark.root
NAME = "docker.io/library/busybox:latest"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "data")
    yield kit
    kit.close()


def chain_of(image: images.Image) -> str:
    return digests.chain_id([images.digest(layer) for layer in image.layers])


async def test_load_docker_archive(kit: Kit, tmp_path: Path) -> None:
    image = images.busybox_archive(tmp_path / "a.tar")
    events: list[object] = []
    progress: list = []  # type: ignore[type-arg]
    await kit.load(tmp_path / "a.tar", progress)
    events += [p.event for p in progress]
    assert kit.names() == [NAME]
    root = kit.layer_path(chain_of(image))
    assert (root / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
    assert os.stat(root / "bin/sh").st_ino == os.stat(root / "bin/busybox").st_ino
    assert stat.S_IMODE(os.stat(root / "tmp").st_mode) == 0o1777
    assert os.stat(root / "etc/passwd").st_mtime == images.MTIME
    assert os.readlink(root / "usr/bin/env") == "/bin/env"
    assert "extracted" in events and "saved" in events and events[-1] == "Completed import"


async def test_load_sets_the_collectors_labels(kit: Kit, tmp_path: Path) -> None:
    image = images.busybox_archive(tmp_path / "a.tar")
    await kit.load(tmp_path / "a.tar")
    manifest = kit.images.get(NAME).target.digest
    labels = kit.content.info(manifest).labels
    assert labels["containerd.io/gc.ref.content.config"] == image.id
    layer = labels["containerd.io/gc.ref.content.l.0"]
    assert kit.content.info(layer).labels["containerd.io/uncompressed"] == images.digest(
        image.layers[0])
    assert kit.content.info(image.id).labels[
        "containerd.io/gc.ref.snapshot.overlayfs"] == chain_of(image)
    assert kit.stores.leases.walk("test") == []


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
async def test_load_oci_layout_in_a_compressed_archive(
        kit: Kit, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    image = images.busybox()
    images.oci_layout(tmp_path / "a.tar", {NAME: image})
    (tmp_path / "a.tar.z").write_bytes(compress((tmp_path / "a.tar").read_bytes()))
    await kit.load(tmp_path / "a.tar.z")
    assert kit.names() == [NAME]
    assert (kit.layer_path(chain_of(image)) / "bin/sh").exists()


async def test_load_without_a_name(kit: Kit, tmp_path: Path) -> None:
    images.docker_archive(tmp_path / "a.tar", {"": images.busybox()})
    await kit.load(tmp_path / "a.tar")
    (name,) = kit.names()
    assert name == "moby-dangling@" + kit.images.get(name).target.digest


async def test_save_then_load_elsewhere(kit: Kit, tmp_path: Path) -> None:
    images.busybox_archive(tmp_path / "a.tar", "busybox:latest", "other/name:1.2")
    await kit.load(tmp_path / "a.tar")
    await kit.save(tmp_path / "b.tar", *kit.names())
    with tarfile.open(tmp_path / "b.tar") as tar:
        members = tar.getnames()
        document = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        index = json.load(tar.extractfile("index.json") or io.BytesIO())
    assert members[-4:] == ["index.json", "manifest.json", "oci-layout", "repositories"]
    assert sorted(document[0]["RepoTags"]) == ["busybox:latest", "other/name:1.2"]
    assert {m["annotations"]["io.containerd.image.name"] for m in index["manifests"]} == set(
        kit.names())
    other = Kit(tmp_path / "other")
    try:
        await other.load(tmp_path / "b.tar")
        assert other.names() == kit.names()
        assert other.images.get(NAME).target.digest == kit.images.get(NAME).target.digest
    finally:
        other.close()


async def test_a_wrong_diff_id_is_refused_and_leaves_nothing(kit: Kit, tmp_path: Path) -> None:
    good = images.busybox()

    class Lying(images.Image):
        @property
        def configuration(self) -> bytes:
            document = json.loads(super().configuration)
            document["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
            return json.dumps(document).encode()

    images.docker_archive(tmp_path / "a.tar", {"x:1": Lying(good.layers)})
    with pytest.raises(errdefs.InvalidParameter, match="wrong diff id"):
        await kit.load(tmp_path / "a.tar")
    assert kit.names() == [] and kit.chains() == []
    assert kit.stores.leases.walk("test") == []


@pytest.mark.parametrize(("data", "message"), [
    (b"", "unrecognized image format"),
    (b"no tar at all" * 100, "invalid tar archive"),
    (gzip.compress(b"x" * 5000), "invalid tar archive"),
    (b"\x1f\x8b\x08" + b"\0" * 600, "invalid|decompress"),
], ids=["empty", "text", "gzip of text", "broken gzip"])
async def test_load_of_rubbish(kit: Kit, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(errdefs.InvalidParameter, match=message):
        await kit.load(tmp_path / "a.tar")
    assert list(kit.content.statuses()) == []


async def test_load_cut_at_every_quarter(kit: Kit, tmp_path: Path) -> None:
    images.busybox_archive(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    for part in (1, 2, 3):
        (tmp_path / "cut.tar").write_bytes(data[:len(data) * part // 4])
        with pytest.raises(errdefs.InvalidParameter):
            await kit.load(tmp_path / "cut.tar")
    assert kit.names() == [] and list(kit.content.statuses()) == []


async def test_blob_that_does_not_match_its_name(kit: Kit, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("blobs/sha256/" + "a" * 64)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(errdefs.InvalidParameter, match="does not match its digest"):
        await kit.load(tmp_path / "a.tar")


async def test_what_a_killed_daemon_left_is_freed(kit: Kit, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from carrel.containerd import transfer_work

    monkeypatch.setattr(transfer_work, "_RUN", "the run that was killed")
    stores = kit.stores
    lease = stores.leases.create("test", "", {
        "carrel/transfer.run": "the run that was killed"}).id
    writer = stores.content.of("test", lease).writer("import-x")
    writer.write(b"half")
    writer.close()
    other = stores.leases.create("test", "somebody-elses", {}).id
    monkeypatch.setattr(transfer_work, "_RUN", "this run")
    images.busybox_archive(tmp_path / "a.tar")
    await kit.load(tmp_path / "a.tar")
    assert list(kit.content.statuses()) == []
    assert [found.id for found in stores.leases.walk("test")] == [other]


async def test_old_archive_whose_layers_are_links(kit: Kit, tmp_path: Path) -> None:
    """Docker before 1.10 linked a layer that two images share, and described it twice."""
    image = images.busybox()
    extra = images.layer([images.entry("extra", b"x"), images.entry("etc/.wh.group", b"")])
    both = images.Image([image.layers[0], extra], image.config)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        def add(name: str, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info, io.BytesIO(data))

        add("one/VERSION", b"1.0")
        add("one/json", b"{}")
        add("one/layer.tar", image.layers[0])
        add("two/layer.tar", extra)
        add("three/layer.tar", link="../one/layer.tar")
        add(image.id[7:] + ".json", image.configuration)
        add(both.id[7:] + ".json", both.configuration)
        add("manifest.json", json.dumps([
            {"Config": image.id[7:] + ".json", "RepoTags": ["a:1"], "Layers": ["one/layer.tar"]},
            {"Config": both.id[7:] + ".json", "RepoTags": ["b:1", "c:1"],
             "Layers": ["three/layer.tar", "two/layer.tar"]}]).encode())
    await kit.load(tmp_path / "a.tar")
    assert kit.names() == [f"docker.io/library/{n}:1" for n in "abc"]
    assert len(kit.chains()) == 2
    top = kit.layer_path(chain_of(both))
    assert (top / "extra").read_bytes() == b"x"
    assert stat.S_ISCHR(os.lstat(top / "etc/group").st_mode)


@pytest.mark.parametrize("manifest", [
    b"{}", b"[5]", b"[{}]", b'[{"Config":"missing.json"}]', b'[{"Config":"../../etc/passwd"}]',
    b'[{"Config":"c.json","Layers":["nothing"]}]', b'[{"Config":5}]',
    b'[{"Config":"c.json","RepoTags":["BAD NAME"],"Layers":[]}]', b"[" * 5000,
], ids=range(9))
async def test_bad_manifests_of_archives(kit: Kit, tmp_path: Path, manifest: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("c.json", images.busybox().configuration),
                           ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(errdefs.InvalidParameter):
        await kit.load(tmp_path / "a.tar")
    assert kit.names() == [] and kit.stores.leases.walk("test") == []
