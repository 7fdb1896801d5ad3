"""cgroup v1: one directory in each hierarchy; v2's beside them when hybrid.

Resource control is v1's alone. In the hybrid layout the v2 directory only
groups the processes (so that ``/proc/PID/cgroup`` says the same path
everywhere) and, where v2 holds the hugetlb controller, carries its limits.
"""

from __future__ import annotations

import os
from errno import EINVAL, ESRCH
from time import sleep

from carrel.errdefs import InvalidParameter, NotImplementedYet, SystemFailure
from carrel.kernel import cgroup_v1_limits as limits
from carrel.kernel import record
from carrel.kernel.cgroup_base import (
    PERMISSION_ERRNOS,
    Group,
    Manager,
    in_user_namespace,
    key_values,
    kill_pids,
    read_file,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.cgroup_base import Resources

UNIFIED = ""
#: directories that only group processes: a failure there is not the container's
_OPTIONAL = ("name=systemd", "misc", UNIFIED)
_FREEZE_ROUNDS = 1000


class ManagerV1(Manager):
    version = 1

    def __init__(self, path: str, paths: dict[str, tuple[str, str]], *,
                 rootless: bool | None = None, given: bool = True) -> None:
        super().__init__(path)
        self._rootless = rootless
        self._begun = False
        #: the device list that was asked for, and what to write for it
        self._devices: tuple[list[Resources] | None, limits.DeviceWrites] | None = None
        #: permission errors are forgiven only where nobody named a path
        self._given = given
        by_path: dict[str, Group] = {}
        self._by_controller: dict[str, Group] = {}
        for controller, (directory, root) in paths.items():
            group = by_path.get(directory)
            if group is None:
                group = by_path[directory] = Group(directory, root)
            self._by_controller[controller] = group
        self._groups = list(by_path.values())

    # --- what is where -------------------------------------------------------
    @property
    def paths(self) -> dict[str, str]:
        return {name: group.path for name, group in self._by_controller.items()}

    @property
    def groups(self) -> list[Group]:
        return self._groups

    @property
    def main_group(self) -> Group:
        for name in ("devices", "freezer", "memory", "pids"):
            if name in self._by_controller:
                return self._by_controller[name]
        return self._groups[0]

    @property
    def clone_fd(self) -> int:
        group = self._by_controller.get(UNIFIED)
        return group.fd if group is not None else -1

    def group(self, controller: str) -> Group:
        found = self._by_controller.get(controller)
        if found is None:
            raise InvalidParameter(f"cannot set {controller} limit: container could not join or "
                                   "create cgroup", hint=f"cgroup v1 {controller} is not mounted")
        return found

    def to_state(self) -> dict[str, Any]:
        return {"version": 1, "path": self.path, "unit": self.unit, "given": self._given,
                "paths": {n: [g.path, g.root] for n, g in self._by_controller.items()}}

    @classmethod
    def load(cls, state: dict[str, Any]) -> ManagerV1:
        manager = cls(state["path"], {n: (p[0], p[1]) for n, p in state["paths"].items()},
                      given=state.get("given", True))
        manager.unit = state.get("unit", "")
        return manager

    # --- making ---------------------------------------------------------------
    late = True

    def begin(self) -> None:
        group = self._by_controller.get(UNIFIED)
        if group is not None:
            self._begun = self._make(group, [])

    def undo_begin(self) -> None:
        group = self._by_controller.get(UNIFIED)
        if group is not None and self._begun:
            group.remove()

    @property
    def late_fds(self) -> list[int]:
        unified = self._by_controller.get(UNIFIED)
        return [group.procs_fd for group in self._groups if group is not unified]

    def expect(self, resources: Resources | None) -> None:
        asked = (resources or {}).get("devices")
        self._devices = asked, limits.device_writes(asked or [])

    def prepare(self) -> None:
        if self.prepared:
            return
        if "devices" not in self._by_controller:
            raise SystemFailure("cgroup: subsystem does not exist: devices",
                                hint="a container without a device list would own every device")
        made: list[Group] = []
        try:
            begun = self._by_controller.get(UNIFIED) if self._begun else None
            old = [g for g in list(self._groups) if g is not begun and not self._make(g, made)]
            if old:
                self.refuse_used()
            cpuset = self._by_controller.get("cpuset")
            if cpuset is not None:
                fill_cpuset(cpuset)
            for group in self._groups:
                group.open_procs("tasks" if group is not self._by_controller.get(UNIFIED)
                                 else "cgroup.procs")
            self.prepared = True
        except BaseException:
            self._undo(made)
            raise

    def _make(self, group: Group, made: list[Group]) -> bool:
        """True when new. A hierarchy that cannot be had is dropped where that is allowed."""
        try:
            try:
                new = group.make()
            except FileNotFoundError:
                self._make_parents(group)
                new = group.make()
        except OSError as error:
            names = [n for n, g in self._by_controller.items() if g is group]
            if not (all(n in _OPTIONAL for n in names) or self._forgiven(error)):
                raise
            self._groups.remove(group)
            for name in names:
                del self._by_controller[name]
            return True
        if new:
            made.append(group)
        return new

    def _make_parents(self, group: Group) -> None:
        is_cpuset = group is self._by_controller.get("cpuset")
        for directory in group.ancestors():
            parent = Group(directory, group.root)
            try:
                if parent.make() and is_cpuset:
                    # so that what is made below has cpus and mems from the first moment
                    parent.write("cgroup.clone_children", "1")
            finally:
                parent.close()

    def _forgiven(self, error: OSError) -> bool:
        if error.errno not in PERMISSION_ERRNOS or self._given:
            return False
        if self._rootless is None:
            self._rootless = os.geteuid() != 0 or in_user_namespace()
        return self._rootless

    def _undo(self, made: list[Group]) -> None:
        for group in reversed(made):
            try:
                group.remove()
            except OSError as error:
                record.note("rmdir", (group.path,), None, error.errno or 0)
        self.close()
        self.prepared = False

    def create(self, resources: Resources | None = None) -> None:
        resources = resources or {}
        self._check(resources)
        ahead = self.prepared
        self.prepare()
        try:
            self._apply(resources, fresh=True)
        except BaseException:
            if not ahead:
                self._undo(self._groups)
            raise

    def _check(self, resources: Resources) -> None:
        if resources.get("unified"):
            raise InvalidParameter("invalid configuration: cannot use unified on cgroup v1",
                                   hint="linux.resources.unified needs a cgroup v2 host")

    def _apply(self, resources: Resources, fresh: bool) -> None:
        if self._by_controller.get("hugetlb") is None and resources.get("hugepageLimits"):
            self._hugetlb_unified(resources["hugepageLimits"])
            resources = {k: v for k, v in resources.items() if k != "hugepageLimits"}
        for controller, find, setter in limits.CONTROLLERS:
            asked = find(resources)
            if controller == "devices":
                self._apply_devices(asked, fresh)
            elif asked:
                setter(self.group(controller), asked, fresh)

    def _apply_devices(self, asked: list[Resources] | None, fresh: bool) -> None:
        if asked is None and not fresh:
            return
        group = self.group("devices")
        try:
            if fresh:
                ready = self._devices
                limits.write_devices(group, ready[1] if ready is not None and ready[0] is asked
                                     else limits.device_writes(asked or []))
            else:
                limits.devices(group, asked or [])
        except OSError as error:
            # In a user namespace the kernel refuses; the outer list holds there.
            if error.errno not in PERMISSION_ERRNOS or not (
                    self._rootless or in_user_namespace()):
                raise

    def _hugetlb_unified(self, asked: list[Resources]) -> None:
        """Hybrid: the hugetlb controller may be held by the v2 hierarchy."""
        group = self._by_controller.get(UNIFIED)
        if group is None or "hugetlb" not in read_file(f"{group.root}/cgroup.controllers").split():
            self.group("hugetlb")  # raises
            raise AssertionError
        for directory in [group.root, *group.ancestors()]:
            write_file(f"{directory}/cgroup.subtree_control", "+hugetlb")
        limits.hugetlb_files(group, asked, "max")

    def update(self, resources: Resources) -> None:
        self._check(resources)
        self._apply(resources, fresh=False)

    # --- membership -------------------------------------------------------------
    def join_self(self, cloned: bool = False) -> None:
        # A thread that moves itself takes no lock of the machine, while a
        # write by another process waits for an RCU grace period (15 ms idle).
        unified, others = self.files_to_join()
        for fd in others if cloned or unified < 0 else (unified, *others):
            os.write(fd, b"0")
        record.note("cgroup join", (self.path,), 0)

    def files_to_join(self) -> tuple[int, list[int]]:
        unified = self._by_controller.get(UNIFIED)
        for group in self._groups:
            if group.procs_fd < 0:
                group.open_procs("cgroup.procs" if group is unified else "tasks")
        return (unified.procs_fd if unified in self._groups and unified is not None else -1,
                [group.procs_fd for group in self._groups if group is not unified])

    def add(self, pid: int, below: str = "") -> None:
        for name, group in list(self._by_controller.items()):
            try:
                write_pid(f"{self._below(group, below)}/cgroup.procs", pid)
            except OSError as error:
                if name in _OPTIONAL or self._forgiven(error):
                    continue
                raise

    # --- freezer and signals ---------------------------------------------------
    def freeze(self) -> None:
        group = self._by_controller.get("freezer")
        if group is None:
            raise NotImplementedYet(
                "cannot toggle freezer: cgroups not configured for container",
                hint="cgroup v1 freezer is not mounted")
        try:
            # A v1 freezer may stick in FREEZING while processes fork; asking
            # again helps, and so does an occasional thaw.
            for attempt in range(_FREEZE_ROUNDS):
                if attempt % 50 == 49:
                    group.write("freezer.state", "THAWED")
                    sleep(0.01)
                group.write("freezer.state", "FROZEN")
                if attempt % 25 == 24:
                    sleep(0.0001)
                if group.read("freezer.state").strip() == "FROZEN":
                    return
            raise SystemFailure("unable to freeze")
        except BaseException:
            self._thaw_quietly(group)
            raise

    def _thaw_quietly(self, group: Group) -> None:
        try:
            group.write("freezer.state", "THAWED")
        except OSError:
            pass  # the first error is the one to tell

    def thaw(self) -> None:
        group = self._by_controller.get("freezer")
        if group is None:
            raise NotImplementedYet("cannot toggle freezer: cgroups not configured for container")
        group.write("freezer.state", "THAWED")

    def frozen(self) -> bool:
        group = self._by_controller.get("freezer")
        if group is None:
            return False
        for _ in range(_FREEZE_ROUNDS):
            state = group.read_or("freezer.state").strip()
            if state != "FREEZING":
                # a frozen ancestor freezes too, but that is not ours to tell
                return state == "FROZEN" and group.read_or(
                    "freezer.self_freezing", "1").strip() == "1"
            sleep(0.001)
        return True

    def kill_all(self, signal: int) -> None:
        """All at once: frozen, so that none forks away; then thawed to die."""
        frozen = self._freeze_once()
        try:
            if not kill_pids(self.pids(), signal):
                return
            for _ in range(0 if frozen or signal != 9 else 100):
                if not kill_pids(self.pids(), signal):  # those who forked meanwhile
                    return
                sleep(0.002)
        finally:
            if frozen:
                self._thaw_quietly(self._by_controller["freezer"])

    def _freeze_once(self) -> bool:
        group = self._by_controller.get("freezer")
        if group is None:
            return False
        try:
            self.freeze()
        except (OSError, SystemFailure):
            return False
        return True

    # --- out of memory -----------------------------------------------------------
    def oom_count(self) -> int:
        group = self._by_controller.get("memory")
        if group is None:
            return 0
        return key_values(group.read_or("memory.oom_control")).get("oom_kill", 0)

    def oom_fd(self) -> int:
        group = self.group("memory")
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = -1
        try:
            control = os.open("memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group.fd)
            group.write("cgroup.event_control", f"{event} {control}")
        except BaseException:
            os.close(event)
            raise
        finally:
            if control >= 0:
                os.close(control)
        return event

    # --- views ---------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        from carrel.kernel import cgroup_stats
        return cgroup_stats.v1(self._by_controller)

    def mounts(self) -> list[dict[str, Any]]:
        """What ``/sys/fs/cgroup`` should hold: below a tmpfs, one mount a v1
        hierarchy. With a cgroup namespace mount ``type`` with ``data``;
        without, bind ``source``. ``links`` are names for co-mounted controllers."""
        found = []
        for group in self._groups:
            names = [n for n, g in self._by_controller.items() if g is group]
            if names == [UNIFIED]:
                continue
            found.append({
                "destination": os.path.basename(group.root), "type": "cgroup",
                "source": group.path, "data": ",".join(names),
                "links": [n for n in names if len(names) > 1
                          and n != os.path.basename(group.root)]})
        return found


def write_pid(path: str, pid: int) -> None:
    """cgroup.procs; EINVAL may mean that the process is not yet quite made."""
    for attempt in range(5):
        try:
            write_file(path, str(pid))
        except OSError as error:
            if error.errno == EINVAL and attempt < 4:
                sleep(0.03)
                continue
            if error.errno == ESRCH:
                error.add_note(f"process {pid} is gone")
            raise
        return


def fill_cpuset(group: Group) -> None:
    """A v1 cpuset without cpus and mems takes no process: copy from the nearest
    ancestor that has them, down to here."""
    if _cpuset_filled(group):
        return
    chain = [Group(path, group.root) for path in group.ancestors()]
    try:
        above = Group(group.root, group.root)
        chain.insert(0, above)
        for name in ("cpuset.cpus", "cpuset.mems"):
            value = ""
            for one in [*chain, group]:
                own = one.read(name).strip()
                if not own and value:
                    one.write(name, value)
                value = own or value
    finally:
        for one in chain:
            one.close()


def _cpuset_filled(group: Group) -> bool:
    return bool(group.read("cpuset.cpus").strip() and group.read("cpuset.mems").strip())
