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


class OomWatch:
    """Counts ``oom_kill`` of one memory cgroup."""

    def __init__(self, loop: Loop, directories: dict[str, str],
                 happened: Callable[[], None]) -> None:
        self._loop = loop
        self._happened = happened
        self._v2 = "" in directories
        self._directory = directories.get("" if self._v2 else "memory", "")
        self._seen = 0
        self._fds: list[int] = []
        self._timer = loop.call_later(DELAY_SECONDS, self._watch) if self._directory else None

    def _watch(self) -> None:
        """Ask the kernel to tell: v1 by an eventfd, v2 by a poll of memory.events."""
        try:
            if self._v2:
                fd = os.open(f"{self._directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
                self._fds.append(fd)
                os.pread(fd, 4096, 0)  # what is there now is no news
                self._loop.add(fd, select.EPOLLPRI, self._changed)
                return
            control = os.open(f"{self._directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            self._fds.append(control)
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds.insert(0, event)
            fd = os.open(f"{self._directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"{event} {control}".encode())
            finally:
                os.close(fd)
            self._loop.add(event, select.EPOLLIN, self._changed)
        except OSError:
            self._close_fds()  # gone meanwhile, or without memory accounting

    def _changed(self, _events: int) -> None:
        try:
            if self._v2:
                os.pread(self._fds[0], 4096, 0)
            else:
                os.eventfd_read(self._fds[0])
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

    def _close_fds(self) -> None:
        if self._fds:
            self._loop.remove(self._fds[0])
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._close_fds()
