"""Streams that two calls share: no message is lost, no task is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from carrel import errdefs
from carrel.containerd.streaming import _WINDOW, Stream, StreamingService, StreamManager, _drain
from carrel.proto import streaming_pb2
from carrel.proto.rpc import NAMESPACE_HEADER, Context


def message(text: str) -> AnyMessage:
    return AnyMessage(type_url=text)


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_what_was_sent_before_closing_arrives() -> None:
    stream = Stream("s")
    seen: list[str] = []

    async def read() -> None:
        seen.extend([m.type_url async for m in _drain(stream)])

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0.01)
    for number in range(5):
        await stream.send(message(str(number)))
    stream.close()
    await asyncio.wait_for(reading, 20)
    assert seen == ["0", "1", "2", "3", "4"]
    assert others() == set()


async def test_cancelling_leaves_no_task() -> None:
    stream = Stream("s")
    full = Stream("full")
    for _ in range(_WINDOW):
        await full.send(message("x"))
    waiting = [asyncio.ensure_future(stream.receive()),
               asyncio.ensure_future(anext(_drain(stream))),
               asyncio.ensure_future(full.send(message("y")))]
    await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert others() == set()


async def test_a_closed_stream_wakes_both_sides() -> None:
    stream = Stream("s")
    for _ in range(_WINDOW):
        await stream.send(message("x"))
    sending = asyncio.ensure_future(stream.send(message("y")))
    receiving = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0.01)
    stream.close()
    assert await asyncio.wait_for(receiving, 20) is None
    with pytest.raises(errdefs.Cancelled):
        await asyncio.wait_for(sending, 20)


async def test_a_client_that_floods_and_goes_leaves_nothing() -> None:
    """Nobody reads what it sends: its queue is full when the call ends."""
    manager = StreamManager()

    async def requests() -> AsyncIterator[AnyMessage]:
        init = AnyMessage()
        init.Pack(streaming_pb2.StreamInit(id="s"))
        yield init
        for number in range(3 * _WINDOW):
            yield message(str(number))

    context = Context({NAMESPACE_HEADER: "n"})
    answers = StreamingService(manager).Stream(requests(), context)
    await anext(answers)
    await asyncio.sleep(0.01)
    stream = manager.find("n", "s")
    assert stream.incoming.full()
    await answers.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert others() == set()
    assert stream.closed.is_set()
    with pytest.raises(errdefs.NotFound):
        manager.find("n", "s")
