"""carreld's flags: dockerd's names, the field of Config each sets, and what ``--help`` says."""

from __future__ import annotations

import argparse
from typing import Any

_SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
_MANY: dict[str, Any] = {"action": "append"}
_NUMBER: dict[str, Any] = {"type": int, "metavar": "N"}
_DRIVER = {"metavar": "DRIVER"}
_FILE = {"metavar": "FILE"}
_DIR = {"metavar": "DIR"}


def _many(name: str) -> dict[str, Any]:
    return {**_MANY, "metavar": name}


#: heading -> (names of the flag, field of Config, settings of argparse, help)
FLAGS: dict[str, tuple[tuple[str, str, dict[str, Any], str], ...]] = {
    "API": (
        ("-H,--host", "hosts", _many("ADDRESS"),
         "where to listen: unix:///path, tcp://host:port, fd:// (systemd); may be repeated "
         "(default: carrel.sock in the exec root)"),
        ("-G,--group", "group", {"metavar": "GROUP"},
         "group that may use the unix socket (default: docker, else carrel)"),
        ("--tls", "tls", _SWITCH, "use TLS for tcp://; --tlscert and --tlskey are needed"),
        ("--tlsverify", "tlsverify", _SWITCH,
         "use TLS, and admit only clients with a certificate of --tlscacert"),
        ("--tlscacert", "tlscacert", _FILE, "certificates that sign those of clients"),
        ("--tlscert", "tlscert", _FILE, "the daemon's certificate"),
        ("--tlskey", "tlskey", _FILE, "the key of the daemon's certificate"),
        ("--allow-insecure-tcp", "allow_insecure_tcp", _SWITCH,
         "listen on tcp:// without TLS: whoever reaches it is root on this machine"),
    ),
    "Daemon": (
        ("--config-file", "config_file", _FILE,
         "settings as JSON, keys as in dockerd's daemon.json (default: /etc/carrel/daemon.json)"),
        ("--validate", "validate", _SWITCH, "check the settings and exit"),
        ("--data-root", "data_root", _DIR,
         "images, containers and volumes (default: /var/lib/carrel)"),
        ("--exec-root", "exec_root", _DIR, "sockets and state until reboot (default: /run/carrel)"),
        ("-p,--pidfile", "pidfile", _FILE, "file for the daemon's process id (default: carreld.pid "
         "in the exec root)"),
        ("-D,--debug", "debug", _SWITCH, "log everything"),
        ("-l,--log-level", "log_level", {"metavar": "LEVEL"}, "debug, info, warn or error "
         "(default: info)"),
        ("--label", "labels", _many("KEY=VALUE"), "label of the daemon, shown by docker info"),
        ("--live-restore", "live_restore", _SWITCH,
         "leave containers running when the daemon stops"),
        ("--shutdown-timeout", "shutdown_timeout", _NUMBER,
         "seconds to wait for containers when stopping; longer for those with a longer stop "
         "timeout of their own, -1 without limit (default: 15)"),
    ),
    "Containers": (
        ("--containerd", "containerd", {"metavar": "WHERE"},
         "'embedded': Carrel's own containerd layer, in this process; 'process': the same as "
         "carrel-containerd; or the socket of another containerd (default: embedded)"),
        ("--containerd-namespace", "containerd_namespace", {"metavar": "NAME"},
         "containerd namespace to work in (default: carrel)"),
        ("-s,--storage-driver", "snapshotter", {"metavar": "NAME"},
         "containerd snapshotter (default: overlayfs)"),
        ("--default-runtime", "default_runtime", {"metavar": "NAME"},
         "runtime of containers that ask for none (default: carrel, or runc with another "
         "containerd)"),
        ("--add-runtime", "runtimes", _many("NAME=PATH"), "a further OCI runtime"),
        ("--exec-opt", "exec_opts", _many("KEY=VALUE"),
         "native.cgroupdriver=cgroupfs or systemd"),
        ("--cgroup-parent", "cgroup_parent", {"metavar": "CGROUP"},
         "parent of containers' cgroups (default: /carrel)"),
        ("--init", "init", _SWITCH, "run an init in every container"),
        ("--init-path", "init_path", _FILE, "the init (default: docker-init or tini)"),
        ("--no-new-privileges", "no_new_privileges", _SWITCH,
         "no container gains rights by set-uid programs"),
        ("--seccomp-profile", "seccomp_profile", _FILE,
         "seccomp profile instead of the built-in one; builtin, unconfined"),
        ("--default-shm-size", "default_shm_size", {"metavar": "SIZE"},
         "size of /dev/shm (default: 64m)"),
        ("--default-ulimit", "default_ulimits", _many("NAME=SOFT[:HARD]"),
         "limit of every container"),
        ("--default-cgroupns-mode", "default_cgroupns_mode", {"metavar": "MODE"},
         "cgroup namespace: private or host (default: private with cgroup v2)"),
        ("--default-ipc-mode", "default_ipc_mode", {"metavar": "MODE"},
         "IPC namespace: private or shareable (default: private)"),
        ("--log-driver", "log_driver", _DRIVER, "json-file or none (default: json-file)"),
        ("--log-opt", "log_opts", _many("KEY=VALUE"),
         "of json-file: max-size, max-file, labels, env, tag"),
    ),
    "Network": (
        ("-b,--bridge", "bridge", {"metavar": "NAME"},
         "an existing bridge for the default network; none for no default network"),
        ("--bip", "bip", {"metavar": "CIDR"}, "address and subnet of the default bridge"),
        ("--fixed-cidr", "fixed_cidr", {"metavar": "CIDR"},
         "part of the subnet that containers get addresses from"),
        ("--default-gateway", "default_gateway", {"metavar": "IP"},
         "gateway of containers on the default bridge, instead of the bridge"),
        ("--default-address-pool", "default_address_pools", _many("base=CIDR,size=N"),
         "pool that networks without a subnet get theirs from"),
        ("--mtu", "mtu", _NUMBER, "MTU of the default bridge (default: 1500)"),
        ("--icc", "icc", _SWITCH, "containers of the default bridge may talk to each other "
         "(default: yes)"),
        ("--ip", "ip", {"metavar": "IP"}, "host address of ports that name none (default: any)"),
        ("--iptables", "iptables", _SWITCH,
         "packet filter rules (nftables); without them ports are published by relays "
         "(default: yes)"),
        ("--ip6tables", "ip6tables", _SWITCH, "likewise for IPv6 (default: yes)"),
        ("--ip-forward", "ip_forward", _SWITCH,
         "switch on forwarding in the kernel (default: yes)"),
        ("--ip-masq", "ip_masq", _SWITCH,
         "containers reach other machines by the host's address (default: yes)"),
        ("--userland-proxy", "userland_proxy", _SWITCH,
         "relays where rules do not lead (default: yes)"),
        ("--dns", "dns", _many("IP"), "name server of containers"),
        ("--dns-opt", "dns_options", _many("OPTION"), "resolver option of containers"),
        ("--dns-search", "dns_search", _many("DOMAIN"), "search domain of containers"),
    ),
    "Registries": (
        ("--insecure-registry", "insecure_registries", _many("HOST"),
         "registry (or CIDR) without TLS or with a certificate that nobody signed"),
        ("--registry-mirror", "registry_mirrors", _many("URL"), "mirror of Docker Hub"),
    ),
}


def names() -> dict[str, str]:
    """Long name of every flag, without dashes -> field."""
    return {flag.split(",")[-1].lstrip("-"): field
            for group in FLAGS.values() for flag, field, _, _ in group}


def switches(arguments: list[str]) -> list[str]:
    """``--icc=false`` as dockerd's users write it: ``--no-icc``."""
    known = {flag.split(",")[-1] for group in FLAGS.values()
             for flag, _, settings, _ in group if settings is _SWITCH}
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in known and value in ("true", "false"):
            argument = name if value == "true" else f"--no-{name[2:]}"
        result.append(argument)
    return result


def add_to(parser: argparse.ArgumentParser) -> None:
    """All flags, under their headings. A flag that was not given is None."""
    for heading, group in FLAGS.items():
        section = parser.add_argument_group(heading)
        for flag, field, settings, text in group:
            section.add_argument(*flag.split(","), dest=field, default=None,
                                 help=text.replace("%", "%%"), **settings)
