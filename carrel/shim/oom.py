"""Kills for want of memory, noticed while the container runs and at its end."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from carrel.shim.loop import Loop

#: a short-lived container is looked at once, at its end: no watch on the path of a start
DELAY_SECONDS = 0.1


def open_watch(directories: dict[str, str]) -> int:
    """A descriptor by which the kernel tells of a kill: v1 an eventfd, v2 memory.events; -1
    where there is no memory accounting, or no cgroup any more."""
    directory = directories.get("", directories.get("memory", ""))
    if not directory:
        return -1
    try:
        if "" in directories:
            fd = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            os.pread(fd, 4096, 0)  # what is there now is no news
            return fd
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError:
        return -1
    control = -1
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        fd = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{event} {control}".encode())
        finally:
            os.close(fd)
        return event
    except OSError:
        os.close(event)
        return -1
    finally:
        if control >= 0:
            os.close(control)


class OomWatch:
    """Counts ``oom_kill`` of one memory cgroup."""

    def __init__(self, loop: Loop, directories: dict[str, str],
                 happened: Callable[[], None], watch: int = -1) -> None:
        """``watch``: from :func:`open_watch`; if -1 it is opened later."""
        self._loop = loop
        self._happened = happened
        self._v2 = "" in directories
        self._directory = directories.get("" if self._v2 else "memory", "")
        self._seen = 0
        self._fd = -1
        self._timer = None
        if watch >= 0:
            self._watch(watch)
        elif self._directory:
            self._timer = loop.call_later(DELAY_SECONDS, lambda: self._watch(
                open_watch(directories)))

    def _watch(self, fd: int) -> None:
        self._fd = fd
        if fd >= 0:
            self._loop.add(fd, select.EPOLLPRI if self._v2 else select.EPOLLIN, self._changed)

    def _changed(self, _events: int) -> None:
        try:
            if self._v2:
                os.pread(self._fd, 4096, 0)
            else:
                os.eventfd_read(self._fd)
        except OSError:
            pass
        self.check()
        if not os.path.isdir(self._directory):
            self.close()  # a removed v1 cgroup makes its eventfd readable for good

    def check(self) -> None:
        """Tell about kills that were not told yet."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        count = 0
        try:
            fd = os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for line in os.read(fd, 4096).splitlines():
                if line.startswith(b"oom_kill "):
                    count = int(line.split()[1])
        except OSError:
            return
        finally:
            os.close(fd)
        if count > self._seen:
            self._seen = count
            self._happened()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
