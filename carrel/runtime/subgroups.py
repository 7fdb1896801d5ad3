"""exec --cgroup: sub-cgroups of the container's for one process."""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.kernel.cgroup import Manager


class SubGroups:
    """Stands in for the manager in the child: joins by path, which is the host's
    still, before any namespace is entered."""

    __slots__ = ("directories",)

    def __init__(self, directories: list[str]) -> None:
        self.directories = directories

    def join_self(self, cloned: bool = False) -> None:
        for directory in self.directories:
            path = f"{directory}/cgroup.procs"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"0")
                finally:
                    os.close(fd)
            except OSError as error:
                number = error.errno or 0
                raise OSError(number, f"error adding pid to cgroups: adding pid to {path}: "
                                      f"{os.strerror(number).lower()}") from None


def parse(manager: Manager, words: list[str]) -> SubGroups:
    """``path`` for all controllers, ``cpu,cpuacct:path`` for some."""
    paths = dict(manager.paths)
    for word in words:
        names, colon, below = word.rpartition(":")
        if not colon:
            if len(words) > 1:
                raise InvalidParameter(f"invalid --cgroup argument: {word} (with several, each "
                                       "must name its controllers)")
            for name, base in manager.paths.items():
                paths[name] = _below(base, below)
            continue
        for name in names.split(","):
            found = name if name in manager.paths else f"name={name}"
            if found not in manager.paths:
                raise InvalidParameter(f"unknown controller {name} in --cgroup {word}")
            paths[found] = _below(manager.paths[found], below)
    return SubGroups(sorted(set(paths.values())))


def _below(base: str, below: str) -> str:
    path = os.path.normpath(f"{base}/{below}")
    if path != base and not path.startswith(base + "/"):
        raise InvalidParameter(f"bad sub cgroup path: {below}")
    return path
