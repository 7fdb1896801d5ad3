"""The overlay snapshotter in process: keys, mounts, removal that stays on its own mount."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel import errdefs
from carrel.containerd import removal
from carrel.containerd.metadata import Metadata
from carrel.containerd.snapshots import LAYER_LABEL, NamespacedSnapshots, Snapshotter
from carrel.kernel import storage
from tests.containerd.harness import present


@pytest.fixture
def snapshotter(tmp_path: Path) -> Iterator[Snapshotter]:
    metadata = Metadata(str(tmp_path))
    made = Snapshotter(str(tmp_path / "snapshots"), metadata)
    yield made
    made.close()
    metadata.close()


@pytest.fixture
def view(snapshotter: Snapshotter) -> NamespacedSnapshots:
    return snapshotter.of("default")


def layers(view: NamespacedSnapshots, count: int) -> str:
    parent = ""
    for number in range(1, count + 1):
        view.prepare(f"k{number}", parent)
        view.commit(f"L{number}", f"k{number}", sync=False)
        parent = f"L{number}"
    return parent


def test_mount_shapes(view: NamespacedSnapshots, tmp_path: Path) -> None:
    top = f"{tmp_path}/snapshots"
    first = view.prepare("a")
    assert [(m.type, m.source, list(m.options)) for m in first] == [
        ("bind", f"{top}/1/fs", ["rw", "rbind"])]
    assert list(view.view("empty")[0].options) == ["ro", "rbind"]
    view.commit("A", "a")
    one = view.view("v", "A")
    assert [(m.type, m.source, list(m.options)) for m in one] == [
        ("bind", f"{top}/1/fs", ["ro", "rbind"])]
    view.prepare("b", "A")
    view.commit("B", "b")
    upper = view.prepare("c", "B")[0]
    assert (upper.type, upper.source) == ("overlay", "overlay")
    assert [o for o in upper.options if o != "index=off"] == [
        f"workdir={top}/5/work", f"upperdir={top}/5/fs",
        f"lowerdir={top}/4/fs:{top}/1/fs"]
    two = view.view("w", "B")[0]
    assert [o for o in two.options if o != "index=off"] == [f"lowerdir={top}/4/fs:{top}/1/fs"]
    assert list(view.mounts("c")) == [upper]


def test_refusals(view: NamespacedSnapshots) -> None:
    view.prepare("a")
    with pytest.raises(errdefs.AlreadyExists, match='snapshot "a"'):
        view.prepare("a")
    with pytest.raises(errdefs.InvalidParameter, match="not committed"):
        view.prepare("b", "a")
    with pytest.raises(errdefs.NotFound, match="parent snapshot"):
        view.prepare("b", "nothing")
    view.commit("A", "a")
    with pytest.raises(errdefs.NotFound):
        view.stat("a")
    with pytest.raises(errdefs.Conflict, match="committed"):
        view.mounts("A")
    view.prepare("b", "A")
    with pytest.raises(errdefs.AlreadyExists):
        view.commit("A", "b")
    with pytest.raises(errdefs.Conflict, match="with child"):
        view.remove("A")
    view.view("v", "A")
    with pytest.raises(errdefs.Conflict, match="not active"):
        view.commit("V", "v")
    with pytest.raises(errdefs.NotFound):
        view.remove("nothing")
    # namespaces do not see each other's keys
    with pytest.raises(errdefs.NotFound):
        view._snapshotter.of("other").stat("A")


def test_rebase(view: NamespacedSnapshots) -> None:
    layers(view, 2)
    view.prepare("side")
    view.commit("S", "side", parent="L2")
    assert view.stat("S").parent == "L2"
    view.prepare("other", "L1")
    with pytest.raises(errdefs.InvalidParameter):
        view.commit("O", "other", parent="L2")


def test_labels_and_filters(view: NamespacedSnapshots) -> None:
    view.prepare("a", labels={"x": "1"})
    view.prepare("b")
    assert [i.name for i in view.walk(["labels.x==1"])] == ["a"]
    assert [i.name for i in view.walk(["kind==active,name==b"])] == ["b"]
    assert view.update("a", {"y": "2"}, ["labels.y"]).labels == {"x": "1", "y": "2"}
    assert view.update("a", {"z": "3"}).labels == {"z": "3"}
    with pytest.raises(errdefs.InvalidParameter, match="cannot update"):
        view.update("a", {}, ["parent"])


def test_root_directory_looks_like_the_parents(view: NamespacedSnapshots) -> None:
    view.prepare("a")
    os.chmod(view.path("a"), 0o1777)
    view.commit("A", "a")
    view.prepare("b", "A")
    assert os.stat(view.path("b")).st_mode & 0o7777 == 0o1777


def test_usage(view: NamespacedSnapshots) -> None:
    view.prepare("a")
    (Path(view.path("a")) / "file").write_bytes(b"x" * 100_000)
    os.link(f"{view.path('a')}/file", f"{view.path('a')}/again")
    size, inodes = view.usage("a")
    assert inodes == 2
    assert 100_000 <= size < 130_000
    view.commit("A", "a")
    assert view.usage("A") == (size, inodes)


async def test_removal_and_sweep(view: NamespacedSnapshots, snapshotter: Snapshotter,
                                 tmp_path: Path) -> None:
    layers(view, 3)
    (Path(view.path("L3")) / "dir").mkdir()
    view.remove("L3")
    await snapshotter.directories.settled()
    assert present(tmp_path / "snapshots") == ["1", "2"]
    os.makedirs(tmp_path / "snapshots" / "77" / "fs")
    os.makedirs(tmp_path / "snapshots" / "rubbish")
    view.cleanup()
    assert present(tmp_path / "snapshots") == ["1", "2"]
    # the number of a removed snapshot is not used again
    view.prepare("new")
    assert view.stat("new").id > 3


def test_restart_keeps_all_and_sweeps_rubbish(tmp_path: Path) -> None:
    metadata = Metadata(str(tmp_path))
    first = Snapshotter(str(tmp_path / "snapshots"), metadata)
    top = layers(first.of("default"), 3)
    mounts = first.of("default").prepare("c", top)
    first.close()
    os.makedirs(tmp_path / "snapshots" / "99" / "fs" / "deep")
    # as after a power cut between the row and the directory
    os.rmdir(tmp_path / "snapshots" / "4" / "work")
    os.rmdir(tmp_path / "snapshots" / "4" / "fs")
    os.rmdir(tmp_path / "snapshots" / "4")
    second = Snapshotter(str(tmp_path / "snapshots"), metadata)
    assert second.of("default").mounts("c") == mounts
    assert present(tmp_path / "snapshots") == ["1", "2", "3", "4"]
    assert present(tmp_path / "snapshots" / "4") == ["fs", "work"]
    second.close()
    metadata.close()


def test_failed_prepare_leaves_nothing(view: NamespacedSnapshots, tmp_path: Path) -> None:
    layers(view, 1)
    os.rmdir(tmp_path / "snapshots" / "1" / "fs")
    with pytest.raises(errdefs.SystemFailure, match="layer directory"):
        view.prepare("c", "L1")
    assert not view.exists("c")
    assert present(tmp_path / "snapshots") == ["1"]


# --- removal ---


def remove(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        removal.remove_tree(fd, path.name)
    finally:
        os.close(fd)


def test_remove_tree_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("data")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "link").symlink_to(precious)
    (tree / "a" / "up").symlink_to("../../precious")
    (tree / os.fsdecode(b"odd\xff\nname")).write_text("x")
    (tree / os.fsdecode(b"odd\xfedir")).mkdir()
    remove(tree)
    assert not tree.exists()
    assert (precious / "file").read_text() == "data"
    (tmp_path / "plain").write_text("x")
    remove(tmp_path / "plain")
    remove(tmp_path / "absent")
    (tmp_path / "link").symlink_to(precious)
    remove(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (precious / "file").exists()


def test_remove_tree_deeper_than_a_path(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 10, dir_fd=fd)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    remove(top)
    assert not top.exists()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_remove_tree_does_not_cross_a_mount(tmp_path: Path, leak_check: None) -> None:
    """P21: data of the machine that is bound into a container's tree stays."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("data")
    tree = tmp_path / "tree"
    point = tree / "mnt"
    point.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, point], check=True)
    try:
        with pytest.raises(OSError, match="mounted"):
            remove(tree)
        assert (precious / "file").read_text() == "data"
    finally:
        subprocess.run(["umount", point], check=True)
    remove(tree)
    assert not tree.exists()
    assert (precious / "file").read_text() == "data"


@pytest.mark.root
def test_overlay_mounts_for_real(view: NamespacedSnapshots, tmp_path: Path,
                                 leak_check: None) -> None:
    view.prepare("a")
    (Path(view.path("a")) / "low").write_text("low")
    view.commit("A", "a")
    view.prepare("b", "A")
    (Path(view.path("b")) / "middle").write_text("middle")
    view.commit("B", "b")
    made = view.prepare("c", "B")[0]
    point = tmp_path / "mnt"
    point.mkdir()
    subprocess.run(["mount", "-t", made.type, made.source, "-o", ",".join(made.options), point],
                   check=True)
    try:
        assert sorted(p.name for p in point.iterdir()) == ["low", "middle"]
        (point / "new").write_text("new")
        assert Path(view.path("c"), "new").read_text() == "new"
    finally:
        subprocess.run(["umount", point], check=True)


async def test_many_removals_at_once(view: NamespacedSnapshots, snapshotter: Snapshotter,
                                     tmp_path: Path) -> None:
    for number in range(40):
        view.prepare(f"k{number}")
    await asyncio.gather(*(asyncio.to_thread(view.remove, f"k{n}") for n in range(40)))
    await snapshotter.directories.settled()
    assert present(tmp_path / "snapshots") == []


async def test_directories_made_ahead(view: NamespacedSnapshots, snapshotter: Snapshotter,
                                      tmp_path: Path) -> None:
    top = tmp_path / "snapshots"

    def ahead() -> set[str]:
        return {name for name in os.listdir(top) if name.startswith("pool-")}

    layers(view, 1)
    await snapshotter.directories.settled()
    before = ahead()
    assert before
    inodes = {os.stat(top / name / "fs").st_ino for name in before}
    view.prepare("c", "L1")
    assert os.stat(view.path("c")).st_ino in inodes
    assert sorted(os.listdir(top / str(view.stat("c").id))) == ["fs", "work"]
    # never handed out twice, however many are asked for at once
    await asyncio.gather(*(asyncio.to_thread(view.prepare, f"k{n}", "L1") for n in range(40)))
    assert len({os.stat(view.path(f"k{n}")).st_ino for n in range(40)}) == 40
    view.cleanup()
    await snapshotter.directories.settled()
    # of a daemon that was killed
    (top / "pool-777").mkdir()
    view.cleanup()
    assert "pool-777" not in ahead()


def test_layers_lie_apart(snapshotter: Snapshotter, view: NamespacedSnapshots,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's directory is made while its parent is marked, a container's is not."""
    marked = False
    made: dict[str, bool] = {}
    real_mkdir, real_set = os.mkdir, storage.set_topdir

    def set_topdir(fd: int, on: bool) -> bool:
        nonlocal marked
        marked = on
        return real_set(fd, on)

    def mkdir(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        made[str(path)] = marked
        real_mkdir(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(storage, "set_topdir", set_topdir)
    monkeypatch.setattr(os, "mkdir", mkdir)
    view.prepare("extract-1 sha256:x", "", {LAYER_LABEL: "sha256:x"})
    assert os.path.isdir(view.path("extract-1 sha256:x"))
    view.view("v")
    assert [name for name, apart in made.items() if apart and name.startswith("apart-")]
    assert not made[str(view.stat("v").id)]
    assert not marked
    fd = os.open(snapshotter.directories.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not real_set(fd, True):
            pytest.skip("the file system knows no such flag")
        assert "T" in subprocess.run(["lsattr", "-d", snapshotter.directories.root], check=True,
                                     capture_output=True, text=True).stdout.split()[0]
        assert real_set(fd, False)
    finally:
        os.close(fd)
