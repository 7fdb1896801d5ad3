"""Walking paths that somebody else controls.

Every function takes the descriptor of a root and stays below it, whatever
symlinks or races the tree holds: the kernel does the walk
(``openat2(RESOLVE_IN_ROOT)``), and whatever has to be created is created
relative to a descriptor that such a walk returned.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EEXIST, EINVAL, ELOOP, ENOENT, ENOTDIR, EXDEV
from stat import S_ISDIR, S_ISLNK, S_ISREG

from carrel.kernel.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_PATH = os.O_PATH | os.O_CLOEXEC
_MAX_LINKS = 255
#: a walk over ``..`` that meets a rename or a mount anywhere on the machine is to be
#: done again: the kernel could not tell whether it stayed below the root
_ATTEMPTS = 2000


def open_in_root(kernel: Any, root_fd: int, path: str, flags: int = _PATH) -> int:
    """Open ``path`` as seen from inside ``root_fd``."""
    return _in_root(kernel.openat2, root_fd, path, flags)


def _in_root(call: Any, root_fd: int, path: str, flags: int) -> int:
    for attempt in range(_ATTEMPTS):
        try:
            return int(call(root_fd, path.lstrip("/") or ".", flags, IN_ROOT))
        except BlockingIOError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise OSError(EAGAIN, os.strerror(EAGAIN), path)


def open_plain_file(path_fd: int) -> int:
    """The plain file behind an O_PATH descriptor, for reading; -1 for anything else.

    To open a device is to do something: a watchdog starts, a tape rewinds.  So what a
    container put there is looked at first, and that very thing is opened then.
    """
    if not S_ISREG(os.fstat(path_fd).st_mode):
        return -1
    return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def open_plain_at(parent: int, name: str | bytes) -> int:
    """The plain file of that name in a directory, never through a link; -1 for anything else."""
    where = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return open_plain_file(where)
    finally:
        os.close(where)


def find_in_root(kernel: Any, root_fd: int, path: str) -> int:
    """Like :func:`open_in_root` as O_PATH, but -1 when there is nothing there."""
    return _in_root(kernel.find2, root_fd, path, _PATH)


def make_directory(kernel: Any, root_fd: int, path: str, mode: int = 0o755) -> int:
    """Open the directory ``path``, made with its parents where missing."""
    fd = find_in_root(kernel, root_fd, path)
    if fd >= 0:
        if not S_ISDIR(kernel.fstat(fd).st_mode):
            kernel.close(fd)
            raise NotADirectoryError(ENOTDIR, "Not a directory", path)
        return fd
    fd = _create_beside(kernel, root_fd, path, mode, directory=True)
    return fd if fd >= 0 else _create(kernel, root_fd, path, mode, directory=True)


def make_file(kernel: Any, root_fd: int, path: str, mode: int = 0o755) -> int:
    """A descriptor of the file ``path`` (to mount on), made empty (with parents) where missing."""
    fd = find_in_root(kernel, root_fd, path)
    if fd < 0:
        fd = _create_beside(kernel, root_fd, path, mode, directory=False)
    return fd if fd >= 0 else _create(kernel, root_fd, path, mode, directory=False)


def make_parent(kernel: Any, root_fd: int, path: str) -> tuple[int, str]:
    """(descriptor of the directory above ``path``, last component)."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise OSError(EINVAL, "Invalid path", path)
    return make_directory(kernel, root_fd, parent or "/"), name


def _create_beside(kernel: Any, root_fd: int, path: str, mode: int, *, directory: bool) -> int:
    """The usual case in few steps: only the last component is missing. -1 when it is not so,
    also where a symlink stands in its place: neither call follows one."""
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return -1
    parent = find_in_root(kernel, root_fd, above)
    if parent < 0:
        return -1
    try:
        if directory:
            kernel.mkdirat(parent, name, mode)
            return int(kernel.openat(parent, name, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
        return int(kernel.openat(parent, name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                                 | os.O_WRONLY, mode))
    except OSError:
        return -1  # the slow way finds out what it is, and tells
    finally:
        kernel.close(parent)


def _create(kernel: Any, root_fd: int, path: str, mode: int, *, directory: bool) -> int:
    """Walk component by component, following symlinks ourselves where they
    dangle, and create what is missing.  ``done`` never contains a symlink."""
    todo = [c for c in reversed(path.split("/")) if c not in ("", ".")]
    done: list[str] = []
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if done:
                done.pop()
            continue
        parent = _open_plain(kernel, root_fd, done)
        try:
            try:
                found = kernel.lstatat(parent, name)
            except FileNotFoundError:
                _make_entry(kernel, parent, name, mode, as_directory=directory or bool(todo))
                done.append(name)
                continue
            if S_ISLNK(found.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(ELOOP, "Too many levels of symbolic links", path)
                target = kernel.readlinkat(parent, name)
                if target.startswith("/"):
                    done.clear()
                todo.extend(c for c in reversed(target.split("/")) if c not in ("", "."))
                continue
            if todo and not S_ISDIR(found.st_mode):
                raise NotADirectoryError(ENOTDIR, "Not a directory", path)
            done.append(name)
        finally:
            kernel.close(parent)
    return _open_plain(kernel, root_fd, done)


def _open_plain(kernel: Any, root_fd: int, components: list[str]) -> int:
    """Open a path that we found free of symlinks; a swap meanwhile stays inside."""
    return open_in_root(kernel, root_fd, "/".join(components) or "/")


def _make_entry(kernel: Any, parent: int, name: str, mode: int, *, as_directory: bool) -> None:
    try:
        if as_directory:
            kernel.mkdirat(parent, name, mode)
        else:
            kernel.close(kernel.openat(
                parent, name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, mode))
    except OSError as error:
        if error.errno != EEXIST:  # somebody else was quicker: as good
            raise


def is_symlink(kernel: Any, root_fd: int, path: str) -> bool:
    """Whether the last component of ``path`` itself is a symlink (an early check
    for a clear message; safety does not rest on it)."""
    try:
        return S_ISLNK(kernel.lstatat(root_fd, path.lstrip("/")).st_mode)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR, ELOOP, EXDEV):
            return False
        raise
