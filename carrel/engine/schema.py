"""Shapes of the API's objects: which fields, of which type, with which default.

A table instead of a class per object: what a client sends is checked field by
field before anything happens, and what is shown has every field that Docker shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrel import errdefs

_INT64 = 1 << 63
Fields = Mapping[str, tuple[str, Any]]

CONFIG: Fields = {
    "Hostname": ("str", ""), "Domainname": ("str", ""), "User": ("str", ""),
    "AttachStdin": ("bool", False), "AttachStdout": ("bool", False),
    "AttachStderr": ("bool", False), "ExposedPorts": ("objmap", None), "Tty": ("bool", False),
    "OpenStdin": ("bool", False), "StdinOnce": ("bool", False), "Env": ("strs", None),
    "Cmd": ("command", None), "Healthcheck": ("obj", None), "ArgsEscaped": ("bool", None),
    "Image": ("str", ""), "Volumes": ("objmap", None), "WorkingDir": ("str", ""),
    "Entrypoint": ("command", None), "NetworkDisabled": ("bool", None), "MacAddress": ("str", None),
    "OnBuild": ("strs", None), "Labels": ("strmap", {}), "StopSignal": ("str", None),
    "StopTimeout": ("int", None), "Shell": ("strs", None),
}

HOST_CONFIG: Fields = {
    "Binds": ("strs", None), "ContainerIDFile": ("str", ""),
    "LogConfig": ("obj", {"Type": "", "Config": {}}), "NetworkMode": ("str", "default"),
    "PortBindings": ("objmap", {}),
    "RestartPolicy": ("obj", {"Name": "no", "MaximumRetryCount": 0}),
    "AutoRemove": ("bool", False), "VolumeDriver": ("str", ""), "VolumesFrom": ("strs", None),
    "ConsoleSize": ("any", [0, 0]), "Annotations": ("strmap", None), "CapAdd": ("strs", None),
    "CapDrop": ("strs", None), "CgroupnsMode": ("str", ""), "Dns": ("strs", []),
    "DnsOptions": ("strs", []), "DnsSearch": ("strs", []), "ExtraHosts": ("strs", None),
    "GroupAdd": ("strs", None), "IpcMode": ("str", ""), "Cgroup": ("str", ""),
    "Links": ("strs", None), "OomScoreAdj": ("int", 0), "PidMode": ("str", ""),
    "Privileged": ("bool", False), "PublishAllPorts": ("bool", False),
    "ReadonlyRootfs": ("bool", False), "SecurityOpt": ("strs", None),
    "StorageOpt": ("strmap", None),
    "Tmpfs": ("strmap", None), "UTSMode": ("str", ""), "UsernsMode": ("str", ""),
    "ShmSize": ("int", 0), "Sysctls": ("strmap", None), "Runtime": ("str", ""),
    "Isolation": ("str", ""), "CpuShares": ("int", 0), "Memory": ("int", 0), "NanoCpus": ("int", 0),
    "CgroupParent": ("str", ""), "BlkioWeight": ("int", 0), "BlkioWeightDevice": ("objs", []),
    "BlkioDeviceReadBps": ("objs", []), "BlkioDeviceWriteBps": ("objs", []),
    "BlkioDeviceReadIOps": ("objs", []), "BlkioDeviceWriteIOps": ("objs", []),
    "CpuPeriod": ("int", 0), "CpuQuota": ("int", 0), "CpuRealtimePeriod": ("int", 0),
    "CpuRealtimeRuntime": ("int", 0), "CpusetCpus": ("str", ""), "CpusetMems": ("str", ""),
    "Devices": ("objs", []), "DeviceCgroupRules": ("strs", None), "DeviceRequests": ("objs", None),
    "MemoryReservation": ("int", 0), "MemorySwap": ("int", 0), "MemorySwappiness": ("int", None),
    "OomKillDisable": ("bool", None), "PidsLimit": ("int", None), "Ulimits": ("objs", []),
    "CpuCount": ("int", 0), "CpuPercent": ("int", 0), "IOMaximumIOps": ("int", 0),
    "IOMaximumBandwidth": ("int", 0), "Mounts": ("objs", None), "MaskedPaths": ("strs", None),
    "ReadonlyPaths": ("strs", None), "Init": ("bool", None), "KernelMemory": ("int", None),
    "KernelMemoryTCP": ("int", None),
}

ENDPOINT: Fields = {
    "IPAMConfig": ("obj", None), "Links": ("strs", None), "Aliases": ("strs", None),
    "MacAddress": ("str", ""), "DriverOpts": ("strmap", None), "GwPriority": ("int", 0),
    "NetworkID": ("str", ""), "EndpointID": ("str", ""), "Gateway": ("str", ""),
    "IPAddress": ("str", ""), "IPPrefixLen": ("int", 0), "IPv6Gateway": ("str", ""),
    "GlobalIPv6Address": ("str", ""), "GlobalIPv6PrefixLen": ("int", 0), "DNSNames": ("strs", None),
}

EXEC: Fields = {
    "User": ("str", ""), "Privileged": ("bool", False), "Tty": ("bool", False),
    "ConsoleSize": ("any", None), "AttachStdin": ("bool", False), "AttachStderr": ("bool", False),
    "AttachStdout": ("bool", False), "DetachKeys": ("str", ""), "Env": ("strs", None),
    "WorkingDir": ("str", ""), "Cmd": ("command", None), "Detach": ("bool", False),
}

MOUNT: Fields = {
    "Type": ("str", ""), "Source": ("str", ""), "Target": ("str", ""), "ReadOnly": ("bool", False),
    "Consistency": ("str", ""), "BindOptions": ("obj", None), "VolumeOptions": ("obj", None),
    "TmpfsOptions": ("obj", None), "ImageOptions": ("obj", None),
}

#: of the kinds of mounts that have any
MOUNT_OPTIONS: dict[str, Fields] = {
    "BindOptions": {
        "Propagation": ("str", ""), "NonRecursive": ("bool", False),
        "CreateMountpoint": ("bool", False), "ReadOnlyNonRecursive": ("bool", False),
        "ReadOnlyForceRecursive": ("bool", False)},
    "VolumeOptions": {
        "NoCopy": ("bool", False), "Labels": ("strmap", None), "DriverConfig": ("obj", None),
        "Subpath": ("str", "")},
    "TmpfsOptions": {"SizeBytes": ("int", 0), "Mode": ("int", 0), "Options": ("any", None)},
}
DRIVER_CONFIG: Fields = {"Name": ("str", ""), "Options": ("strmap", None)}
IPAM_CONFIG: Fields = {
    "IPv4Address": ("str", ""), "IPv6Address": ("str", ""), "LinkLocalIPs": ("strs", None)}


def check(value: Any, fields: Fields, what: str) -> dict[str, Any]:
    """The fields that are there and known, with their types checked; no defaults."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise errdefs.InvalidParameter(f"invalid JSON: {what} must be an object")
    result = {}
    if not value.keys() <= fields.keys():
        value = _any_case(value, fields, what)
    for name, (kind, _) in fields.items():
        if name in value and value[name] is not None:
            result[name] = _typed(value[name], kind, f"{what}.{name}")
    return result


def _any_case(value: dict[str, Any], fields: Fields, what: str) -> dict[str, Any]:
    """Go matches names in any case, and some clients count on it; one name given twice
    in different cases means two things to two readers, and is refused."""
    canonical = {name.lower(): name for name in fields}
    found: dict[str, Any] = {}
    for name, content in value.items():
        known = canonical.get(name.lower())
        if known is None:
            continue
        if known in found:
            raise errdefs.InvalidParameter(f"invalid JSON: duplicate key {what}.{known}")
        found[known] = content
    return found


def complete(value: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """With the defaults of all fields that are missing."""
    return {name: value.get(name, _fresh(default)) for name, (_, default) in fields.items()}


def _fresh(default: Any) -> Any:
    if isinstance(default, dict):
        return {k: _fresh(v) for k, v in default.items()}
    return list(default) if isinstance(default, list) else default


def _typed(value: Any, kind: str, what: str) -> Any:
    if kind == "command" and isinstance(value, str):
        return [value]  # a plain string is one word, as in Docker
    test, wanted = _KINDS[kind]
    if not test(value):
        raise errdefs.InvalidParameter(f"invalid JSON: {what} must be {wanted}")
    if kind in ("str", "strs", "command", "strmap"):
        _no_nul(value, what)
    return value


def _no_nul(value: Any, what: str) -> None:
    texts = [value] if isinstance(value, str) else (
        [*value, *value.values()] if isinstance(value, dict) else value)
    if any("\0" in text for text in texts):
        raise errdefs.InvalidParameter(f"invalid value for {what}: contains a NUL byte")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


def _is_strs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_strmap(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


_KINDS: dict[str, tuple[Any, str]] = {
    "any": (lambda v: True, "anything"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "int": (_is_int, "a number of 64 bits"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "strs": (_is_strs, "an array of strings"),
    "command": (_is_strs, "a string or an array of strings"),
    "strmap": (_is_strmap, "an object of strings"),
    "obj": (lambda v: isinstance(v, dict), "an object"),
    "objmap": (lambda v: isinstance(v, dict), "an object"),
    "objs": (lambda v: isinstance(v, list) and all(isinstance(x, dict) for x in v),
             "an array of objects"),
}
