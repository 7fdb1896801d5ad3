"""What this daemon is: version, identity, parts."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import os
from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters
from carrel.containerd.snapshots import NAME as OVERLAY
from carrel.containerd.snapshots import Snapshotter
from carrel.proto import introspection_pb2, platform_pb2, version_pb2
from carrel.proto.rpc import Context

#: Clients compare this with containerd's versions to know which services to
#: expect: 2.1 is the API that is spoken here.  What it really is stands behind
#: the "+", where semantic versioning ignores it.
VERSION = "2.1.0+carrel.0.1.0"
REVISION = "carrel"

_MACHINES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", "v8")}
_GRPC = ("containers", "content", "diff", "events", "images", "introspection", "leases",
         "namespaces", "snapshots", "streaming", "tasks", "transfer", "version")


def platform() -> platform_pb2.Platform:
    """The platform of this machine in the words of the image specification."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return platform_pb2.Platform(os="linux", architecture=architecture, variant=variant)


class VersionService:
    """``containerd.services.version.v1.Version``"""

    async def Version(self, request: Empty, context: Context) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version=VERSION, revision=REVISION)


class IntrospectionService:
    """``containerd.services.introspection.v1.Introspection``"""

    def __init__(self, uuid: str, snapshotter: Snapshotter) -> None:
        self._uuid = uuid
        self._plugins = _plugins(snapshotter)

    async def Plugins(self, request: introspection_pb2.PluginsRequest, context: Context,
                      ) -> introspection_pb2.PluginsResponse:
        accept = filters.compile_all(request.filters)
        return introspection_pb2.PluginsResponse(
            plugins=[plugin for plugin in self._plugins if accept(_lookup(plugin))])

    async def Server(self, request: Empty, context: Context) -> introspection_pb2.ServerResponse:
        return introspection_pb2.ServerResponse(
            uuid=self._uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def PluginInfo(self, request: introspection_pb2.PluginInfoRequest, context: Context,
                         ) -> introspection_pb2.PluginInfoResponse:
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (request.type, request.id):
                if request.HasField("options"):
                    raise errdefs.NotImplementedYet(
                        f"plugin {plugin.type}.{plugin.id} gives no further information")
                return introspection_pb2.PluginInfoResponse(plugin=plugin)
        raise errdefs.NotFound(f"plugin {request.type}.{request.id}: not found")


def _plugins(snapshotter: Snapshotter) -> list[introspection_pb2.Plugin]:
    here = [platform()]
    made = [
        introspection_pb2.Plugin(type="io.containerd.content.v1", id="content"),
        introspection_pb2.Plugin(
            type="io.containerd.snapshotter.v1", id=OVERLAY, platforms=here,
            exports={"root": os.path.dirname(snapshotter.directories.root)},
            capabilities=["rebase"]),
        introspection_pb2.Plugin(type="io.containerd.metadata.v1", id="sqlite"),
        introspection_pb2.Plugin(type="io.containerd.gc.v1", id="scheduler"),
        introspection_pb2.Plugin(type="io.containerd.runtime.v2", id="task", platforms=here),
        introspection_pb2.Plugin(type="io.containerd.differ.v1", id="walking", platforms=here),
        introspection_pb2.Plugin(type="io.containerd.streaming.v1", id="manager"),
        introspection_pb2.Plugin(type="io.containerd.transfer.v1", id="local"),
    ]
    made += [introspection_pb2.Plugin(type="io.containerd.grpc.v1", id=name) for name in _GRPC]
    return made


def _lookup(plugin: introspection_pb2.Plugin) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "type":
            return plugin.type, bool(plugin.type)
        if path[0] == "id":
            return plugin.id, bool(plugin.id)
        if path[0] == "capabilities":
            value = ",".join(plugin.capabilities)
            return value, bool(value)
        return "", False

    return find
