"""Events: what happened, to whoever asked.

One :class:`EventBus` per daemon.  A subscriber has a bounded queue; one that
does not read is cut off with an error instead of holding memory (or the
others) up.  Shims forward their events over ttrpc (``<address>.ttrpc``) or
gRPC; the layer publishes its own.
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.proto import event_types_pb2, events_pb2, ttrpc_events_pb2
from carrel.proto.rpc import Context

#: events that a subscriber may lag behind
_QUEUE_LIMIT = 4096


def pack_event(message: Message) -> AnyMessage:
    """Events carry the bare full name as type URL, as containerd's typeurl does."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Subscription:
    """One reader of the bus: ``async for envelope in subscription``."""

    def __init__(self, bus: EventBus, accept: filters.Filter | None) -> None:
        self._bus = bus
        self._accept = accept
        self._queue: asyncio.Queue[event_types_pb2.Envelope | None] = asyncio.Queue()
        self.lagging = False

    def offer(self, envelope: event_types_pb2.Envelope) -> None:
        if self._accept is not None and not self._accept(_lookup(envelope)):
            return
        if self._queue.qsize() >= _QUEUE_LIMIT:
            self.lagging = True
            self._bus.unsubscribe(self)
            self._queue.put_nowait(None)
            return
        self._queue.put_nowait(envelope)

    def close(self) -> None:
        self._bus.unsubscribe(self)
        self._queue.put_nowait(None)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> event_types_pb2.Envelope:
        envelope = await self._queue.get()
        if self.lagging:
            # at once, not after thousands of old events
            raise errdefs.Unavailable(
                f"subscriber is too slow: more than {_QUEUE_LIMIT} events behind",
                hint="subscribe again and read the present state")
        if envelope is None:
            raise StopAsyncIteration
        return envelope


class EventBus:
    """Publish and subscribe; :meth:`publish` may be called from any thread."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def attach(self) -> None:
        """Bind the bus to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def subscribe(self, wanted: Sequence[str] = ()) -> Subscription:
        accept = filters.compile_all(wanted) if wanted else None
        subscription = Subscription(self, accept)
        self._subscribers.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscribers.discard(subscription)

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Tell what happened; costs next to nothing when nobody listens."""
        if self._subscribers:
            self.forward(event_types_pb2.Envelope(
                timestamp=values.stamp(values.now()), namespace=namespace, topic=topic,
                event=pack_event(event)))

    def forward(self, envelope: event_types_pb2.Envelope) -> None:
        """Pass an event on as it is."""
        if self._loop is not None and threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._deliver, envelope)
        else:
            self._deliver(envelope)

    def _deliver(self, envelope: event_types_pb2.Envelope) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber.offer(envelope)

    def close(self) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber.close()


def _lookup(envelope: event_types_pb2.Envelope) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "namespace":
            return envelope.namespace, bool(envelope.namespace)
        if path[0] == "topic":
            return envelope.topic, bool(envelope.topic)
        if path[0] == "event" and len(path) > 1:
            return _event_field(envelope.event, path[1:])
        return "", False

    return find


def _event_field(event: AnyMessage, path: Sequence[str]) -> tuple[str, bool]:
    from google.protobuf import symbol_database

    try:
        found: Any = symbol_database.Default().GetSymbol(event.type_url.rsplit("/", 1)[-1])
    except KeyError:
        return "", False
    value: Any = found.FromString(event.value)
    for step in path:
        if isinstance(value, Message) and step in value.DESCRIPTOR.fields_by_name:
            value = getattr(value, step)
        else:
            return "", False
    if isinstance(value, str):
        return value, bool(value)
    return (str(value), True) if isinstance(value, int) else ("", False)


def _check_topic(topic: str) -> None:
    parts = topic.split("/")
    if len(parts) < 2 or parts[0]:
        raise errdefs.InvalidParameter(f'topic "{topic}" must start with \'/\'')
    for part in parts[1:]:
        values.check_identifier(part, "topic component")


def _check_envelope(envelope: event_types_pb2.Envelope) -> None:
    values.check_identifier(envelope.namespace, "event envelope namespace")
    _check_topic(envelope.topic)
    if not envelope.HasField("timestamp"):
        raise errdefs.InvalidParameter("timestamp must be set on forwarded event")


class EventsService:
    """``containerd.services.events.v1.Events``"""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def Publish(self, request: events_pb2.PublishRequest, context: Context) -> Empty:
        envelope = event_types_pb2.Envelope(
            timestamp=values.stamp(values.now()), namespace=context.namespace,
            topic=request.topic, event=request.event)
        _check_envelope(envelope)
        self._bus.forward(envelope)
        return Empty()

    async def Forward(self, request: events_pb2.ForwardRequest, context: Context) -> Empty:
        _check_envelope(request.envelope)
        self._bus.forward(request.envelope)
        return Empty()

    async def Subscribe(self, request: events_pb2.SubscribeRequest, context: Context,
                        ) -> AsyncIterator[event_types_pb2.Envelope]:
        subscription = self._bus.subscribe(request.filters)
        try:
            async for envelope in subscription:
                yield envelope
        finally:
            subscription.close()


class ShimEventsService:
    """``containerd.services.events.ttrpc.v1.Events``, for shims"""

    def __init__(self, bus: EventBus,
                 heard: Callable[[event_types_pb2.Envelope], None]) -> None:
        self._bus = bus
        self._heard = heard

    async def Forward(self, request: ttrpc_events_pb2.ForwardRequest, context: Context) -> Empty:
        _check_envelope(request.envelope)
        self._heard(request.envelope)
        self._bus.forward(request.envelope)
        return Empty()
