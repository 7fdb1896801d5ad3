"""The values that flags of run and create take: text in, what the API wants out.

Each function raises ValueError with Docker's words.
"""

from __future__ import annotations

import os

from .flags import csv_fields, go_quote
from .units import ram_in_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SYSCTLS = frozenset(("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
                      "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
                      "kernel.shm_rmid_forced"))
_ULIMITS = frozenset(("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
                      "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"))


def attach(text: str) -> str:
    name = text.lower()
    if name not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return name


def environment(text: str) -> str:
    """KEY=value as it is; KEY alone takes the value it has here, if any."""
    key, equals, _ = text.partition("=")
    if not key:
        raise ValueError(f"invalid environment variable: {text}")
    if not equals and key in os.environ:
        return f"{key}={os.environ[key]}"
    return text


def label(text: str) -> str:
    key = text.partition("=")[0].lstrip(" \t")
    if not key:
        raise ValueError(f"invalid label '{text}': empty name")
    if " " in key or "\t" in key:
        raise ValueError(f"label '{key}' contains whitespaces")
    return text


def parse_ip(text: str) -> str:
    """The canonical form of an address; ValueError if it is none."""
    from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
    family = AF_INET6 if ":" in text else AF_INET
    if family == AF_INET:
        parts = text.split(".")
        if len(parts) != 4 or not all(
                p.isascii() and p.isdigit() and str(int(p)) == p and int(p) < 256 for p in parts):
            raise ValueError(text)
    try:
        packed = inet_pton(family, text)
    except (OSError, ValueError, UnicodeEncodeError):
        raise ValueError(text) from None
    if family == AF_INET6 and packed[:12] == b"\0" * 10 + b"\xff\xff":
        return inet_ntop(AF_INET, packed[12:])
    return inet_ntop(family, packed)


def ip_address(text: str) -> str:
    try:
        return parse_ip(text.strip())
    except ValueError:
        raise ValueError(f"IP address is not correctly formatted: {text}") from None


def dns_search(text: str) -> str:
    value = text.strip(" ")
    if value == ".":
        return value
    problem = ValueError(f"{value} is not a valid domain")
    name = value.rstrip().removesuffix(".")
    if not any(c.isascii() and c.isalpha() for c in name) or len(name) >= 255:
        raise problem
    for part in name.split("."):
        part = part.lstrip(":")
        if not part or part[0] == "-" or part[-1] == "-" or not all(
                c.isascii() and (c.isalnum() or c == "-") for c in part):
            raise problem
    return name


def extra_host(text: str) -> str:
    name, mark, address = text.partition("=")
    if not mark:
        name, mark, address = text.partition(":")
    if not mark or not name or ":" in name:
        raise ValueError(f"bad format for add-host: {go_quote(text)}")
    if address != "host-gateway":
        if len(address) > 2 and address[0] == "[" and address[-1] == "]":
            address = address[1:-1]
        try:
            ip_address(address)
        except ValueError:
            raise ValueError(f"invalid IP address in add-host: {go_quote(address)}") from None
    return f"{name}:{address}"


def link(text: str) -> str:
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    return text


def sysctl(text: str) -> str:
    key, equals, _ = text.partition("=")
    if equals and (key in _SYSCTLS or key.startswith(("net.", "fs.mqueue."))):
        return text
    raise ValueError(f"sysctl '{text}' is not allowed")


def memory_swap(text: str) -> int:
    return -1 if text == "-1" else ram_in_bytes(text)


def ulimit(text: str) -> dict[str, Any]:
    """name=soft[:hard]"""
    name, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in _ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = values.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {values}, can only have up to two, "
                         "`soft[:hard]`")
    limits = [_limit(p) for p in parts]
    soft, hard = limits[0], limits[-1]
    if hard != -1 and (soft > hard or soft == -1):
        shown = "unlimited (-1)" if soft == -1 else str(soft)
        if soft == -1:
            raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: "
                             f"soft: {-1} (unlimited), hard: {hard}")
        raise ValueError("ulimit soft limit must be less than or equal to hard limit: "
                         f"{shown} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def _limit(text: str) -> int:
    digits = text[1:] if text[:1] in "+-" else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"strconv.ParseInt: parsing {go_quote(text)}: invalid syntax")
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"strconv.ParseInt: parsing {go_quote(text)}: value out of range")
    return value


def _device_path(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def weight_device(text: str) -> dict[str, Any]:
    path, value = _device_path(text)
    if not (value.isascii() and value.isdigit()) or not (
            int(value) == 0 or 10 <= int(value) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(value)}


def throttle_bytes(text: str) -> dict[str, Any]:
    path, value = _device_path(text)
    try:
        rate = ram_in_bytes(value)
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is "
            "<device-path>:<number>[<unit>]. Number must be a positive integer. Unit is "
            "optional and can be kb, mb, or gb") from None
    return {"Path": path, "Rate": rate}


def throttle_count(text: str) -> dict[str, Any]:
    path, value = _device_path(text)
    if not (value.isascii() and value.isdigit()) or int(value) >= 1 << 64:
        raise ValueError(f"invalid rate for device: {text}. The correct format is "
                         "<device-path>:<number>. Number must be a positive integer")
    return {"Path": path, "Rate": int(value)}


def device_rule(text: str) -> str:
    parts = text.split(" ")
    problem = ValueError(f"invalid device cgroup format '{text}'")
    if len(parts) != 3 or parts[0] not in ("a", "c", "b") or not 1 <= len(parts[2]) <= 3 \
            or set(parts[2]) - set("rwm"):
        raise problem
    numbers = parts[1].split(":")
    if len(numbers) != 2 or not all(
            n == "*" or (n.isascii() and n.isdigit()) for n in numbers):
        raise problem
    return text


def gpus(text: str) -> dict[str, Any]:
    """count, or driver=,count=,device=,capabilities=,options="""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None,
                               "Capabilities": [["gpu"]], "Options": {}}
    seen = set()
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if not equals:
            seen.add("count")
            request["Count"] = _gpu_count(key)
        elif key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _gpu_count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = {k: v for k, _, v in (
                f.partition("=") for f in csv_fields(value))}
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    return request


def _gpu_count(text: str) -> int:
    if text == "all":
        return -1
    if not (text.isascii() and text.lstrip("+-").isdigit()):
        raise ValueError(f'invalid count ({text}): value must be either "all" or an integer: '
                         "invalid syntax")
    return int(text)


# ---- --network --------------------------------------------------------------

def _long_syntax(text: str) -> bool:
    """A word, "=", a word, somewhere in the text."""
    for i, char in enumerate(text):
        if char == "=" and 0 < i < len(text) - 1 and _wordy(text[i - 1]) and _wordy(text[i + 1]):
            return True
    return False


def _wordy(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")


def network(text: str) -> dict[str, Any]:
    """A network's name, or name=,alias=,ip=,ip6=,mac-address=,link-local-ip=,driver-opt=,..."""
    found: dict[str, Any] = {"target": "", "aliases": [], "driver-opts": {}, "ip": "", "ip6": "",
                             "link-local": [], "mac": "", "gw-priority": 0}
    if not _long_syntax(text):
        found["target"] = text
        return found
    for field in csv_fields(text):
        key, equals, value = field.lower().partition("=")
        if not equals or not key:
            raise ValueError(f"invalid field {field}")
        _network_field(found, key.strip(), value.strip())
    if not found["target"]:
        raise ValueError("network name/id is not specified")
    return found


def _network_field(found: dict[str, Any], key: str, value: str) -> None:
    if key == "name":
        found["target"] = value
    elif key == "alias":
        found["aliases"].append(value)
    elif key in ("ip", "ip6"):
        found[key] = value
    elif key == "mac-address":
        found["mac"] = value
    elif key == "link-local-ip":
        found["link-local"].append(value)
    elif key == "driver-opt":
        name, equals, option = value.partition("=")
        if not equals or not name:
            raise ValueError("invalid key value pair format in driver options")
        found["driver-opts"][name.strip()] = option.strip()
    elif key == "gw-priority":
        if not (value.isascii() and value.lstrip("+-").isdigit()):
            raise ValueError(f"invalid gw-priority ({value}): invalid syntax")
        found["gw-priority"] = int(value)
    else:
        raise ValueError(f"invalid field key {key}")


# ---- --mount ----------------------------------------------------------------

_MOUNT_FLAGS = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src")
_BIND_OPTIONS = {"disabled": "NonRecursive", "writable": "ReadOnlyNonRecursive",
                 "readonly": "ReadOnlyForceRecursive"}


def mount(text: str) -> dict[str, Any]:
    """type=bind,source=/a,target=/b,..."""
    text = text.strip()
    if not text:
        raise ValueError("EOF")
    found: dict[str, Any] = {"Type": "volume"}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            if key not in _MOUNT_FLAGS:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        _mount_field(found, key, value, field)
    if not found.get("Type"):
        raise ValueError("type is required")
    if not found.get("Target"):
        raise ValueError("target is required")
    _mount_type(found)
    ordered = ("Type", "Source", "Target", "ReadOnly", "Consistency", "BindOptions",
               "VolumeOptions", "ImageOptions", "TmpfsOptions")
    return {k: found[k] for k in ordered if found.get(k) not in (None, "", False)}


def _mount_type(found: dict[str, Any]) -> None:
    kind = found["Type"]
    for other, options in (("volume", "VolumeOptions"), ("image", "ImageOptions"),
                           ("bind", "BindOptions"), ("tmpfs", "TmpfsOptions")):
        if options in found and kind != other:
            raise ValueError(f"cannot mix '{other}-*' options with mount type '{kind}'")
    bind = found.get("BindOptions", {})
    for option, mode in (("ReadOnlyNonRecursive", "writable"),
                         ("ReadOnlyForceRecursive", "readonly")):
        if option in bind and not found.get("ReadOnly"):
            raise ValueError(f"option 'bind-recursive={mode}' requires 'readonly' to be "
                             "specified in conjunction")
    if "ReadOnlyForceRecursive" in bind and bind.get("Propagation") != "rprivate":
        raise ValueError("option 'bind-recursive=readonly' requires "
                         "'bind-propagation=rprivate' to be specified in conjunction")


def _mount_bool(key: str, value: str) -> bool:
    if value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ValueError(f"invalid value for {key}: {value}")


def _mount_field(found: dict[str, Any], key: str, value: str, field: str) -> None:
    if key == "type":
        found["Type"] = value.lower()
    elif key in ("source", "src"):
        found["Source"] = os.path.abspath(value) if value.startswith(".") else value
    elif key in ("target", "dst", "destination"):
        found["Target"] = value
    elif key in ("readonly", "ro"):
        found["ReadOnly"] = _mount_bool(key, value)
    elif key == "consistency":
        found["Consistency"] = value.lower()
    elif key.startswith("bind-"):
        _bind_field(found, key, value, field)
    elif key.startswith("volume-"):
        _volume_field(found, key, value, field)
    elif key == "image-subpath":
        found.setdefault("ImageOptions", {})["Subpath"] = value
    elif key == "tmpfs-size":
        try:
            found.setdefault("TmpfsOptions", {})["SizeBytes"] = ram_in_bytes(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-mode":
        if not value or set(value) - set("01234567") or len(value) > 11:
            raise ValueError(f"invalid value for {key}: {value}")
        found.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _bind_field(found: dict[str, Any], key: str, value: str, field: str) -> None:
    options = found.setdefault("BindOptions", {})
    if key == "bind-propagation":
        options["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        if _mount_bool(key, value):
            options["NonRecursive"] = True
    elif key == "bind-create-src":
        if _mount_bool(key, value):
            options["CreateMountpoint"] = True
    elif key == "bind-recursive":
        if value != "enabled":
            if value not in _BIND_OPTIONS:
                raise ValueError(
                    f'invalid value for {key}: {value} (must be "enabled", "disabled", '
                    '"writable", or "readonly")')
            options[_BIND_OPTIONS[value]] = True
        elif not options:
            del found["BindOptions"]
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _volume_field(found: dict[str, Any], key: str, value: str, field: str) -> None:
    options = found.setdefault("VolumeOptions", {"DriverConfig": {}})
    if key == "volume-nocopy":
        if _mount_bool(key, value):
            options["NoCopy"] = True
    elif key == "volume-subpath":
        options["Subpath"] = value
    elif key == "volume-label":
        name, _, text = value.partition("=")
        if name:
            options.setdefault("Labels", {})[name] = text
    elif key == "volume-driver":
        options.setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        name, _, text = value.partition("=")
        driver = options.setdefault("DriverConfig", {})
        if name:
            driver.setdefault("Options", {})[name] = text
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")
