"""The deletion that a foreign shim does not tell is told for it, once."""

from __future__ import annotations

import asyncio

from carrel.containerd.events import EventBus, pack_event
from carrel.containerd.farewell import TOPIC, Farewells, deletion
from carrel.proto import event_types_pb2

EVENT = deletion("c", 7, 3, 5)


async def _told(*, by_shim: bool, late: bool = False) -> list[str]:
    bus = EventBus()
    bus.attach()
    seen = bus.subscribe()
    farewells = Farewells(bus)
    token = farewells.expect("n", "c")
    closing = asyncio.ensure_future(farewells.close("n", EVENT, token))
    if late:
        await asyncio.sleep(0.03)
    if by_shim:
        envelope = event_types_pb2.Envelope(namespace="n", topic=TOPIC, event=pack_event(EVENT))
        farewells.heard(envelope)
        bus.forward(envelope)
    await closing
    bus.close()
    return [envelope.topic async for envelope in seen]


async def test_what_the_shim_told_is_not_told_again() -> None:
    assert await _told(by_shim=True) == [TOPIC]
    assert await _told(by_shim=True, late=True) == [TOPIC]


async def test_what_it_took_along_is_told() -> None:
    assert await _told(by_shim=False) == [TOPIC]


async def test_another_tasks_event_is_another() -> None:
    farewells = Farewells(EventBus())
    old = farewells.expect("n", "c")
    farewells.expect("n", "c")      # the same id again
    await farewells.close("n", EVENT, old)
    farewells.heard(event_types_pb2.Envelope(namespace="other", topic=TOPIC,
                                             event=pack_event(EVENT)))
    farewells.forget("n", "c")
