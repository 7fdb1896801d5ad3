"""A tree of files as a tar stream, piece by piece."""

from __future__ import annotations

import os
import stat
from tarfile import (
    BLKTYPE,
    CHRTYPE,
    DIRTYPE,
    FIFOTYPE,
    LNKTYPE,
    PAX_FORMAT,
    REGTYPE,
    SYMTYPE,
    TarInfo,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 512
_CHUNK = 1 << 18
_TYPES = {stat.S_IFREG: REGTYPE, stat.S_IFDIR: DIRTYPE, stat.S_IFLNK: SYMTYPE,
          stat.S_IFIFO: FIFOTYPE, stat.S_IFCHR: CHRTYPE, stat.S_IFBLK: BLKTYPE}


class TarMaker:
    """Writes ``source`` and all below it under the name ``top``; links are kept as links."""

    def __init__(self, source: str, top: str, *, follow_top: bool = False) -> None:
        self.source = source
        self.top = top
        self.follow_top = follow_top
        self.links: dict[tuple[int, int], str] = {}
        self.size = 0

    def pieces(self) -> Iterator[bytes]:
        """The archive."""
        info = os.stat(self.source) if self.follow_top else os.lstat(self.source)
        yield from self._entry(self.source, self.top, info)
        yield bytes(2 * _BLOCK)

    def _entry(self, path: str, name: str, info: os.stat_result) -> Iterator[bytes]:
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            return  # a socket has no place in an archive
        header = TarInfo(name)
        header.type = kind
        header.mode = stat.S_IMODE(info.st_mode)
        header.uid, header.gid = info.st_uid, info.st_gid
        header.mtime = int(info.st_mtime)
        if kind == SYMTYPE:
            header.linkname = os.readlink(path)
        elif kind in (CHRTYPE, BLKTYPE):
            header.devmajor, header.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        elif kind == REGTYPE:
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in self.links:
                header.type, header.linkname = LNKTYPE, self.links[key]
            else:
                self.links[key] = name
                yield from self._file(path, header)
                return
        yield header.tobuf(PAX_FORMAT, "utf-8", "surrogateescape")
        if kind == DIRTYPE:
            for child in sorted(os.listdir(path)):
                try:
                    below = os.lstat(f"{path}/{child}")
                except FileNotFoundError:
                    continue  # gone meanwhile
                yield from self._entry(f"{path}/{child}", f"{name}/{child}", below)

    def _file(self, path: str, header: TarInfo) -> Iterator[bytes]:
        """A file's header and bytes: as many as the header says, whatever happens to it."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if not (self.follow_top and path == self.source):
            flags |= os.O_NOFOLLOW
        fd = os.open(path, flags)
        try:
            header.size = os.fstat(fd).st_size
            self.size += header.size
            yield header.tobuf(PAX_FORMAT, "utf-8", "surrogateescape")
            left = header.size
            while left:
                data = os.read(fd, min(_CHUNK, left)) or bytes(min(_CHUNK, left))
                left -= len(data)
                yield data
            yield bytes(-header.size % _BLOCK)
        finally:
            os.close(fd)
