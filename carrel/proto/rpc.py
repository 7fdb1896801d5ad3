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
underneath is gRPC (:class:`GrpcTransport`, the default, also to a real
containerd) or a direct call (:class:`LocalTransport`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Protocol

from google.protobuf.message_factory import GetMessageClass
from grpclib.client import (
    Channel,
    StreamStreamMethod,
    StreamUnaryMethod,
    UnaryStreamMethod,
    UnaryUnaryMethod,
)
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Server

from carrel import errdefs

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"
#: window sizes that let a blob pass without a round trip per 64 KiB
_CONFIG = Configuration(
    http2_connection_window_size=16 << 20, http2_stream_window_size=8 << 20,
)


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

    __slots__ = ("cardinality", "name", "path", "request", "response")

    def __init__(self, service: Any, descriptor: Any) -> None:
        self.name: str = descriptor.name
        self.path = f"/{service.full_name}/{descriptor.name}"
        self.request: Any = GetMessageClass(descriptor.input_type)
        self.response: Any = GetMessageClass(descriptor.output_type)
        self.cardinality = {
            (False, False): Cardinality.UNARY_UNARY,
            (False, True): Cardinality.UNARY_STREAM,
            (True, False): Cardinality.STREAM_UNARY,
            (True, True): Cardinality.STREAM_STREAM,
        }[descriptor.client_streaming, descriptor.server_streaming]


def methods(module: ModuleType, service: str) -> dict[str, Method]:
    """The methods of one service of a generated module, by name."""
    descriptor = module.DESCRIPTOR.services_by_name[service]
    return {m.name: Method(descriptor, m) for m in descriptor.methods}


# --- server side -----------------------------------------------------------


class _Adapter:
    """Presents a servicer to grpclib."""

    def __init__(self, module: ModuleType, service: str, servicer: object) -> None:
        self._mapping: dict[str, Handler] = {}
        for method in methods(module, service).values():
            implementation = getattr(servicer, method.name, None)
            self._mapping[method.path] = Handler(
                self._handler(method, implementation), method.cardinality,
                method.request, method.response)

    @staticmethod
    def _handler(method: Method, implementation: Any) -> Any:
        async def handle(stream: Any) -> None:
            if implementation is None:
                raise GRPCError(Status.UNIMPLEMENTED,
                                f"{method.path} is not built in carrel-containerd")
            context = Context({k: v for k, v in stream.metadata.items() if isinstance(v, str)})
            try:
                if method.cardinality is Cardinality.UNARY_UNARY:
                    await stream.send_message(
                        await implementation(await stream.recv_message(), context))
                elif method.cardinality is Cardinality.UNARY_STREAM:
                    async for message in implementation(await stream.recv_message(), context):
                        await stream.send_message(message)
                elif method.cardinality is Cardinality.STREAM_UNARY:
                    await stream.send_message(await implementation(aiter(stream), context))
                else:
                    async for message in implementation(aiter(stream), context):
                        await stream.send_message(message)
            except errdefs.CarrelError as error:
                raise GRPCError(Status(error.grpc_code), error.message) from error
            except OSError as error:
                raise GRPCError(Status.INTERNAL, str(error)) from error

        return handle

    def __mapping__(self) -> dict[str, Handler]:
        return self._mapping


Servicers = Iterable[tuple[ModuleType, str, object]]


def server(servicers: Servicers) -> Server:
    """A grpclib server of ``(generated module, service name, servicer)`` triples."""
    return Server([_Adapter(*triple) for triple in servicers], config=_CONFIG)


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


def _carrel_error(error: GRPCError) -> errdefs.CarrelError:
    kind = errdefs.BY_GRPC_CODE.get(error.status.value, errdefs.SystemFailure)
    return kind(error.message or error.status.name)


class GrpcTransport:
    """Over a unix socket, to ``carrel-containerd`` or a real containerd."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel = Channel(path=path, config=_CONFIG)

    def _unreachable(self, error: BaseException) -> errdefs.Unavailable:
        return errdefs.Unavailable(f"containerd at {self._path} does not answer: {error}")

    async def unary(self, method: Method, request: Any, metadata: dict[str, str],
                    timeout: float | None = None) -> Any:
        kind = (UnaryUnaryMethod if method.cardinality is Cardinality.UNARY_UNARY
                else StreamUnaryMethod)
        call = kind(self._channel, method.path, method.request, method.response)
        try:
            if kind is StreamUnaryMethod:
                async with call.open(metadata=metadata, timeout=timeout) as stream:
                    async for message in request:
                        await stream.send_message(message)
                    await stream.end()
                    return await stream.recv_message()
            return await call(request, metadata=metadata, timeout=timeout)
        except GRPCError as error:
            raise _carrel_error(error) from None
        except TimeoutError as error:  # an OSError, too
            raise errdefs.DeadlineExceeded(f"{method.path}: no answer in {timeout} s") from error
        except (OSError, StreamTerminatedError) as error:
            raise self._unreachable(error) from error

    async def stream(self, method: Method, request: Any, metadata: dict[str, str],
                     timeout: float | None = None) -> AsyncIterator[Any]:
        try:
            if method.cardinality is Cardinality.UNARY_STREAM:
                call: Any = UnaryStreamMethod(
                    self._channel, method.path, method.request, method.response)
                async with call.open(metadata=metadata, timeout=timeout) as stream:
                    await stream.send_message(request, end=True)
                    async for message in stream:
                        yield message
                return
            call = StreamStreamMethod(
                self._channel, method.path, method.request, method.response)
            async with call.open(metadata=metadata, timeout=timeout) as stream:
                # the feeder has not run when the first answer is asked for
                await stream.send_request()

                async def feed() -> None:
                    async for message in request:
                        await stream.send_message(message)
                    await stream.end()

                feeder = asyncio.ensure_future(feed())
                whole = False
                try:
                    async for message in stream:
                        yield message
                    whole = feeder.done()
                finally:
                    feeder.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await feeder
                    if not whole:  # either side stopped early: tell the server so
                        with contextlib.suppress(Exception):
                            await stream.cancel()
        except GRPCError as error:
            raise _carrel_error(error) from None
        except (OSError, StreamTerminatedError) as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        self._channel.close()


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
        streaming = method.cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)

        def call(request: Any, *, lease: str = "", timeout: float | None = None) -> Any:
            metadata = {**base, LEASE_HEADER: lease} if lease else base
            if streaming:
                return transport.stream(method, request, metadata, timeout)
            observer = OBSERVER.get()
            sent = transport.unary(method, request, metadata, timeout)
            return sent if observer is None else _observed(observer, method.path, request, sent)

        setattr(self, name, call)
        return call
