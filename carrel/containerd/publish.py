"""``carrel-containerd publish``: what shims without ttrpc call to publish an event."""

from __future__ import annotations

import asyncio
import sys

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from carrel import errdefs
from carrel.proto import events_pb2, grpc, rpc

_TIMEOUT = 5.0


def publish(address: str, namespace: str, topic: str) -> int:
    """Read an ``Any`` from standard input and publish it."""
    try:
        event = AnyMessage.FromString(sys.stdin.buffer.read())
    except DecodeError as error:
        raise errdefs.InvalidParameter(f"publish: standard input is no Any message: {error}"
                                       ) from error
    asyncio.run(_publish(address, namespace, events_pb2.PublishRequest(topic=topic, event=event)))
    return 0


async def _publish(address: str, namespace: str, request: events_pb2.PublishRequest) -> None:
    transport = grpc.GrpcTransport(address)
    try:
        client = rpc.Service(transport, events_pb2, "Events", {rpc.NAMESPACE_HEADER: namespace})
        await client.Publish(request, timeout=_TIMEOUT)
    finally:
        transport.close()
