"""Volumes of the local driver with ``type``, ``device``, ``o``: a mount on the volume's folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from carrel import errdefs
from carrel.engine.context import Volume
from carrel.kernel import syscalls

_OPTIONS = ("type", "device", "o", "size")
MS_BIND, MS_REC = 0x1000, 0x4000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
#: words of ``o`` that are flags of mount(2): word -> (flag, set or clear)
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True), "rw": (1, False), "nosuid": (2, True), "suid": (2, False),
    "nodev": (4, True), "dev": (4, False), "noexec": (8, True), "exec": (8, False),
    "sync": (16, True), "async": (16, False), "mand": (64, True), "nomand": (64, False),
    "dirsync": (128, True), "noatime": (1024, True), "atime": (1024, False),
    "nodiratime": (2048, True), "diratime": (2048, False), "bind": (MS_BIND, True),
    "rbind": (MS_BIND | MS_REC, True), "relatime": (1 << 21, True), "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True), "nostrictatime": (1 << 24, False), "defaults": (0, True),
}
_NETWORK = ("nfs", "nfs4", "cifs")


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Refuse what the driver does not know, before anything is made."""
    for key in options:
        if key not in _OPTIONS:
            raise errdefs.InvalidParameter(f'create {name}: invalid option: "{key}"')
    if "size" in options:
        raise errdefs.NotImplementedYet(
            f"create {name}: quota size requested but project quotas are not built yet")
    if not options:
        return
    for key in ("device", "type"):
        # "type" may be left out only where nothing is mounted, which would be useless
        if not options.get(key):
            raise errdefs.InvalidParameter(
                f'create {name}: missing required option: "{key}"')


def parse(options: str) -> tuple[int, str]:
    """``o`` as (flags, data) of mount(2)."""
    flags = 0
    rest = []
    for word in options.split(","):
        known = _FLAGS.get(word)
        if known is None:
            if word:
                rest.append(word)
        elif known[1]:
            flags |= known[0]
        else:
            flags &= ~known[0]
    return flags, ",".join(rest)


def _resolved(data: str) -> str:
    """The kernel wants ``addr`` as an address; no mount helper is there to look it up."""
    words = data.split(",")
    for number, word in enumerate(words):
        if word.startswith("addr="):
            host = word[5:]
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except OSError as error:
                raise errdefs.SystemFailure(
                    f"error resolving passed in network volume address: {error}") from None
            words[number] = f"addr={found[0][4][0]}"
    return ",".join(words)


def is_mounted(volume: Volume) -> bool:
    """By the mount's number: a bind of the same file system has the same device as its parent,
    which is all that ``os.path.ismount`` looks at."""
    try:
        return _mount_id(volume.mountpoint) != _mount_id(os.path.dirname(volume.mountpoint))
    except FileNotFoundError:
        return False


def _mount_id(path: str) -> str:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next(line for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def mount(volume: Volume) -> None:
    """Blocks (a server may not answer): for a worker thread."""
    kind, device = volume.options.get("type", ""), volume.options.get("device", "")
    flags, data = parse(volume.options.get("o", ""))
    if kind in _NETWORK:
        data = _resolved(data)
    if kind == "none":
        kind = ""
    try:
        syscalls.mount(device, volume.mountpoint, kind or None, flags, data or None)
        if flags & MS_BIND and flags & 15:
            # a bind takes its flags from a second call only
            syscalls.mount(None, volume.mountpoint, None, flags | 32)
    except OSError as error:
        raise errdefs.SystemFailure(
            f"failed to mount local volume: mount {device}:{volume.mountpoint}"
            f"{', data: ' + data if data else ''}: {(error.strerror or str(error)).lower()}"
        ) from None


def unmount(volume: Volume) -> None:
    syscalls.umount2(volume.mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
