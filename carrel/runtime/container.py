"""A container that exists: start, exec, signals, limits, removal."""

from __future__ import annotations

import os
from errno import ESRCH
from select import POLLIN, poll
from time import monotonic, sleep

from carrel.errdefs import Conflict, InvalidParameter, NotFound
from carrel.kernel import cgroup, syscalls
from carrel.oci import json, runtime_spec
from carrel.runtime import childrecord, errors, warnings
from carrel.runtime import state as state_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.cgroup import Manager
    from carrel.runtime.enter import Entry

    Spec = dict[str, Any]

CREATED, RUNNING, PAUSED, STOPPED = "created", "running", "paused", "stopped"


class Process:
    """A process in a container, child of the caller."""

    __slots__ = ("console", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, console: int = -1) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.console = console


class Container:
    """One container. Made by :func:`carrel.runtime.create.create` or :func:`load`."""

    __slots__ = ("_cgroup", "_spec", "console", "id", "pid", "pidfd", "record", "root")

    def __init__(self, id: str, root: str, record: Spec, *, spec: Spec | None = None) -> None:
        self.id = id
        self.root = root
        self.record = record
        self.pid: int = record["pid"]
        self.pidfd = -1
        self.console = -1
        self._spec = spec
        self._cgroup: Manager | None = None

    # --- what it is -------------------------------------------------------------
    @property
    def folder(self) -> str:
        return f"{self.root}/{self.id}"

    @property
    def bundle(self) -> str:
        return str(self.record["bundle"])

    @property
    def spec(self) -> Spec:
        """The configuration it was created from."""
        if self._spec is None:
            path = f"{self.folder}/{state_files.CONFIG}"
            self._spec = json.loads(state_files.read(path), path)
        return self._spec

    @property
    def cgroup(self) -> Manager:
        if self._cgroup is None:
            self._cgroup = cgroup.Manager.from_state(self.record["cgroup"])
        return self._cgroup

    def use_cgroup(self, manager: Manager) -> None:
        self._cgroup = manager

    @property
    def alive(self) -> bool:
        """Whether the very process we started is still there (pids are reused)."""
        if self.pidfd >= 0:  # opened when it was made, or checked when it was opened
            watch = poll()
            watch.register(self.pidfd, POLLIN)
            return not watch.poll(0)
        return self.pid > 0 and state_files.start_time(self.pid) == self.record["startTime"]

    @property
    def status(self) -> str:
        if not self.alive:
            return STOPPED
        if os.path.lexists(f"{self.folder}/{state_files.FIFO}"):
            return CREATED
        return PAUSED if self._frozen() else RUNNING

    def _frozen(self) -> bool:
        try:
            return self.cgroup.frozen()
        except OSError:
            return False

    def open_pidfd(self) -> int:
        """A pidfd of the init; checked against its start time after opening."""
        if self.pidfd < 0:
            try:
                fd = syscalls.pidfd_open(self.pid)
            except OSError as error:
                if error.errno != ESRCH:
                    raise
                raise Conflict("container not running") from None
            if not self.alive:
                os.close(fd)
                raise Conflict("container not running")
            self.pidfd = fd
        return self.pidfd

    # --- life ---------------------------------------------------------------------
    def start(self) -> None:
        """Let the waiting process execute; raise with its errno when it cannot."""
        status = self.status
        if status == STOPPED:
            raise Conflict("cannot start a container that has stopped")
        if status != CREATED:
            raise Conflict("cannot start an already running container")
        path = f"{self.folder}/{state_files.FIFO}"
        packet = childrecord.take_from(self._converse(path))
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        if packet[:1] == b"E":
            raise errors.from_packet(packet)
        self._poststart()

    def _converse(self, path: str) -> bytes:
        """Open the reading end, which lets the process go, and read until it
        executed (end of file) or told what went wrong."""
        try:
            fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Conflict("cannot start an already running container") from None
        pidfd = self.open_pidfd()
        watch = poll()
        watch.register(fifo, POLLIN)
        watch.register(pidfd, POLLIN)
        data = b""
        try:
            while True:
                ready = {fd for fd, _ in watch.poll()}
                chunk = os.read(fifo, 1 << 16) if fifo in ready else b""
                data += chunk
                if fifo in ready and not chunk and data:
                    return data[1:]  # it closed its end: by execve, or after its error
                if pidfd in ready and not chunk:
                    if not data:
                        raise Conflict("cannot start a container that has stopped")
                    return data[1:]
        finally:
            os.close(fifo)

    def _poststart(self) -> None:
        points = (self.spec.get("hooks") or {}).get("poststart")
        if points:
            from carrel.runtime import hooks
            hooks.run_all(points, "poststart", json.dumps(self.oci_state("running")).encode())

    def exec(self, process: Spec, stdio: tuple[int, int, int] | None = None,
             terminal: bool | None = None, **options: Any) -> Process:
        """Run another process inside; it is a child of the caller."""
        from carrel.runtime.enter import execute
        return execute(self, process, stdio, terminal, **options)

    def plan_exec(self, process: Spec, stdio: tuple[int, int, int] | None = None,
                  terminal: bool | None = None, **options: Any) -> Entry:
        """The same in two steps: what this gives is to be executed, or closed. Check again
        (``enter.check``) where time has passed."""
        from carrel.runtime.enter import prepare
        return prepare(self, process, stdio, terminal, **options)

    def kill(self, signal: int, all: bool = False) -> None:
        # Without a pid namespace of its own the init is nothing special to the
        # kernel: KILL means the container, so all of it, even when init is gone.
        if all or (signal == 9 and not self._own_pids()):
            if not all and not self.alive and not self.cgroup.pids():
                raise Conflict("container not running")
            self.cgroup.kill_all(signal)
            return
        if not self.alive:
            raise Conflict("container not running")
        syscalls.pidfd_send_signal(self.open_pidfd(), signal)
        if signal == 9 and self._frozen():
            self.cgroup.thaw()  # with cgroup v1 a frozen process does not even die

    def pause(self) -> None:
        status = self.status
        if status not in (RUNNING, CREATED):
            raise Conflict("container not running: cannot pause" if status == STOPPED
                           else "container is already paused")
        self.cgroup.freeze()

    def resume(self) -> None:
        if self.status != PAUSED:
            raise Conflict("container not paused")
        self.cgroup.thaw()

    def update(self, resources: Spec) -> None:
        if self.status == STOPPED:
            raise Conflict("container not running")
        self.cgroup.update(resources)

    def pids(self) -> list[int]:
        return self.cgroup.pids()

    def stats(self) -> Spec:
        return self.cgroup.stats()

    def delete(self, force: bool = False) -> None:
        """Remove what is left of a stopped container; ``force`` kills it first."""
        status = self.status
        if status != STOPPED:
            if not force:
                raise Conflict(f"cannot delete container {self.id} that is not stopped: {status}")
            self._kill_hard()
        elif not self._own_pids():
            # its processes live on in a shared pid namespace
            self.cgroup.kill_all(9)
        self.cgroup.delete()
        self._poststop()
        state_files.remove(self.root, self.id)
        self.close()

    def _own_pids(self) -> bool:
        """Whether the kernel kills all of its processes with the first."""
        for entry in (self.spec.get("linux") or {}).get("namespaces") or ():
            if entry["type"] == "pid":
                return not entry.get("path")
        return False

    def _kill_hard(self) -> None:
        """SIGKILL to init, and to everything in the cgroup; wait until it is gone."""
        try:
            syscalls.pidfd_send_signal(self.open_pidfd(), 9)
        except (OSError, Conflict):
            pass  # gone meanwhile
        if not self._own_pids():
            self.cgroup.kill_all(9)
        elif self._frozen():
            self.cgroup.thaw()
        watch = poll()
        if self.pidfd >= 0:
            watch.register(self.pidfd, POLLIN)
            if not watch.poll(10_000):
                raise Conflict(f"container {self.id} did not die within 10 s of SIGKILL")
        deadline = monotonic() + 10
        while self.alive and monotonic() < deadline:
            sleep(0.002)

    def _poststop(self) -> None:
        """A hook that fails here does not keep the container from being removed."""
        try:
            points = (self.spec.get("hooks") or {}).get("poststop")
        except (FileNotFoundError, InvalidParameter):
            return
        for hook in points or ():
            from carrel.runtime import hooks
            try:
                hooks.run(hook, 0, "poststop", json.dumps(self.oci_state(STOPPED)).encode())
            except OSError as error:
                warnings.warn(f"poststop hook failed: {errors.message(error)}")

    def oci_state(self, status: str = "") -> Spec:
        status = status or self.status
        found: Spec = {"ociVersion": self.record.get("ociVersion", runtime_spec.VERSION),
                       "id": self.id, "pid": 0 if status == STOPPED else self.pid,
                       "status": status, "bundle": self.bundle}
        if self.record.get("annotations"):
            found["annotations"] = self.record["annotations"]
        return found

    def close(self) -> None:
        """Give back descriptors; the container is not touched."""
        for name in ("pidfd", "console"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)
        if self._cgroup is not None:
            self._cgroup.close()


def load(id: str, root: str) -> Container:
    """The container ``id`` as its state folder describes it."""
    try:
        return Container(id, root, state_files.load(root, id))
    except NotFound:
        raise NotFound("container does not exist") from None


def state(container: Container) -> Spec:
    """The OCI state, with what runtimes add to it by custom."""
    found = container.oci_state()
    found["rootfs"] = container.record.get("rootfs", "")
    found["created"] = container.record.get("created", "")
    found["owner"] = ""
    return found

