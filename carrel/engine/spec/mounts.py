"""The ``mounts`` array: the kernel's file systems, the engine's files, the user's mounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from carrel.engine.model import MountPoint

_SHM = "/dev/shm"


def kernel(host: Mapping[str, Any], *, shm_source: str, taken: set[str],
           writable_cgroups: str | None = None) -> list[dict[str, Any]]:
    """proc, dev, sys and their like. ``taken``: destinations that the user has mounted on;
    ``writable_cgroups``: "true" or "false" as ``--security-opt`` says, None for the default."""
    privileged = bool(host["Privileged"])
    access = "rw" if privileged else "ro"
    cgroups = "rw" if (privileged if writable_cgroups is None else writable_cgroups == "true"
                       ) else "ro"
    result = [
        _mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts",
               ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        _mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", access]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup",
               ["nosuid", "noexec", "nodev", cgroups]),
        _mount("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ]
    shm = _shm(host, shm_source)
    if shm:
        result.append(shm)
    return [m for m in result if m["destination"] not in taken]


def _shm(host: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    if host["IpcMode"] == "none":
        return None
    if host["IpcMode"] == "host" or source:
        return _mount(_SHM, "bind", source or _SHM, ["rbind", "rprivate"])
    return _mount(_SHM, "tmpfs", "shm",
                  ["nosuid", "noexec", "nodev", "mode=1777", f"size={host['ShmSize']}"])


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def engine_files(files: Mapping[str, str], *, read_only: bool,
                 taken: set[str]) -> list[dict[str, Any]]:
    """/etc/hosts, /etc/hostname, /etc/resolv.conf: files of the engine, bound."""
    access = ["ro"] if read_only else []
    return [_mount(target, "bind", source, ["rbind", "rprivate", *access])
            for target, source in files.items() if target not in taken]


def user(points: Iterable[MountPoint], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """``sources``: destination -> the folder on the host that is bound there."""
    result = []
    for point in points:
        if point.type == "tmpfs":
            words = [w for w in point.tmpfs_options.split(",") if w]
            defaults = [d for d, opposite in (("noexec", "exec"), ("nosuid", "suid"),
                                              ("nodev", "dev")) if opposite not in words
                        and d not in words]
            result.append(_mount(point.destination, "tmpfs", "tmpfs", defaults + words))
            continue
        bind = "bind" if point.recursive == "disabled" else "rbind"
        options = [bind, point.propagation or "rprivate"]
        if not point.rw:
            options.append("ro")
            if bind == "rbind" and point.recursive != "writable":
                options.append("rro")  # mounts below it too; what does not know it has "ro"
        result.append(_mount(point.destination, "bind", sources[point.destination], options))
    return result
