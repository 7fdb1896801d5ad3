"""An overlay upper directory as a layer tar.

The directory may belong to a container that runs: every step goes through a directory
descriptor, nothing is followed, and a file that changes its size while it is read
is written with the size that its header says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from errno import ELOOP, ENODATA, ENOENT, ENOTSUP, ENXIO

from carrel import errdefs
from carrel.containerd import tarwrite, whiteout
from carrel.containerd.tree import OPEN_DIRECTORY
from carrel.kernel import paths

_PIECE = 1 << 20
#: an upper directory with these does not hold all of its content itself
_INCOMPLETE = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_MAX_DEPTH = 2048


class LayerWalk:
    """Writes members through ``write``; directories first, names in order."""

    def __init__(self, write: Callable[[bytes], object], *, whiteouts: bool = True) -> None:
        self._write = write
        self._whiteouts = whiteouts
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self, root: str) -> None:
        fd = os.open(root, OPEN_DIRECTORY)
        # (descriptor, path, names still to do): no recursion, the depth is the container's choice
        stack: list[tuple[int, bytes, Iterator[bytes]]] = [(fd, b"", _names(fd))]
        try:
            while stack:
                fd, path, names = stack[-1]
                name = next(names, None)
                if name is None:
                    stack.pop()
                    os.close(fd)
                    continue
                inner = self._member(fd, name, path + name)
                if inner >= 0:
                    if len(stack) > _MAX_DEPTH:
                        os.close(inner)
                        raise errdefs.SystemFailure("directories are nested too deeply to commit")
                    stack.append((inner, path + name + b"/", _names(inner)))
            self._write(tarwrite.END)
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _member(self, parent: int, name: bytes, path: bytes) -> int:
        """Write one entry; the descriptor of a directory to go into, or -1."""
        try:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                return self._directory(parent, name, path)
            if stat.S_ISREG(st.st_mode):
                self._file(parent, name, path)
            elif stat.S_ISLNK(st.st_mode):
                self._put(path, tarwrite.SYMLINK, st, link=os.readlink(name, dir_fd=parent))
            elif self._whiteouts and whiteout.is_whiteout(st):
                hidden = path[:len(path) - len(name)] + whiteout.PREFIX + name
                self._write(tarwrite.header(hidden, mode=0, mtime=int(st.st_mtime)))
            else:
                self._special(path, st)
        except OSError as error:
            # removed or replaced by the container since the directory was read
            if error.errno not in (ENOENT, ELOOP, ENXIO):
                raise
        return -1

    def _directory(self, parent: int, name: bytes, path: bytes) -> int:
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            self._put(path + b"/", tarwrite.DIRECTORY, os.fstat(fd), xattrs=_xattrs(fd))
            if self._whiteouts and whiteout.is_opaque(fd):
                self._write(tarwrite.header(path + b"/" + whiteout.OPAQUE_NAME, mode=0))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _file(self, parent: int, name: bytes, path: bytes) -> None:
        fd = paths.open_plain_at(parent, name)
        if fd < 0:
            return  # replaced by the container since the directory was read
        try:
            st = os.fstat(fd)
            if st.st_nlink > 1:
                first = self._links.setdefault((st.st_dev, st.st_ino), path)
                if first != path:
                    self._put(path, tarwrite.LINK, st, link=first)
                    return
            self._put(path, tarwrite.REGULAR, st, size=st.st_size, xattrs=_xattrs(fd))
            self._data(fd, st.st_size)
        finally:
            os.close(fd)

    def _data(self, fd: int, size: int) -> None:
        left = size
        while left:
            piece = os.read(fd, min(_PIECE, left))
            if not piece:
                break
            self._write(piece)
            left -= len(piece)
        while left:     # it became shorter: the header has promised these bytes
            self._write(bytes(min(_PIECE, left)))
            left -= min(_PIECE, left)
        self._write(tarwrite.padding(size))

    def _special(self, path: bytes, st: os.stat_result) -> None:
        device = (os.major(st.st_rdev), os.minor(st.st_rdev))
        if stat.S_ISFIFO(st.st_mode):
            self._put(path, tarwrite.FIFO, st)
        elif stat.S_ISCHR(st.st_mode):
            self._put(path, tarwrite.CHAR, st, device=device)
        elif stat.S_ISBLK(st.st_mode):
            self._put(path, tarwrite.BLOCKDEV, st, device=device)
        # a socket is meaningless without its process: left out, as tar does

    def _put(self, path: bytes, kind: bytes, st: os.stat_result, *, size: int = 0,
             link: bytes = b"", device: tuple[int, int] = (0, 0),
             xattrs: dict[bytes, bytes] | None = None) -> None:
        self._write(tarwrite.header(
            path, kind, size=size, mode=stat.S_IMODE(st.st_mode), uid=st.st_uid, gid=st.st_gid,
            mtime=int(st.st_mtime_ns // 1_000_000_000), link=link, device=device, xattrs=xattrs))


def _names(fd: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(fd)))


def _xattrs(fd: int) -> dict[bytes, bytes]:
    """What belongs to the image: capabilities and user attributes, not overlay's own."""
    found = {}
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == ENOTSUP:
            return {}
        raise
    for name in names:
        if name in _INCOMPLETE:
            raise errdefs.NotImplementedYet(
                f"layer with {name} cannot be read from its upper directory: mount overlayfs "
                "with redirect_dir=off,metacopy=off")
        if name.startswith(("trusted.", "security.selinux", *whiteout.OVERLAY_XATTRS)):
            continue
        try:
            found[os.fsencode(name)] = os.getxattr(fd, name)
        except OSError as error:
            if error.errno != ENODATA:
                raise
    return found
