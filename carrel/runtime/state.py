"""What the runtime remembers of a container between two calls.

    <root>/<id>/state.json    written aside and renamed
    <root>/<id>/config.json   the configuration it was created from
    <root>/<id>/exec.fifo     there until the container was started
"""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter, NotFound
from carrel.oci import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE = "state.json"
CONFIG = "config.json"
FIFO = "exec.fifo"

_ID_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(id: str) -> None:
    """The one validator: an id becomes a folder's name."""
    if not id:
        raise InvalidParameter("container id cannot be empty")
    if not _ID_CHARACTERS.issuperset(id) or id in (".", "..") or len(id) > 255:
        raise InvalidParameter("invalid container ID format")


def directory(root: str, id: str) -> str:
    check_id(id)
    return f"{root}/{id}"


def write(folder: str, name: str, data: bytes) -> None:
    """Replace ``name`` at once: a reader sees the old file or the new one."""
    os.rename(write_aside(folder, name, data), f"{folder}/{name}")


def write_aside(folder: str, name: str, data: bytes) -> str:
    """The new ``name`` under another one, which is returned."""
    temporary = f"{folder}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                 | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
    finally:
        os.close(fd)
    return temporary


def read(path: str, *, follow: bool = False) -> bytes:
    """``follow``: for a path that the caller typed, which may be a link."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        parts = []
        size = 0
        # as much as there is: memory for a megabyte is mapped and unmapped by the allocator
        expected = max(os.fstat(fd).st_size + 1, 512)
        while chunk := os.read(fd, min(expected, 1 << 20)):
            size += len(chunk)
            if size > json.LIMIT:
                raise InvalidParameter(f"{path} is too large")
            parts.append(chunk)
        return b"".join(parts)
    finally:
        os.close(fd)


def load(root: str, id: str) -> dict[str, Any]:
    folder = directory(root, id)
    try:
        data = read(f"{folder}/{STATE}")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("container does not exist") from None
    found = json.loads(data, f"{folder}/{STATE}")
    if not isinstance(found, dict):
        raise InvalidParameter(f"{folder}/{STATE} is not an object")
    return found


def save(root: str, id: str, state: dict[str, Any]) -> None:
    write(directory(root, id), STATE, json.dumps(state).encode())


def remove(root: str, id: str) -> None:
    """The folder with what we put there; idempotent. Anything else in it is not
    ours to delete, and makes the final rmdir fail with a clear error."""
    folder = directory(root, id)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if name in (STATE, CONFIG, FIFO) or name.startswith((f".{STATE}.", f".{CONFIG}.")):
            try:
                os.unlink(f"{folder}/{name}")
            except FileNotFoundError:
                pass
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat: with the pid it names a process for good; 0 if gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields is not None and fields[0] not in ("Z", "X") else 0


def stat_fields(pid: int) -> list[str] | None:
    """The fields after the command's name; the first is the state letter."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 4096).decode("utf-8", "replace")
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return text[text.rindex(")") + 2:].split()
