"""One container's OCI configuration, put together from the parts in :mod:`carrel.engine.spec`."""

from __future__ import annotations

import json
import os
import platform as machine
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import explain, layers, links, validate
from carrel.engine.model import Container
from carrel.engine.spec import linux, mounts, process, user
from carrel.kernel import capability
from carrel.network.api import Sandbox

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_INIT_NAMES = ("docker-init", "tini-static", "tini")
INIT_PATH = "/sbin/docker-init"
#: annotation for our runtime: the folder that the mount at the destination after it has to
#: stay below, whatever somebody swaps in it meanwhile (docs/ARCHITECTURE.md)
BENEATH = "io.carrel.beneath:"


async def resolve_user(manager: Manager, container: Container, text: str) -> user.User:
    """From the container's own passwd and group files, read inside its layers."""
    extra = container.host["GroupAdd"] or ()
    folders = layers.of(await manager.snapshot_mounts(container))
    try:
        passwd = layers.read(folders, "etc/passwd")
        group = layers.read(folders, "etc/group")
    except layers.Unusual:
        from carrel.engine.view import container_root

        async with container_root(manager, container) as root:
            passwd = await root.read("/etc/passwd", user.MAX_FILE)
            group = await root.read("/etc/group", user.MAX_FILE)
    return user.resolve(text, passwd, group, extra)


def may_raise_limits() -> bool:
    return bool(capability.held()[2] >> capability.NUMBERS["CAP_SYS_RESOURCE"] & 1)


async def build(manager: Manager, container: Container, sandbox: Sandbox | None,
                files: Mapping[str, str], sources: Mapping[str, str], shm: str
                ) -> dict[str, Any]:
    """The spec. Pure but for reading the image's user files and device nodes."""
    host, config = container.host, container.record.config
    daemon = manager.ctx.config
    options = process.security_options(host["SecurityOpt"] or ())
    caps = process.effective_caps(host)
    args = [container.record.path, *container.record.args]
    taken = {p.destination for p in container.record.mounts}
    with_init = host["Init"] if host["Init"] is not None else daemon.init
    init_mounts: list[dict[str, Any]] = []
    if with_init and not host["PidMode"]:
        args = [INIT_PATH, "--", *args]
        init_mounts = [{"destination": INIT_PATH, "type": "bind", "source": find_init(daemon),
                        "options": ["bind", "ro"]}]
    spec: dict[str, Any] = {
        # the version that has all that is used here, not a later one: crun before 1.8.2 (Debian 12
        # has 1.8.1) takes no 1.2
        "ociVersion": "1.1.0",
        "process": await _process(manager, container, args, caps, options),
        "root": {"path": "rootfs", **({"readonly": True} if host["ReadonlyRootfs"] else {})},
        "mounts": [
            *mounts.kernel(host, shm_source=shm, taken=taken,
                           writable_cgroups=options.get("writable-cgroups")),
            *mounts.engine_files(files, read_only=False, taken=taken),
            *init_mounts,
            *mounts.user(container.record.mounts, sources),
        ],
        "linux": _linux(manager, container, sandbox, caps, options),
    }
    if host["UTSMode"] != "host":
        spec["hostname"] = config.get("Hostname") or ""
        if config.get("Domainname"):
            spec["domainname"] = config["Domainname"]
    if host["Annotations"]:
        spec["annotations"] = dict(host["Annotations"])
    for point in container.record.mounts:
        if point.subpath:  # verified now, and held to it by the runtime when it mounts
            spec.setdefault("annotations", {})[BENEATH + point.destination] = \
                sources[point.destination].removesuffix(f"/{point.subpath}")
    if explain.CURRENT.get() is not None:
        spec.setdefault("annotations", {})[explain.ANNOTATION] = "1"
    return spec


def _linux(manager: Manager, container: Container, sandbox: Sandbox | None, caps: list[str],
           options: Mapping[str, str]) -> dict[str, Any]:
    """Namespaces, the cgroup and its limits, devices, and what is kept from the container."""
    host = container.host
    netns = sandbox.netns_path if sandbox else ""
    nodes, rules = linux.devices(host)
    result: dict[str, Any] = {
        "namespaces": linux.namespaces(host, netns=netns,
                                       cgroup_private=host["CgroupnsMode"] == "private",
                                       pid_of=lambda ref: manager.joinable(ref, "pid").state.pid),
        "cgroupsPath": cgroup_path(manager, container),
        "resources": {**linux.resources(host), "devices": rules},
    }
    if nodes:
        result["devices"] = nodes
    result.update(hiding(host, options))
    sysctls = linux.sysctls(host, bool(netns))
    if sysctls:
        result["sysctl"] = sysctls
    seccomp = seccomp_profile(manager.ctx.config.seccomp_profile, options,
                              bool(host["Privileged"]), caps)
    if seccomp:
        result["seccomp"] = seccomp
    if any(p.propagation.endswith("shared") for p in container.record.mounts):
        result["rootfsPropagation"] = "shared"
    elif any(p.propagation.endswith("slave") for p in container.record.mounts):
        result["rootfsPropagation"] = "rslave"
    return result


async def _process(manager: Manager, container: Container, args: list[str], caps: list[str],
                   options: Mapping[str, str]) -> dict[str, Any]:
    host, config = container.host, container.record.config
    who = await resolve_user(manager, container, config.get("User") or "")
    limits, warnings = process.rlimits(host["Ulimits"] or (), manager.ctx.config.default_ulimits,
                                       may_raise=manager.may_raise_limits)
    for text in warnings:
        from carrel.engine import log

        log.warning(f"container {container.id[:12]}: {text}")
    linked = links.environment(manager, container) if host["Links"] else ()
    return process.build(
        args=args, cwd=config.get("WorkingDir") or "/", user=who, terminal=container.tty,
        env=process.environment([*linked, *(config.get("Env") or ())], tty=container.tty,
                                hostname=config.get("Hostname") or "", home=who.home),
        host=host, caps=caps, limits=limits,
        no_new_privileges=no_new_privileges(manager, options),
        lsm_fields=await manager.confinement.fields(host, options),
        console=validate.console_size(host["ConsoleSize"]))


def no_new_privileges(manager: Manager, options: Mapping[str, str]) -> bool:
    text = options.get("no-new-privileges")
    return text != "false" if text is not None else manager.ctx.config.no_new_privileges


def hiding(host: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Masked and read-only paths; none when privileged or unconfined."""
    if host["Privileged"] or options.get("systempaths") == "unconfined":
        return {}
    masked, readonly = host["MaskedPaths"], host["ReadonlyPaths"]
    return {"maskedPaths": linux.MASKED if masked is None else masked,
            "readonlyPaths": linux.READONLY if readonly is None else readonly}


def seccomp_profile(daemon_default: str, options: Mapping[str, str], privileged: bool,
                    caps: list[str]) -> dict[str, Any] | None:
    """Docker's default, the caller's, or none."""
    text = options.get("seccomp", "")
    if not text:
        if privileged:
            return None
        text = daemon_default
    if text == "unconfined":
        return None
    from carrel.oci import seccomp_default

    arch, kernel = machine.machine(), os.uname().release
    if not text or text == "builtin":
        key = (tuple(sorted(caps)), arch)
        found = _profiles.get(key)
        if found is None:
            found = _profiles[key] = seccomp_default.profile(set(caps), arch, kernel)
        return found
    return seccomp_default.load(text, set(caps), arch, kernel)


_profiles: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}


def find_init(config: Any) -> str:
    """The small init of ``--init``, bound into the container read-only."""
    if config.init_path:
        return str(config.init_path)
    for name in _INIT_NAMES:
        found = shutil.which(name, path="/usr/libexec/docker:/usr/local/bin:/usr/bin:/sbin:/bin")
        if found:
            return found
    raise errdefs.SystemFailure(
        "--init: no init binary was found on this machine",
        hint="install the package tini, or start carreld with --init-path")


def cgroup_path(manager: Manager, container: Container) -> str:
    """``/carrel/<id>``, or below ``--cgroup-parent``; with systemd's cgroups the unit
    ``carrel-<id>.scope`` of a slice."""
    config = manager.ctx.config
    parent = container.host["CgroupParent"] or config.cgroup_parent
    if config.systemd_cgroups:
        return f"{parent or 'system.slice'}:carrel:{container.id}"
    parent = parent or "/carrel"
    return f"/{parent.strip('/')}/{container.id}"


def encode(spec: Mapping[str, Any]) -> bytes:
    return json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogateescape")
