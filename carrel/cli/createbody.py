"""The flags of run and create -> the JSON of ``POST /containers/create``."""

from __future__ import annotations

import os

from .flags import go_quote
from .optvalues import parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .flags import Options

ENDPOINT: dict[str, Any] = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None,
    "GwPriority": 0, "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "",
    "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
    "DNSNames": None,
}
_HEALTH = ("health-cmd", "health-interval", "health-timeout", "health-start-period",
           "health-retries", "health-start-interval")


def container_body(o: Options, image: str, command: list[str]) -> dict[str, Any]:
    """The whole body; ValueError when flags contradict each other."""
    if o["mac-address"]:
        check_mac(o["mac-address"])
    if o["memory-swappiness"] != -1 and not 0 <= o["memory-swappiness"] <= 100:
        raise ValueError(f"invalid value: {o['memory-swappiness']}. "
                         "Valid memory swappiness range is 0-100")
    binds, volumes = _volumes(o["volume"])
    ports, bindings = published(o["publish"])
    exposed = {**ports, **_exposed(o["expose"])}
    body = _config(o, image, command, exposed, volumes)
    body["HostConfig"] = _host_config(o, binds, bindings)
    if o["rm"] and body["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no"):
        raise ValueError("conflicting options: cannot specify both --restart and --rm")
    body["NetworkingConfig"] = {"EndpointsConfig": _endpoints(o)}
    return body


def _config(o: Options, image: str, command: list[str], exposed: dict[str, Any],
            volumes: dict[str, Any]) -> dict[str, Any]:
    attach = o["attach"]
    stdin = "stdin" in attach or o["interactive"]
    environment = read_files(o["env-file"], o["env"], lookup=True)
    labels = read_files(o["label-file"], o["label"], lookup=False)
    entrypoint = [o["entrypoint"]] if o.changed("entrypoint") else None
    config: dict[str, Any] = {
        "Hostname": o["hostname"], "Domainname": o["domainname"], "User": o["user"],
        "AttachStdin": stdin, "AttachStdout": not attach or "stdout" in attach,
        "AttachStderr": not attach or "stderr" in attach,
        "Tty": o["tty"], "OpenStdin": o["interactive"],
        "StdinOnce": bool(o["interactive"] and stdin), "Env": environment or None,
        "Cmd": command or None, "Image": image, "Volumes": volumes, "WorkingDir": o["workdir"],
        "Entrypoint": entrypoint, "OnBuild": None,
        "Labels": {k: v for k, _, v in (label.partition("=") for label in labels)},
    }
    if exposed:
        config["ExposedPorts"] = exposed
    health = _health(o)
    if health is not None:
        config["Healthcheck"] = health
    if o["stop-signal"]:
        config["StopSignal"] = o["stop-signal"]
    if o.changed("stop-timeout"):
        config["StopTimeout"] = o["stop-timeout"]
    return config


def _host_config(o: Options, binds: list[str], bindings: dict[str, Any]) -> dict[str, Any]:
    security, unconfined = _security(o["security-opt"])
    for name, values in (("pid", ("", "host")), ("uts", ("", "host")), ("userns", ("", "host"))):
        value = o[name]
        if value in values or (name == "pid" and value.startswith("container:")
                               and value.count(":") == 1 and value != "container:"):
            continue
        shown = {"pid": "PID mode", "uts": "UTS mode", "userns": "USER mode"}[name]
        raise ValueError(f"--{name}: invalid {shown}")
    if o["cgroupns"] not in ("", "host", "private"):
        raise ValueError("--cgroupns: invalid CGROUP mode")
    if o["log-driver"] == "none" and o["log-opt"]:
        raise ValueError("invalid logging opts for driver none")
    add, drop = _capabilities(o["cap-add"], o["cap-drop"])
    networks = o["network"]
    host: dict[str, Any] = {
        "Binds": binds or None, "ContainerIDFile": o["cidfile"],
        "LogConfig": {"Type": o["log-driver"], "Config": _pairs(o["log-opt"])},
        "NetworkMode": networks[0]["target"] if networks else "default",
        "PortBindings": bindings, "RestartPolicy": restart_policy(o["restart"]),
        "AutoRemove": o["rm"], "VolumeDriver": o["volume-driver"],
        "VolumesFrom": o["volumes-from"] or None, "ConsoleSize": [0, 0],
        "CapAdd": add or None, "CapDrop": drop or None,
        "CgroupnsMode": o["cgroupns"], "Dns": o["dns"], "DnsOptions": o["dns-option"],
        "DnsSearch": o["dns-search"], "ExtraHosts": o["add-host"] or None,
        "GroupAdd": o["group-add"] or None, "IpcMode": o["ipc"], "Cgroup": "",
        "Links": o["link"] or None, "OomScoreAdj": o["oom-score-adj"], "PidMode": o["pid"],
        "Privileged": o["privileged"], "PublishAllPorts": o["publish-all"],
        "ReadonlyRootfs": o["read-only"], "SecurityOpt": security, "UTSMode": o["uts"],
        "UsernsMode": o["userns"], "ShmSize": o["shm-size"], "Isolation": o["isolation"],
        **_resources(o),
        "MaskedPaths": [] if unconfined else None, "ReadonlyPaths": [] if unconfined else None,
    }
    optional = {"Annotations": o["annotation"], "StorageOpt": _storage(o["storage-opt"]),
                "Tmpfs": {k: v for k, _, v in (t.partition(":") for t in o["tmpfs"])},
                "Sysctls": o["sysctl"], "Runtime": o["runtime"], "Mounts": o["mount"]}
    host.update((k, v) for k, v in optional.items() if v)
    if o.changed("init"):
        host["Init"] = o["init"]
    return host


def _resources(o: Options) -> dict[str, Any]:
    devices, requests = _devices(o["device"])
    requests = [*o["gpus"], *requests]
    return {
        "CpuShares": o["cpu-shares"], "Memory": o["memory"], "NanoCpus": o["cpus"],
        "CgroupParent": o["cgroup-parent"], "BlkioWeight": o["blkio-weight"],
        "BlkioWeightDevice": o["blkio-weight-device"],
        "BlkioDeviceReadBps": o["device-read-bps"], "BlkioDeviceWriteBps": o["device-write-bps"],
        "BlkioDeviceReadIOps": o["device-read-iops"],
        "BlkioDeviceWriteIOps": o["device-write-iops"],
        "CpuPeriod": o["cpu-period"], "CpuQuota": o["cpu-quota"],
        "CpuRealtimePeriod": o["cpu-rt-period"], "CpuRealtimeRuntime": o["cpu-rt-runtime"],
        "CpusetCpus": o["cpuset-cpus"], "CpusetMems": o["cpuset-mems"], "Devices": devices,
        "DeviceCgroupRules": o["device-cgroup-rule"] or None,
        "DeviceRequests": requests or None, "MemoryReservation": o["memory-reservation"],
        "MemorySwap": o["memory-swap"], "MemorySwappiness": o["memory-swappiness"],
        "OomKillDisable": o["oom-kill-disable"], "PidsLimit": o["pids-limit"],
        "Ulimits": [o["ulimit"][n] for n in sorted(o["ulimit"])],
        "CpuCount": o["cpu-count"], "CpuPercent": o["cpu-percent"],
        "IOMaximumIOps": o["io-maxiops"], "IOMaximumBandwidth": o["io-maxbandwidth"],
    }


def _capabilities(add: list[str], drop: list[str]) -> tuple[list[str], list[str]]:
    """Full names, each once, sorted."""
    def full(name: str) -> str:
        name = name.strip().upper()
        return name if name in ("ALL", "RESET") or name.startswith("CAP_") else f"CAP_{name}"
    added = {full(n) for n in add} - {"RESET"}
    dropped = {full(n) for n in drop} - {"RESET"}
    return sorted(added), sorted(dropped)


def _health(o: Options) -> dict[str, Any] | None:
    given = any(o[name] for name in _HEALTH)
    if o["no-healthcheck"]:
        if given:
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not given:
        return None
    for name in _HEALTH[1:]:
        if o[name] < 0:
            raise ValueError(f"--{name} cannot be negative")
    health = {"Test": ["CMD-SHELL", o["health-cmd"]] if o["health-cmd"] else None,
              "Interval": o["health-interval"], "Timeout": o["health-timeout"],
              "StartPeriod": o["health-start-period"],
              "StartInterval": o["health-start-interval"], "Retries": o["health-retries"]}
    return {k: v for k, v in health.items() if v}


def restart_policy(text: str) -> dict[str, Any]:
    """no, always, unless-stopped, on-failure[:count]"""
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    if count and not (count.isascii() and count.lstrip("+-").isdigit()):
        raise ValueError(
            "invalid restart policy format: maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(count) if count else 0}


def _pairs(items: list[str]) -> dict[str, str]:
    return {k: v for k, _, v in (i.partition("=") for i in items)}


def _storage(items: list[str]) -> dict[str, str]:
    if any("=" not in i for i in items):
        raise ValueError("invalid storage option")
    return _pairs(items)


def _security(options: list[str]) -> tuple[list[str] | None, bool]:
    """Options for the engine; whether systempaths=unconfined was among them."""
    if not options:
        return None, False
    found = []
    for option in options:
        key, mark, value = option.partition("=")
        if not mark and key != "no-new-privileges":
            key, mark, value = option.partition(":")
        if (not mark or not value) and key != "no-new-privileges":
            raise ValueError(f"Invalid --security-opt: {go_quote(option)}")
        if key == "seccomp" and value not in ("builtin", "unconfined"):
            option = "seccomp=" + _seccomp(value)
        found.append(option)
    kept = [f for f in found if f != "systempaths=unconfined"]
    return kept, len(kept) != len(found)


def _seccomp(path: str) -> str:
    from .jsonc import dumps, loads
    try:
        with open(path, "rb") as f:
            data = f.read(1 << 22)
    except OSError as error:
        raise ValueError(f"opening seccomp profile ({path}) failed: open {path}: "
                         f"{(error.strerror or '').lower()}") from None
    try:
        return dumps(loads(data))
    except ValueError as error:
        raise ValueError(
            f"compacting json for seccomp profile ({path}) failed: {error}") from None


def read_files(files: list[str], more: list[str], *, lookup: bool) -> list[str]:
    """Lines KEY=value of files, then those of the command line."""
    found: list[str] = []
    for path in files:
        found += _read_file(path, lookup)
    return found + more


def _read_file(path: str, lookup: bool) -> list[str]:
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as error:
        raise ValueError(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    found = []
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode().rstrip("\r").lstrip()
        except UnicodeDecodeError:
            raise ValueError(f"invalid env file ({path}): env file {path} contains invalid "
                             f"utf8 bytes at line {number}: {list(raw)}".replace(",", "")
                             ) from None
        if not line or line[0] == "#":
            continue
        key, equals, _ = line.partition("=")
        if not key:
            raise ValueError(f"invalid env file ({path}): no variable name on line '{line}'")
        if set(key) & set(" \t\v\f"):
            raise ValueError(f"invalid env file ({path}): variable '{key}' contains whitespaces")
        if equals:
            found.append(line)
        elif lookup and key in os.environ:
            found.append(f"{key}={os.environ[key]}")
    return found


# ---- volumes and devices ----------------------------------------------------

def _volumes(specs: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Binds, and anonymous volumes."""
    binds: list[str] = []
    anonymous: dict[str, Any] = {}
    for spec in dict.fromkeys(specs):
        source = _volume_source(spec)
        if not source:
            anonymous[spec] = {}
            continue
        if source[0] == "." and os.path.abspath(source) != source:
            spec = os.path.abspath(source) + spec[len(source):]
        binds.append(spec)
    return binds, anonymous


def _volume_source(spec: str) -> str:
    """What stands before the first colon; "" for an anonymous volume."""
    if not spec:
        raise ValueError("invalid empty volume spec")
    if len(spec) <= 2:
        return ""
    parts = _colon_parts(spec)
    if "" in parts:
        raise ValueError(f"invalid spec: {spec}: empty section between colons")
    if len(parts) > 3:
        raise ValueError(f"invalid spec: {spec}: too many colons")
    return parts[0] if len(parts) > 1 else ""


def _colon_parts(spec: str) -> list[str]:
    """Split at colons, but not after the letter of a Windows drive."""
    parts = [""]
    for char in spec:
        if char == ":" and not (len(parts[-1]) == 1 and parts[-1].isalpha()):
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _devices(specs: list[str]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Device mappings, and a request for the devices named as vendor/class=name."""
    mappings = []
    cdi = []
    for spec in specs:
        if _is_cdi(spec):
            cdi.append(spec)
            continue
        mappings.append(_device(spec))
    request = [{"Driver": "cdi", "Count": 0, "DeviceIDs": cdi, "Capabilities": None,
                "Options": None}] if cdi else []
    return mappings, request


def _is_cdi(spec: str) -> bool:
    kind, equals, name = spec.partition("=")
    vendor, slash, klass = kind.partition("/")
    return bool(equals and slash and name and vendor and klass and vendor[0].isalpha()
                and klass[0].isalpha() and name[0].isalnum())


def _device(spec: str) -> dict[str, str]:
    if spec.count(":") > 2 or not spec.partition(":")[0]:
        raise ValueError(f"bad format for path: {spec}")
    parts = spec.split(":")
    mode = "rwm"
    inside = ""
    if len(parts) == 3:
        inside, mode = parts[1], parts[2]
        if not _is_mode(mode):
            raise ValueError(f"bad mode specified: {mode}")
    elif len(parts) == 2:
        if _is_mode(parts[1]):
            mode = parts[1]
        else:
            inside = parts[1]
    checked = inside or parts[0]
    if not checked.startswith("/"):
        raise ValueError(f"{checked} is not an absolute path")
    clean = os.path.normpath(checked).replace("//", "/") if len(parts) < 3 else checked
    outside = clean if not inside else parts[0]
    return {"PathOnHost": outside, "PathInContainer": clean, "CgroupPermissions": mode}


def _is_mode(text: str) -> bool:
    return bool(text) and not set(text) - set("rwm") and len(set(text)) == len(text)


def check_mac(text: str) -> str:
    """A hardware address in Go's canonical form."""
    value = text.strip().lower()
    for mark, size in ((":", 2), ("-", 2), (".", 4)):
        parts = value.split(mark)
        if len(parts) * size // 2 in (6, 8, 20) and all(
                len(p) == size and not set(p) - set("0123456789abcdef") for p in parts):
            digits = "".join(parts)
            return ":".join(digits[i:i + 2] for i in range(0, len(digits), 2))
    raise ValueError(f"{text} is not a valid mac address")


# ---- ports ------------------------------------------------------------------

def port_range(text: str) -> tuple[int, int]:
    """"80" or "8000-8010"; ValueError with no text for anything else."""
    first, dash, last = text.partition("-")
    if not dash:
        last = first
    for part in (first, last):
        if not (part.isascii() and part.isdigit()):
            raise ValueError(f"strconv.ParseUint: parsing {go_quote(part)}: invalid syntax")
        if int(part) > 65535:
            raise ValueError(f"strconv.ParseUint: parsing {go_quote(part)}: value out of range")
    if int(last) < int(first):
        raise ValueError(f"invalid range specified for port: {text}")
    return int(first), int(last)


def _split_proto(text: str) -> tuple[str, str]:
    port, slash, proto = text.partition("/")
    if slash and not proto:
        return port, "tcp"
    return port, proto.lower() if slash else "tcp"


def published(specs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Exposed ports and port bindings of --publish."""
    ports: dict[str, Any] = {}
    bindings: dict[str, Any] = {}
    for spec in specs:
        if "=" in spec:
            spec = _long_publish(spec)
        for port, binding in _publish(spec):
            ports[port] = {}
            bindings.setdefault(port, []).append(binding)
    return ports, bindings


def _long_publish(spec: str) -> str:
    fields = {"protocol": "tcp"}
    for part in spec.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(
                f"invalid publish opts format (should be name=value but got '{part}')")
        fields[key] = value
    return f"{fields.get('published', '')}:{fields.get('target', '')}/{fields['protocol']}"


def _publish(spec: str) -> list[tuple[str, dict[str, str]]]:
    parts = spec.split(":")
    inside = parts[-1]
    outside = parts[-2] if len(parts) > 1 else ""
    address = ":".join(parts[:-2])
    inside, proto = _split_proto(inside)
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address:
        try:
            parse_ip(address)
        except ValueError:
            raise ValueError(f"invalid IP address: {address}") from None
    if not inside:
        raise ValueError(f"no port specified: {spec}<empty>")
    try:
        first, last = port_range(inside)
    except ValueError:
        raise ValueError(f"invalid containerPort: {inside}") from None
    low = high = 0
    if outside:
        try:
            low, high = port_range(outside)
        except ValueError:
            raise ValueError(f"invalid hostPort: {outside}") from None
        if last - first != high - low and last != first:
            raise ValueError("invalid ranges specified for container and host Ports: "
                             f"{inside} and {outside}")
    if proto not in ("tcp", "udp", "sctp"):
        raise ValueError(f"invalid proto: {proto}")
    found = []
    for i in range(last - first + 1):
        host = str(low + i) if outside else ""
        if outside and first == last and low != high:
            host = f"{low}-{high}"
        found.append((f"{first + i}/{proto}", {"HostIp": address, "HostPort": host}))
    return found


def _exposed(specs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for spec in specs:
        if ":" in spec:
            raise ValueError(f"invalid port format for --expose: {spec}")
        text, proto = _split_proto(spec)
        try:
            first, last = port_range(text)
        except ValueError as error:
            raise ValueError(f"invalid range format for --expose: {spec}, error: {error}"
                             ) from None
        for port in range(first, last + 1):
            found[f"{port}/{proto}"] = {}
    return found


# ---- networks ---------------------------------------------------------------

def is_user_defined(name: str) -> bool:
    return name not in ("default", "bridge", "host", "none", "") \
        and not name.startswith("container:")


def _endpoints(o: Options) -> dict[str, Any]:
    networks = o["network"]
    if not networks:
        from .optvalues import network
        single = network("default")
        _apply(single, o)
        return {"default": _endpoint(single)}
    found: dict[str, Any] = {}
    kinds = set()
    for i, item in enumerate(networks):
        item = dict(item)
        kinds.add(is_user_defined(item["target"]))
        if i == 0:
            _apply(item, o)
        endpoint = _endpoint(item)
        if item["target"] in found:
            raise ValueError(f"network {go_quote(item['target'])} is specified multiple times")
        if i == 0 and len(networks) == 1 and endpoint == ENDPOINT:
            continue
        found[item["target"]] = endpoint
    if len(kinds) == 2:
        raise ValueError("conflicting options: cannot attach both user-defined and "
                         "non-user-defined network-modes")
    return found


def _apply(item: dict[str, Any], o: Options) -> None:
    """The flags without a network's name belong to the first network."""
    for key, flag, one, two in (
            ("aliases", "network-alias", "--network-alias", "alias"),
            ("ip", "ip", "--ip", "IPv4 address"), ("ip6", "ip6", "--ip6", "IPv6 address"),
            ("mac", "mac-address", "--mac-address", "MAC address"),
            ("link-local", "link-local-ip", "--link-local-ip", "link-local IP addresses")):
        if not o[flag]:
            continue
        if item[key]:
            raise ValueError(f"conflicting options: cannot specify both {one} and "
                             f"per-network {two}")
        item[key] = o[flag]
    item["links"] = o["link"] if is_user_defined(item["target"]) else []


def _endpoint(item: dict[str, Any]) -> dict[str, Any]:
    if not item["target"].strip():
        raise ValueError("no name set for network")
    if not is_user_defined(item["target"]) and item["aliases"]:
        raise ValueError("network-scoped aliases are only supported for user-defined networks")
    endpoint = dict(ENDPOINT)
    endpoint["GwPriority"] = item["gw-priority"]
    endpoint["Aliases"] = item["aliases"] or None
    endpoint["DriverOpts"] = item["driver-opts"] or None
    endpoint["Links"] = item.get("links") or None
    ipam = {"IPv4Address": item["ip"], "IPv6Address": item["ip6"],
            "LinkLocalIPs": item["link-local"]}
    endpoint["IPAMConfig"] = {k: v for k, v in ipam.items() if v} or None
    if item["mac"]:
        endpoint["MacAddress"] = item["mac"]
        check_mac(item["mac"])
    return endpoint
