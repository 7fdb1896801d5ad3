"""Write the entries of a layer tar into a directory: an overlay upper directory.

The hot path of one small file is openat, write, fchown (unless root's), fchmod,
utimensat, close; there is one syncfs at the end instead of a sync per file.
Names, numeric owners and link targets come from the archive and are never looked
up on the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from errno import EEXIST, ENOENT, ENOTSUP, EPERM
from typing import NamedTuple

from carrel.containerd import tarstream, whiteout
from carrel.containerd.tarstream import BadArchive, Entry, TarReader
from carrel.containerd.tree import OPEN_DIRECTORY, Tree, clean

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: directories whose times wait for the end of the archive; more are set at once
_MAX_DEFERRED = 200_000
_NODES = {tarstream.CHAR: stat.S_IFCHR, tarstream.BLOCKDEV: stat.S_IFBLK,
          tarstream.FIFO: stat.S_IFIFO}


class Applied(NamedTuple):
    """What an archive was, once written."""

    size: int       # bytes of file data
    entries: int
    disk: int       # bytes in whole blocks, as the snapshotter counts them


class Extractor:
    """Applies one archive to one directory."""

    def __init__(self, root_fd: int, lowers: Sequence[str] = (), *, whiteouts: bool = True,
                 progress: Callable[[int], None] | None = None) -> None:
        """``whiteouts``: turn ``.wh.`` names into overlay's form; without (a plain root
        file system for import) they are ordinary names."""
        self._tree = Tree(root_fd, lowers)
        self._whiteouts = whiteouts
        self._progress = progress
        self._times: list[tuple[bytes, int, int]] = []
        self._size = 0
        self._disk = 0

    def apply(self, reader: TarReader) -> Applied:
        try:
            for entry in reader:
                try:
                    self._one(reader, entry)
                except OSError as error:
                    error.add_note(f"unpacking {os.fsdecode(entry.name)!r}")
                    raise
                if self._progress is not None and not reader.entries & 0xFF:
                    self._progress(self._size)
            self._finish_directories()
        finally:
            self._tree.close()
        return Applied(self._size, reader.entries, self._disk)

    def _one(self, reader: TarReader, entry: Entry) -> None:
        path = clean(entry.name)
        kind = entry.kind
        if kind == tarstream.DIRECTORY:
            self._directory(path, entry)
            return
        if not path:
            raise BadArchive(f"member {os.fsdecode(entry.name)!r} would replace the root")
        if self._whiteouts and b"/.wh." in b"/" + path:
            self._whiteout(path)
        elif kind == tarstream.REGULAR:
            self._file(path, entry, reader)
        elif kind == tarstream.LINK:
            self._link(path, entry)
        elif kind == tarstream.SYMLINK:
            self._symlink(path, entry)
        elif kind in _NODES:
            self._node(path, entry)
        else:
            raise BadArchive(f"member of the unknown type {kind!r}")

    # --- kinds ---

    def _file(self, path: bytes, entry: Entry, reader: TarReader) -> None:
        parent, name = self._tree.parent(path)
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._tree.remove(parent, name)
            parent, name = self._tree.parent(path)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.size:
                reader.write_to(fd)
                self._size += entry.size
                self._disk += entry.size + 4095 & ~4095
            # owner first: chown clears setuid bits and file capabilities
            os.fchown(fd, entry.uid, entry.gid)
            if entry.xattrs:
                self._xattrs(fd, entry)
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, path: bytes, entry: Entry) -> None:
        if path and self._whiteouts and b"/.wh." in b"/" + path:
            raise BadArchive(f"whiteout {os.fsdecode(entry.name)!r} is a directory")
        if path:
            self._make_directory(path)
            self._disk += 4096
        fd = self._tree.directory(path)
        os.fchown(fd, entry.uid, entry.gid)
        if entry.xattrs:
            self._xattrs(fd, entry)
        mode = entry.mode
        # files made in a set-group-ID directory would inherit its group for a moment,
        # and times change with every file: both wait for the end
        os.fchmod(fd, mode & ~stat.S_ISGID)
        if len(self._times) < _MAX_DEFERRED:
            self._times.append((path, entry.mtime_ns, mode if mode & stat.S_ISGID else -1))
        else:
            os.fchmod(fd, mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _make_directory(self, path: bytes) -> None:
        parent, name = self._tree.parent(path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            return
        except FileExistsError:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode):
            return
        hid = self._tree.remove(parent, name)
        parent, name = self._tree.parent(path)
        os.mkdir(name, 0o700, dir_fd=parent)
        if hid and self._whiteouts:
            # the file (or whiteout) hid a directory of that name below; this one must too
            self._opaque(path)

    def _link(self, path: bytes, entry: Entry) -> None:
        target = clean(entry.link)
        if not target:
            raise BadArchive(f"hard link {os.fsdecode(path)!r} without a target")
        if target == path:
            raise BadArchive(f"hard link {os.fsdecode(path)!r} to itself")

        def create(parent: int, name: bytes) -> None:
            # never followed: a link to a symlink is one more name of the symlink
            source_fd, source = self._tree.parent(target, create=False)
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=parent,
                    follow_symlinks=False)

        try:
            self._tree.replace(path, create)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            raise BadArchive(f"hard link {os.fsdecode(path)!r} to {os.fsdecode(target)!r}, "
                             "which is not in this layer") from None

    def _symlink(self, path: bytes, entry: Entry) -> None:
        if not entry.link:
            raise BadArchive(f"symbolic link {os.fsdecode(path)!r} without a target")
        parent, name = self._tree.replace(
            path, lambda fd, name: os.symlink(entry.link, name, dir_fd=fd))
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent,
                 follow_symlinks=False)

    def _node(self, path: bytes, entry: Entry) -> None:
        major, minor = entry.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise BadArchive(f"device {major}:{minor} of {os.fsdecode(path)!r} out of range")
        kind = _NODES[entry.kind]
        if kind == stat.S_IFCHR and not major and not minor and self._whiteouts:
            raise BadArchive(f"{os.fsdecode(path)!r} is a device 0:0, which overlayfs would "
                             "take for a whiteout")
        device = 0 if kind == stat.S_IFIFO else os.makedev(major, minor)
        # no permission bit until the owner is set; umask may only take bits away
        parent, name = self._tree.replace(
            path, lambda fd, name: os.mknod(name, kind, device, dir_fd=fd))
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        self._chmod_node(parent, name, entry.mode)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent,
                 follow_symlinks=False)

    @staticmethod
    def _chmod_node(parent: int, name: bytes, mode: int) -> None:
        """A device or FIFO cannot be opened just to chmod it; O_PATH and /proc can."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    # --- whiteouts ---

    def _whiteout(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        if name == whiteout.OPAQUE_NAME:
            self._opaque(directory)
            return
        if name.startswith(whiteout.META_PREFIX) or b"/.wh." in b"/" + directory:
            return      # housekeeping of aufs; nothing in an image refers to it
        hidden = name[len(whiteout.PREFIX):]
        if hidden in (b"", b".", b".."):
            raise BadArchive(f"whiteout of nothing: {os.fsdecode(path)!r}")
        parent, _ = self._tree.parent(path)
        try:
            whiteout.make(parent, hidden)
        except OSError as error:
            if error.errno != EEXIST:
                raise
            # made by this same layer: a whiteout speaks of the layers below only
            st = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                self._opaque(directory + b"/" + hidden if directory else hidden)

    def _opaque(self, directory: bytes) -> None:
        whiteout.make_opaque(self._tree.directory(directory))

    # --- attributes ---

    @staticmethod
    def _xattrs(fd: int, entry: Entry) -> None:
        for key, value in (entry.xattrs or {}).items():
            name = os.fsdecode(key)
            if name.startswith(whiteout.OVERLAY_XATTRS) or name == "security.selinux":
                continue    # would steer overlayfs, or is the label of another machine
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno == ENOTSUP or (error.errno == EPERM
                                              and name.startswith("user.")):
                    continue
                error.add_note(f"extended attribute {name}")
                raise

    def _finish_directories(self) -> None:
        for path, mtime_ns, mode in self._times:
            try:
                fd = self._tree.directory(path, create=False)
            except (FileNotFoundError, BadArchive):
                continue    # replaced by something else further on in the archive
            if mode >= 0:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime_ns, mtime_ns))


def open_root(path: str) -> int:
    return os.open(path, OPEN_DIRECTORY)
