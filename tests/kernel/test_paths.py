"""Walks in a hostile tree never leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.kernel import paths, syscalls


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield root, fd
    os.close(fd)
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("target", ["../outside", "/../outside", "../../../../../outside",
                                    "{outside}"])
def test_a_symlink_out_is_followed_inside(tree: tuple[Path, int], target: str,
                                          tmp_path: Path) -> None:
    root, fd = tree
    target = target.format(outside=tmp_path / "outside")
    (root / "link").symlink_to(target)
    os.close(paths.make_directory(syscalls, fd, "/link/new"))
    made = list(root.rglob("new"))
    assert len(made) == 1 and made[0].is_dir()


def test_missing_parents_are_made_with_the_mode(tree: tuple[Path, int]) -> None:
    root, fd = tree
    os.close(paths.make_directory(syscalls, fd, "a/../b/./c", 0o755))
    assert (root / "b/c").is_dir()


def test_a_dangling_link_gets_its_target_made(tree: tuple[Path, int]) -> None:
    root, fd = tree
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("/run/resolve/stub.conf")
    os.close(paths.make_file(syscalls, fd, "/etc/resolv.conf"))
    assert (root / "run/resolve/stub.conf").is_file()


def test_a_loop_of_links_ends(tree: tuple[Path, int]) -> None:
    root, fd = tree
    (root / "a").symlink_to("b/x")
    (root / "b").symlink_to("a/x")
    with pytest.raises(OSError, match="symbolic links"):
        paths.make_directory(syscalls, fd, "/a/new")


def test_a_file_in_the_way_is_an_error(tree: tuple[Path, int]) -> None:
    root, fd = tree
    (root / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        paths.make_directory(syscalls, fd, "/file/below")
    with pytest.raises(NotADirectoryError):
        paths.make_directory(syscalls, fd, "/file")


def test_magic_links_are_refused(tree: tuple[Path, int]) -> None:
    """/proc/self/fd/N leads anywhere: not as a mount target."""
    with pytest.raises(OSError):
        paths.open_in_root(syscalls, os.open("/", os.O_PATH), f"/proc/self/fd/{tree[1]}")


@pytest.mark.parametrize("path", ["..", "/", "a/..", ""])
def test_a_path_without_a_name_is_refused(tree: tuple[Path, int], path: str) -> None:
    with pytest.raises(OSError):
        paths.make_parent(syscalls, tree[1], path)
