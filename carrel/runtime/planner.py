"""From an OCI specification to the operations of a start. Pure: no system call
is made here, the operations themselves are executed in the child.
"""

from __future__ import annotations

from carrel.errdefs import InvalidParameter
from carrel.kernel import capability, syscalls
from carrel.runtime import identity, inside, mounts, options
from carrel.runtime.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.kernel.plan import Operation

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

    @property
    def at_clone(self) -> int:
        """What clone(2) itself makes: the cgroup namespace only after the child
        is in its cgroup, the time namespace only after its offsets are known."""
        return self.made & ~(syscalls.CLONE_NEWCGROUP | syscalls.CLONE_NEWTIME)


def plan_mounts(spec: Spec, view: View, rootfs: str, rootfs_mounts: list[Spec] | None,
                cgroup_mounts: Callable[[], list[Spec]] | None, *,
                no_pivot: bool = False) -> tuple[list[Operation], list[Operation]]:
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
        first.append(_rootfs_mount(entry, rootfs))
    first.append(mounts.OpenRootfs(view, rootfs, bind=own_mounts and not rootfs_mounts))
    entries = spec.get("mounts") or []
    for index, entry in enumerate(entries):
        first.extend(plan_mount(view, entry, index, spaces, cgroup_mounts))
    setup_dev = not any(_destination(e) == "/dev" and options.parse(
        e.get("options") or ()).bind for e in entries)
    if setup_dev and own_mounts:
        first.append(inside.MakeDevices(view, plan_devices(linux),
                                        bind=bool(spaces.has("user"))))
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
            read_only.append(mounts.MoveRoot(view, ""))
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
            hidden.append(mounts.MaskPaths(view, list(linux["maskedPaths"])))
    return first, after + names + hidden + read_only


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


def _rootfs_mount(entry: Spec, rootfs: str) -> Operation:
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
               cgroup_mounts: Callable[[], list[Spec]] | None) -> list[Operation]:
    """The operation(s) for one entry of ``mounts``."""
    destination = entry["destination"]
    if not destination.startswith("/"):
        destination = "/" + destination  # a warning in runc; the specification wants it absolute
    parsed = options.parse(entry.get("options") or ())
    kind = entry.get("type") or ""
    if parsed.bind or kind == "bind":
        return [mounts.BindMount(view, destination, entry.get("source") or "", parsed, index)]
    if kind in ("cgroup", "cgroup2"):
        from carrel.runtime import cgroupfs
        return cgroupfs.plan(view, destination, parsed, cgroup_mounts,
                             private=spaces.has("cgroup"))
    if parsed.copy_up:
        import carrel.runtime.copyup  # noqa: F401  (the child can import nothing any more)
    late = bool(parsed.attr_set & syscalls.MOUNT_ATTR_RDONLY) and (
        kind == "tmpfs" or destination.rstrip("/") == "/dev")
    if kind == "mqueue" and not (spaces.made | 0) & syscalls.CLONE_NEWUSER:
        parsed.data = [d for d in parsed.data if not d.startswith(("uid=", "gid="))]
    return [mounts.Mount(view, destination, kind, entry.get("source") or "", parsed,
                         read_only_late=late)]


def plan_devices(linux: Spec) -> list[tuple[str, str, int, int, int, int, int]]:
    """Default devices first; an own entry for one of them replaces it."""
    found = {path: (path, kind, major, minor, 0o666, 0, 0)
             for path, kind, major, minor in inside.DEFAULT_DEVICES}
    for device in linux.get("devices") or ():
        path = device["path"]
        if path.rstrip("/") in ("/dev/ptmx", "/dev/console"):
            continue  # a symlink to the container's devpts; the terminal
        mode = device.get("fileMode")
        found[path] = (path, device["type"], device.get("major") or 0, device.get("minor") or 0,
                       0o666 if mode is None else mode & 0o7777, device.get("uid") or 0,
                       device.get("gid") or 0)
    return list(found.values())


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
        self.final = identity.SetCapabilities(bits["effective"], bits["permitted"],
                                              bits["inheritable"], ambient)


def plan_identity(process: Spec, view: View, *, may_set_groups: bool = True
                  ) -> tuple[list[Operation], list[Operation], Rights]:
    """(before the wait, after the wait, capability sets)."""
    rights = Rights(process)
    user = process.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    groups = list(user.get("additionalGids") or ()) if may_set_groups else None
    cwd = process.get("cwd") or "/"
    before: list[Operation] = [identity.NewSession(view), *plan_limits(process)]
    before.append(identity.DropBounding(rights.bounding))
    if process.get("noNewPrivileges"):
        before.append(identity.NoNewPrivileges())
    before.append(identity.OwnStdio(view, uid))
    before.append(identity.ChangeDirectory(cwd, tolerant=True))
    after: list[Operation] = [
        identity.SetIdentity(uid, gid, groups, user.get("umask")),
        identity.ChangeDirectory(cwd, tolerant=False),
    ]
    return before, after, rights
