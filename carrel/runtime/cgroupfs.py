"""How a container sees /sys/fs/cgroup."""

from __future__ import annotations

import os
from errno import ENOTDIR, EPERM
from stat import S_ISDIR

from carrel.kernel import paths, syscalls
from carrel.runtime.mounts import MountOperation, new_filesystem, set_propagation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.kernel.plan import Operation
    from carrel.runtime.options import Options
    from carrel.runtime.stock import Stock
    from carrel.runtime.view import View

DEFAULT_ATTRIBUTES = (syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
                      | syscalls.MOUNT_ATTR_NOEXEC)


def plan(view: View, destination: str, options: Options,
         cgroup_mounts: Callable[[], list[dict[str, Any]]] | None, *,
         private: bool, stock: Stock | None = None) -> list[Operation]:
    entries = cgroup_mounts() if cgroup_mounts is not None else []
    found = MountCgroups(view, destination, options, entries, private=private)
    if stock is not None:
        found.ready = stock.cgroups(entries, found.top_attributes)
    return [found]


def new_top(kernel: Any, entries: list[dict[str, Any]], attributes: int) -> int:
    """The tmpfs that holds the hierarchies of cgroup v1, with a place for each."""
    top = new_filesystem(kernel, "tmpfs", "tmpfs", ["mode=755"], (), attributes)
    previous = os.umask(0o022)
    try:
        for entry in entries:
            name = entry["destination"]
            kernel.mkdirat(top, name, 0o755)
            for link in entry.get("links") or ():
                kernel.symlinkat(name, top, link.removeprefix("name="))
    finally:
        os.umask(previous)
    return top


class MountCgroups(MountOperation):
    """The hierarchies of the container below one directory.

    Its group is the root it sees, with and without a cgroup namespace.
    """

    __slots__ = ("entries", "options", "private", "ready")

    def __init__(self, view: View, destination: str, options: Options,
                 entries: list[dict[str, Any]], *, private: bool) -> None:
        super().__init__(view, destination)
        self.options, self.entries, self.private = options, entries, private
        #: the top of the hierarchies of v1, made ahead, or -1
        self.ready = -1

    @property
    def top_attributes(self) -> int:
        """Read-only it becomes when it is filled."""
        return self.options.attr_set & ~syscalls.MOUNT_ATTR_RDONLY or DEFAULT_ATTRIBUTES

    def describe(self) -> str:
        return f"mount cgroups on {self.destination}"

    def execute(self, kernel: Any) -> None:
        target = paths.make_directory(kernel, self.view.root_fd, self.destination)
        unified = [e for e in self.entries if e["type"] == "cgroup2"]
        attributes = self.options.attr_set
        if unified:
            top = self._hierarchy(kernel, unified[0], attributes)
            kernel.move_mount(top, target, self.destination)
        else:
            top = self.ready if self.ready >= 0 else new_top(kernel, self.entries,
                                                             self.top_attributes)
            kernel.move_mount(top, target, self.destination)
            for entry in self.entries:
                self._below(kernel, top, entry, attributes)
            if attributes & syscalls.MOUNT_ATTR_RDONLY:
                kernel.mount_setattr(top, 0, syscalls.MOUNT_ATTR_RDONLY)
        set_propagation(kernel, top, self.options)
        kernel.close(top)
        kernel.close(target)

    def bind_all(self, kernel: Any, trees: list[int]) -> None:
        """For a parent with time: the mounts that the child would make itself, put into the
        caller's list, which owns them from the first on."""
        if not self.entries or self.entries[0]["type"] != "cgroup" or self.view.foreign_sources:
            return
        for entry in self.entries:
            trees.append(self._bound(kernel, entry, self.options.attr_set))

    def _below(self, kernel: Any, top: int, entry: dict[str, Any], attributes: int) -> None:
        name = entry["destination"]
        trees = self.view.cgroup_trees
        tree = trees.pop(0) if trees else self._hierarchy(kernel, entry, attributes)
        where = kernel.openat(top, name, syscalls.O_PATH)
        kernel.move_mount(tree, where, f"{self.destination}/{name}")
        kernel.close(where)
        kernel.close(tree)

    def _hierarchy(self, kernel: Any, entry: dict[str, Any], attributes: int) -> int:
        # A bind of the group's own directory looks the same inside (the kernel shows
        # paths relative to the reader's cgroup namespace) at half the calls; in a
        # user namespace the host's mounts are not ours to bind.
        if not (self.private and self.view.foreign_sources):
            return self._bound(kernel, entry, attributes)
        if entry["type"] == "cgroup2":
            try:
                return new_filesystem(kernel, "cgroup2", "cgroup", self.options.data, (),
                                      attributes)
            except OSError as error:
                if error.errno != EPERM:
                    raise
                return self._bound(kernel, entry, attributes)
        names = [n for n in str(entry["data"]).split(",") if n]
        data = [*(["none"] if names[0].startswith("name=") else []), *names]
        return new_filesystem(kernel, "cgroup", "cgroup", data, (), attributes)

    def _bound(self, kernel: Any, entry: dict[str, Any], attributes: int) -> int:
        tree = -1
        try:
            tree = int(kernel.open_tree(syscalls.AT_FDCWD, entry["source"],
                                        syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE))
            if not S_ISDIR(kernel.fstat(tree).st_mode):
                raise NotADirectoryError(ENOTDIR, "Not a directory", entry["source"])
            kernel.mount_setattr(tree, 0, attributes)
            return tree
        except BaseException:
            if tree >= 0:
                kernel.close(tree)
            raise

    def shell(self) -> str:
        lines = [f"mount -t tmpfs -o mode=755 tmpfs .{self.destination}"]
        for entry in self.entries:
            where = f".{self.destination}/{entry['destination']}"
            lines.append(f"mkdir -p {where} && mount -t {entry['type']} "
                         f"-o {entry.get('data', '')} cgroup {where}" if self.private else
                         f"mkdir -p {where} && mount --bind {entry['source']} {where}")
        return "\n".join(lines)
