"""dockerd's flags and daemon.json, merged into one :class:`Config`.

A setting in both places is an error, as in dockerd: nobody should have to guess
which one holds.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

import msgspec

from carrel import errdefs
from carrel.engine import flagtable, jsonio, log, logopts, mountspec, validate
from carrel.engine.config import CARREL_RUNTIME, OWN, RUNC_RUNTIME, Config, Runtime

DEFAULT_CONFIG_FILE = "/etc/carrel/daemon.json"
#: keys of daemon.json that are not the flag's name
_FILE_KEYS = {"host": "hosts", "label": "labels", "add-runtime": "runtimes",
              "exec-opt": "exec-opts",
              "default-ulimit": "default-ulimits", "log-opt": "log-opts", "dns-opt": "dns-opts",
              "insecure-registry": "insecure-registries",
              "registry-mirror": "registry-mirrors",
              "default-address-pool": "default-address-pools"}
#: dockerd's settings that are not built: key of daemon.json -> the values that ask for nothing
_UNBUILT: dict[str, tuple[Any, ...]] = {
    "max-concurrent-downloads": (3,), "max-concurrent-uploads": (5,), "max-download-attempts": (5,),
    "allow-direct-routing": (False,), "authorization-plugins": ([],), "bip6": ("",),
    "bridge-accept-fwmark": ("",), "builder": ({}, None), "cdi-spec-dirs": ([],),
    "cluster-advertise": ("",), "cpu-rt-period": (0,), "cpu-rt-runtime": (0,),
    "default-network-opts": ({},), "experimental": (False,), "features":
    ({}, {"containerd-snapshotter": True}), "fixed-cidr-v6": ("",), "default-gateway-v6": ("",),
    "firewall-backend": ("", "nftables"), "generic-resources": ([],), "http-proxy": ("",),
    "https-proxy": ("",), "no-proxy": ("",), "ipv6": (False,), "log-format": ("", "text"),
    "metrics-addr": ("",), "node-generic-resources": ([],), "oom-score-adjust": (0,),
    "proxies": ({},), "raw-logs": (False,), "selinux-enabled": (False,), "storage-opts": ([],),
    "swarm-default-advertise-addr": ("",), "userland-proxy-path": ("",), "userns-remap": ("",),
}
#: fields that SIGHUP takes over into a running daemon
RELOADABLE = ("debug", "labels", "live_restore", "runtimes", "default_runtime", "shutdown_timeout",
              "default_shm_size", "log_level")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"carreld: {message}\nSee 'carreld --help'.", file=sys.stderr)
        raise SystemExit(125)


def parser() -> argparse.ArgumentParser:
    result = _Parser(prog="carreld", allow_abbrev=False, usage="carreld [OPTIONS]",
                     description="The Docker Engine API, served by Carrel.",
                     epilog="A setting stands on the command line or in daemon.json, not in both. "
                     "SIGHUP reads daemon.json again.")
    result.add_argument("-v", "--version", action="store_true", default=False,
                        help="show the version and exit")
    flagtable.add_to(result)
    for name in ("max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts"):
        result.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    return result


def load(arguments: list[str]) -> Config:
    """Flags over daemon.json over defaults; everything checked."""
    given = vars(parser().parse_args(flagtable.switches(arguments)))
    if given.pop("version"):
        from carrel.engine.routes_system import VERSION

        print(f"Carrel version {VERSION}")
        raise SystemExit(0)
    flags = {k: v for k, v in given.items() if v is not None}
    for name in _UNBUILT:
        if name.replace("-", "_") in flags:
            _unbuilt(name, flags.pop(name.replace("-", "_")), "--")
    return merge(flags)


def _unbuilt(name: str, value: Any, prefix: str = "") -> None:
    if not any(value == harmless and type(value) is type(harmless) for harmless in _UNBUILT[name]):
        raise errdefs.NotImplementedYet(
            f"{prefix}{name} is not implemented in Carrel (found {str(value)[:60]!r})")


def merge(flags: dict[str, Any]) -> Config:
    path = flags.get("config_file") or DEFAULT_CONFIG_FILE
    from_file = read_file(path, required="config_file" in flags)
    both = sorted(set(flags) & set(from_file))
    if both:
        raise errdefs.InvalidParameter(
            "the following directives are specified both as a flag and in the configuration "
            f"file: {', '.join(both)}")
    values = {**from_file, **_convert(flags)}
    if _foreign(values.get("containerd")):
        values.setdefault("default_runtime", "runc")  # whose shim every containerd has
    try:
        config = msgspec.convert({**values, "config_file": path, "given": dict(flags)}, Config)
    except msgspec.ValidationError as error:
        raise errdefs.InvalidParameter(f"{path}: {error}") from None
    return check(config)


def _foreign(containerd: Any) -> bool:
    return bool(containerd) and containerd not in OWN


def _convert(flags: dict[str, Any]) -> dict[str, Any]:
    """The texts of flags as the types of the file."""
    result = dict(flags)
    if "runtimes" in result:
        result["runtimes"] = dict(_runtime(t) for t in result["runtimes"])
    if "default_ulimits" in result:
        result["default_ulimits"] = dict(_ulimit(t) for t in result["default_ulimits"])
    if "log_opts" in result:
        result["log_opts"] = dict(_pair(t, "--log-opt") for t in result["log_opts"])
    if "default_shm_size" in result:
        result["default_shm_size"] = validate.size(str(result["default_shm_size"]))
    if "default_address_pools" in result:
        result["default_address_pools"] = [_pool(t) for t in result["default_address_pools"]]
    return result


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise errdefs.InvalidParameter(f"invalid argument for {flag}: {text[:80]!r} (key=value)")
    return key, value


def _runtime(text: str) -> tuple[str, Runtime]:
    name, path = _pair(text, "--add-runtime")
    return name, Runtime(path=path)


def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    name, value = _pair(text, "--default-ulimit")
    soft, colon, hard = value.partition(":")
    try:
        numbers = int(soft), int(hard if colon else soft)
    except ValueError:
        raise errdefs.InvalidParameter(f"invalid ulimit: {text[:80]}") from None
    validate.ulimit({"Name": name, "Soft": numbers[0], "Hard": numbers[1]})
    return name, numbers


def _pool(text: str) -> dict[str, Any]:
    pairs = dict(_pair(t, "--default-address-pool") for t in text.split(","))
    return _pool_of(pairs)


def _pool_of(value: dict[str, Any]) -> dict[str, Any]:
    if set(value) != {"base", "size"} or not str(value["size"]).isdigit():
        raise errdefs.InvalidParameter(
            "invalid default address pool: base=CIDR,size=PREFIX is needed")
    return {"base": str(value["base"]), "size": int(value["size"])}


def read_file(path: str, *, required: bool) -> dict[str, Any]:
    """daemon.json by the fields of Config; an unknown key is an error."""
    try:
        with open(path, "rb") as f:
            raw = f.read(jsonio.MAX_BODY)
    except FileNotFoundError:
        if required:
            raise errdefs.InvalidParameter(
                f"unable to configure the daemon with file {path}: no such file or directory"
            ) from None
        return {}
    value = jsonio.decode(raw) if raw.strip() else {}
    if not isinstance(value, dict):
        raise errdefs.InvalidParameter(f"{path}: an object is needed")
    known = {_FILE_KEYS.get(name, name): field for name, field in flagtable.names().items()}
    for key in [k for k in value if k in _UNBUILT]:
        _unbuilt(key, value.pop(key), f"{path}: ")
    result: dict[str, Any] = {}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise errdefs.InvalidParameter(
            f"unable to configure the daemon with file {path}: the following directives don't "
            f"match any configuration option: {', '.join(unknown)}")
    for key, content in value.items():
        result[known[key]] = _from_file(known[key], content, path)
    return result


def _from_file(field: str, value: Any, path: str) -> Any:
    try:
        if field == "runtimes":
            return {n: _runtime_of(n, r) for n, r in value.items()}
        if field == "default_ulimits":
            for name, limit in value.items():
                validate.ulimit({**limit, "Name": name})
            return {n: (u["Soft"], u["Hard"]) for n, u in value.items()}
        if field == "default_shm_size":
            return validate.size(str(value))
        if field == "default_address_pools":
            return [_pool_of(p) for p in value]
    except (AttributeError, KeyError, TypeError):
        raise errdefs.InvalidParameter(f"{path}: invalid value for {field}") from None
    return value


def _runtime_of(name: str, value: dict[str, Any]) -> Runtime:
    for key, content in value.items():
        if key not in ("path", "runtimeType", "runtimeArgs", "options"):
            raise errdefs.InvalidParameter(f"runtime {name[:40]}: unknown key {key[:40]!r}")
        if key in ("runtimeArgs", "options") and content:
            raise errdefs.NotImplementedYet(
                f"runtime {name[:40]}: {key} are not implemented in Carrel")
    return Runtime(path=value.get("path", ""), shim=value.get("runtimeType", ""))


def _exec_options(config: Config) -> None:
    """Docker's one option: who makes the cgroups, we or systemd."""
    drivers = set()
    for option in config.exec_opts:
        key, equals, value = option.partition("=")
        if not equals:
            raise errdefs.InvalidParameter(f"invalid exec option {option[:80]!r} (key=value)")
        if key.strip().lower() != "native.cgroupdriver":
            raise errdefs.InvalidParameter(f"Unknown option ({key[:80]})")
        if value.strip() not in ("cgroupfs", "systemd"):
            raise errdefs.InvalidParameter(
                f"native.cgroupdriver option {value[:80]} not supported (cgroupfs, systemd)")
        drivers.add(value.strip())
    if len(drivers) > 1:
        raise errdefs.InvalidParameter("native.cgroupdriver is given more than once")
    config.exec_opts = [f"native.cgroupdriver={d}" for d in drivers]
    if not config.systemd_cgroups:
        return
    if not os.path.isdir("/run/systemd/system"):
        raise errdefs.InvalidParameter(
            "native.cgroupdriver=systemd: systemd is not running as PID 1 on this host")
    if config.cgroup_parent:
        validate.slice_name(config.cgroup_parent)


def check(config: Config) -> Config:
    """Values that only make sense together; what was left open is filled in."""
    if config.log_level not in log.LEVELS:
        raise errdefs.InvalidParameter(f"invalid logging level: {config.log_level[:40]}")
    _paths(config)
    _runtimes(config)
    _layer(config)
    _exec_options(config)
    _container_defaults(config)
    for label in config.labels:
        _pair(label, "--label")
    for address in config.dns:
        validate.ip(address)
    validate.resolver_words("--dns-search", config.dns_search)
    validate.resolver_words("--dns-opt", config.dns_options)
    if config.mtu and not 68 <= config.mtu <= 65535:
        raise errdefs.InvalidParameter(f"invalid MTU: {config.mtu}")
    return config


def _paths(config: Config) -> None:
    for name in ("data_root", "exec_root"):
        setattr(config, name, os.path.abspath(getattr(config, name)))
    if len(os.fsencode(config.exec_root)) > 50:
        raise errdefs.InvalidParameter(
            f"--exec-root {config.exec_root} is too long: the sockets below it would have paths "
            "that the kernel does not take (50 bytes at most)")
    if not config.hosts:
        config.hosts = [f"unix://{config.exec_root}/carrel.sock"]
    if not config.pidfile:
        config.pidfile = f"{config.exec_root}/carreld.pid"


def _runtimes(config: Config) -> None:
    """Those that are always there, and those that were added."""
    foreign = config.foreign
    known = {"carrel": Runtime(shim=CARREL_RUNTIME), "runc": Runtime(shim=RUNC_RUNTIME)}
    known["io.containerd.runc.v2"] = Runtime(shim=RUNC_RUNTIME)
    known["io.containerd.carrel.v1"] = Runtime(shim=CARREL_RUNTIME)
    if not foreign:
        # our shim drives runc's command line: nothing of Docker's needs to be installed
        known["runc"] = Runtime(shim=CARREL_RUNTIME, path="runc")
    for name, runtime in config.runtimes.items():
        if name == "carrel":
            raise errdefs.InvalidParameter(f"runtime name '{name}' is reserved")
        shim = runtime.shim or (RUNC_RUNTIME if foreign else CARREL_RUNTIME)
        known[name] = Runtime(path=runtime.path, shim=shim)
    config.runtimes = known
    if config.default_runtime not in known:
        raise errdefs.InvalidParameter(
            f"specified default runtime '{config.default_runtime[:40]}' does not exist")


def _layer(config: Config) -> None:
    """What depends on whose containerd it is."""
    if not mountspec.VOLUME_NAME.fullmatch(config.containerd_namespace):
        raise errdefs.InvalidParameter("invalid --containerd-namespace")
    if not config.foreign:
        if config.snapshotter != "overlayfs":
            raise errdefs.InvalidParameter(
                f"storage driver '{config.snapshotter[:40]}' is not there: Carrel's containerd "
                "has overlayfs")
        return
    for name, value in (("registry-mirror", config.registry_mirrors),
                        ("insecure-registry", config.insecure_registries)):
        if value:
            raise errdefs.InvalidParameter(
                f"--{name} has no effect on another containerd", hint="put it into that "
                "containerd's certs.d/<host>/hosts.toml")


def _container_defaults(config: Config) -> None:
    logopts.check({"Type": config.log_driver, "Config": config.log_opts})
    if config.default_shm_size <= 0:
        raise errdefs.InvalidParameter("--default-shm-size must be more than 0")
    if config.default_ipc_mode not in ("private", "shareable"):
        raise errdefs.InvalidParameter(
            f"IPC mode '{config.default_ipc_mode[:20]}' is not supported as default")
    if config.default_cgroupns_mode not in ("", "private", "host"):
        raise errdefs.InvalidParameter("default cgroup namespace mode must be private or host")
    if config.seccomp_profile and config.seccomp_profile not in ("builtin", "unconfined"):
        with open(config.seccomp_profile, encoding="utf-8") as f:
            config.seccomp_profile = f.read(jsonio.MAX_BODY)
        if not isinstance(jsonio.decode(config.seccomp_profile), dict):
            raise errdefs.InvalidParameter("--seccomp-profile: an object is needed")
