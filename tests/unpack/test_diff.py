"""The Diff service: a layer from an upper directory, and back."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel import errdefs
from carrel.containerd.diff import DiffService, changed_directory
from carrel.oci import image as oci
from carrel.proto import diff_pb2, mount_pb2
from carrel.proto.rpc import NAMESPACE_HEADER, Context
from tests import images
from tests.transferkit import NAMESPACE, Kit

pytestmark = pytest.mark.root
CONTEXT = Context({NAMESPACE_HEADER: NAMESPACE})


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "data")
    yield kit
    kit.close()


def look(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of a tree that a layer keeps."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else (
                os.readlink(path) if stat.S_ISLNK(status.st_mode) else None)
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False)
                      for x in os.listxattr(path, follow_symlinks=False)}
            links = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
            found[os.path.relpath(path, root)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_rdev, links,
                int(status.st_mtime), content, xattrs)
    return found


def fill(upper: Path) -> None:
    """Every kind of thing that a container can leave."""
    (upper / "dir").mkdir(mode=0o2755)
    (upper / "dir/file").write_bytes(os.urandom(3000))
    os.chown(upper / "dir/file", 1000, 3_000_000_000)
    os.chmod(upper / "dir/file", 0o6755)
    os.link(upper / "dir/file", upper / "hard")
    os.symlink("x" * 180, upper / "sym")
    os.mkfifo(upper / "pipe")
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (upper / ("long" * 50)).write_text("x")
    (upper / "é\udcff").write_text("odd name")
    (upper / "capable").write_text("x")
    os.setxattr(upper / "capable", "security.capability",
                struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0))
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.utime(upper / "hard", (1, 1_500_000_000))
    (upper / "empty").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(upper / "sock"))


@pytest.mark.parametrize("media_type", [oci.OCI_LAYER, oci.OCI_LAYER_GZIP])
async def test_round_trip(kit: Kit, tmp_path: Path, media_type: str) -> None:
    images.busybox_archive(tmp_path / "a.tar")
    await kit.load(tmp_path / "a.tar")
    (parent,) = kit.chains()
    mounts = kit.snapshots.prepare("container", parent)
    upper = kit.layer_path("container")
    fill(upper)
    service = DiffService(kit.stores.content)
    left = [mount_pb2.Mount(type="bind", source=str(kit.layer_path(parent)), options=["ro"])]
    response = await service.Diff(diff_pb2.DiffRequest(
        left=left, right=mounts, media_type=media_type), CONTEXT)
    info = kit.content.info(response.diff.digest)
    assert info.size == response.diff.size
    diff_id = info.labels["containerd.io/uncompressed"]
    assert (diff_id == response.diff.digest) == (media_type == oci.OCI_LAYER)
    target = kit.snapshots.prepare("copy", parent)
    applied = await service.Apply(diff_pb2.ApplyRequest(diff=response.diff, mounts=target),
                                  CONTEXT)
    assert applied.applied.digest == diff_id
    assert look(kit.layer_path("copy")) == look(upper)
    # the same tree gives the same layer
    again = await service.Diff(diff_pb2.DiffRequest(
        left=left, right=mounts, media_type=media_type), CONTEXT)
    assert again.diff.digest == response.diff.digest


async def test_tar_of_the_system_reads_it(kit: Kit, tmp_path: Path) -> None:
    """GNU tar as a second reader of what we write."""
    import subprocess

    mounts = kit.snapshots.prepare("base")
    upper = kit.layer_path("base")
    fill(upper)
    os.unlink(upper / "gone")
    os.removexattr(upper / "opaque", "trusted.overlay.opaque")
    response = await DiffService(kit.stores.content).Diff(
        diff_pb2.DiffRequest(right=mounts, media_type=oci.OCI_LAYER), CONTEXT)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf",
                    kit.stores.content.path(response.diff.digest), "-C", str(out)], check=True)
    assert look(out) == look(upper)


async def test_incomplete_upper_directories_are_refused(kit: Kit) -> None:
    mounts = kit.snapshots.prepare("base")
    upper = kit.layer_path("base")
    (upper / "moved").mkdir()
    os.setxattr(upper / "moved", "trusted.overlay.redirect", b"/elsewhere")
    with pytest.raises(errdefs.NotImplementedYet, match=r"trusted\.overlay\.redirect"):
        await DiffService(kit.stores.content).Diff(diff_pb2.DiffRequest(right=mounts), CONTEXT)
    assert list(kit.content.statuses()) == []


def test_unrelated_mounts_are_refused() -> None:
    right = [mount_pb2.Mount(type="overlay", source="overlay", options=[
        "upperdir=/u", "workdir=/w", "lowerdir=/a:/b"])]
    assert changed_directory([mount_pb2.Mount(type="overlay", options=["lowerdir=/a:/b"])],
                             right) == ("/u", True)
    for left in ([], [mount_pb2.Mount(type="bind", source="/a")],
                 [mount_pb2.Mount(type="overlay", options=["lowerdir=/b:/a"])]):
        with pytest.raises(errdefs.NotImplementedYet):
            changed_directory(left, right)


async def test_growing_and_shrinking_files(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs: the archive stays well-formed."""
    mounts = kit.snapshots.prepare("base")
    upper = kit.layer_path("base")
    (upper / "f").write_bytes(b"x" * 5000)
    real = os.fstat

    class Lie:
        def __init__(self, status: os.stat_result) -> None:
            self._status = status

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._status, name)
            return value + 1000 if name == "st_size" else value

    monkeypatch.setattr("carrel.containerd.diff_walk.os.fstat", lambda fd: Lie(real(fd)))
    response = await DiffService(kit.stores.content).Diff(
        diff_pb2.DiffRequest(right=mounts, media_type=oci.OCI_LAYER), CONTEXT)
    monkeypatch.undo()
    target = kit.snapshots.prepare("copy")
    await DiffService(kit.stores.content).Apply(
        diff_pb2.ApplyRequest(diff=response.diff, mounts=target), CONTEXT)
    assert (kit.layer_path("copy") / "f").read_bytes() == b"x" * 5000 + bytes(1000)
