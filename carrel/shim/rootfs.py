"""The container's root mounted on the host, for runtimes that are programs.

(The in-process runtime performs these mounts inside the container's own mount
namespace, where the host never sees them.)
"""

from __future__ import annotations

import errno
import os

from carrel.kernel import syscalls as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.shim.wire import Message

#: option -> (flag of mount(2), is it set or cleared)
_FLAGS = {
    "ro": (0x1, True), "rw": (0x1, False), "nosuid": (0x2, True), "suid": (0x2, False),
    "nodev": (0x4, True), "dev": (0x4, False), "noexec": (0x8, True), "exec": (0x8, False),
    "sync": (0x10, True), "async": (0x10, False), "dirsync": (0x80, True),
    "noatime": (0x400, True), "atime": (0x400, False), "nodiratime": (0x800, True),
    "diratime": (0x800, False), "bind": (0x1000, True), "rbind": (0x5000, True),
    "relatime": (1 << 21, True), "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True), "nostrictatime": (1 << 24, False),
}
_BIND, _REMOUNT, _RDONLY = 0x1000, 0x20, 0x1
#: mount(2) takes one page of data; longer lists of layers go by fsconfig(2)
_DATA_MAX = 4000


def mount_all(mounts: list[Message], target: str) -> int:
    """Perform them in order on ``target``; nothing stays mounted on failure."""
    if mounts:
        try:
            os.mkdir(target, 0o711)
        except FileExistsError:
            pass
    done = 0
    try:
        for mount in mounts:
            where = target if not mount["target"] else os.path.join(
                target, mount["target"].lstrip("/"))
            _mount(mount, where)
            done += 1
    except BaseException:
        unmount_all(target)
        raise
    return done


def _mount(mount: Message, target: str) -> None:
    flags = 0
    data: list[str] = []
    for option in mount["options"]:
        if option in _FLAGS:
            bit, wanted = _FLAGS[option]
            flags = flags | bit if wanted else flags & ~bit
        elif option != "defaults":
            data.append(option)
    text = ",".join(data)
    if len(text) > _DATA_MAX:
        _mount_long(mount, target, data)
    else:
        k.mount(mount["source"], target, mount["type"], flags, text or None)
    if flags & _BIND and flags & _RDONLY:
        k.mount(None, target, None, flags | _REMOUNT)


def _mount_long(mount: Message, target: str, data: list[str]) -> None:
    """Many layers: each is its own string, so that no page is too short."""
    fs = k.fsopen(mount["type"])
    try:
        for option in data:
            key, separator, value = option.partition("=")
            if not separator:
                k.fsconfig_flag(fs, key)
            elif key == "lowerdir":
                for layer in value.split(":"):
                    k.fsconfig_string(fs, "lowerdir+", layer)
            else:
                k.fsconfig_string(fs, key, value)
        k.fsconfig_create(fs)
        tree = k.fsmount(fs)
    finally:
        os.close(fs)
    try:
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            k.move_mount(tree, place, target)
        finally:
            os.close(place)
    finally:
        os.close(tree)


def unmount_all(target: str) -> None:
    """Take off everything that is mounted there; nothing there is fine."""
    for _ in range(64):
        try:
            k.umount2(target, 0)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            k.umount2(target, k.MNT_DETACH)
