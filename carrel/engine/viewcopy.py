"""Copy a folder's content into another, by descriptors; no link is ever followed.

The target is a volume that may have been written to before: whatever is there
already stays, and a link there is never gone through (E32).
"""

from __future__ import annotations

import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def copy(source: int, target: int) -> None:
    """Everything below ``source``, and its own owner, mode and times."""
    links: dict[tuple[int, int], tuple[int, str]] = {}
    _tree(source, target, links, 0)
    for fd, _ in links.values():
        os.close(fd)


def _tree(source: int, target: int, links: dict[tuple[int, int], tuple[int, str]], depth: int
          ) -> None:
    if depth > 512:
        raise OSError(40, "folders are nested too deeply")
    for name in os.listdir(source):
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        try:
            _one(source, target, name, info, links, depth)
        except FileExistsError:
            continue
    _metadata(target, os.fstat(source), source)


def _one(source: int, target: int, name: str, info: os.stat_result,
         links: dict[tuple[int, int], tuple[int, str]], depth: int) -> None:
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=target)
        inner, outer = (os.open(name, _DIRECTORY, dir_fd=d) for d in (source, target))
        try:
            _tree(inner, outer, links, depth + 1)
        finally:
            os.close(inner)
            os.close(outer)
        return
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    elif kind == stat.S_IFREG:
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in links:
            folder, first = links[key]
            os.link(first, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
            return
        _file(source, target, name)
        if info.st_nlink > 1:
            links[key] = (os.dup(target), name)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
        if kind == stat.S_IFCHR and info.st_rdev == 0:
            return  # a whiteout is not content
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    if kind != stat.S_IFREG:
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target,
                 follow_symlinks=False)


def _file(source: int, target: int, name: str) -> None:
    inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    dir_fd=source)
    try:
        info = os.fstat(inner)
        outer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                        0o600, dir_fd=target)
        try:
            while block := os.read(inner, _CHUNK):
                os.write(outer, block)
            _metadata(outer, info, inner)
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def _metadata(fd: int, info: os.stat_result, source: int) -> None:
    os.fchown(fd, info.st_uid, info.st_gid)
    for key in os.listxattr(source):
        if key == "security.capability" or key.startswith("user."):
            os.setxattr(fd, key, os.getxattr(source, key))
    os.fchmod(fd, stat.S_IMODE(info.st_mode))
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))
