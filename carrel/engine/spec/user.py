"""``--user`` against the image's own /etc/passwd and /etc/group.

The texts come from inside the image: whatever they hold, the outcome is numbers
between 0 and 2^31-1, or an error.  NSS is never asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from carrel import errdefs

MAX_ID = (1 << 31) - 1
#: what is read of a passwd or group file
MAX_FILE = 10 << 20
_MAX_LINE = 64 << 10


class User(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def spec(self) -> dict[str, Any]:
        value: dict[str, Any] = {"uid": self.uid, "gid": self.gid}
        if self.groups:
            value["additionalGids"] = list(self.groups)
        return value


def number(text: str) -> int | None:
    """A plain decimal id; None for anything else, an error when out of range."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > MAX_ID:
        raise errdefs.InvalidParameter(
            f"uids and gids must be in range 0-{MAX_ID}: {text[:40]}")
    return int(text)


def _lines(raw: bytes, fields: int) -> Iterable[list[str]]:
    for line in raw.split(b"\n"):
        if not line or line.startswith(b"#") or len(line) > _MAX_LINE:
            continue
        parts = line.decode("utf-8", "surrogateescape").split(":")
        if len(parts) >= fields:
            yield parts


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 and (
        int(text) <= MAX_ID) else None


def _clean(home: str) -> str:
    return home if home.startswith("/") and not any(c in home for c in "\n\0") else "/"


def resolve(text: str, passwd: bytes, group: bytes, extra: Iterable[str] = ()) -> User:
    """``""``, ``user``, ``uid``, ``user:group``, ``uid:gid``; ``extra``: --group-add."""
    who, colon, which = text.partition(":")
    if (colon and not which) or ":" in which or who != who.strip() or which != which.strip():
        raise errdefs.InvalidParameter(f"invalid user: {text[:80]!r}")
    entry = _find_user(who, passwd)
    if entry is None:
        uid = number(who)
        if uid is None:
            raise errdefs.InvalidParameter(
                f"unable to find user {who[:80]}: no matching entries in passwd file")
        name, gid, home = "", 0, "/"
    else:
        name, uid, gid, home = entry
    groups: tuple[int, ...] = ()
    if colon:
        gid = _group(which, group)
    elif name:
        groups = _memberships(name, gid, group)
    wanted = [_group(item, group) for item in extra]
    groups = tuple(dict.fromkeys((*groups, *wanted)))
    return User(uid, gid, groups, home)


def _find_user(who: str, passwd: bytes) -> tuple[str, int, int, str] | None:
    """A name wins over a number, unless the text is a number: then the uid counts."""
    wanted = 0 if who == "" else number(who)
    for parts in _lines(passwd, 6):
        uid, gid = _id(parts[2]), _id(parts[3])
        if uid is None or gid is None:
            continue
        if (wanted is not None and uid == wanted) or (wanted is None and parts[0] == who):
            return parts[0], uid, gid, _clean(parts[5])
    return ("", 0, 0, "/") if who == "" else None


def _group(which: str, group: bytes) -> int:
    gid = number(which)
    if gid is not None:
        return gid
    for parts in _lines(group, 3):
        if parts[0] == which and (found := _id(parts[2])) is not None:
            return found
    raise errdefs.InvalidParameter(
        f"unable to find group {which[:80]}: no matching entries in group file")


def _memberships(name: str, gid: int, group: bytes) -> tuple[int, ...]:
    found = [gid]
    for parts in _lines(group, 4):
        if name in parts[3].split(",") and (member := _id(parts[2])) is not None:
            found.append(member)
    return tuple(dict.fromkeys(found))
