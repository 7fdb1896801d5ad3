"""What the operations of one container share while they run in the child."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class View:
    """Descriptors that come to be while the plan is executed in the child.

    ``root_fd``  the container's root (the mount that becomes ``/``)
    ``proc_fd``  a procfs of our own, mounted nowhere: the container cannot
                 put anything over it, so what is written there is really the kernel's
    ``null_fd``  the host's ``/dev/null``, verified
    ``late_read_only``  (mount fd, destination): made read-only at the end
    ``dev_fd``   the container's /dev, or -1 when it is not ours to fill
    """

    __slots__ = ("cgroup_trees", "console_size", "dev_fd", "foreign_sources", "in_directory",
                 "late_read_only", "null_fd", "proc_fd", "report", "root_fd", "terminal_fd")

    def __init__(self) -> None:
        self.root_fd = -1
        self.proc_fd = -1
        self.null_fd = -1
        self.dev_fd = -1
        self.terminal_fd = -1
        self.console_size: tuple[int, int] | None = None
        #: the hierarchies of cgroup v1 as detached mounts, where the parent sent them
        self.cgroup_trees: list[int] = []
        self.late_read_only: list[tuple[int, str]] = []
        #: the working directory was reached already
        self.in_directory = False
        #: bind sources are opened by the parent's helper (user namespaces)
        self.foreign_sources = False
        self.report: Any = None


def write_file(kernel: Any, dirfd: int, path: str, data: bytes) -> None:
    """Write one of the kernel's files below ``dirfd`` without following a link."""
    fd = kernel.openat2(dirfd, path, os.O_WRONLY, 0x04 | 0x08)  # NO_SYMLINKS | BENEATH
    try:
        kernel.write(fd, data)
    finally:
        kernel.close(fd)
