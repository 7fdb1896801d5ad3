"""From an OCI specification to the operations of a start. Pure: no system call
is made here, the operations themselves are executed in the child.
"""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter
from carrel.kernel import capability, syscalls
from carrel.runtime import identity, inside, mounts, options, warnings
from carrel.runtime.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.kernel.plan import Operation
    from carrel.runtime.stock import Stock

    Spec = dict[str, Any]

NAMESPACE_FLAGS = {
    "pid": syscalls.CLONE_NEWPID, "network": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS, "uts": syscalls.CLONE_NEWUTS, "ipc": syscalls.CLONE_NEWIPC,
    "cgroup": syscalls.CLONE_NEWCGROUP, "user": syscalls.CLONE_NEWUSER,
    "time": syscalls.CLONE_NEWTIME,
}
#: the names below /proc/<pid>/ns
NAMESPACE_FILES = {"pid": "pid", "network": "net", "mount": "mnt", "uts": "uts", "ipc": "ipc",
                   "cgroup": "cgroup", "user": "user", "time": "time"}


class Namespaces:
    """Which namespaces are made and which are joined by path."""

    __slots__ = ("joined", "made")

    def __init__(self, spec: Spec) -> None:
        self.made = 0
        self.joined: dict[str, str] = {}
        for entry in (spec.get("linux") or {}).get("namespaces") or ():
            kind, path = entry["type"], entry.get("path") or ""
            if path:
                self.joined[kind] = path
            else:
                self.made |= NAMESPACE_FLAGS[kind]

    def has(self, kind: str) -> bool:
        return bool(self.made & NAMESPACE_FLAGS[kind]) or kind in self.joined

    #: made by unshare: the cgroup namespace only after the child is in its cgroup,
    #: the time namespace only after its offsets are known
    LATE = syscalls.CLONE_NEWCGROUP | syscalls.CLONE_NEWTIME

    @property
    def at_clone(self) -> int:
        """What clone(2) itself makes. In a user namespace that is joined, the
        others have to be made after joining, or they would not be its own."""
        return 0 if "user" in self.joined else self.made & ~self.LATE

    @property
    def after_join(self) -> int:
        return self.made & ~self.LATE if "user" in self.joined else 0


def plan_mounts(spec: Spec, view: View, rootfs: str, rootfs_mounts: list[Spec] | None, bundle: str,
                cgroup_mounts: Callable[[], list[Spec]] | None, *,
                no_pivot: bool = False, map_fds: dict[int, int] | None = None,
                stock: Stock | None = None) -> tuple[list[Operation], list[Operation]]:
    """(before the host's hooks, after them): the container's file system."""
    linux = spec.get("linux") or {}
    spaces = Namespaces(spec)
    own_mounts = spaces.has("mount")
    first: list[Operation] = []
    root = spec.get("root") or {}
    propagation = _root_propagation(linux)
    if own_mounts:
        first.append(mounts.SetPropagation(
            propagation if propagation & (syscalls.MS_SHARED | syscalls.MS_PRIVATE
                                          | syscalls.MS_SLAVE) else syscalls.MS_SLAVE))
        if propagation & syscalls.MS_SHARED:
            first.append(mounts.PrivateParent(rootfs))
    for entry in rootfs_mounts or ():
        first.append(rootfs_mount(entry, rootfs))
    first.append(mounts.OpenRootfs(view, rootfs, bind=own_mounts and not rootfs_mounts))
    entries = spec.get("mounts") or []
    if spaces.has("user"):
        stock = None  # made by somebody who is nobody there
    devices = plan_devices(linux)
    dev_stock = stock if one_usual_dev(entries, devices) else None
    for index, entry in enumerate(entries):
        destination = entry["destination"]
        if destination.startswith(rootfs + "/"):  # given as seen from the host: also accepted
            entry = {**entry, "destination": destination[len(rootfs):]}
        if "bind" in (entry.get("type"), *(o[-4:] for o in entry.get("options") or ())):
            entry = {**entry, "source": os.path.join(bundle, entry.get("source") or "")}
        first.extend(plan_mount(view, entry, index, spaces, cgroup_mounts,
                                (map_fds or {}).get(index, -1), beneath(spec, entry),
                                dev_stock if _destination(entry) == "/dev" else stock))
    setup_dev = not any(_destination(e) == "/dev" and options.parse(
        e.get("options") or ()).bind for e in entries)
    filled = any(isinstance(one, mounts.Mount) and one.ready >= 0
                 and one.destination.rstrip("/") == "/dev" for one in first)
    if filled:
        usual = inside.default_devices()
        devices = [one for one in devices if one not in usual]
    if setup_dev and own_mounts and (devices or not filled):
        first.append(inside.MakeDevices(view, devices, bind=bool(spaces.has("user"))))
    if setup_dev and own_mounts and not filled:
        first.append(inside.MakeDevLinks(view))
    after: list[Operation] = []
    process = spec.get("process") or {}
    if process.get("cwd"):
        after.append(identity.MakeWorkingDirectory(view, process["cwd"]))
    if process.get("terminal"):
        after.append(inside.OpenConsole(view))
    read_only: list[Operation] = []
    if own_mounts:
        read_only.append(mounts.FinishReadOnly(view, root=bool(root.get("readonly"))))
        if no_pivot:
            read_only.append(mounts.MoveRoot(view, rootfs))
        else:
            read_only.append(mounts.PivotRoot(view, propagation))
    else:
        read_only.append(mounts.ChangeRoot(view, ""))
    names: list[Operation] = []
    if spec.get("hostname"):
        names.append(inside.SetHostname(spec["hostname"]))
    if spec.get("domainname"):
        names.append(inside.SetDomainname(spec["domainname"]))
    for key, value in (linux.get("sysctl") or {}).items():
        names.append(inside.WriteProc(view, "sys/" + sysctl_path(key), value, "sysctl"))
    hidden: list[Operation] = []
    if own_mounts:
        hidden.extend(mounts.ReadOnlyPath(view, p) for p in linux.get("readonlyPaths") or ())
        if linux.get("maskedPaths"):
            hidden.append(mounts.MaskPaths(view, list(dict.fromkeys(linux["maskedPaths"])),
                                           stock.empty() if stock is not None else -1))
    return first, after + names + hidden + read_only


#: annotation of ours, with a mount's destination after it: the folder (of a volume) that
#: the mount's source has to stay below
BENEATH = "io.carrel.beneath:"


def beneath(spec: Spec, entry: Spec) -> str:
    notes = spec.get("annotations")
    return str(notes.get(BENEATH + entry["destination"]) or "") if notes else ""


def _destination(entry: Spec) -> str:
    return "/" + str(entry["destination"]).strip("/")


def _root_propagation(linux: Spec) -> int:
    name = linux.get("rootfsPropagation") or ""
    if not name:
        return 0
    plain = name[1:] if name.startswith("r") else name
    if plain not in options.PROPAGATION:
        raise InvalidParameter(f"rootfsPropagation={name} is not supported")
    return options.PROPAGATION[plain]


def rootfs_mount(entry: Spec, rootfs: str) -> Operation:
    """One layer of the root file system, as it came with the request."""
    flags, data = _mount_flags(entry.get("options") or ())
    target = entry.get("target") or ""
    where = rootfs if not target.strip("/") else f"{rootfs}/{target.strip('/')}"
    return mounts.MountRootfs(entry.get("source") or entry["type"], where, entry["type"], flags,
                              data)


_OLD_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128,
              "noatime": 1024, "nodiratime": 2048, "bind": 4096, "rbind": 4096 | 16384,
              "relatime": 1 << 21, "strictatime": 1 << 24}


def _mount_flags(names: list[str] | tuple[str, ...]) -> tuple[int, str]:
    flags, data = 0, []
    for name in names:
        if name in _OLD_FLAGS:
            flags |= _OLD_FLAGS[name]
        elif name not in ("rw", "defaults", "suid", "dev", "exec", "async"):
            data.append(name)
    return flags, ",".join(data)


def plan_mount(view: View, entry: Spec, index: int, spaces: Namespaces,
               cgroup_mounts: Callable[[], list[Spec]] | None, map_fd: int = -1,
               beneath: str = "", stock: Stock | None = None) -> list[Operation]:
    """The operation(s) for one entry of ``mounts``."""
    destination = entry["destination"]
    if not destination.startswith("/"):
        destination = "/" + destination  # a warning in runc; the specification wants it absolute
    parsed = options.parse(entry.get("options") or ())
    kind = entry.get("type") or ""
    if parsed.bind or kind == "bind":
        return [mounts.BindMount(view, destination, entry.get("source") or "", parsed, index,
                                 map_fd, beneath)]
    if kind in ("cgroup", "cgroup2"):
        from carrel.runtime import cgroupfs
        return cgroupfs.plan(view, destination, parsed, cgroup_mounts,
                             private=spaces.has("cgroup"), stock=stock)
    if parsed.copy_up:
        import carrel.runtime.copyup  # noqa: F401  (the child can import nothing any more)
    late = bool(parsed.attr_set & syscalls.MOUNT_ATTR_RDONLY) and (
        kind == "tmpfs" or destination.rstrip("/") == "/dev")
    source = entry.get("source") or ""
    ready = -1
    if stock is not None and not late and not parsed.copy_up:
        ready = stock.mount(destination, kind, source, parsed)
    return [mounts.Mount(view, destination, kind, source, parsed, read_only_late=late,
                         ready=ready)]


def one_usual_dev(entries: list[Spec], devices: list[tuple[str, str, int, int, int, int, int]]
                  ) -> bool:
    """Is there one /dev, with all of the usual devices as they usually are?"""
    return (set(inside.default_devices()) <= set(devices)
            and sum(_destination(entry) == "/dev" for entry in entries) == 1)


def plan_devices(linux: Spec) -> list[tuple[str, str, int, int, int, int, int]]:
    """Default devices first; an own entry for one of them replaces it."""
    found = {device[0]: device for device in inside.default_devices()}
    for device in linux.get("devices") or ():
        path = device["path"]
        if path.rstrip("/") in ("/dev/ptmx", "/dev/console"):
            continue  # a symlink to the container's devpts; the terminal
        mode = device.get("fileMode")
        found[path] = (path, device["type"], device.get("major") or 0, device.get("minor") or 0,
                       0o666 if mode is None else mode & 0o7777, device.get("uid") or 0,
                       device.get("gid") or 0)
    return list(found.values())


_POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4,
             "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}
_SCHED_FLAGS = {"SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2,
                "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
                "SCHED_FLAG_KEEP_PARAMS": 16, "SCHED_FLAG_UTIL_CLAMP_MIN": 32,
                "SCHED_FLAG_UTIL_CLAMP_MAX": 64}
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}
_MEMORY_MODES = {"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3,
                 "MPOL_LOCAL": 4, "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6}
_MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14,
                 "MPOL_F_NUMA_BALANCING": 1 << 13}


def plan_schedule(process: Spec, linux: Spec, affinity: list[int]) -> list[Operation]:
    """Everything about when and where it runs. ``affinity``: the cpus to reset to,
    since a caller bound to one cpu must not bind its containers."""
    calls: list[tuple[str, tuple[Any, ...]]] = [("sched_setaffinity", (affinity,))]
    scheduler = process.get("scheduler")
    if scheduler:
        flags = sum(_named(_SCHED_FLAGS, f, "scheduler flag")
                    for f in scheduler.get("flags") or ())
        if scheduler.get("policy") == "SCHED_DEADLINE" and (
                (linux.get("resources") or {}).get("cpu") or {}).get("cpus"):
            raise InvalidParameter("process scheduler can't be used together with AllowedCPUs")
        calls.append(("sched_setattr", (
            _named(_POLICIES, scheduler.get("policy") or "", "scheduler policy"), flags,
            scheduler.get("nice") or 0, scheduler.get("priority") or 0,
            scheduler.get("runtime") or 0, scheduler.get("deadline") or 0,
            scheduler.get("period") or 0)))
    priority = process.get("ioPriority")
    if priority:
        value = priority.get("priority") or 0
        if not 0 <= value <= 7:
            raise InvalidParameter(f"invalid ioPriority.Priority: {value}")
        kind = _named(_IO_CLASSES, priority.get("class") or "", "ioPriority.Class")
        calls.append(("ioprio_set", (kind << 13 | value,)))
    if linux.get("memoryPolicy") is not None:
        calls.append(("set_mempolicy", _memory_policy(linux["memoryPolicy"])))
    personality = linux.get("personality")
    if personality:
        domain = _named(_PERSONALITIES, personality.get("domain") or "", "personality domain")
        if personality.get("flags"):
            raise InvalidParameter("personality flags are not supported")
        calls.append(("personality", (domain,)))
    return [identity.SetSchedule(calls)]


def _memory_policy(policy: Spec) -> tuple[int, list[int]]:
    mode = _named(_MEMORY_MODES, policy.get("mode") or "", "memory policy mode")
    text = policy.get("nodes") or ""
    try:
        nodes = parse_list(text) if text else []
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid memory policy node list {text!r}: {error}") from None
    if policy["mode"] in ("MPOL_DEFAULT", "MPOL_LOCAL") and nodes:
        raise InvalidParameter(f"invalid memory policy: {policy['mode']} mode requires 0 nodes "
                               f"but got {len(nodes)}")
    flags = 0
    for flag in policy.get("flags") or ():
        flags |= _named(_MEMORY_FLAGS, flag, "memory policy flag")
    return mode | flags, nodes


def _named(table: dict[str, int], name: str, what: str) -> int:
    if name not in table:
        raise InvalidParameter(f"invalid {what}: {name!r}")
    return table[name]


#: more cpus or nodes than any kernel can have: never allocated from a text
_LIST_LIMIT = 8192


def parse_list(text: str) -> list[int]:
    """``0-3,7`` as numbers; bounded, because the text is somebody else's."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = [first, last] if dash else [first]
        if not all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
            raise InvalidParameter(f"invalid list {text!r}")
        low, high = int(numbers[0]), int(numbers[-1])
        if low > high or high >= _LIST_LIMIT:
            raise InvalidParameter(f"invalid list {text!r}")
        found.update(range(low, high + 1))
    return sorted(found)


def plan_labels(process: Spec, linux: Spec, view: View) -> list[Operation]:
    """AppArmor and SELinux: what is asked for and not there is an error, never
    a container that is silently unconfined."""
    found: list[Operation] = []
    profile = process.get("apparmorProfile") or ""
    if profile and not os.path.isdir("/sys/kernel/security/apparmor"):
        raise InvalidParameter(f"cannot apply apparmor profile {profile!r}: apparmor is not "
                               "enabled on the host")
    if profile:
        found.append(inside.ApplyProfile(view, profile))
    label = process.get("selinuxLabel") or ""
    if (label or linux.get("mountLabel")) and not os.path.isdir("/sys/fs/selinux"):
        raise InvalidParameter("cannot apply SELinux label: selinux is not enabled on the host")
    if linux.get("mountLabel"):
        raise InvalidParameter("linux.mountLabel is not built yet")
    if label:
        found.append(inside.WriteProc(view, "self/attr/exec", label, "selinux"))
    return found


def sysctl_path(key: str) -> str:
    """``net.ipv4.conf.eth0/100.x``: as sysctl(8), the first separator tells which it is."""
    for character in key:
        if character == ".":
            return key.translate({ord("."): "/", ord("/"): "."})
        if character == "/":
            break
    return key


def plan_limits(process: Spec) -> list[Operation]:
    limits = process.get("rlimits") or ()
    if not limits:
        return []
    import resource
    rows = []
    for limit in limits:
        number = getattr(resource, limit["type"], None)
        if number is None or not limit["type"].startswith("RLIMIT_"):
            raise InvalidParameter(f"invalid rlimit type: {limit['type']}")
        rows.append((limit["type"], number, limit["soft"], limit["hard"]))
    return [identity.SetRlimits(rows)]


class Rights:
    """The capability sets of a process, as bits."""

    __slots__ = ("bounding", "final", "unknown")

    def __init__(self, process: Spec) -> None:
        sets = process.get("capabilities") or {}
        self.unknown: set[str] = set()
        bits = {}
        for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
            bits[name], unknown = capability.mask(sets.get(name) or ())
            self.unknown.update(unknown)
        self.bounding = bits["bounding"]
        # ambient needs both; the kernel would refuse the rest
        ambient = bits["ambient"] & bits["permitted"] & bits["inheritable"]
        _warn_about_rights(self.unknown, bits["ambient"] & ~ambient)
        self.final = identity.SetCapabilities(bits["effective"], bits["permitted"],
                                              bits["inheritable"], ambient)


def _warn_about_rights(unknown: set[str], refused: int) -> None:
    """A process with fewer rights than asked for still starts, but not silently."""
    if not unknown and not refused:
        return
    if unknown:
        warnings.warn(f"ignoring unknown or unavailable capabilities: {sorted(unknown)}")
    for number, name in enumerate(capability.NAMES):
        if refused >> number & 1:
            warnings.warn(f"can't raise ambient capability {name}: operation not permitted")


def plan_identity(process: Spec, view: View, env: list[bytes], *, may_set_groups: bool = True
                  ) -> tuple[list[Operation], list[Operation], Rights]:
    """(before the wait, after the wait, capability sets)."""
    rights = Rights(process)
    user = process.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    groups = list(user.get("additionalGids") or ()) if may_set_groups else None
    cwd = process.get("cwd") or "/"
    before: list[Operation] = [identity.NewSession(view), *plan_limits(process)]
    if not any(e.startswith(b"HOME=") and e != b"HOME=" for e in env):
        before.append(identity.FindHome(view, env, uid))
    before.append(identity.DropBounding(rights.bounding))
    if process.get("noNewPrivileges"):
        before.append(identity.NoNewPrivileges())
    before.append(identity.OwnStdio(view, uid))
    before.append(identity.ChangeDirectory(view, cwd, tolerant=True))
    after: list[Operation] = [
        identity.SetIdentity(uid, gid, groups, user.get("umask")),
        identity.ChangeDirectory(view, cwd, tolerant=False),
    ]
    return before, after, rights
