"""Deleting a directory tree of untrusted content.

A snapshot's directory may hold anything a container made: links, millions of
files, names in odd bytes, and (after a failed unmount) mounts of the machine's
own data.  The walk goes by file descriptors only, follows no link, and does
not go below a mount point: ``openat2`` with ``RESOLVE_NO_XDEV`` refuses those,
bind mounts of the same file system included, and the error says so.
"""

from __future__ import annotations

import errno
import os

from carrel.kernel import syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HERE = (syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS
         | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_BENEATH)
#: descriptors that one removal may hold
_MAX_OPEN = 64


def remove_tree(parent_fd: int, name: str | bytes) -> None:
    """Delete ``name`` below ``parent_fd`` and everything in it; absent is fine.

    Raises OSError (EXDEV or EBUSY at a mount point) and leaves what it could
    not delete; nothing beyond a mount point is ever touched.
    """
    try:
        fd = _open(parent_fd, os.fsdecode(name))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent_fd)
        return
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _mounted(os.fsdecode(name)) from error
        raise
    _empty(fd, os.fsencode(name))
    os.rmdir(name, dir_fd=parent_fd)


def _mounted(path: str) -> OSError:
    return OSError(errno.EBUSY, "something is mounted there; it was not touched", path)


def _open(parent_fd: int, name: str) -> int:
    return syscalls.openat2(parent_fd, name, _DIRECTORY, _HERE)


def _empty(top: int, label: bytes) -> None:
    """Delete all in ``top`` without recursion: the depth is the container's choice.

    Only the open directories of the present path are held, at most ``_MAX_OPEN``;
    deeper trees are first made shallow by moving a directory up.
    """
    stack: list[tuple[int, bytes]] = [(top, label)]
    pending: list[list[bytes]] = [_scan(top)]
    moved = 0
    try:
        while stack:
            fd, name = stack[-1]
            if not pending[-1]:
                stack.pop()
                pending.pop()
                os.close(fd)
                if stack:
                    os.rmdir(name, dir_fd=stack[-1][0])
                continue
            child = pending[-1].pop()
            if len(stack) >= _MAX_OPEN:
                moved += 1
                shallow = b".carrel-removal-%d" % moved
                os.rename(child, shallow, src_dir_fd=fd, dst_dir_fd=top)
                pending[0].append(shallow)
                continue
            below = _open(fd, os.fsdecode(child))
            stack.append((below, child))
            pending.append(_scan(below))
    except OSError as error:
        if error.errno == errno.EXDEV:
            path = b"/".join(part for _, part in stack)
            raise _mounted(os.fsdecode(path)) from error
        raise
    finally:
        for fd, _ in stack:
            try:
                os.close(fd)
            except OSError:
                pass


def _scan(fd: int) -> list[bytes]:
    """Delete what is no directory; return the directories."""
    directories: list[bytes] = []
    with os.scandir(fd) as entries:
        # the scan of an fd gives str names; surrogateescape keeps odd bytes
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(os.fsencode(entry.name))
            else:
                os.unlink(entry.name, dir_fd=fd)
    return directories


def usage(path: str) -> tuple[int, int]:
    """Bytes and inodes used below ``path``; hard links count once."""
    total = inodes = 0
    seen: set[tuple[int, int]] = set()
    waiting = [os.fsencode(path)]
    first = os.lstat(path)
    total += first.st_blocks * 512
    inodes += 1
    while waiting:
        directory = waiting.pop()
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a running container deleted it meanwhile
                if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    identity = (status.st_dev, status.st_ino)
                    if identity in seen:
                        continue
                    seen.add(identity)
                total += status.st_blocks * 512
                inodes += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total, inodes
