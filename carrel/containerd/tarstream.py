"""A streaming tar reader for untrusted archives: ustar, pax, GNU long names.

Nothing is ever held in memory but one chunk and one (bounded) extended header.
Names stay bytes.  What real images do not contain and other readers disagree on
is refused by name: sparse files, multi-volume archives, NUL bytes in names.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

from carrel.errdefs import InvalidParameter

BLOCK = 512
#: of one pax header or one GNU long name; Go's reader has the same limit
MAX_SPECIAL = 1 << 20
MAX_ENTRIES = 10_000_000
#: ext4's largest file; a header that claims more is not a file
MAX_FILE = 16 << 40

REGULAR, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_HEADER_ONLY = frozenset((LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO))
_REGULAR_ALIASES = frozenset((b"0", b"\0", b"7"))
_UNSUPPORTED = {b"S": "sparse file", b"M": "multi-volume archive", b"D": "GNU dump directory",
                b"N": "old GNU long name"}
_FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s8s64s8s8s155s12s")
_ZERO = bytes(BLOCK)
_MAX_ID = (1 << 32) - 2
_MAX_TIME = (1 << 33)  # year 2242; ext4 holds until 2446


class BadArchive(InvalidParameter):
    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid tar archive: {reason}")


class Entry:
    """One member: header values, with pax and GNU extensions applied."""

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime_ns", "name", "size", "uid",
                 "xattrs")

    def __init__(self, name: bytes, kind: bytes, size: int, mode: int, uid: int, gid: int,
                 mtime_ns: int, link: bytes, device: tuple[int, int]) -> None:
        self.name = name
        self.kind = kind
        self.size = size
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.link = link
        self.device = device
        self.xattrs: dict[bytes, bytes] | None = None


def number(field: bytes) -> int:
    """A numeric header field: octal text, or base-256 when the top bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        if field[0] & 0x40:
            return value - (1 << bits)
        return value & ((1 << (bits - 1)) - 1)
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    # isdigit: int() would also take signs, underscores and prefixes
    if not text.isdigit():
        raise BadArchive(f"bad number {text!r} in a header")
    try:
        return int(text, 8)
    except ValueError:
        raise BadArchive(f"bad number {text!r} in a header") from None


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` records, each checked against its length."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise BadArchive("malformed pax record")
        end = position + int(digits)
        if not space < end <= len(data) or data[end - 1] != 0x0A:
            raise BadArchive("malformed pax record")
        key, equals, value = data[space + 1:end - 1].partition(b"=")
        if not equals or not key:
            raise BadArchive("malformed pax record")
        records[key] = value
        position = end
    return records


def _pax_integer(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 20:
        raise BadArchive(f"bad {what} {value!r} in a pax header")
    return int(value)


def _pax_time(value: bytes) -> int:
    """Decimal seconds, perhaps negative, perhaps with a fraction, to nanoseconds."""
    negative = value.startswith(b"-")
    whole, dot, fraction = value[negative:].partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (dot and fraction and not fraction.isdigit()):
        raise BadArchive(f"bad time {value!r} in a pax header")
    nanoseconds = int(whole) * 10**9 + int((fraction[:9] or b"0").ljust(9, b"0"))
    return -nanoseconds if negative else nanoseconds


_XATTR = b"SCHILY.xattr."


class TarReader:
    """Iterate entries; between two of them the current one's data can be taken."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        """``next_chunk`` gives the next bytes of the archive, ``b""`` at its end."""
        self._next_chunk = next_chunk
        self._buffer: bytes = b""
        self._position = 0
        self._left = 0      # data of the current entry not taken yet
        self._padding = 0
        self.entries = 0

    # --- raw bytes ---

    def _refill(self) -> bool:
        chunk = self._next_chunk()
        self._buffer, self._position = chunk, 0
        return bool(chunk)

    def _take(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end of the archive."""
        begin = self._position
        end = begin + size
        if end <= len(self._buffer):
            self._position = end
            return self._buffer[begin:end]
        parts = [self._buffer[begin:]]
        missing = size - len(parts[0])
        while missing and self._refill():
            part = self._buffer[:missing]
            self._position = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        while size:
            step = min(size, len(self._buffer) - self._position)
            self._position += step
            size -= step
            if size and not self._refill():
                raise BadArchive("unexpected end of archive")

    # --- data of the current entry ---

    def read(self, limit: int) -> bytes:
        """All data of the current entry, which must not exceed ``limit``."""
        if self._left > limit:
            raise BadArchive(f"member of {self._left} bytes exceeds the limit of {limit}")
        data = self._take(self._left)
        if len(data) < self._left:
            raise BadArchive("unexpected end of archive")
        self._left = 0
        return data

    def chunks(self) -> Iterator[memoryview]:
        """The data of the current entry, piece by piece, without copying."""
        while self._left:
            available = len(self._buffer) - self._position
            if not available:
                if not self._refill():
                    raise BadArchive("unexpected end of archive")
                continue
            step = min(available, self._left)
            begin = self._position
            self._position += step
            self._left -= step
            yield memoryview(self._buffer)[begin:begin + step]

    def write_to(self, fd: int) -> None:
        """The data of the current entry into a file: one write for most files."""
        for piece in self.chunks():
            written = os.write(fd, piece)
            while written < len(piece):
                piece = piece[written:]
                written = os.write(fd, piece)

    def drain(self) -> None:
        """Read what follows the end of the archive, for the digest's sake."""
        self._buffer, self._position = b"", 0
        while self._next_chunk():
            pass

    # --- entries ---

    def __iter__(self) -> Iterator[Entry]:
        long_name = long_link = None
        pax: dict[bytes, bytes] | None = None
        while True:
            self._skip(self._left)
            self._skip_padding()
            block = self._take(BLOCK)
            if len(block) < BLOCK:
                if block or long_name or long_link or pax:
                    raise BadArchive("unexpected end of archive")
                return
            if block == _ZERO:
                return
            self.entries += 1
            if self.entries > MAX_ENTRIES:
                raise BadArchive(f"more than {MAX_ENTRIES} members")
            entry = self._header(block)
            kind = entry.kind
            if kind in (b"x", b"g", b"L", b"K"):
                data = self.read(MAX_SPECIAL)
                if kind == b"x":
                    pax = _pax_records(data)
                elif kind == b"L":
                    long_name = data.partition(b"\0")[0]
                elif kind == b"K":
                    long_link = data.partition(b"\0")[0]
                continue    # "g" holds defaults (git's commit id); layers do not use it
            if long_name is not None:
                entry.name, long_name = long_name, None
            if long_link is not None:
                entry.link, long_link = long_link, None
            if pax is not None:
                self._apply_pax(entry, pax)
                pax = None
            self._finish(entry)
            yield entry

    def _skip_padding(self) -> None:
        if self._padding:
            # the padding of the very last member may be missing, as GNU tar allows
            self._take(self._padding)
            self._padding = 0

    def _header(self, block: bytes) -> Entry:
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _owners,
         major, minor, prefix, _pad) = _FIELDS.unpack(block)
        # the checksum counts its own field as eight spaces
        if sum(block) - sum(checksum) + 256 != number(checksum):
            raise BadArchive("header checksum does not match")
        name = name.partition(b"\0")[0]
        if magic == b"ustar\x0000" and prefix[0]:
            if block[508:] == b"tar\0":
                prefix = prefix[:131]
            name = prefix.partition(b"\0")[0] + b"/" + name
        if kind in _UNSUPPORTED:
            raise BadArchive(f"{_UNSUPPORTED[kind]} is not supported")
        length = number(size)
        device = (number(major), number(minor)) if kind in (CHAR, BLOCKDEV) else (0, 0)
        entry = Entry(name, kind, length, number(mode) & 0o7777, number(uid), number(gid),
                      number(mtime) * 1_000_000_000, link.partition(b"\0")[0], device)
        self._set_size(entry, length)
        return entry

    def _set_size(self, entry: Entry, size: int) -> None:
        if entry.kind in _HEADER_ONLY:
            size = 0
        if not 0 <= size <= MAX_FILE:
            raise BadArchive(f"member with the size {size}")
        entry.size = self._left = size
        self._padding = -size % BLOCK

    def _apply_pax(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        for key, value in records.items():
            if key == b"path":
                entry.name = value or entry.name
            elif key == b"linkpath":
                entry.link = value or entry.link
            elif key == b"size":
                self._set_size(entry, _pax_integer(value, "size"))
            elif key == b"uid":
                entry.uid = _pax_integer(value, "uid")
            elif key == b"gid":
                entry.gid = _pax_integer(value, "gid")
            elif key == b"mtime":
                entry.mtime_ns = _pax_time(value)
            elif key.startswith(_XATTR):
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[key[len(_XATTR):]] = value
            elif key.startswith(b"GNU.sparse."):
                raise BadArchive("sparse file is not supported")

    @staticmethod
    def _finish(entry: Entry) -> None:
        """Checks that need the extensions applied."""
        if entry.kind in _REGULAR_ALIASES:
            entry.kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
        if b"\0" in entry.name or b"\0" in entry.link:
            raise BadArchive("NUL byte in a name")
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            raise BadArchive(f"owner {entry.uid}:{entry.gid} out of range")
        if not -_MAX_TIME <= entry.mtime_ns // 1_000_000_000 <= _MAX_TIME:
            entry.mtime_ns = 0
