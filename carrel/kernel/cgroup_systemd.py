"""The systemd cgroup driver: a container's group is a transient unit of systemd.

``linux.cgroupsPath`` is ``slice:prefix:name``; the unit is ``prefix-name.scope``
in that slice (or the slice itself, where the name ends in ``.slice``). systemd
makes the directory and is told the limits as unit properties, so that a
daemon-reload keeps them; what it has no property for is written to the files.

A scope needs a process from its first moment, and the container's does not
exist yet. A placeholder is born into it and leaves when the container's first
process joins, or when everybody who could join is gone.
"""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter, SystemFailure
from carrel.kernel import record
from carrel.kernel.cgroup import directory
from carrel.kernel.cgroup_base import Manager
from carrel.kernel.cgroup_v1 import ManagerV1
from carrel.kernel.cgroup_v2 import ManagerV2
from carrel.kernel.dbus import Connection, RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.cgroup import Layout
    from carrel.kernel.cgroup_base import Resources

    Property = tuple[str, tuple[str, Any]]

SOCKET = "/run/systemd/private"
_OBJECT, _MANAGER = "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"
_UNLIMITED = (1 << 64) - 1
_ANNOTATION = "org.systemd.property."
_GONE = ("org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.LoadFailed")


class Unit:
    """Name and slice of a container's unit."""

    __slots__ = ("name", "slice")

    def __init__(self, path: str, name: str) -> None:
        if path:
            parts = path.split(":")
            if len(parts) != 3:
                raise InvalidParameter("expected cgroupsPath to be of format \"slice:prefix:name\""
                                       f" for systemd cgroups, got {path!r} instead")
            self.slice, prefix, name = parts
        else:
            self.slice, prefix = "", "carrel"
        if not name or "/" in name:
            raise InvalidParameter(f"invalid systemd unit name {name!r}")
        self.slice = self.slice or "system.slice"
        if name.endswith(".slice"):
            self.name = name
        else:
            self.name = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"

    @property
    def group(self) -> str:
        """The cgroup path below the hierarchy's root."""
        parent = expand_slice(self.slice)
        return f"{parent}/{self.name}" if parent != "/" else f"/{self.name}"


def expand_slice(name: str) -> str:
    """``a-b.slice`` lies in ``/a.slice/a-b.slice``; ``-.slice`` is the root."""
    stem = name.removesuffix(".slice")
    if stem == name or "/" in name:
        raise InvalidParameter(f"invalid slice name: {name}")
    if stem == "-":
        return "/"
    parts = stem.split("-")
    if not all(parts):
        raise InvalidParameter(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(parts[:n + 1])}.slice" for n in range(len(parts)))


def open_unit(path: str, name: str, found: Layout, annotations: dict[str, str]) -> Manager:
    unit = Unit(path, name)
    manager: SystemdV1 | SystemdV2
    if found.mode == "unified":
        assert found.unified is not None
        manager = SystemdV2(path, directory(found.unified, unit.group, "/"),
                            found.unified.mountpoint, given=True)
    else:
        paths = {controller: (directory(hierarchy, unit.group, "/"), hierarchy.mountpoint)
                 for hierarchy in found.v1 for controller in hierarchy.controllers}
        manager = SystemdV1(path, paths, given=True)
    manager.unit = unit.name
    manager.driver = Driver(unit, [parse_annotation(k, v) for k, v in annotations.items()
                                   if k.startswith(_ANNOTATION)])
    return manager


class Driver:
    """What both versions of the manager ask of systemd."""

    __slots__ = ("_placeholder", "extra", "unit")

    def __init__(self, unit: Unit | None, extra: list[Property]) -> None:
        self.unit = unit
        self.extra = extra
        self._placeholder = -1  # write end of the pipe that keeps it alive

    def start(self, properties: list[Property]) -> None:
        assert self.unit is not None
        name, parent = self.unit.name, self.unit.slice
        base: list[Property] = [("Description", ("s", f"carrel container {name}")),
                                ("DefaultDependencies", ("b", False))]
        pid = 0
        if name.endswith(".slice"):
            base.append(("Wants", ("as", [parent])))
        else:
            pid, self._placeholder = placeholder()
            base += [("Slice", ("s", parent)), ("Delegate", ("b", True)), ("PIDs", ("au", [pid]))]
        wanted = [*base, *properties, *self.extra]
        bus = Connection(SOCKET)
        try:
            self._begin(bus, name, wanted)
        except BaseException:
            self.joined()
            raise
        finally:
            bus.close()
        record.note("systemd StartTransientUnit", (name, parent), pid)

    def _begin(self, bus: Connection, name: str, wanted: list[Property]) -> None:
        arguments: tuple[Any, ...] = (name, "replace", wanted, [])
        try:
            [job] = bus.call(_OBJECT, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))",
                             *arguments)
        except RemoteError as error:
            if error.name != "org.freedesktop.systemd1.UnitExists":
                raise
            # left by a container that failed: forget it, and try once more
            bus.call(_OBJECT, _MANAGER, "ResetFailedUnit", "s", name)
            [job] = bus.call(_OBJECT, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))",
                             *arguments)
        wait_for(bus, job, name)

    def joined(self) -> None:
        """The container is in: the placeholder may go."""
        fd, self._placeholder = self._placeholder, -1
        if fd >= 0:
            os.close(fd)

    def update(self, unit: str, properties: list[Property]) -> None:
        if not properties:
            return
        bus = Connection(SOCKET)
        try:
            bus.call(_OBJECT, _MANAGER, "SetUnitProperties", "sba(sv)", unit, True, properties)
        finally:
            bus.close()
        record.note("systemd SetUnitProperties", (unit, str(properties)), 0)

    def stop(self, unit: str) -> None:
        self.joined()
        bus = Connection(SOCKET)
        try:
            bus.call(_OBJECT, _MANAGER, "GetUnit", "s", unit)  # StopUnit would load it anew
            [job] = bus.call(_OBJECT, _MANAGER, "StopUnit", "ss", unit, "replace")
            wait_for(bus, job, unit, ("done", "canceled", "failed"))
            # a failed unit would stay known, and its name taken
            bus.call(_OBJECT, _MANAGER, "ResetFailedUnit", "s", unit)
        except RemoteError as error:
            if error.name not in _GONE:
                raise
        finally:
            bus.close()
        record.note("systemd StopUnit", (unit,), 0)


def wait_for(bus: Connection, job: str, unit: str, good: tuple[str, ...] = ("done",)) -> None:
    while True:
        _, path, _, result = bus.signal("JobRemoved")
        if path == job:
            if result not in good:
                raise SystemFailure(f"systemd: job for {unit} ended as {result!r}")
            return


def placeholder() -> tuple[int, int]:
    """(pid, write end): an orphan that lives until the last copy of the write end is closed."""
    read, write = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        pid = os.fork()  # a grandchild: nobody has to reap it
        if pid:
            os.write(tell, str(pid).encode())
            os._exit(0)
        try:
            # nothing of ours may stay open because of it, nor a directory busy
            os.closerange(0, read)
            os.closerange(read + 1, 1 << 20)
            os.chdir("/")
            os.setsid()
            os.read(read, 1)
        finally:
            os._exit(0)
    os.close(read)
    os.close(tell)
    os.waitpid(middle, 0)
    pid = int(os.read(told, 32))
    os.close(told)
    return pid, write


# --- limits as properties ---------------------------------------------------------
def properties_v2(resources: Resources) -> list[Property]:
    from carrel.kernel import cgroup_v2_limits as limits
    found: list[Property] = []
    memory = resources.get("memory") or {}
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit:
        found.append(("MemoryMax", ("t", _amount(limit))))
    if memory.get("reservation"):
        found.append(("MemoryLow", ("t", _amount(memory["reservation"]))))
    only_swap = limits.swap_limit(limit, swap)
    if only_swap or swap > 0:
        found.append(("MemorySwapMax", ("t", _amount(only_swap))))
    cpu = resources.get("cpu") or {}
    weight = limits.cpu_weight(cpu.get("shares") or 0)
    if weight and not cpu.get("idle"):
        found.append(("CPUWeight", ("t", weight)))
    found += _quota(cpu)
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if cpu.get(key):
            found.append((name, ("ay", bits(cpu[key], key))))
    weight = limits.io_weight((resources.get("blockIO") or {}).get("weight") or 0)
    if weight:
        found.append(("IOWeight", ("t", weight)))
    return found + _tasks(resources)


def properties_v1(resources: Resources) -> list[Property]:
    found: list[Property] = []
    limit = (resources.get("memory") or {}).get("limit") or 0
    if limit:
        found.append(("MemoryLimit", ("t", _amount(limit))))
    cpu = resources.get("cpu") or {}
    if cpu.get("shares"):
        found.append(("CPUShares", ("t", cpu["shares"])))
    found += _quota(cpu)
    weight = (resources.get("blockIO") or {}).get("weight") or 0
    if weight:
        found.append(("BlockIOWeight", ("t", weight)))
    return found + _tasks(resources)


def _amount(value: int) -> int:
    return _UNLIMITED if value == -1 else value


def _quota(cpu: Resources) -> list[Property]:
    """systemd has a quota a second, in steps of 10 ms."""
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    found: list[Property] = []
    if period:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    if quota or period:
        per_second = _UNLIMITED
        if quota > 0:
            per_second = quota * 1_000_000 // (period or 100_000)
            per_second = -(-per_second // 10_000) * 10_000
        found.append(("CPUQuotaPerSecUSec", ("t", per_second)))
    return found


def _tasks(resources: Resources) -> list[Property]:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return []
    return [("TasksMax", ("t", limit if limit > 0 else 1 if limit == 0 else _UNLIMITED))]


def bits(text: str, what: str) -> list[int]:
    """"0-3,8" as the bytes of a bit mask; no machine has more than 8192 cpus."""
    from carrel.kernel.cgroup_v1_limits import check_ranges
    mask = 0
    for part in check_ranges(text, what).strip().split(","):
        low, dash, high = part.strip().partition("-")
        first, last = int(low), int(high if dash else low)
        if last >= 8192:
            raise InvalidParameter(f"invalid cpuset {what}: {text[:80]!r}: no such number here")
        mask |= ((1 << last - first + 1) - 1) << first
    return list(mask.to_bytes((mask.bit_length() + 7) // 8 or 1, "little"))


def parse_annotation(key: str, value: str) -> Property:
    """``org.systemd.property.NAME`` with a value in GVariant's text form."""
    name = key.removeprefix(_ANNOTATION)
    if not name.isalnum() or not name[0].isupper():
        raise InvalidParameter(f"annotation {key}: not a name of a systemd property")
    # a time span may be given in seconds
    scale = 1
    if name.endswith("Sec") and not name.endswith("USec"):
        name, scale = name.removesuffix("Sec") + "USec", 1_000_000
    text = value.strip()
    if text[:1] in "'\"" and text[-1:] == text[:1] and len(text) >= 2:
        return name, ("s", text[1:-1])
    if text in ("true", "false"):
        return name, ("b", text == "true")
    kinds = {"uint64": "t", "uint32": "u", "int64": "x", "int32": "i"}
    kind, _, number = text.rpartition(" ")
    if number.lstrip("-").isdecimal() and (not kind or kind in kinds):
        code = "t" if scale > 1 else kinds.get(kind, "i")
        return name, (code, int(number) * scale)
    raise InvalidParameter(f"annotation {key}: cannot read the value {value!r}")


# --- the managers -------------------------------------------------------------------
class _InUnit(Manager):
    """What is the same for both versions: the cgroup lives and dies with its unit."""

    driver: Driver

    def properties(self, resources: Resources) -> list[Property]:
        """The limits in systemd's words; Conflict or InvalidParameter for those that cannot be."""
        raise NotImplementedError

    def refuse_used(self) -> None:
        """systemd refuses a unit that runs; ours holds the placeholder."""

    def create(self, resources: Resources | None = None) -> None:
        resources = resources or {}
        self.driver.start(self.properties(resources))
        try:
            super().create(resources)
        except BaseException:
            self.driver.stop(self.unit)
            raise

    def to_state(self) -> dict[str, Any]:
        # the state is kept once the container's first process stands
        self.driver.joined()
        return super().to_state()

    def update(self, resources: Resources) -> None:
        self.driver.update(self.unit, self.properties(resources))
        super().update(resources)

    def close(self) -> None:
        self.driver.joined()
        super().close()

    def delete(self) -> None:
        self.close()
        self.driver.stop(self.unit)
        super().delete()


class SystemdV2(_InUnit, ManagerV2):
    @classmethod
    def load(cls, state: dict[str, Any]) -> SystemdV2:
        found = super().load(state)
        assert isinstance(found, SystemdV2)
        found.driver = Driver(None, [])
        return found

    def properties(self, resources: Resources) -> list[Property]:
        return properties_v2(resources)


class SystemdV1(_InUnit, ManagerV1):
    late = False

    @classmethod
    def load(cls, state: dict[str, Any]) -> SystemdV1:
        found = super().load(state)
        assert isinstance(found, SystemdV1)
        found.driver = Driver(None, [])
        return found

    def properties(self, resources: Resources) -> list[Property]:
        return properties_v1(resources)

    def create(self, resources: Resources | None = None) -> None:
        self._check(resources or {})
        super().create(resources)
