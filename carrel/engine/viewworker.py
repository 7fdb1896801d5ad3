"""The container-view worker: a process of its own for every look into a container's files.

It mounts in a mount namespace of its own, walks with ``openat2(RESOLVE_IN_ROOT)``
from a pinned root, and never changes its root or joins the container's
namespaces: nothing of the container is ever executed, imported or looked up.

    stdin    one line of JSON (the request), then the archive, for ``unpack``
    stdout   one line of JSON (the answer), then the archive, for ``pack``/``export``
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

from carrel.engine import viewpack
from carrel.kernel import paths, syscalls

_PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: Go's os.FileMode bits for what is not a permission
_GO_MODES = ((stat.S_ISDIR, 1 << 31), (stat.S_ISLNK, 1 << 27), (stat.S_ISFIFO, 1 << 25),
             (stat.S_ISSOCK, 1 << 24))


class Refused(Exception):
    """An answer that the daemon turns into a client error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> int:
    os.umask(0)
    line = sys.stdin.buffer.readline(16 << 20)
    request = json.loads(line)
    try:
        root = _root(request)
        OPERATIONS[request["op"]](root, request)
    except Refused as error:
        _answer({"error": str(error), "kind": error.kind})
    except OSError as error:
        _answer({"error": f"{error.strerror or error}", "errno": error.errno or 0,
                 "path": str(error.filename or "")})
        return 1
    except Exception as error:
        _answer({"error": str(error), "kind": "invalid"
                 if type(error).__name__ in ("BadArchive", "InvalidParameter") else ""})
        return 1
    return 0


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


# --- the view -----------------------------------------------------------------


def _root(request: dict[str, Any]) -> int:
    """A descriptor of the container's root folder."""
    pid = request.get("pid")
    if pid:
        return os.open(f"/proc/{pid}/root", _PATH_DIRECTORY)
    folder = request["folder"]
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    for mount in request["mounts"]:
        _mount(mount, folder)
    root = os.open(folder, _PATH_DIRECTORY)
    for bind in request.get("binds") or ():
        _bind(root, bind)
    return root


_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "bind": 0x1000, "rbind": 0x5000}


def _mount(mount: dict[str, Any], folder: str) -> None:
    flags, data = 2 | 4, []
    for option in mount["options"]:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option != "rw":
            data.append(option)
    kind = mount["type"]
    if kind in ("bind", "rbind"):
        syscalls.mount(mount["source"], folder, None, _FLAGS[kind])
        return
    syscalls.mount(mount["source"], folder, kind, flags, ",".join(data))


def _bind(root: int, bind: dict[str, Any]) -> None:
    """A volume at its place, both ends pinned by descriptors (E34)."""
    tree = _source(bind)
    try:
        # made where missing, as the start would: the container may never have run
        folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        make = paths.make_directory if folder else paths.make_file
        target = make(syscalls, root, bind["destination"])
        try:
            syscalls.move_mount(tree, target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def _source(bind: dict[str, Any]) -> int:
    """The volume, or a folder in it that no link may lead out of."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
    if not bind.get("subpath"):
        return syscalls.open_tree(syscalls.AT_FDCWD, bind["source"], flags)
    base = os.open(bind["source"], _PATH_DIRECTORY)
    try:
        fd = syscalls.openat2(base, bind["subpath"], os.O_PATH,
                              syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS)
    finally:
        os.close(base)
    try:
        return syscalls.open_tree(fd, "", flags | syscalls.AT_EMPTY_PATH)
    finally:
        os.close(fd)


def _split(path: str) -> tuple[str, str]:
    """Parent and last component; a trailing slash or dot asks for what it points to."""
    clean = "/" + path.strip("/")
    parent, _, name = clean.rpartition("/")
    return parent or "/", name


def _follows(path: str) -> bool:
    return path.endswith(("/", "/.")) or path in (".", "")


def _missing(request: dict[str, Any]) -> Refused:
    return Refused("missing", f"Could not find the file {request['path']} in container "
                              f"{request.get('name', '')}")


# --- operations ---------------------------------------------------------------


def _read(root: int, request: dict[str, Any]) -> None:
    """A plain file's first bytes; nothing for anything else."""
    data = b""
    try:
        where = paths.open_in_root(syscalls, root, request["path"])
        try:
            fd = paths.open_plain_file(where)
            if fd >= 0:
                with os.fdopen(fd, "rb") as file:
                    data = file.read(request["limit"])
        finally:
            os.close(where)
    except (FileNotFoundError, NotADirectoryError):
        pass
    _answer({"size": len(data)})
    sys.stdout.buffer.write(data)


def _locate(root: int, request: dict[str, Any]) -> tuple[int, str, os.stat_result]:
    """(descriptor of the parent, name, what it is); the last link is not followed."""
    parent_path, name = _split(request["path"].removesuffix("/."))
    try:
        parent = paths.open_in_root(syscalls, root, parent_path, _PATH_DIRECTORY)
        if name in ("", ".", ".."):
            parent = paths.open_in_root(syscalls, root, request["path"], _PATH_DIRECTORY)
            return parent, "", os.fstat(parent)
        return parent, name, os.stat(name, dir_fd=parent, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(request) from None


def _describe(root: int, request: dict[str, Any], parent: int, name: str,
              info: os.stat_result) -> dict[str, Any]:
    mode = stat.S_IMODE(info.st_mode) & 0o777
    for test, bit in _GO_MODES:
        if test(info.st_mode):
            mode |= bit
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        mode |= 1 << 26 | (1 << 21 if stat.S_ISCHR(info.st_mode) else 0)
    for bit, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if info.st_mode & bit:
            mode |= go
    target = ""
    if stat.S_ISLNK(info.st_mode):
        target = _resolved(root, request["path"], os.readlink(name, dir_fd=parent))
    seconds, rest = divmod(info.st_mtime_ns, 1_000_000_000)
    return {"name": name or "/", "size": info.st_size, "mode": mode, "mtime": [seconds, rest],
            "linkTarget": target}


def _resolved(root: int, path: str, target: str) -> str:
    """Where a link leads, as a path of the container."""
    import posixpath

    wanted = posixpath.normpath(posixpath.join(posixpath.dirname("/" + path.strip("/")), target))
    try:
        fd = paths.open_in_root(syscalls, root, wanted)
        base = paths.open_in_root(syscalls, root, "/")
    except OSError:
        return wanted
    try:
        whole, top = os.readlink(f"/proc/self/fd/{fd}"), os.readlink(f"/proc/self/fd/{base}")
        if top != "/" and whole.startswith(top):
            return whole[len(top):] or "/"
        return wanted
    finally:
        os.close(fd)
        os.close(base)


def _stat(root: int, request: dict[str, Any]) -> None:
    parent, name, info = _locate(root, request)
    _answer({"stat": _describe(root, request, parent, name, info)})


def _pack(root: int, request: dict[str, Any]) -> None:
    parent, name, info = _locate(root, request)
    described = _describe(root, request, parent, name, info)
    if stat.S_ISLNK(info.st_mode) and _follows(request["path"]):
        fd = paths.open_in_root(syscalls, root, request["path"], _PATH_DIRECTORY)
        info = os.fstat(fd)
    out = _stream()
    _answer({"stat": described})
    packer = viewpack.Packer(lambda data: void(out.write(data)))
    if stat.S_ISDIR(info.st_mode):
        folder = paths.open_in_root(syscalls, root, request["path"], _READ_DIRECTORY)
        top = "." if _follows(request["path"]) or not name else name
        packer.tree(folder, top)
    else:
        packer.single(parent, name, name)
    packer.finish()
    out.flush()


def _stream() -> io.BufferedWriter:
    """Standard output with a buffer that fits tar's small headers."""
    return io.BufferedWriter(io.FileIO(1, "w", closefd=False), 1 << 20)


def _export(root: int, request: dict[str, Any]) -> None:
    out = _stream()
    _answer({})
    packer = viewpack.Packer(lambda data: void(out.write(data)))
    packer.contents(paths.open_in_root(syscalls, root, "/", _READ_DIRECTORY))
    packer.finish()
    out.flush()


def void(_: object) -> None:
    """For callbacks whose result nobody wants."""


def _unpack(root: int, request: dict[str, Any]) -> None:
    from carrel.containerd.tarstream import TarReader
    from carrel.containerd.unpack import Extractor
    from carrel.containerd.unpack_stream import chunks_of, decompressor

    try:
        target = paths.open_in_root(syscalls, root, request["path"])
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(request) from None
    if not stat.S_ISDIR(os.fstat(target).st_mode):
        raise Refused("invalid", "extraction point is not a directory")
    folder = paths.open_in_root(syscalls, root, request["path"], _READ_DIRECTORY)
    _answer({})
    source, _ = decompressor(sys.stdin.buffer)  # type: ignore[arg-type]
    reader: Any = TarReader(chunks_of(source))
    owner = request.get("owner")
    if owner or request.get("keep_types"):
        reader = _Checked(reader, folder, owner, bool(request.get("keep_types")))
    Extractor(folder, whiteouts=False).apply(reader)
    # trailing bytes are read, so that the client can finish sending
    while source.read(1 << 20):
        pass
    _answer({"done": True})


class _Checked:
    """A reader whose entries get another owner, or may not change a thing's type."""

    def __init__(self, reader: Any, folder: int, owner: list[int] | None, keep: bool) -> None:
        self._reader, self._folder, self._owner, self._keep = reader, folder, owner, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __iter__(self) -> Iterator[Any]:
        for entry in self._reader:
            if self._owner:
                entry.uid, entry.gid = self._owner
            if self._keep:
                self._same_type(entry)
            yield entry

    def _same_type(self, entry: Any) -> None:
        name = os.fsdecode(entry.name).strip("/")
        fd = paths.find_in_root(syscalls, self._folder, name or ".")
        if fd < 0:
            return
        try:
            folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if folder and entry.kind != b"5":
            raise Refused("invalid", f"cannot overwrite directory {name!r} with non-directory")
        if not folder and entry.kind == b"5":
            raise Refused("invalid", f"cannot overwrite non-directory {name!r} with directory")


def _copy_up(root: int, request: dict[str, Any]) -> None:
    """Image content into empty volumes: through a tar in memory-sized pieces."""
    from carrel.engine import viewcopy

    for source, target in request["pairs"]:
        try:
            fd = paths.open_in_root(syscalls, root, source, _READ_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        viewcopy.copy(fd, os.open(target, _READ_DIRECTORY | os.O_NOFOLLOW))
    _answer({})


OPERATIONS = {"read": _read, "stat": _stat, "pack": _pack, "export": _export,
              "unpack": _unpack, "copy_up": _copy_up}


if __name__ == "__main__":
    sys.exit(main())
