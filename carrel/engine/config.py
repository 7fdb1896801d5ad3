"""The settings of one daemon, after flags and daemon.json were merged."""

from __future__ import annotations

from typing import Any

import msgspec

DEFAULT_DATA_ROOT = "/var/lib/carrel"
DEFAULT_EXEC_ROOT = "/run/carrel"
CARREL_RUNTIME = "io.containerd.carrel.v1"
RUNC_RUNTIME = "io.containerd.runc.v2"
#: our own containerd layer: in this process, or as carrel-containerd
EMBEDDED, PROCESS = "embedded", "process"
OWN = ("", EMBEDDED, PROCESS)


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """An OCI runtime by the name that ``--runtime`` takes."""

    path: str = ""           # binary for the command driver, "" for Carrel's own
    shim: str = ""           # shim name, "" for the default of this daemon


class Config(msgspec.Struct, kw_only=True):
    """See ``carreld --help``; names are dockerd's flags."""

    hosts: list[str] = msgspec.field(default_factory=list)
    data_root: str = DEFAULT_DATA_ROOT
    exec_root: str = DEFAULT_EXEC_ROOT
    pidfile: str = ""
    config_file: str = ""
    containerd: str = EMBEDDED           # or PROCESS, or a socket
    containerd_namespace: str = "carrel"
    snapshotter: str = "overlayfs"
    group: str = ""
    debug: bool = False
    log_level: str = "info"
    live_restore: bool = False
    cgroup_parent: str = ""
    exec_opts: list[str] = msgspec.field(default_factory=list)
    default_runtime: str = "carrel"
    runtimes: dict[str, Runtime] = msgspec.field(default_factory=dict)
    init: bool = False
    init_path: str = ""
    labels: list[str] = msgspec.field(default_factory=list)
    shutdown_timeout: int = 15
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    default_shm_size: int = 64 << 20
    default_ulimits: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    default_cgroupns_mode: str = ""
    default_ipc_mode: str = "private"
    log_driver: str = "json-file"
    log_opts: dict[str, str] = msgspec.field(default_factory=dict)
    # network
    bip: str = ""
    bridge: str = ""
    default_gateway: str = ""
    fixed_cidr: str = ""
    default_address_pools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    dns: list[str] = msgspec.field(default_factory=list)
    dns_options: list[str] = msgspec.field(default_factory=list)
    dns_search: list[str] = msgspec.field(default_factory=list)
    mtu: int = 0
    iptables: bool = True
    ip6tables: bool = True
    ip_forward: bool = True
    ip_masq: bool = True
    icc: bool = True
    ip: str = ""                         # default address of published ports
    userland_proxy: bool = True
    # registries
    insecure_registries: list[str] = msgspec.field(default_factory=list)
    registry_mirrors: list[str] = msgspec.field(default_factory=list)
    # API over TCP
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    allow_insecure_tcp: bool = False
    validate: bool = False
    #: the flags as they were given, for a reload of daemon.json
    given: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def systemd_cgroups(self) -> bool:
        """Are containers' cgroups units of systemd (``native.cgroupdriver=systemd``)?"""
        return "native.cgroupdriver=systemd" in self.exec_opts

    @property
    def engine_dir(self) -> str:
        return f"{self.data_root}/engine"

    @property
    def foreign(self) -> bool:
        """Is the containerd somebody else's?"""
        return self.containerd not in OWN

    @property
    def containerd_socket(self) -> str:
        """The socket of the containerd layer that this daemon talks to."""
        if self.foreign:
            return self.containerd.removeprefix("unix://")
        return f"{self.exec_root}/containerd/containerd.sock"
