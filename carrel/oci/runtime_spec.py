"""Validation of an OCI runtime configuration (config.json), before any side effect.

``check`` refuses what cannot work or what would silently be something else:
wrong types, ids that do not fit, settings of a namespace that the container
shares with the host.
"""

from __future__ import annotations

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Spec = dict[str, Any]

VERSION = "1.2.0"
#: idmapped mounts (said by `features`)
IDMAP_BUILT = True

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_MAX_ID = (1 << 31) - 1
_DEVICE_TYPES = ("c", "u", "b", "p")
_HOOK_POINTS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart",
                "poststop")
#: sysctls of an ipc namespace beside fs.mqueue.*
_IPC_SYSCTLS = frozenset(("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
                          "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
                          "kernel.shm_rmid_forced"))


def check(spec: Spec) -> None:
    """Raise InvalidParameter for the first thing that is wrong."""
    version = spec.get("ociVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise InvalidParameter(f"unsupported ociVersion {version!r}: it must be 1.x")
    linux = _object(spec, "linux")
    spaces = _namespaces(linux)
    _root(spec)
    _process(_object(spec, "process"))
    _mounts(spec)
    _hooks(_object(spec, "hooks"))
    _names(spec, spaces)
    _linux(linux, spaces)
    _sysctls(_object(linux, "sysctl"), spaces)


def _object(parent: Spec, key: str) -> Spec:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidParameter(f"{key} must be an object")
    return value


def _list(parent: Spec, key: str) -> list[Any]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidParameter(f"{key} must be a list")
    return value


def _text(parent: Spec, key: str, what: str, *, needed: bool = False) -> str:
    value = parent.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidParameter(f"{what}.{key} must be a string")
    if needed and not value:
        raise InvalidParameter(f"{what}.{key} must not be empty")
    return value


def _number(parent: Spec, key: str, what: str, low: int, high: int) -> int:
    value = parent.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidParameter(f"{what}.{key} {value!r} must be a number from {low} to {high}")
    return value


def _strings(values: Iterable[Any], what: str) -> None:
    for value in values:
        if not isinstance(value, str) or "\0" in value:
            raise InvalidParameter(f"{what} must be strings without NUL")


def _objects(parent: Spec, key: str) -> list[Spec]:
    values = _list(parent, key)
    for value in values:
        if not isinstance(value, dict):
            raise InvalidParameter(f"{key} must be a list of objects")
    return values


def _namespaces(linux: Spec) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in _objects(linux, "namespaces"):
        kind = _text(entry, "type", "namespaces")
        if kind not in NAMESPACES:
            raise InvalidParameter(f'namespace "{kind}" does not exist')
        if kind in found:
            raise InvalidParameter(f'malformed spec file: duplicated ns "{kind}"')
        found[kind] = _text(entry, "path", "namespaces")
    return found


def _root(spec: Spec) -> None:
    root = _object(spec, "root")
    if not root:
        raise InvalidParameter("root must be specified")
    _text(root, "path", "root", needed=True)


def _process(process: Spec) -> None:
    if not process:
        return
    _strings(_list(process, "args"), "process.args")
    _strings(_list(process, "env"), "process.env")
    if not _list(process, "args"):
        raise InvalidParameter("args must not be empty")
    cwd = _text(process, "cwd", "process")
    if not cwd:
        raise InvalidParameter("Cwd property must not be empty")
    if not cwd.startswith("/"):
        raise InvalidParameter("Cwd must be an absolute path")
    user = _object(process, "user")
    _number(user, "uid", "process.user", 0, _MAX_ID)
    _number(user, "gid", "process.user", 0, _MAX_ID)
    _number(user, "umask", "process.user", 0, 0o777)
    for group in _list(user, "additionalGids"):
        _number({"gid": group}, "gid", "process.user.additionalGids", 0, _MAX_ID)
    _number(process, "oomScoreAdj", "process", -1000, 1000)
    for kind, names in _object(process, "capabilities").items():
        if names is not None:
            _strings(_list({kind: names}, kind), f"capabilities.{kind}")
    seen = set()
    for limit in _objects(process, "rlimits"):
        kind = _text(limit, "type", "rlimits", needed=True)
        if kind in seen:
            raise InvalidParameter(f"rlimit {kind} is given twice")
        seen.add(kind)
        for key in ("soft", "hard"):
            if key not in limit:
                raise InvalidParameter(f"rlimit {kind} lacks {key}")
            _number(limit, key, kind, -1, (1 << 64) - 1)


def _mounts(spec: Spec) -> None:
    for mount in _objects(spec, "mounts"):
        destination = _text(mount, "destination", "mounts", needed=True)
        if not destination.strip("/"):
            raise InvalidParameter(f"mount destination {destination!r} is the root itself")
        _text(mount, "type", "mounts")
        _text(mount, "source", "mounts")
        _strings(_list(mount, "options"), "mount options")
        _maps(mount, "uidMappings")
        _maps(mount, "gidMappings")


def _maps(parent: Spec, key: str) -> list[Spec]:
    rows = _objects(parent, key)
    for row in rows:
        for name in ("containerID", "hostID", "size"):
            _number(row, name, key, 0, (1 << 32) - 1)
            row.setdefault(name, 0)
    return rows


def _hooks(hooks: Spec) -> None:
    for point, entries in hooks.items():
        if point not in _HOOK_POINTS or entries is None:
            continue
        for hook in _objects({point: entries}, point):
            path = _text(hook, "path", f"hooks.{point}", needed=True)
            if not path.startswith("/"):
                raise InvalidParameter(f"hook path {path!r} must be absolute")
            _strings(_list(hook, "args"), f"hooks.{point}.args")
            _strings(_list(hook, "env"), f"hooks.{point}.env")
            if hook.get("timeout") is not None and _number(
                    hook, "timeout", f"hooks.{point}", -1, 1 << 31) <= 0:
                raise InvalidParameter(f"hooks.{point}.timeout must be greater than 0")


def _names(spec: Spec, spaces: dict[str, str]) -> None:
    for key in ("hostname", "domainname"):
        value = _text(spec, key, "spec")
        if not value:
            continue
        if "uts" not in spaces:
            raise InvalidParameter(f"unable to set {key} without a private UTS namespace")
        if len(value.encode()) > 64 or "\n" in value:
            raise InvalidParameter(f"invalid {key} {value!r}")


def _linux(linux: Spec, spaces: dict[str, str]) -> None:
    for key in ("maskedPaths", "readonlyPaths"):
        _strings(_list(linux, key), key)
        if _list(linux, key) and "mount" not in spaces:
            raise InvalidParameter("unable to restrict sys entries without a private MNT "
                                   "namespace")
    maps = _maps(linux, "uidMappings"), _maps(linux, "gidMappings")
    if spaces.get("user") == "":
        if not maps[0] or not maps[1]:
            kind = "gid" if maps[0] else "uid"
            raise InvalidParameter(f"user namespaces enabled, but no {kind} mappings found")
    elif "user" in spaces and (maps[0] or maps[1]):
        raise InvalidParameter("config cannot join a user namespace by path and have id mappings")
    elif "user" not in spaces and (maps[0] or maps[1]):
        raise InvalidParameter("id mappings specified, but user namespace isn't enabled in the "
                               "config")
    _time(linux, spaces)
    for device in _objects(linux, "devices"):
        path = _text(device, "path", "devices", needed=True)
        if not path.startswith("/") or not path.strip("/"):
            raise InvalidParameter(f"device path {path!r} must be absolute")
        if device.get("type") not in _DEVICE_TYPES:
            raise InvalidParameter(f"device {path}: unknown type {device.get('type')!r}")
        _number(device, "major", path, -1, (1 << 12) - 1)
        _number(device, "minor", path, -1, (1 << 20) - 1)
        _number(device, "fileMode", path, 0, 0o777777)
        _number(device, "uid", path, 0, _MAX_ID)
        _number(device, "gid", path, 0, _MAX_ID)
    _object(linux, "resources")
    _object(linux, "seccomp")
    _text(linux, "cgroupsPath", "linux")
    if ".." in _text(linux, "cgroupsPath", "linux").split("/"):
        raise InvalidParameter("linux.cgroupsPath must not contain ..")
    if linux.get("intelRdt"):
        raise InvalidParameter("linux.intelRdt is not built")


def _time(linux: Spec, spaces: dict[str, str]) -> None:
    offsets = _object(linux, "timeOffsets")
    if offsets and "time" not in spaces:
        raise InvalidParameter("time namespace offsets specified, but time namespace isn't "
                               "enabled in the config")
    if offsets and spaces.get("time"):
        raise InvalidParameter("time namespace offsets cannot be set on a namespace that is "
                               "joined")
    for clock, offset in offsets.items():
        if clock not in ("monotonic", "boottime") or not isinstance(offset, dict):
            raise InvalidParameter(f"clock {clock!r} cannot have an offset")
        _number(offset, "secs", clock, -(1 << 63), (1 << 63) - 1)
        _number(offset, "nanosecs", clock, 0, 999_999_999)


def _sysctls(values: Spec, spaces: dict[str, str]) -> None:
    """Only those of the container's own namespaces: others are the host's."""
    for key, value in values.items():
        if not isinstance(value, str) or "\0" in value or "\n" in value:
            raise InvalidParameter(f"sysctl {key!r} must be one line of text")
        dotted = _dotted(key)
        parts = dotted.replace("/", ".").split(".")
        if "" in parts or ".." in key or len(parts) < 2:
            raise InvalidParameter(f"sysctl {key!r} is not a name")
        if dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
            if "ipc" in spaces:
                continue
            raise InvalidParameter(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
        if dotted.startswith("net."):
            if "network" in spaces:
                continue
            raise InvalidParameter(f'sysctl "{key}" not allowed in host network namespace')
        if dotted in ("kernel.domainname", "kernel.hostname"):
            if dotted == "kernel.domainname" and "uts" in spaces:
                continue
            if dotted == "kernel.hostname":
                raise InvalidParameter(f'sysctl "{key}" is not allowed as it conflicts with the '
                                       'OCI "hostname" field')
            raise InvalidParameter(f'sysctl "{key}" is not allowed in the hosts uts namespace')
        if dotted.startswith("user.") and "user" in spaces:
            continue
        raise InvalidParameter(f'sysctl "{key}" is not in a separate kernel namespace')


def _dotted(key: str) -> str:
    """The canonical form: sysctl(8) lets the first separator decide."""
    for character in key:
        if character == ".":
            return key
        if character == "/":
            return key.translate({ord("."): "/", ord("/"): "."})
    return key
