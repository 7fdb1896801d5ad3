"""What a container changed: its overlay's upper folder compared with the lower ones."""

from __future__ import annotations

import os
import stat
from typing import Any

from carrel.engine import layers

MODIFIED, ADDED, DELETED = 0, 1, 2
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: places that every start prepares for mounts; empty they are no change of the container's
_PREPARED = frozenset({
    "/.dockerenv", "/dev", "/dev/console", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/sys",
    "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/sbin/docker-init",
    "/sys/fs", "/sys/fs/cgroup",
})


def changes(folders: list[str], ignore: set[str]) -> list[dict[str, Any]]:
    """As ``GET /containers/{id}/changes``, sorted by path."""
    if not folders:
        return []
    walker = _Walker(folders[1:], _PREPARED | ignore)
    fd = os.open(folders[0], _DIRECTORY)
    try:
        walker.walk(fd, "")
    finally:
        os.close(fd)
    return [{"Path": p, "Kind": k} for p, k in sorted(walker.found.items())]


class _Walker:
    def __init__(self, lower: list[str], prepared: set[str] | frozenset[str]) -> None:
        self._lower, self._prepared = lower, prepared
        self.found: dict[str, int] = {}

    def walk(self, fd: int, path: str) -> bool:
        """True when something below is a change."""
        changed = False
        for name in os.listdir(fd):
            changed = self._one(fd, name, f"{path}/{name}") or changed
        return changed

    def _one(self, parent: int, name: str, path: str) -> bool:
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        below = layers.find(self._lower, path)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if below is not None:
                self.found[path] = DELETED
            return below is not None
        if not stat.S_ISDIR(info.st_mode):
            if path in self._prepared and info.st_size == 0:
                return False
            self.found[path] = ADDED if below is None else MODIFIED
            return True
        deeper = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            inside = self.walk(deeper, path)
        finally:
            os.close(deeper)
        if not inside and path in self._prepared:
            return False
        if below is None or not stat.S_ISDIR(below.st_mode):
            self.found[path] = ADDED
            return True
        same = (info.st_mode, info.st_uid, info.st_gid) == (
            below.st_mode, below.st_uid, below.st_gid)
        if inside or not same:
            self.found[path] = MODIFIED
        return inside or not same
