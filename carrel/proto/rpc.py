"""One typed interface, two transports, for everything between engine and containerd layer.

The interface is the service definitions in this folder.  A *servicer* is an
object with one coroutine (or async generator) per method of its service, named
as in the ``.proto``, taking and giving the message types:

* unary              ``async def Get(self, request, context) -> Response``
* server streaming   ``def List(self, request, context) -> AsyncIterator[Response]``
* client streaming   ``async def Put(self, requests: AsyncIterator, context) -> Response``
* bidirectional      ``def Write(self, requests: AsyncIterator, context) -> AsyncIterator``

It raises :mod:`carrel.errdefs` errors; the edge turns them into gRPC statuses
and back.  A client writes ``await client.images.Get(request)``; the transport
underneath is a direct call (:class:`LocalTransport`) or gRPC
(:class:`carrel.proto.grpc.GrpcTransport`, also to a real containerd).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Protocol

from google.protobuf.message_factory import GetMessageClass

from carrel import errdefs

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

Servicers = Iterable[tuple[ModuleType, str, object]]


class Context:
    """What travels beside a request: namespace, lease, deadline-free metadata."""

    __slots__ = ("metadata",)

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        self.metadata = dict(metadata or {})

    @property
    def namespace(self) -> str:
        """The containerd namespace; most calls refuse to work without one."""
        name = self.metadata.get(NAMESPACE_HEADER, "")
        if not name:
            raise errdefs.Conflict("namespace is required")
        return name

    @property
    def lease(self) -> str:
        return self.metadata.get(LEASE_HEADER, "")


class Method:
    """One method of a service, with its message classes."""

    __slots__ = ("client_streams", "name", "path", "request", "response", "server_streams")

    def __init__(self, service: Any, descriptor: Any) -> None:
        self.name: str = descriptor.name
        self.path = f"/{service.full_name}/{descriptor.name}"
        self.request: Any = GetMessageClass(descriptor.input_type)
        self.response: Any = GetMessageClass(descriptor.output_type)
        self.client_streams: bool = descriptor.client_streaming
        self.server_streams: bool = descriptor.server_streaming


def methods(module: ModuleType, service: str) -> dict[str, Method]:
    """The methods of one service of a generated module, by name."""
    descriptor = module.DESCRIPTOR.services_by_name[service]
    return {m.name: Method(descriptor, m) for m in descriptor.methods}


# --- client side -----------------------------------------------------------


class Transport(Protocol):
    """Carries calls to servicers, near or far."""

    async def unary(self, method: Method, request: Any, metadata: dict[str, str],
                    timeout: float | None) -> Any: ...

    def stream(self, method: Method, request: Any, metadata: dict[str, str],
               timeout: float | None) -> AsyncIterator[Any]: ...

    def close(self) -> None: ...


#: told of every unary call of this task: (path, request, start in monotonic ns, failed)
OBSERVER: ContextVar[Callable[[str, Any, int, bool], None] | None] = ContextVar(
    "observer", default=None)


class LocalTransport:
    """Straight into servicers of the same process."""

    def __init__(self, servicers: Servicers) -> None:
        self._implementations: dict[str, Any] = {}
        for module, service, servicer in servicers:
            for method in methods(module, service).values():
                self._implementations[method.path] = getattr(servicer, method.name, None)

    def _find(self, method: Method) -> Any:
        implementation = self._implementations.get(method.path)
        if implementation is None:
            raise errdefs.NotImplementedYet(f"{method.path} is not built in carrel-containerd")
        return implementation

    async def unary(self, method: Method, request: Any, metadata: dict[str, str],
                    timeout: float | None = None) -> Any:
        call = self._find(method)(request, Context(metadata))
        if timeout is None:
            return await call
        try:
            return await asyncio.wait_for(call, timeout)
        except TimeoutError as error:
            raise errdefs.DeadlineExceeded(f"{method.path}: no answer in {timeout} s") from error

    async def stream(self, method: Method, request: Any, metadata: dict[str, str],
                     timeout: float | None = None) -> AsyncIterator[Any]:
        async for message in self._find(method)(request, Context(metadata)):
            yield message

    def close(self) -> None:
        pass


async def _observed(observer: Callable[[str, Any, int, bool], None], path: str, request: Any,
                    sent: Awaitable[Any]) -> Any:
    begin = time.monotonic_ns()
    failed = True
    try:
        answer = await sent
        failed = False
        return answer
    finally:
        observer(path, request, begin, failed)


class Service:
    """Client of one service: ``await service.Get(request)``, ``async for x in service.List(r)``."""

    def __init__(self, transport: Transport, module: ModuleType, service: str,
                 metadata: Mapping[str, str]) -> None:
        self._transport = transport
        self._metadata = dict(metadata)
        self._methods = methods(module, service)

    def __getattr__(self, name: str) -> Any:
        try:
            method = self._methods[name]
        except KeyError:
            raise AttributeError(name) from None
        transport, base = self._transport, self._metadata
        def call(request: Any, *, lease: str = "", timeout: float | None = None) -> Any:
            metadata = {**base, LEASE_HEADER: lease} if lease else base
            if method.server_streams:
                return transport.stream(method, request, metadata, timeout)
            observer = OBSERVER.get()
            sent = transport.unary(method, request, metadata, timeout)
            return sent if observer is None else _observed(observer, method.path, request, sent)

        setattr(self, name, call)
        return call
