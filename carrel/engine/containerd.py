"""The engine's client of the containerd layer: services by name, over either transport."""

from __future__ import annotations

import importlib
from typing import Any

from carrel.proto.rpc import NAMESPACE_HEADER, Service, Transport

#: attribute -> (generated module, service)
_SERVICES = {
    "containers": ("containers_pb2", "Containers"),
    "content": ("content_pb2", "Content"),
    "diff": ("diff_pb2", "Diff"),
    "events": ("events_pb2", "Events"),
    "images": ("images_pb2", "Images"),
    "introspection": ("introspection_pb2", "Introspection"),
    "leases": ("leases_pb2", "Leases"),
    "namespaces": ("namespaces_pb2", "Namespaces"),
    "snapshots": ("snapshots_pb2", "Snapshots"),
    "streaming": ("streaming_pb2", "Streaming"),
    "tasks": ("tasks_pb2", "Tasks"),
    "transfer": ("transfer_pb2", "Transfer"),
    "version": ("version_pb2", "Version"),
}


class Client:
    """``await client.tasks.Start(request)``; a service is loaded at its first use."""

    containers: Any
    content: Any
    diff: Any
    events: Any
    images: Any
    introspection: Any
    leases: Any
    namespaces: Any
    snapshots: Any
    streaming: Any
    tasks: Any
    transfer: Any
    version: Any

    def __init__(self, transport: Transport, namespace: str) -> None:
        self.transport = transport
        self.namespace = namespace

    def __getattr__(self, name: str) -> Any:
        try:
            module, service = _SERVICES[name]
        except KeyError:
            raise AttributeError(name) from None
        client = Service(self.transport, importlib.import_module(f"carrel.proto.{module}"),
                         service, {NAMESPACE_HEADER: self.namespace})
        setattr(self, name, client)
        return client

    def close(self) -> None:
        self.transport.close()
