"""``/_ping``, ``/version``, ``/info``, ``/events``, ``/system/df``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import events as bus
from carrel.engine import filters as filtering
from carrel.engine import inspect as views
from carrel.engine import jsonio, server, timefmt, web
from carrel.engine.area import Area
from carrel.engine.context import EngineContext
from carrel.engine.model import PAUSED, RUNNING

if TYPE_CHECKING:
    pass

VERSION = "0.1.0"


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    area = _Area(ctx)
    return [
        web.get("/_ping", area.ping),
        web.head("/_ping", area.ping),
        web.get("/version", area.version),
        web.get("/info", area.info),
        web.get("/events", area.events),
        web.get("/system/df", area.df),
        web.get("/plugins", area.plugins),
        web.get("/plugins/{name:.+}/json", area.plugin),
    ]


class _Area(Area):
    async def ping(self, request: web.Request) -> web.Response:
        return web.Response(
            body=b"OK" if request.method == "GET" else b"",
            content_type="text/plain; charset=utf-8",
            headers={"Builder-Version": "1", "Swarm": "inactive", "Cache-Control":
                     "no-cache, no-store, must-revalidate", "Pragma": "no-cache"})

    async def version(self, request: web.Request) -> web.Response:
        kernel = os.uname().release
        layer = await self._layer_version()
        detail = {"ApiVersion": server.API_VERSION, "Arch": _arch(), "Experimental": "false",
                  "KernelVersion": kernel, "MinAPIVersion": server.MIN_API_VERSION, "Os": "linux",
                  "Python": platform.python_version()}
        return jsonio.response({
            "Platform": {"Name": "Carrel"},
            "Components": [
                {"Name": "Engine", "Version": VERSION, "Details": detail},
                {"Name": "containerd", "Version": layer["version"],
                 "Details": {"GitCommit": layer["revision"]}},
            ],
            "Version": VERSION, "ApiVersion": server.API_VERSION,
            "MinAPIVersion": server.MIN_API_VERSION, "GitCommit": "", "GoVersion": "",
            "Os": "linux", "Arch": _arch(), "KernelVersion": kernel, "BuildTime": "",
        })

    async def plugins(self, request: web.Request) -> web.Response:
        """None can be installed (501), so none is there; clients ask while they look around."""
        return jsonio.response([])

    async def plugin(self, request: web.Request) -> web.Response:
        raise errdefs.NotFound(f'plugin "{request.match_info["name"][:200]}" not found')

    async def _layer_version(self) -> dict[str, str]:
        from google.protobuf.empty_pb2 import Empty

        try:
            answer = await self.ctx.containerd.version.Version(Empty(), timeout=2.0)
            return {"version": answer.version, "revision": answer.revision}
        except errdefs.CarrelError:
            return {"version": "unreachable", "revision": ""}

    async def info(self, request: web.Request) -> web.Response:
        config = self.ctx.config
        containers = list(self.manager.all())
        states = [c.state.status for c in containers]
        limits = _limits(self.manager.unified)
        security = ["name=apparmor"] if self.manager.confinement.available else []
        profile = config.seccomp_profile
        if profile != "unconfined":
            security.append("name=seccomp,profile="
                            + ("builtin" if profile in ("", "builtin") else "custom"))
        if self.manager.unified:
            security.append("name=cgroupns")
        return jsonio.response({
            "ID": self.ctx.id, "Containers": len(containers),
            "ContainersRunning": states.count(RUNNING), "ContainersPaused": states.count(PAUSED),
            "ContainersStopped": len([c for c in containers if not c.alive]),
            "Images": await self.ctx.images.count(), "Driver": config.snapshotter,
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
            "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"],
                        "Authorization": None, "Log": ["json-file", "none"]},
            **limits, "KernelMemoryTCP": False, "IPv4Forwarding": _forwarding(),
            "Debug": config.debug, "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": len(asyncio.all_tasks()), "SystemTime": timefmt.now(),
            "LoggingDriver": config.log_driver,
            "CgroupDriver": "systemd" if config.systemd_cgroups else "cgroupfs",
            "CgroupVersion": "2" if self.manager.unified else "1",
            "NEventsListener": self.ctx.events.listeners, "KernelVersion": os.uname().release,
            "OperatingSystem": _os_release("PRETTY_NAME") or "Linux",
            "OSVersion": _os_release("VERSION_ID"), "OSType": "linux", "Architecture":
            platform.machine(), "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": _registries(config), "NCPU": os.cpu_count() or 1,
            "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "GenericResources": None, "DockerRootDir": config.data_root, "HttpProxy": "",
            "HttpsProxy": "", "NoProxy": "", "Name": os.uname().nodename,
            "Labels": config.labels, "ExperimentalBuild": False, "ServerVersion": VERSION,
            "Runtimes": {name: {"path": r.path or name} for name, r in config.runtimes.items()},
            "DefaultRuntime": config.default_runtime,
            "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive",
                      "ControlAvailable": False, "Error": "", "RemoteManagers": None},
            "LiveRestoreEnabled": config.live_restore, "Isolation": "",
            "InitBinary": "docker-init", "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": ""},
            "InitCommit": {"ID": ""}, "SecurityOptions": security, "CDISpecDirs": [],
            "Containerd": {"Address": config.containerd_socket, "Namespaces": {
                "Containers": config.containerd_namespace, "Plugins": ""}},
            "DefaultAddressPools": [{"Base": p["base"], "Size": p["size"]}
                                    for p in config.default_address_pools],
            "FirewallBackend": {"Driver": "nftables" if config.iptables else "none"},
            "Warnings": [*_warnings(limits, self.manager.unified),
                         *self.manager.confinement.warnings, *self.ctx.network.warnings],
        })

    async def events(self, request: web.Request) -> web.StreamResponse:
        filters = filtering.parse(request.query.get("filters"), bus.FILTERS)
        # "0" is no time for logs, and the beginning here
        since = 0 if request.query.get("since") == "0" else timefmt.parse_point(
            request.query.get("since"))
        until = timefmt.parse_point(request.query.get("until"))
        if since is not None and until is not None and since > until:
            raise errdefs.InvalidParameter("`since` time cannot be after `until` time")
        response = web.StreamResponse(headers={"Content-Type": "application/json",
                                               **server.headers()})
        stream = self.ctx.events.listen(filters, since, until)
        # the listener exists from here on: nothing is missed while the head is sent
        first = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            try:
                event = await first
                while event is not None:
                    await response.write(jsonio.encode(event) + b"\n")
                    event = await anext(stream, None)
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await stream.aclose()  # type: ignore[attr-defined]
        return response

    async def df(self, request: web.Request) -> web.Response:
        kinds = set(request.query.getall("type", []))
        unknown = kinds - {"container", "image", "volume", "build-cache"}
        if unknown:
            raise errdefs.InvalidParameter(f"unknown object type: {sorted(unknown)[0][:40]}")

        def wanted(kind: str) -> bool:
            return not kinds or kind in kinds

        result: dict[str, Any] = {}
        if wanted("image"):
            result["LayersSize"] = await self.ctx.images.layers_size()
            result["Images"] = await self.ctx.images.summaries(all_images=False)
        if wanted("container"):
            result["Containers"] = await self._containers()
        if wanted("volume"):
            result["Volumes"] = await self.ctx.volumes.summaries()
        if wanted("build-cache"):
            result["BuildCache"] = []
        return jsonio.response(result)

    async def _containers(self) -> list[dict[str, Any]]:
        images = {r.get("Id"): int(r.get("Size") or 0)
                  for r in await self.ctx.images.summaries(all_images=True)}

        async def one(container: Any) -> dict[str, Any]:
            row = views.summary(self.manager, container)
            try:
                written = await self.manager.tasks.usage(container.id)
            except errdefs.CarrelError:
                written = 0
            row["SizeRw"] = written
            row["SizeRootFs"] = written + images.get(container.image_id, 0)
            return row

        return list(await asyncio.gather(*map(one, self.manager.all())))


def _arch() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _forwarding() -> bool:
    try:
        with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as f:
            return f.read().strip() == "1"
    except OSError:
        return False


def _os_release(key: str) -> str:
    try:
        return platform.freedesktop_os_release().get(key, "")
    except OSError:
        return ""


def _limits(unified: bool) -> dict[str, bool]:
    """What the kernel can limit here."""
    controllers = _controllers(unified)
    memory, cpu = "memory" in controllers, "cpu" in controllers
    return {
        "MemoryLimit": memory, "SwapLimit": memory and _swap(unified),
        "CpuCfsPeriod": cpu, "CpuCfsQuota": cpu, "CPUShares": cpu,
        "CPUSet": "cpuset" in controllers, "PidsLimit": "pids" in controllers,
        "OomKillDisable": memory and not unified,
        "BridgeNfIptables": True, "BridgeNfIp6tables": True,
    }


def _controllers(unified: bool) -> set[str]:
    if unified:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as f:
            return set(f.read().split())
    with open("/proc/cgroups", encoding="ascii") as f:
        rows = [line.split() for line in f if not line.startswith("#")]
    return {r[0] for r in rows if len(r) > 3 and r[3] == "1"}


def _swap(unified: bool) -> bool:
    return unified or os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")


_IO = {True: ("io.weight", "io.weight (per device)", "io.max (rbps)", "io.max (wbps)",
              "io.max (riops)", "io.max (wiops)"),
       False: tuple(f"blkio throttle.{kind}_device" for kind in (
           "read_bps", "write_bps", "read_iops", "write_iops"))}


def _warnings(limits: dict[str, bool], unified: bool) -> list[str]:
    """In Docker's words. What no kernel of a version has is not worth one."""
    names = {"MemoryLimit": "memory limit", "SwapLimit": "swap limit",
             "CpuCfsQuota": "cpu cfs quota", "CpuCfsPeriod": "cpu cfs period",
             "CPUShares": "cpu shares", "CPUSet": "cpuset", "PidsLimit": "pids limit"}
    missing = [text for key, text in names.items() if not limits[key]]
    if ("io" if unified else "blkio") not in _controllers(unified):
        missing += _IO[unified]
    return [f"WARNING: No {text} support" for text in missing] + (
        [] if _forwarding() else ["WARNING: IPv4 forwarding is disabled"])


def _registries(config: Any) -> dict[str, Any]:
    insecure = ["::1/128", "127.0.0.0/8"]
    hosts = {h: {"Name": h, "Mirrors": [], "Secure": False, "Official": False}
             for h in config.insecure_registries if "/" not in h}
    hosts["docker.io"] = {"Name": "docker.io", "Mirrors": list(config.registry_mirrors),
                          "Secure": True, "Official": True}
    return {"InsecureRegistryCIDRs": insecure + [h for h in config.insecure_registries
                                                 if "/" in h],
            "IndexConfigs": hosts, "Mirrors": list(config.registry_mirrors)}


