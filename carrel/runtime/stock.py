"""File systems that every container gets, made before it is known which.

A starter waits for its next start.  Meanwhile it makes what a daemon's
configuration nearly always asks for, as mounts that are nowhere: ``/dev`` with its nodes,
its pseudo-terminals, ``/dev/shm``, the top of ``/sys/fs/cgroup``, the empty directory that
masks others.  A plan takes what is exactly the same as what it would make; the rest goes
with the worker.
"""

from __future__ import annotations

import os

from carrel.kernel import cgroup
from carrel.runtime import cgroupfs, inside, mounts, options
from carrel.runtime.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.options import Options

#: (destination, type, source, options), as the engine asks for them
_USUAL = (
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666",
                                      "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777",
                                  "size=67108864")),
)
#: what is mounted in /dev
_BELOW_DEV = ("pts", "shm", "mqueue")
_EMPTY = ("empty",)


class Stock:
    """Each piece is for one use; who takes it owns its descriptor."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], int] = {}

    def mount(self, destination: str, fstype: str, source: str, parsed: Options) -> int:
        """The mount that these options ask for, or -1."""
        return self._made.pop(_key(destination, fstype, source, parsed), -1)

    def cgroups(self, entries: list[dict[str, Any]], attributes: int) -> int:
        """A tmpfs with a directory for each hierarchy, or -1."""
        return self._made.pop(_cgroup_key(entries, attributes), -1)

    def empty(self) -> int:
        """What :class:`mounts.MaskPaths` hides directories with, or -1."""
        return self._made.pop(_EMPTY, -1)

    def close(self) -> None:
        for fd in self._made.values():
            os.close(fd)
        self._made.clear()

    def fill(self, kernel: Any) -> None:
        """Make what is missing."""
        made = self._made
        for destination, fstype, source, words in _USUAL:
            parsed = options.parse(words)
            if _key(destination, fstype, source, parsed) in made:
                continue
            tree = mounts.new_filesystem(kernel, fstype, source, parsed.data, parsed.superblock,
                                         parsed.attr_set)
            made[_key(destination, fstype, source, parsed)] = tree
            if destination == "/dev":
                _fill_dev(kernel, tree)
        if _EMPTY not in made:
            made[_EMPTY] = mounts.new_empty(kernel)
        entries = cgroup.open_manager("/stock").mounts()
        attributes = cgroupfs.DEFAULT_ATTRIBUTES
        if (entries and entries[0]["type"] == "cgroup"
                and _cgroup_key(entries, attributes) not in made):
            tree = cgroupfs.new_top(kernel, entries, attributes)
            made[_cgroup_key(entries, attributes)] = tree


def _key(destination: str, fstype: str, source: str, parsed: Options) -> tuple[Any, ...]:
    return (destination, fstype, source, parsed.attr_set, tuple(parsed.data),
            tuple(parsed.superblock))


def _cgroup_key(entries: list[dict[str, Any]], attributes: int) -> tuple[Any, ...]:
    return (attributes, *((e["type"], e["destination"], *e["links"]) for e in entries))


def _fill_dev(kernel: Any, tree: int) -> None:
    view = View()
    view.dev_fd = tree
    inside.MakeDevices(view, inside.default_devices(), bind=False).execute(kernel)
    inside.MakeDevLinks(view).execute(kernel)
    previous = os.umask(0o022)
    try:
        for name in _BELOW_DEV:
            kernel.mkdirat(tree, name, 0o755)
    finally:
        os.umask(previous)

