"""Kernel settings below /proc/sys.

What is below ``/proc/sys/net`` belongs to the network namespace of the thread that opens the
file, so these functions act on wherever the calling thread is.
"""

from __future__ import annotations

import os

from carrel.kernel import record

ROOT = "/proc/sys/"


def read(name: str) -> str:
    """The value of ``net/ipv4/ip_forward`` (slashes, because interface names may hold dots)."""
    fd = os.open(ROOT + name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Set a value; OSError with the file's name."""
    path = ROOT + name
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        record.note("write", (path, value), None, error.errno or 0)
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    record.note("write", (path, value), len(value))


def change(name: str, value: str) -> str | None:
    """Set a value where it differs; the old value, or None if nothing was to do."""
    old = read(name)
    if old == value:
        return None
    write(name, value)
    return old
