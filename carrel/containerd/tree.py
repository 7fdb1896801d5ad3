"""A directory tree that an untrusted archive is written into, reached by descriptors only.

Every step is ``openat(parent, one component, O_NOFOLLOW)``, so no symlink is ever
followed by the kernel; where a parent in a name is a symlink, it is read and
resolved here as if the tree were the root directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from errno import ELOOP, ENOENT, ENOTDIR

from carrel.containerd import whiteout
from carrel.containerd.removal import remove_tree
from carrel.containerd.tarstream import BadArchive

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_CACHED = 256
_MAX_LINKS = 255
#: the kernel's PATH_MAX: what is longer could be made here, but never be reached by name
_MAX_PATH = 4096


def clean(name: bytes) -> bytes:
    """A member's name relative to the root: no empty, ``.`` or ``..`` components."""
    if name[:2] == b"./":
        name = name[2:]
    name = name.strip(b"/")
    if b"//" not in name and b"/." not in name and name[:1] != b".":
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise BadArchive(f"name leads out of the archive: {os.fsdecode(name)!r}")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


class Tree:
    """Descriptors of the directories below a root, made where missing."""

    def __init__(self, root_fd: int, lowers: Sequence[str] = ()) -> None:
        """``lowers``: directories of the layers below, top first; a directory that the
        archive implies without listing it takes owner and mode from there."""
        self.root_fd = root_fd
        self._lowers = tuple(lowers)
        self._directories: dict[bytes, int] = {}
        self._aliases: dict[bytes, bytes] = {}

    def close(self) -> None:
        self.forget()

    def forget(self) -> None:
        """After anything was removed or replaced, no cached descriptor can be trusted."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()
        self._aliases.clear()

    def parent(self, path: bytes, *, create: bool = True) -> tuple[int, bytes]:
        """(descriptor of the directory of ``path``, last component), for a clean path."""
        directory, _, name = path.rpartition(b"/")
        if not directory:
            return self.root_fd, name
        fd = self._directories.get(directory)
        if fd is None:
            fd = self.directory(directory, create=create)
        return fd, name

    def directory(self, path: bytes, *, create: bool = True) -> int:
        """Descriptor of a directory; symlinks on the way are resolved inside the root."""
        if not path:
            return self.root_fd
        fd = self._directories.get(self._aliases.get(path, path))
        if fd is not None:
            return fd
        if len(self._directories) > _MAX_CACHED:
            self.forget()
        done, fd = self._longest_known(path)
        todo = list(reversed(path[len(done):].strip(b"/").split(b"/")))
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                done = done.rpartition(b"/")[0]
                fd = self._known(done)
                continue
            here = done + b"/" + name if done else name
            if len(here) > _MAX_PATH:
                raise BadArchive("path is too long")
            known = self._directories.get(here)
            if known is not None:
                done, fd = here, known
                continue
            try:
                fd = self._open(fd, name, here, create)
            except OSError as error:
                if error.errno not in (ELOOP, ENOTDIR):
                    raise
                target = self._link_target(fd, name, here)
                links += 1
                if links > _MAX_LINKS:
                    raise BadArchive(f"too many levels of symbolic links: "
                                     f"{os.fsdecode(path)!r}") from None
                if target.startswith(b"/"):
                    done, fd = b"", self.root_fd
                todo.extend(reversed(target.split(b"/")))
                continue
            done = here
            self._directories[here] = fd
        if done != path:
            self._aliases[path] = done
        return fd

    def _longest_known(self, path: bytes) -> tuple[bytes, int]:
        while path:
            path = path.rpartition(b"/")[0]
            fd = self._directories.get(path)
            if fd is not None:
                return path, fd
        return b"", self.root_fd

    def _known(self, physical: bytes) -> int:
        """A directory just walked through: cached, or opened again without creating."""
        if not physical:
            return self.root_fd
        fd = self._directories.get(physical)
        return fd if fd is not None else self.directory(physical, create=False)

    @staticmethod
    def _link_target(fd: int, name: bytes, here: bytes) -> bytes:
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError:
            raise BadArchive(f"parent is not a directory: {os.fsdecode(here)!r}") from None

    def _open(self, fd: int, name: bytes, here: bytes, create: bool) -> int:
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            if not create:
                raise
        os.mkdir(name, 0o700, dir_fd=fd)
        made = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
        below = self._below(here)
        if below is None:
            os.fchmod(made, 0o755)
        else:
            os.fchown(made, below.st_uid, below.st_gid)
            os.fchmod(made, stat.S_IMODE(below.st_mode))
        return made

    def _below(self, path: bytes) -> os.stat_result | None:
        """The directory's attributes in the topmost lower layer that has it."""
        for lower in self._lowers:
            fd = os.open(lower, OPEN_DIRECTORY)
            try:
                for part in path.split(b"/"):
                    inner = os.open(part, OPEN_DIRECTORY, dir_fd=fd)
                    os.close(fd)
                    fd = inner
                return os.fstat(fd)
            except OSError as error:
                if error.errno not in (ENOENT, ENOTDIR, ELOOP):
                    raise
            finally:
                os.close(fd)
        return None

    def replace(self, path: bytes, create: Callable[[int, bytes], None]) -> tuple[int, bytes]:
        """Run ``create(parent fd, name)``; what is in its way is removed first."""
        fd, name = self.parent(path)
        try:
            create(fd, name)
        except FileExistsError:
            self.remove(fd, name)
            fd, name = self.parent(path)
            create(fd, name)
        return fd, name

    def remove(self, fd: int, name: bytes) -> bool:
        """Remove whatever ``name`` is; True when it hid what the layers below have there.
        Descriptors got from this tree before are closed by it."""
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        hid = not stat.S_ISDIR(st.st_mode)
        if hid:
            os.unlink(name, dir_fd=fd)
        else:
            hid = self._is_opaque(fd, name)
            remove_tree(fd, name)
        if hid and not stat.S_ISLNK(st.st_mode) and not stat.S_ISDIR(st.st_mode):
            return hid      # no cached descriptor can lie behind a file
        self.forget()
        return hid

    @staticmethod
    def _is_opaque(parent: int, name: bytes) -> bool:
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            return whiteout.is_opaque(fd)
        finally:
            os.close(fd)
