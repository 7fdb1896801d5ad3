"""Tar headers for layers: ustar, with pax records where a value does not fit."""

from __future__ import annotations

from carrel.containerd.tarstream import (
    BLOCK,
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
)

__all__ = ["BLOCKDEV", "CHAR", "DIRECTORY", "FIFO", "LINK", "REGULAR", "SYMLINK", "header",
           "padding"]
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
END = bytes(2 * BLOCK)


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value\\n``, where the length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while True:
        text = b"%d" % length
        if len(text) + len(body) == length:
            return text + body
        length = len(text) + len(body)


def _block(name: bytes, kind: bytes, size: int, mode: int, uid: int, gid: int, mtime: int,
           link: bytes, device: tuple[int, int]) -> bytes:
    block = bytearray(
        name[:100].ljust(100, b"\0") + b"%07o\0" % mode + b"%07o\0" % uid + b"%07o\0" % gid
        + b"%011o\0" % size + b"%011o\0" % mtime + b" " * 8 + kind + link[:100].ljust(100, b"\0")
        + b"ustar\x0000" + bytes(64) + b"%07o\0" % device[0] + b"%07o\0" % device[1] + bytes(167))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def header(name: bytes, kind: bytes = REGULAR, *, size: int = 0, mode: int = 0o644, uid: int = 0,
           gid: int = 0, mtime: int = 0, link: bytes = b"", device: tuple[int, int] = (0, 0),
           xattrs: dict[bytes, bytes] | None = None) -> bytes:
    """The header block(s) of one member."""
    records: list[tuple[bytes, bytes]] = []
    if len(name) > 100:
        records.append((b"path", name))
    if len(link) > 100:
        records.append((b"linkpath", link))
    if size > _MAX_SIZE:
        records.append((b"size", b"%d" % size))
    if uid > _MAX_ID:
        records.append((b"uid", b"%d" % uid))
    if gid > _MAX_ID:
        records.append((b"gid", b"%d" % gid))
    if not 0 <= mtime <= _MAX_SIZE:
        records.append((b"mtime", b"%d" % mtime))
    records += [(b"SCHILY.xattr." + key, value) for key, value in sorted((xattrs or {}).items())]
    extended = b""
    if records:
        data = b"".join(_record(key, value) for key, value in records)
        extended = _block(b"PaxHeaders/" + name.rpartition(b"/")[2][:80], b"x", len(data), 0o644,
                          0, 0, 0, b"", (0, 0)) + data + padding(len(data))
    return extended + _block(name, kind, min(size, _MAX_SIZE), mode, min(uid, _MAX_ID),
                             min(gid, _MAX_ID), min(max(mtime, 0), _MAX_SIZE), link, device)
