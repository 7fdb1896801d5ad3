"""The typed interface of :mod:`carrel.proto.rpc` over gRPC: server and client.

A module of its own: an engine with the containerd layer in its process loads nothing of
HTTP/2 until somebody else wants to be served.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

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
from carrel.proto.rpc import Context, Method, Servicers, methods

#: window sizes that let a blob pass without a round trip per 64 KiB
_CONFIG = Configuration(
    http2_connection_window_size=16 << 20, http2_stream_window_size=8 << 20,
)
_CARDINALITY = {
    (False, False): Cardinality.UNARY_UNARY, (False, True): Cardinality.UNARY_STREAM,
    (True, False): Cardinality.STREAM_UNARY, (True, True): Cardinality.STREAM_STREAM}


def _cardinality(method: Method) -> Cardinality:
    return _CARDINALITY[method.client_streams, method.server_streams]


# --- server side -----------------------------------------------------------


class _Adapter:
    """Presents a servicer to grpclib."""

    def __init__(self, module: ModuleType, service: str, servicer: object) -> None:
        self._mapping: dict[str, Handler] = {}
        for method in methods(module, service).values():
            implementation = getattr(servicer, method.name, None)
            self._mapping[method.path] = Handler(
                self._handler(method, implementation), _cardinality(method),
                method.request, method.response)

    @staticmethod
    def _handler(method: Method, implementation: Any) -> Any:
        cardinality = _cardinality(method)

        async def handle(stream: Any) -> None:
            if implementation is None:
                raise GRPCError(Status.UNIMPLEMENTED,
                                f"{method.path} is not built in carrel-containerd")
            context = Context({k: v for k, v in stream.metadata.items() if isinstance(v, str)})
            try:
                if cardinality is Cardinality.UNARY_UNARY:
                    await stream.send_message(
                        await implementation(await stream.recv_message(), context))
                elif cardinality is Cardinality.UNARY_STREAM:
                    async for message in implementation(await stream.recv_message(), context):
                        await stream.send_message(message)
                elif cardinality is Cardinality.STREAM_UNARY:
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


def server(servicers: Servicers) -> Server:
    """A grpclib server of ``(generated module, service name, servicer)`` triples."""
    return Server([_Adapter(*triple) for triple in servicers], config=_CONFIG)


# --- client side -----------------------------------------------------------


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
        kind = StreamUnaryMethod if method.client_streams else UnaryUnaryMethod
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
            if not method.client_streams:
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
