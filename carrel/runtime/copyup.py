"""tmpcopyup: what the image has in a directory, copied onto the tmpfs over it.

By descriptors only; special files are copied as such, never opened.
"""

from __future__ import annotations

import os
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG

from carrel.kernel import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_DEPTH = 128
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def copy_tree(kernel: Any, root_fd: int, path: str, target_fd: int) -> None:
    """Copy the content of ``path`` (in the root) into the mount ``target_fd``."""
    source = paths.open_in_root(kernel, root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _copy_directory(source, target_fd, 0)
    finally:
        kernel.close(source)


def _copy_directory(source: int, target: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OSError(36, "directories are nested too deeply to copy")
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, _READ | os.O_DIRECTORY, dir_fd=source)
            copy = os.open(name, _READ | os.O_DIRECTORY, dir_fd=target)
            try:
                _copy_directory(inner, copy, depth + 1)
                _own(copy, found)
            finally:
                os.close(inner)
                os.close(copy)
        elif S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        elif S_ISREG(found.st_mode):
            _copy_file(source, target, name, found)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str, found: os.stat_result) -> None:
    reader = os.open(name, _READ, dir_fd=source)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600,
                         dir_fd=target)
        try:
            while os.sendfile(writer, reader, None, 1 << 20):
                pass
            _own(writer, found)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _own(fd: int, found: os.stat_result) -> None:
    os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, S_IMODE(found.st_mode))
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


