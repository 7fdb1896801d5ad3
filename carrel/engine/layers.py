"""A look into a container's file system without mounting it.

The overlay's layers are folders of the host; a plain file such as /etc/passwd is
found by asking them from the top down.  Names inside are hostile: every step is
one ``lstat``-like look relative to an open folder, nothing is followed, and what
is unusual (a symlink on the way) is left to the worker that mounts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Any

from carrel.kernel import paths

MAX_READ = 10 << 20


class Unusual(Exception):
    """There is a symlink on the way: only a real look through the mount can tell."""


def of(mounts: Iterable[Any]) -> list[str]:
    """The folders of a snapshot's mounts, topmost first."""
    found: list[str] = []
    for mount in mounts:
        if mount.type in ("bind", "rbind"):
            found.insert(0, mount.source)
        elif mount.type == "overlay":
            lower: list[str] = []
            for option in mount.options:
                key, _, value = option.partition("=")
                if key == "upperdir":
                    found.insert(0, value)
                elif key == "lowerdir":
                    lower = value.split(":")
            found += lower
    return found


def read(layers: Iterable[str], path: str) -> bytes:
    """The file's content, at most :data:`MAX_READ`; b"" when there is none."""
    components = path.strip("/").split("/")
    for layer in layers:
        try:
            fd = os.open(layer, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            outcome = _look(fd, components)
        finally:
            os.close(fd)
        if outcome is not None:
            return outcome
    return b""


def _look(fd: int, components: list[str]) -> bytes | None:
    """None: ask the next layer; bytes: the answer, b"" for "not there"."""
    here = os.dup(fd)
    try:
        for index, name in enumerate(components):
            try:
                info = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                return b"" if index and _opaque(here) else None
            if stat.S_ISLNK(info.st_mode):
                raise Unusual
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                return b""  # a whiteout
            if index == len(components) - 1:
                return _content(here, name) if stat.S_ISREG(info.st_mode) else b""
            if not stat.S_ISDIR(info.st_mode):
                return b""
            deeper = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = deeper
        return b""
    finally:
        os.close(here)


def _opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", "trusted.overlay.opaque") == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return False
        raise


def _content(folder: int, name: str) -> bytes:
    fd = paths.open_plain_at(folder, name)
    if fd < 0:
        return b""
    try:
        parts, size = [], 0
        while size < MAX_READ and (block := os.read(fd, 1 << 20)):
            parts.append(block)
            size += len(block)
        return b"".join(parts)
    finally:
        os.close(fd)


def find(layers: Iterable[str], path: str) -> os.stat_result | None:
    """What is there in the merged view of these layers; links are not followed."""
    components = path.strip("/").split("/")
    for layer in layers:
        outcome = _find(layer, components)
        if outcome is not None:
            return outcome or None
    return None


def _find(layer: str, components: list[str]) -> os.stat_result | tuple[()] | None:
    """None: ask the next layer; (): it is not there."""
    here = os.open(layer, os.O_PATH | os.O_DIRECTORY)
    try:
        for index, name in enumerate(components):
            try:
                info = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                return () if index and _opaque(here) else None
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                return ()
            if index == len(components) - 1:
                return info
            if not stat.S_ISDIR(info.st_mode):
                return ()
            deeper = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = deeper
        return None
    finally:
        os.close(here)
