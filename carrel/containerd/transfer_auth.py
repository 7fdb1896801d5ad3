"""Credentials of a transfer: asked from the client over its auth stream."""

from __future__ import annotations

import asyncio

from carrel import errdefs
from carrel.containerd.events import pack_event
from carrel.containerd.streaming import StreamManager
from carrel.proto import transfer_registry_pb2
from carrel.registry.auth import Asker
from carrel.registry.client import Credential

_SECONDS = 10.0


def asker(streams: StreamManager, namespace: str, name: str) -> Asker:
    """A function that asks the client; without a stream everybody is anonymous."""
    lock = asyncio.Lock()
    answers: dict[str, Credential] = {}

    async def ask(host: str, reference: str, challenges: list[str]) -> Credential:
        if not name:
            return Credential()
        async with lock:    # one question at a time: answers carry no number
            if host not in answers:
                stream = await streams.get(namespace, name)
                await stream.send(pack_event(transfer_registry_pb2.AuthRequest(
                    host=host, reference=reference, wwwauthenticate=challenges)))
                try:
                    message = await asyncio.wait_for(stream.receive(), _SECONDS)
                except TimeoutError:
                    raise errdefs.Unauthorized(
                        f"the client gave no credentials for {host}") from None
                if message is None or not message.type_url.endswith(".AuthResponse"):
                    raise errdefs.Unauthorized(f"the client gave no credentials for {host}")
                answers[host] = _credential(
                    transfer_registry_pb2.AuthResponse.FromString(message.value))
            return answers[host]

    return ask


def _credential(response: transfer_registry_pb2.AuthResponse) -> Credential:
    if response.authType == transfer_registry_pb2.CREDENTIALS:
        return Credential(response.username, response.secret)
    if response.authType == transfer_registry_pb2.REFRESH:
        return Credential(response.username, identity_token=response.secret)
    if response.authType == transfer_registry_pb2.HEADER:
        return Credential(registry_token=response.secret)
    return Credential()
