"""What cgroup v1 and v2 share: groups (directories), the write helper, the base manager.

A :class:`Group` is one cgroup directory in one hierarchy. Every write to a
cgroup file passes through :meth:`Group.write`, which records it and raises an
``OSError`` that carries the file name.
"""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, ENODEV, ENOENT, ENOTDIR, ENOTEMPTY, EOPNOTSUPP, EPERM, EROFS, ESRCH
from time import monotonic_ns, sleep

from carrel.errdefs import Conflict, InvalidParameter
from carrel.kernel import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Resources = dict[str, Any]

#: what an unprivileged caller is answered where the host did not delegate cgroups
PERMISSION_ERRNOS = (EPERM, EACCES, EROFS)
_GONE = (ENOENT, ENODEV)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
#: how long removing a busy directory is retried: a dying process leaves within this
_REMOVE_SECONDS = 2.0


def write_file(path: str, value: str, dir_fd: int | None = None, name: str | None = None) -> None:
    """Write ``value`` in one write(2); ``path`` is what errors and the record say."""
    write_lines(path, (value,), dir_fd, name)


def write_lines(path: str, values: tuple[str, ...] | list[str], dir_fd: int | None = None,
                name: str | None = None) -> None:
    """Open once, then one write(2) for each value."""
    value = ""
    begin = monotonic_ns() if record.active is not None else 0
    try:
        fd = os.open(name or path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            for value in values:
                os.write(fd, value.encode())
                if record.active is not None:
                    record.note("write", (path, value), len(value), 0, begin)
                    begin = monotonic_ns()
        finally:
            os.close(fd)
    except OSError as error:
        number = error.errno or 0
        record.note("write", (path, value), None, number, begin)
        failure = OSError(number, os.strerror(number), path)
        failure.add_note(f"write({path!r}, {value!r})")
        raise failure from None


def read_file(path: str, dir_fd: int | None = None, name: str | None = None) -> str:
    """The whole of a small kernel file; errors carry ``path``."""
    try:
        fd = os.open(name or path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            data = os.read(fd, 65536)
            if len(data) >= 4096:  # seq files answer a page or so at a time
                while chunk := os.read(fd, 65536):
                    data += chunk
        finally:
            os.close(fd)
    except OSError as error:
        number = error.errno or 0
        raise OSError(number, os.strerror(number), path) from None
    return data.decode("utf-8", "replace")


class Group:
    """One cgroup directory. Opens its directory once, on first use."""

    __slots__ = ("_fd", "path", "procs_fd", "root")

    def __init__(self, path: str, root: str) -> None:
        self.path = path
        #: where the walk up ends: the hierarchy's mount point
        self.root = root
        self._fd = -1
        self.procs_fd = -1

    @property
    def fd(self) -> int:
        """An O_PATH fd of the directory; owned by the group."""
        if self._fd < 0:
            self._fd = os.open(self.path, _DIRECTORY)
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        procs, self.procs_fd = self.procs_fd, -1
        for one in (fd, procs):
            if one >= 0:
                os.close(one)

    def write(self, name: str, value: str) -> None:
        write_file(f"{self.path}/{name}", value, self.fd, name)

    def write_lines(self, name: str, values: list[str]) -> None:
        write_lines(f"{self.path}/{name}", values, self.fd, name)

    def read(self, name: str) -> str:
        return read_file(f"{self.path}/{name}", self.fd, name)

    def read_or(self, name: str, default: str = "") -> str:
        """Like :meth:`read`, with ``default`` where the kernel has no such file."""
        try:
            return self.read(name)
        except OSError as error:
            if error.errno not in (*_GONE, EOPNOTSUPP):
                raise
            return default

    def has(self, name: str) -> bool:
        try:
            return os.access(name, os.F_OK, dir_fd=self.fd)
        except OSError:
            return False

    def number(self, name: str, default: int | None = None) -> int:
        """A file that holds one number; "max" is the largest 64-bit number."""
        try:
            return number(self.read(name))
        except OSError as error:
            if default is None or error.errno not in (*_GONE, EOPNOTSUPP):
                raise
            return default

    def open_procs(self, name: str) -> None:
        """Keep the file by which a child will move itself into this group."""
        if self.procs_fd < 0:
            self.procs_fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)

    def make(self) -> bool:
        """mkdir; True when it is new. A missing parent is an ENOENT."""
        begin = monotonic_ns() if record.active is not None else 0
        try:
            os.mkdir(self.path, 0o755)
        except FileExistsError:
            return False
        except OSError as error:
            record.note("mkdir", (self.path, 0o755), None, error.errno or 0, begin)
            raise
        record.note("mkdir", (self.path, 0o755), 0, 0, begin)
        return True

    def ancestors(self) -> list[str]:
        """Directories between the mount point (excluded) and this one
        (excluded), outermost first."""
        found = []
        parent = os.path.dirname(self.path)
        while len(parent) > len(self.root) and parent.startswith(self.root):
            found.append(parent)
            parent = os.path.dirname(parent)
        found.reverse()
        return found

    def pids(self) -> list[int]:
        """Processes in this very group; none where it is gone or threaded."""
        try:
            return [int(pid) for pid in self.read("cgroup.procs").split()]
        except OSError as error:
            if error.errno in (*_GONE, EOPNOTSUPP):
                return []
            raise

    def remove(self) -> None:
        """rmdir, children first; "already gone" is success; EBUSY is retried briefly."""
        self.close()
        if not _rmdir(self.path):
            _remove_tree(self.path, monotonic_ns() + int(_REMOVE_SECONDS * 1e9))


def _rmdir(path: str) -> bool:
    """True when the directory is gone."""
    begin = monotonic_ns() if record.active is not None else 0
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in _GONE:
            return True
        if error.errno in (EBUSY, ENOTEMPTY, *PERMISSION_ERRNOS):
            return False
        record.note("rmdir", (path,), None, error.errno or 0, begin)
        raise
    record.note("rmdir", (path,), 0, 0, begin)
    return True


def _remove_tree(path: str, deadline_ns: int) -> None:
    """Remove with all children, deepest first, without recursion: the depth is
    the container's to choose."""
    for directory in reversed(list(walk(path))):
        pause = 0.001
        while not _rmdir(directory):
            if not os.path.isdir(directory):  # EROFS is answered for what never existed, too
                break
            if monotonic_ns() > deadline_ns:
                raise OSError(EBUSY, os.strerror(EBUSY), directory)
            sleep(pause)
            pause = min(pause * 2, 0.05)


def walk(path: str) -> Iterator[str]:
    """The directory and all below it, parents before children."""
    todo = [path]
    while todo:
        current = todo.pop()
        yield current
        try:
            with os.scandir(current) as entries:
                todo.extend(e.path for e in entries if e.is_dir(follow_symlinks=False))
        except OSError as error:
            if error.errno not in (*_GONE, ENOTDIR):
                raise


def number(text: str) -> int:
    """A kernel number; "max" and negative ones (v1's "no limit") as Docker reads them."""
    text = text.strip()
    if text == "max":
        return (1 << 64) - 1
    value = int(text)
    return max(value, 0)


def key_values(text: str) -> dict[str, int]:
    """``flat keyed`` files: one ``KEY VALUE`` a line."""
    result = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value and value.strip().lstrip("-").isdigit():
            result[key] = int(value)
    return result


def clean_path(path: str) -> str:
    """``linux.cgroupsPath`` made safe: ``..`` cannot leave the hierarchy."""
    if "\0" in path:
        raise InvalidParameter("cgroup path contains a NUL byte")
    if not path:
        return ""
    cleaned = os.path.normpath("/" + path.lstrip("/"))
    return cleaned if path.startswith("/") else cleaned.lstrip("/")


def in_user_namespace() -> bool:
    """Whether root here is not the machine's root."""
    try:
        text = read_file("/proc/self/uid_map")
    except OSError:
        return False
    return text.split() != ["0", "0", "4294967295"]


def kill_pids(pids: list[int], signal: int) -> int:
    """Send to each that still lives; the number of those reached."""
    reached = 0
    for pid in pids:
        try:
            os.kill(pid, signal)
        except OSError as error:
            if error.errno != ESRCH:
                raise
            continue
        record.note("kill", (pid, signal), 0)
        reached += 1
    return reached


class Manager:
    """The cgroups of one container. See ``carrel.kernel.cgroup`` for how to get one.

    Life: ``create`` (mkdir and limits) before the process runs, ``join_self``
    in the child (or ``clone_fd`` in clone3), ``delete`` at the end. ``create``
    may be split: ``prepare`` makes the directories and opens the fds ahead of
    time (a pool), a later ``create`` then only writes limits. Or, where
    ``late``: ``begin`` makes what clone3 needs, ``create`` the rest while the child
    is at work, and the child joins by ``late_fds`` that it is sent.
    """

    version = 0

    def __init__(self, path: str) -> None:
        #: linux.cgroupsPath as given
        self.path = path
        self.prepared = False
        #: systemd unit that holds this group, "" with the cgroupfs driver
        self.unit = ""

    # --- what the versions implement ---------------------------------------
    @property
    def paths(self) -> dict[str, str]:
        """Directory by controller; v2 has one, under the key ""."""
        raise NotImplementedError

    @property
    def groups(self) -> list[Group]:
        """All distinct directories."""
        raise NotImplementedError

    @property
    def clone_fd(self) -> int:
        """A v2 directory for CLONE_INTO_CGROUP, or -1."""
        raise NotImplementedError

    def prepare(self) -> None:
        """mkdir in all hierarchies and open what ``join_self`` needs."""
        raise NotImplementedError

    def create(self, resources: Resources | None = None) -> None:
        """Make the directories and set the limits. Nothing is left on failure."""
        raise NotImplementedError

    #: may most of it be made after the process, which then joins before it runs anything?
    late = False

    def begin(self) -> None:
        """Make the group of :attr:`clone_fd`, before the process."""
        raise NotImplementedError

    def undo_begin(self) -> None:
        """Take back what ``begin`` made, where ``create`` did not follow."""
        raise NotImplementedError

    @property
    def late_fds(self) -> list[int]:
        """After ``create``: what the child joins the rest by."""
        raise NotImplementedError

    def expect(self, resources: Resources | None) -> None:
        """Compute ahead what ``create`` will write."""

    def join_self(self, cloned: bool = False) -> None:
        """In the child: move this (single-threaded) process, by kept fds.

        ``cloned``: clone3 already put it into :attr:`clone_fd`.
        """
        raise NotImplementedError

    def files_to_join(self) -> tuple[int, list[int]]:
        """What :meth:`join_self` writes to, for a process that does not have us: the file of
        :attr:`clone_fd`'s group, or -1, and the others."""
        raise NotImplementedError

    def add(self, pid: int, below: str = "") -> None:
        """Move another process, into the group itself or a group ``below``.
        Slow when the machine is idle; not for starts."""
        raise NotImplementedError

    def update(self, resources: Resources) -> None:
        raise NotImplementedError

    def freeze(self) -> None:
        raise NotImplementedError

    def thaw(self) -> None:
        raise NotImplementedError

    def frozen(self) -> bool:
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        raise NotImplementedError

    def oom_count(self) -> int:
        """How many processes the kernel killed here for want of memory."""
        raise NotImplementedError

    def oom_fd(self) -> int:
        """An fd that becomes readable on an OOM event; the caller owns it."""
        raise NotImplementedError

    def kill_all(self, signal: int) -> None:
        raise NotImplementedError

    def mounts(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def to_state(self) -> dict[str, Any]:
        raise NotImplementedError

    # --- shared -------------------------------------------------------------
    @property
    def fds(self) -> tuple[int, ...]:
        """Directory fds; on v2 the one for CLONE_INTO_CGROUP."""
        return tuple(group.fd for group in self.groups)

    @property
    def main_group(self) -> Group:
        """The directory that stands for "the container's processes"."""
        return self.groups[0]

    def exists(self) -> bool:
        return os.path.isdir(self.main_group.path)

    def pids(self, all: bool = True) -> list[int]:
        """The container's processes; ``all`` counts groups below as well."""
        main = self.main_group
        if not all:
            return main.pids()
        found: list[int] = []
        for directory in walk(main.path):
            group = Group(directory, main.root)
            try:
                found.extend(group.pids())
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            finally:
                group.close()
        return found

    def close(self) -> None:
        """Give back the fds; the groups stay."""
        for group in self.groups:
            group.close()

    def delete(self) -> None:
        """Remove the groups; idempotent; children first; EBUSY is retried briefly."""
        first: OSError | None = None
        for group in self.groups:
            try:
                group.remove()
            except OSError as error:
                first = first or error
        self.prepared = False
        if first is not None:
            raise first

    def refuse_used(self) -> None:
        """A container must not start in a group that holds processes or is frozen."""
        alive = len(self.pids())
        if alive:
            raise Conflict(f"container's cgroup is not empty: {alive} process(es) found")
        if self.frozen():
            raise Conflict("container's cgroup unexpectedly frozen")

    def _below(self, group: Group, below: str) -> str:
        path = os.path.normpath(f"{group.path}/{below}")
        if path != group.path and not path.startswith(group.path + "/"):
            raise InvalidParameter(f"bad sub cgroup path: {below}")
        return path

    @staticmethod
    def from_state(state: dict[str, Any]) -> Manager:
        """The manager that :meth:`to_state` described; the directories must be there
        for most of its methods, and may be gone for ``delete``."""
        if state.get("unit"):
            from carrel.kernel import cgroup_systemd
            return (cgroup_systemd.SystemdV2 if state["version"] == 2
                    else cgroup_systemd.SystemdV1).load(state)
        if state["version"] == 2:
            from carrel.kernel.cgroup_v2 import ManagerV2
            return ManagerV2.load(state)
        from carrel.kernel.cgroup_v1 import ManagerV1
        return ManagerV1.load(state)
