"""Pseudo-terminals, and descriptors sent over sockets."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812  the C class; socket.py costs 8 ms of import
from _struct import pack, unpack
from errno import EINVAL
from fcntl import ioctl
from stat import S_ISCHR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIOCGPTN = 0x80045430
TIOCGPTPEER = 0x5441
TIOCSCTTY = 0x540E
TIOCSPTLCK = 0x40045431
TIOCSWINSZ = 0x5414
TIOCGWINSZ = 0x5413


def open_pair(kernel: Any, devpts_fd: int) -> tuple[int, int]:
    """(master, slave) of a new terminal of the devpts whose root is ``devpts_fd``.

    The slave comes from the master by TIOCGPTPEER: no path of the container
    is opened for it.
    """
    master = int(kernel.openat(devpts_fd, "ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW))
    found = kernel.fstat(master)
    if not S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(5, 2):
        kernel.close(master)
        raise OSError(EINVAL, "/dev/pts/ptmx is not a terminal multiplexer")
    kernel.ioctl(master, TIOCSPTLCK, pack("i", 0))
    slave = kernel.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return master, int(slave)


def name(master: int) -> str:
    return f"/dev/pts/{unpack('i', ioctl(master, TIOCGPTN, pack('i', 0)))[0]}"


def set_size(fd: int, height: int, width: int) -> None:
    ioctl(fd, TIOCSWINSZ, pack("HHHH", height, width, 0, 0))


def size(fd: int) -> tuple[int, int]:
    """(height, width)"""
    height, width, _, _ = unpack("HHHH", ioctl(fd, TIOCGWINSZ, b"\0" * 8))
    return height, width


def make_controlling(fd: int) -> None:
    ioctl(fd, TIOCSCTTY, 0)


def send_descriptors(socket: Socket, payload: bytes, fds: list[int]) -> None:
    rights = [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
    socket.sendmsg([payload], rights)


def receive_descriptors(socket: Socket, size: int, count: int = 4) -> tuple[bytes, list[int]]:
    data, rights, _, _ = socket.recvmsg(size, 64 + 4 * count, MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, body in rights:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.extend(unpack(f"{len(body) // 4}i", body[:len(body) // 4 * 4]))
    return data, fds


def connect(path: str) -> Socket:
    """A stream connection to the unix socket ``path``; names over 107 bytes go
    by way of /proc/self/fd, as a person's deep folder must not be an error."""
    socket = Socket(AF_UNIX, SOCK_STREAM)
    try:
        if len(os.fsencode(path)) < 108:
            socket.connect(path)
        else:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                socket.connect(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
    except OSError as error:
        socket.close()
        error.filename = path
        raise
    return socket
