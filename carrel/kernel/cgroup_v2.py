"""cgroup v2: one directory, all controllers.

A controller exists in a directory when its parent lists it in
``cgroup.subtree_control``; what is missing is enabled from the root down,
once, when the directory is made. Devices are an eBPF program on the directory.
"""

from __future__ import annotations

import os
from errno import EBUSY, ENODEV, ENOENT, EOPNOTSUPP
from time import monotonic_ns, sleep

from carrel.errdefs import Conflict, NotImplementedYet, SystemFailure
from carrel.kernel import cgroup_v2_limits as limits
from carrel.kernel import record
from carrel.kernel.cgroup_base import (
    PERMISSION_ERRNOS,
    Group,
    Manager,
    in_user_namespace,
    key_values,
    kill_pids,
    read_file,
    walk,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.cgroup_base import Resources

_FREEZE_SECONDS = 10.0
#: controllers that need a "domain" group; a threaded one can only have the others
_DOMAIN = frozenset(("memory", "io", "cpu", "hugetlb"))
_SIGKILL = 9


class ManagerV2(Manager):
    version = 2

    def __init__(self, path: str, directory: str, root: str, *,
                 rootless: bool | None = None, given: bool = True) -> None:
        super().__init__(path)
        self._group = Group(directory, root)
        self._rootless = rootless
        self._given = given

    @property
    def paths(self) -> dict[str, str]:
        return {"": self._group.path}

    @property
    def groups(self) -> list[Group]:
        return [self._group]

    @property
    def clone_fd(self) -> int:
        return self._group.fd

    def to_state(self) -> dict[str, Any]:
        return {"version": 2, "path": self.path, "unit": self.unit, "given": self._given,
                "paths": {"": [self._group.path, self._group.root]}}

    @classmethod
    def load(cls, state: dict[str, Any]) -> ManagerV2:
        directory, root = state["paths"][""]
        manager = cls(state["path"], directory, root, given=state.get("given", True))
        manager.unit = state.get("unit", "")
        return manager

    # --- making ---------------------------------------------------------------
    def prepare(self) -> None:
        if self.prepared:
            return
        made: list[str] = []
        try:
            self._make(made)
        except BaseException:
            self._undo(made)
            raise
        self.prepared = True

    def _make(self, made: list[str]) -> None:
        group = self._group
        try:
            new = group.make()
        except FileNotFoundError:
            for directory in group.ancestors():
                parent = Group(directory, group.root)
                if parent.make():
                    made.append(directory)
            new = group.make()
        if new:
            made.append(group.path)
        else:
            self.refuse_used()
        wanted = read_file(f"{group.root}/cgroup.controllers").split()
        if set(wanted) - set(self.controllers()):
            self._enable(wanted)
        group.open_procs("cgroup.procs")

    def controllers(self) -> list[str]:
        return self._group.read("cgroup.controllers").split()

    def _enable(self, wanted: list[str]) -> None:
        """Hand all controllers down. What cannot be had shows when a limit is set."""
        for directory in [self._group.root, *self._group.ancestors()]:
            file = f"{directory}/cgroup.subtree_control"
            try:
                write_file(file, " ".join(f"+{name}" for name in wanted))
            except OSError:
                for name in wanted:  # one that cannot spoils the others
                    try:
                        write_file(file, f"+{name}")
                    except OSError:
                        pass

    def _undo(self, made: list[str]) -> None:
        self._group.close()
        for directory in reversed(made):
            try:
                os.rmdir(directory)
            except OSError as error:
                record.note("rmdir", (directory,), None, error.errno or 0)
        self.prepared = False

    def create(self, resources: Resources | None = None) -> None:
        resources = resources or {}
        ahead = self.prepared
        existed = self.exists()
        try:
            self.prepare()
            self._check_type(resources)
        except OSError as error:
            if self._forgiven(error) and not limits.needs(resources):
                return  # rootless without a delegation, and no limit was asked for
            if error.errno in PERMISSION_ERRNOS and not self._given and self._is_rootless():
                error.add_note("rootless needs no limits + no cgrouppath when no permission is "
                               "granted for cgroups")
            raise
        try:
            self._apply(resources, fresh=True)
        except BaseException:
            if not ahead:
                self._undo([] if existed else [self._group.path])
            raise

    def _check_type(self, resources: Resources) -> None:
        kind = self._group.read_or("cgroup.type", "domain").strip()
        if kind == "domain":
            return
        asked = [c for c in limits.needs(resources) if c in _DOMAIN]
        if kind == "domain invalid":
            if asked:
                raise Conflict(f"cannot enter cgroupv2 {self._group.path!r} with domain "
                               "controllers -- it is in an invalid state")
            self._group.write("cgroup.type", "threaded")
        elif asked:
            raise Conflict(f"cannot enter cgroupv2 {self._group.path!r} with domain controllers "
                           f"-- it is in {kind} mode")

    def _is_rootless(self) -> bool:
        if self._rootless is None:
            self._rootless = os.geteuid() != 0 or in_user_namespace()
        return self._rootless

    def _forgiven(self, error: OSError) -> bool:
        return error.errno in PERMISSION_ERRNOS and not self._given and self._is_rootless()

    def _apply(self, resources: Resources, fresh: bool) -> None:
        try:
            limits.apply(self._group, resources)
        except OSError as error:
            self._explain(error, resources)
            raise
        devices = resources.get("devices")
        if fresh or devices is not None:
            self._apply_devices(devices or [])
        if resources.get("unified"):
            limits.unified(self._group, resources["unified"], self.controllers())

    def _explain(self, error: OSError, resources: Resources) -> None:
        if error.errno == ENOENT:
            missing = [c for c in limits.needs(resources) if c not in self.controllers()]
            if missing:
                error.add_note(f"cgroup v2 controller not available: {', '.join(missing)}")

    def _apply_devices(self, rules: list[Resources]) -> None:
        from carrel.kernel import cgroup_devices, ebpf
        program = ebpf.device_program(cgroup_devices.build(rules))
        fd = os.open(self._group.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            ebpf.replace_device_program(fd, program)
        except OSError as error:
            if error.errno not in PERMISSION_ERRNOS or not self._is_rootless():
                raise
        finally:
            os.close(fd)

    def update(self, resources: Resources) -> None:
        self._apply(resources, fresh=False)

    # --- membership -------------------------------------------------------------
    def join_self(self, cloned: bool = False) -> None:
        if cloned:
            return
        os.write(self.files_to_join()[0], b"0")
        record.note("cgroup join", (self.path,), 0)

    def files_to_join(self) -> tuple[int, list[int]]:
        if self._group.procs_fd < 0:
            self._group.open_procs("cgroup.procs")
        return self._group.procs_fd, []

    def add(self, pid: int, below: str = "") -> None:
        from carrel.kernel.cgroup_v1 import write_pid
        target = self._below(self._group, below)
        try:
            write_pid(f"{target}/cgroup.procs", pid)
        except OSError as error:
            # The container delegated its own group to its children: no process
            # may enter an inner group then (EBUSY), its init's group takes it.
            if error.errno not in (EBUSY, EOPNOTSUPP) or below:
                raise
            raise Conflict(f"cgroup {self._group.path!r} has child groups with controllers",
                           hint="join the group of the container's first process") from error

    # --- freezer and signals ---------------------------------------------------
    def freeze(self) -> None:
        try:
            self._group.write("cgroup.freeze", "1")
        except FileNotFoundError as error:
            raise NotImplementedYet("freezer not supported", hint="needs Linux 5.2") from error
        deadline = monotonic_ns() + int(_FREEZE_SECONDS * 1e9)
        pause = 0.0001
        while key_values(self._group.read("cgroup.events")).get("frozen") != 1:
            if monotonic_ns() > deadline:
                self._group.write("cgroup.freeze", "0")
                raise SystemFailure(f"timeout of {_FREEZE_SECONDS:.0f}s reached waiting for the "
                                    "cgroup to freeze")
            sleep(pause)
            pause = min(pause * 2, 0.01)

    def thaw(self) -> None:
        try:
            self._group.write("cgroup.freeze", "0")
        except FileNotFoundError:
            if self.exists():
                return  # nothing to thaw where the kernel cannot freeze
            raise

    def frozen(self) -> bool:
        return self._group.read_or("cgroup.freeze", "0").strip() == "1"

    def kill_all(self, signal: int) -> None:
        if signal == _SIGKILL:
            try:
                self._group.write("cgroup.kill", "1")
                return
            except OSError as error:
                if error.errno not in (ENOENT, ENODEV, EOPNOTSUPP):
                    raise
                if not self.exists():
                    return
        was_frozen = self.frozen()
        if not was_frozen:
            self.freeze()
        try:
            kill_pids(self.pids(), signal)
        finally:
            if not was_frozen or signal == _SIGKILL:
                self.thaw()

    # --- out of memory -----------------------------------------------------------
    def oom_count(self) -> int:
        return key_values(self._group.read_or("memory.events")).get("oom_kill", 0)

    def oom_fd(self) -> int:
        from carrel.kernel import inotify
        return inotify.watch(f"{self._group.path}/memory.events", inotify.IN_MODIFY)

    # --- views ---------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        from carrel.kernel import cgroup_stats
        return cgroup_stats.v2(self._group)

    def mounts(self) -> list[dict[str, Any]]:
        """One cgroup2 mount; without a cgroup namespace bind ``source``."""
        return [{"destination": "", "type": "cgroup2", "source": self._group.path, "data": "",
                 "links": []}]

    def populated(self) -> bool:
        return key_values(self._group.read_or("cgroup.events")).get("populated", 0) == 1

    def subgroups(self) -> list[str]:
        """Directories below, parents first."""
        return list(walk(self._group.path))[1:]
