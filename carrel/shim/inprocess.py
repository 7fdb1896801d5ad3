"""Our own runtime, called as a library: a start is a clone and the system calls."""

from __future__ import annotations

import os

from carrel.errdefs import CarrelError, Conflict, NotFound, SystemFailure
from carrel.runtime import api
from carrel.runtime.create import Settings
from carrel.shim.driver import Driver, Made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.loop import Work
    from carrel.shim.wire import Message

#: where the state goes when the bundle stands alone
DEFAULT_ROOT = "/run/carrel/runtime"
_TASKS = "/io.containerd.runtime.v2.task/"


def state_root(root: str, namespace: str, bundle: str) -> str:
    """The runtime's state directory: as the options say, or beside the bundles."""
    if not root:
        before, found, _ = bundle.rpartition(_TASKS)
        root = f"{before}/runtime" if found else DEFAULT_ROOT
    return os.path.join(root, namespace)


class InProcess(Driver):
    """Calls return at once or within milliseconds, so nothing here waits."""

    def __init__(self, root: str, identity: str, bundle: str, *, systemd_cgroup: bool = False,
                 no_pivot: bool = False, no_new_keyring: bool = False) -> None:
        self._root = root
        self._id = identity
        self._bundle = bundle
        self._settings = Settings(no_pivot=no_pivot, no_new_keyring=no_new_keyring,
                                  systemd_cgroup=systemd_cgroup)
        self._container: api.Container | None = None
        self._mount_namespace = -1

    @property
    def container(self) -> api.Container:
        if self._container is None:
            self._container = api.load(self._id, self._root)
        return self._container

    def create(self, mounts: list[Message], terminal: bool,
               child: tuple[int, int, int] | None) -> Work:
        yield from ()
        try:
            made = api.create(self._id, self._bundle, self._root, stdio=child, terminal=terminal,
                              rootfs_mounts=mounts or None, settings=self._settings)
        except Exception as error:
            raise self._failed("create", error) from error
        self._container = made
        console, made.console = made.console, -1
        # While somebody holds it, the end of init does not wait for the unmount
        # of its root, which can mean writing back megabytes.
        self._mount_namespace = os.open(f"/proc/{made.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        return Made(made.pid, console)

    def start(self) -> Work:
        yield from ()
        try:
            self.container.start()
        except Exception as error:
            raise self._failed("start", error) from error

    def exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
             child: tuple[int, int, int] | None) -> Work:
        yield from ()
        try:
            made = self.container.exec(process, child, terminal)
        except Exception as error:
            raise self._failed("exec", error) from error
        os.close(made.pidfd)
        return Made(made.pid, made.console)

    @staticmethod
    def _failed(what: str, error: Exception) -> CarrelError:
        """The error as it travels, with the beginning that Docker's clients know."""
        text = api.message(error)
        if what == "exec":
            text = f"exec failed: {text}"
        kind = type(error) if isinstance(error, CarrelError) else SystemFailure
        failed = kind(Driver.failure.format(what, text))
        for note in getattr(error, "__notes__", ()):
            failed.add_note(note)
        return failed

    def kill(self, signal: int, all_processes: bool) -> Work:
        yield from ()
        try:
            self.container.kill(signal, all=all_processes)
        except (Conflict, ProcessLookupError):
            raise NotFound("process already finished") from None

    def pause(self) -> Work:
        yield from ()
        self.container.pause()

    def resume(self) -> Work:
        yield from ()
        self.container.resume()

    def update(self, resources: dict[str, Any]) -> Work:
        yield from ()
        self.container.update(resources)

    def pids(self) -> Work:
        yield from ()
        return self.container.pids()

    def delete(self, force: bool = False) -> Work:
        yield from ()
        self.released()
        try:
            self.container.delete(force=force)
        except NotFound:
            pass
        self._container = None

    def cgroup(self, pid: int) -> dict[str, str]:
        paths = dict(self.container.cgroup.paths)
        for name in [n for n in paths if n in ("", "unified")] if len(paths) > 1 else ():
            del paths[name]  # v2 beside v1 holds no controller
        return paths

    def released(self) -> None:
        if self._mount_namespace >= 0:
            os.close(self._mount_namespace)
            self._mount_namespace = -1
