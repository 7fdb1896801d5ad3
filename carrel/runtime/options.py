"""Mount options of the OCI specification, as what the kernel wants."""

from __future__ import annotations

from carrel.kernel import syscalls as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ATIME = k.MOUNT_ATTR__ATIME

#: option -> (bits to set, bits to clear); the three atime modes are one field
ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (k.MOUNT_ATTR_RDONLY, 0), "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0), "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0), "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0), "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0), "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0), "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (k.MOUNT_ATTR_NOATIME, _ATIME), "atime": (0, _ATIME),
    "relatime": (0, _ATIME), "norelatime": (0, _ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, _ATIME), "nostrictatime": (0, _ATIME),
}
#: what the words for access times ask for; the other word of a pair withdraws it, and no more
ACCESS_TIMES = {
    "noatime": ("noatime", True), "atime": ("noatime", False),
    "nodiratime": ("nodiratime", True), "diratime": ("nodiratime", False),
    "relatime": ("relatime", True), "norelatime": ("relatime", False),
    "strictatime": ("strictatime", True), "nostrictatime": ("strictatime", False),
}
#: what a bind mount loses when any attribute is asked for, as with mount(8)'s remount
RESET = (k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
         | k.MOUNT_ATTR_NODIRATIME | k.MOUNT_ATTR_NOSYMFOLLOW)

PROPAGATION = {"private": k.MS_PRIVATE, "shared": k.MS_SHARED, "slave": k.MS_SLAVE,
               "unbindable": k.MS_UNBINDABLE}
_PROPAGATION = {**{n: (f, False) for n, f in PROPAGATION.items()},
                **{"r" + n: (f, True) for n, f in PROPAGATION.items()}}

#: flags of the superblock, as fsconfig(2) calls them
_SUPERBLOCK = {"sync", "dirsync", "lazytime", "mand", "silent", "iversion"}
_IGNORED = {"defaults", "async", "nomand", "loud", "noiversion", "nolazytime", "norro",
            "acl", "noacl", "remount"}


class Options:
    """Parsed options of one mount."""

    __slots__ = ("access_times", "attr_clear", "attr_set", "bind", "copy_up", "data",
                 "flags_asked", "idmap", "propagation", "recursive_clear", "recursive_set",
                 "superblock")

    def __init__(self) -> None:
        #: of noatime, nodiratime, relatime, strictatime: those that are asked for
        self.access_times: set[str] = set()
        self.attr_set = 0
        self.attr_clear = 0
        self.flags_asked = False
        self.recursive_set = 0
        self.recursive_clear = 0
        self.propagation: list[tuple[int, bool]] = []
        self.bind = ""            # "", "bind" or "rbind"
        self.copy_up = False
        self.idmap = ""           # "", "idmap" or "ridmap"
        self.superblock: list[str] = []
        self.data: list[str] = []

    def value(self, key: str) -> str | None:
        """The value of ``key=...`` in the data, None if it is not given."""
        for item in self.data:
            if item.startswith(key + "="):
                return item[len(key) + 1:]
        return None


def parse(options: Iterable[str]) -> Options:
    """Sort options by what they act on; unknown ones are the file system's."""
    result = Options()
    for option in options:
        if option in ATTRIBUTES:
            bits, clear = ATTRIBUTES[option]
            result.attr_set = result.attr_set & ~clear | bits
            result.attr_clear = (result.attr_clear | clear) & ~bits | (clear & _ATIME)
            result.flags_asked = True
            if option in ACCESS_TIMES:
                word, asked = ACCESS_TIMES[option]
                (result.access_times.add if asked else result.access_times.discard)(word)
        elif option in _PROPAGATION:
            result.propagation.append(_PROPAGATION[option])
        elif option in ("bind", "rbind"):
            result.bind = option
        elif option[:1] == "r" and option[1:] in ATTRIBUTES:
            bits, clear = ATTRIBUTES[option[1:]]
            result.recursive_set = result.recursive_set & ~clear | bits
            result.recursive_clear = (result.recursive_clear | clear) & ~bits | (clear & _ATIME)
        elif option == "tmpcopyup":
            result.copy_up = True
        elif option in ("idmap", "ridmap"):
            result.idmap = option
        elif option in _SUPERBLOCK:
            result.superblock.append(option)
        elif option not in _IGNORED:
            result.data.append(option)
    return result


def known() -> list[str]:
    """Every option with a meaning here, for ``features``."""
    names = set(ATTRIBUTES) | {"r" + n for n in ATTRIBUTES} | set(_PROPAGATION)
    names |= {"bind", "rbind", "tmpcopyup", "idmap", "ridmap"} | _SUPERBLOCK | _IGNORED
    return sorted(names)
