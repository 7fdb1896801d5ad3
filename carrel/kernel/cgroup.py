"""Control groups: which version is here, and the manager of one container.

    manager = open_manager("/carrel/<id>")     # or "slice:prefix:name", systemd=True
    manager.create(spec["linux"]["resources"]) # before the process runs
    ... in the child: manager.join_self()      # or clone3 with manager.clone_fd
    manager.delete()

Three layouts are known, read from mountinfo once per process: ``legacy``
(v1), ``hybrid`` (v1, with a v2 hierarchy beside it) and ``unified`` (v2).
"""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter, Unavailable
from carrel.kernel.cgroup_base import Group, Manager, clean_path, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Group", "Hierarchy", "Layout", "Manager", "forget", "layout", "open_manager"]

DEFAULT_ROOT = "/sys/fs/cgroup"


class Hierarchy:
    """One mounted hierarchy. ``controllers`` is empty for cgroup v2."""

    __slots__ = ("controllers", "mountpoint", "root")

    def __init__(self, mountpoint: str, root: str, controllers: tuple[str, ...]) -> None:
        self.mountpoint = mountpoint
        #: which cgroup is mounted there: "/" unless inside a container
        self.root = root
        self.controllers = controllers


class Layout:
    """The hierarchies of this mount namespace."""

    __slots__ = ("mode", "unified", "v1")

    def __init__(self, v1: list[Hierarchy], unified: Hierarchy | None) -> None:
        self.v1 = v1
        self.unified = unified
        if v1:
            self.mode = "hybrid" if unified is not None else "legacy"
        else:
            self.mode = "unified" if unified is not None else "none"


# What of a v1 mount's super options is not a controller.
_NOT_CONTROLLERS = frozenset(
    ("rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "none", "seclabel"))


def parse_mountinfo(text: str) -> Layout:
    """Later mounts cover earlier ones at the same place; the first mount of a
    hierarchy wins over its bind mounts elsewhere."""
    places: dict[str, tuple[str, Hierarchy]] = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        kind, _, rest = after.partition(" ")
        fields = before.split()
        if not separator or len(fields) < 6:
            continue
        place = _unescape(fields[4])
        # any later mount hides what was mounted there
        for hidden in [p for p in places if p == place or p.startswith(place + "/")]:
            del places[hidden]
        if kind not in ("cgroup", "cgroup2"):
            continue
        options = rest.split()[-1].split(",") if rest else []
        names = tuple(o for o in options if o not in _NOT_CONTROLLERS
                      and not o.startswith("release_agent="))
        places[place] = (kind, Hierarchy(place, _unescape(fields[3]),
                                         names if kind == "cgroup" else ()))
    v1: dict[tuple[str, ...], Hierarchy] = {}
    unified: list[Hierarchy] = []
    for kind, one in places.values():
        if kind == "cgroup2":
            unified.append(one)
        elif one.controllers:
            v1.setdefault(one.controllers, one)
    unified.sort(key=lambda h: (not h.mountpoint.startswith(DEFAULT_ROOT), len(h.mountpoint)))
    return Layout(list(v1.values()), unified[0] if unified else None)


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


_layout: Layout | None = None


def layout() -> Layout:
    """This mount namespace's hierarchies, read once."""
    global _layout
    if _layout is None:
        found = parse_mountinfo(_read_all("/proc/self/mountinfo"))
        if found.mode == "none":
            raise Unavailable("no cgroup hierarchy is mounted",
                              hint=f"mount -t cgroup2 none {DEFAULT_ROOT}")
        _layout = found
    return _layout


def _read_all(path: str) -> str:
    # mountinfo of a busy host is long, and short reads of it may be torn
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def forget() -> None:
    """After a change of mount namespace: read the mounts again."""
    global _layout
    _layout = None


def own_cgroups() -> dict[str, str]:
    """This process's cgroup by controller, from /proc/self/cgroup; v2 under ""."""
    found = {}
    for line in read_file("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


def directory(hierarchy: Hierarchy, inner: str, own: str) -> str:
    """Where ``inner`` is in this hierarchy: absolute from the mount point,
    relative from ``own``, the caller's own cgroup."""
    if inner.startswith("/"):
        return hierarchy.mountpoint + inner.rstrip("/")
    base = own
    if hierarchy.root != "/" and (own + "/").startswith(hierarchy.root + "/"):
        base = own[len(hierarchy.root):]  # in a container: what is mounted is not the root
    return os.path.normpath(f"{hierarchy.mountpoint}/{base}/{inner}")


def open_manager(path: str, *, systemd: bool = False, name: str = "",
                 rootless: bool | None = None, layout_: Layout | None = None,
                 annotations: dict[str, str] | None = None) -> Manager:
    """The manager for ``linux.cgroupsPath``; nothing is made yet.

    ``name`` serves where the path is empty (the container's id, as in runc).
    ``rootless``: permission errors of controllers nobody asked for are
    ignored; None finds out when one occurs. ``annotations`` carry
    ``org.systemd.property.*`` for the systemd driver.
    """
    found = layout_ or layout()
    if systemd:
        from carrel.kernel import cgroup_systemd
        return cgroup_systemd.open_unit(path, name, found, annotations or {})
    if path.count(":") == 2 and not path.startswith("/") and "/" not in path:
        raise InvalidParameter(
            f"cgroupsPath {path!r} is a systemd one, but the cgroup driver is cgroupfs",
            hint="use --systemd-cgroup")
    inner = clean_path(path) or clean_path(name)
    if not inner:
        raise InvalidParameter("cgroup path is empty")
    return _open(found, path, inner, rootless)


def _open(found: Layout, path: str, inner: str, rootless: bool | None) -> Manager:
    relative = not inner.startswith("/")
    own = own_cgroups() if relative else {}
    if found.mode == "unified":
        from carrel.kernel.cgroup_v2 import ManagerV2
        assert found.unified is not None
        # The caller's own group holds processes, so nothing below it could
        # have controllers: its parent is taken.
        base = os.path.dirname(own.get("", "/"))
        return ManagerV2(path, directory(found.unified, inner, base), found.unified.mountpoint,
                         rootless=rootless, given=bool(path))
    from carrel.kernel.cgroup_v1 import ManagerV1
    paths: dict[str, tuple[str, str]] = {}
    for hierarchy in found.v1:
        for controller in hierarchy.controllers:
            paths[controller] = (directory(hierarchy, inner, own.get(controller, "/")),
                                 hierarchy.mountpoint)
    if found.unified is not None:
        paths[""] = (directory(found.unified, inner, own.get("", "/")), found.unified.mountpoint)
    return ManagerV1(path, paths, rootless=rootless, given=bool(path))


def available() -> dict[str, Any]:
    """For ``info``: the version and the controllers there are."""
    found = layout()
    if found.mode == "unified":
        assert found.unified is not None
        names = read_file(f"{found.unified.mountpoint}/cgroup.controllers").split()
        return {"version": 2, "mode": found.mode, "controllers": sorted(names)}
    names = [c for h in found.v1 for c in h.controllers if not c.startswith("name=")]
    return {"version": 1, "mode": found.mode, "controllers": sorted(names)}
