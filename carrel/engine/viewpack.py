"""A tar stream of a folder that somebody else controls, walked by descriptors only."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from carrel.kernel import paths

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTRS = ("security.capability", "user.")
_MAX_DEPTH = 4096
Write = Callable[[bytes], None]


class Packer:
    """Writes entries; knows hard links by device and inode."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._links: dict[tuple[int, int], str] = {}

    def tree(self, fd: int, name: str) -> None:
        """The folder behind ``fd`` as ``name/`` and everything in it."""
        self._header(self._info(f"{name}/", os.fstat(fd), fd))
        stack: list[tuple[int, str, Iterator[str]]] = [(os.dup(fd), name, iter(_names(fd)))]
        try:
            while stack:
                here, path, rest = stack[-1]
                entry = next(rest, None)
                if entry is None:
                    os.close(here)
                    stack.pop()
                    continue
                deeper = self._entry(here, entry, f"{path}/{entry}")
                if deeper >= 0:
                    if len(stack) >= _MAX_DEPTH:
                        os.close(deeper)
                        raise OSError(40, "folders are nested too deeply", path)
                    stack.append((deeper, f"{path}/{entry}", iter(_names(deeper))))
        finally:
            for here, _, _ in stack:
                os.close(here)

    def contents(self, fd: int) -> None:
        """The entries of a folder, without a name in front (``docker export``)."""
        for entry in _names(fd):
            deeper = self._entry(fd, entry, entry, silent=True)
            if deeper >= 0:
                try:
                    self.tree(deeper, entry)
                finally:
                    os.close(deeper)

    def single(self, parent: int, entry: str, name: str) -> None:
        """One thing that is no folder."""
        deeper = self._entry(parent, entry, name)
        if deeper >= 0:
            os.close(deeper)

    def finish(self) -> None:
        self._write(b"\0" * 1024)

    def _entry(self, parent: int, entry: str, name: str, *, silent: bool = False) -> int:
        """Write one; for a folder its descriptor, which the caller closes, else -1."""
        try:
            info = os.stat(entry, dir_fd=parent, follow_symlinks=False)
            kind = stat.S_IFMT(info.st_mode)
            if kind == stat.S_IFDIR:
                fd = os.open(entry, _DIRECTORY, dir_fd=parent)
                if not silent:
                    self._header(self._info(f"{name}/", os.fstat(fd), fd))
                return fd
            if kind == stat.S_IFREG:
                self._file(parent, entry, name)
            elif kind == stat.S_IFLNK:
                tar = self._info(name, info)
                tar.type, tar.linkname = tarfile.SYMTYPE, os.readlink(entry, dir_fd=parent)
                self._header(tar)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
                tar = self._info(name, info)
                tar.type = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE,
                            stat.S_IFIFO: tarfile.FIFOTYPE}[kind]
                tar.devmajor, tar.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
                self._header(tar)
        except FileNotFoundError:
            pass  # removed meanwhile: the container may be running
        return -1

    def _file(self, parent: int, entry: str, name: str) -> None:
        fd = paths.open_plain_at(parent, entry)
        if fd < 0:
            return
        try:
            info = os.fstat(fd)
            tar = self._info(name, info, fd)
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in self._links:
                tar.type, tar.linkname = tarfile.LNKTYPE, self._links[key]
                self._header(tar)
                return
            self._links[key] = name
            tar.size = info.st_size
            self._header(tar)
            self._data(fd, info.st_size)
        finally:
            os.close(fd)

    def _data(self, fd: int, size: int) -> None:
        """Exactly ``size`` bytes, whatever happens to the file meanwhile."""
        left = size
        while left and (block := os.read(fd, min(left, _CHUNK))):
            self._write(block)
            left -= len(block)
        while left:
            step = min(left, _CHUNK)
            self._write(b"\0" * step)
            left -= step
        if size % 512:
            self._write(b"\0" * (512 - size % 512))

    @staticmethod
    def _info(name: str, info: os.stat_result, fd: int = -1) -> tarfile.TarInfo:
        tar = tarfile.TarInfo(name)
        tar.mode, tar.uid, tar.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        tar.mtime = info.st_mtime_ns // 1_000_000_000
        if name.endswith("/"):
            tar.type = tarfile.DIRTYPE
        if fd >= 0:
            extra = {f"SCHILY.xattr.{key}": os.getxattr(fd, key).decode("utf-8", "surrogateescape")
                     for key in _xattr_names(fd)}
            if extra:
                tar.pax_headers = extra
        return tar

    def _header(self, tar: tarfile.TarInfo) -> None:
        self._write(tar.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _xattr_names(fd: int) -> list[str]:
    try:
        return [n for n in os.listxattr(fd) if n.startswith(_XATTRS)]
    except OSError:
        return []


def _names(fd: int) -> list[str]:
    return sorted(os.listdir(fd))
