"""What happens, told to whoever listens; the last of it is remembered.

A slow listener does not hold up anybody: its queue is bounded, and a listener
that fell behind is disconnected, which its client sees as the end of the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from carrel.engine.filters import Filters

#: Docker remembers 256; compose and tests read back more in a burst.
HISTORY = 1024
QUEUE = 4096

#: names of filters that ``GET /events`` knows
FILTERS = frozenset({
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
    "scope", "secret", "service", "type", "volume",
})
Event = dict[str, Any]


class EventBus:
    """Publish and subscribe, in one event loop."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._listeners: set[asyncio.Queue[Event | None]] = set()

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def publish(self, kind: str, action: str, ident: str,
                attributes: Mapping[str, str] | None = None, scope: str = "local") -> None:
        """Tell of something that happened to ``kind`` (container, image...) ``ident``."""
        now = time.time_ns()
        attrs = dict(attributes or {})
        event: Event = {}
        if kind in ("container", "image"):  # fields of the oldest clients
            event["status"] = action
            event["id"] = ident
            if kind == "container" and "image" in attrs:
                event["from"] = attrs["image"]
        event.update({
            "Type": kind, "Action": action, "Actor": {"ID": ident, "Attributes": attrs},
            "scope": scope, "time": now // 1_000_000_000, "timeNano": now,
        })
        self._history.append(event)
        for queue in list(self._listeners):
            if queue.qsize() >= QUEUE:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    async def listen(self, filters: Filters, since_ns: int | None = None,
                     until_ns: int | None = None) -> AsyncIterator[Event]:
        """Events of the past since ``since_ns``, then those to come until ``until_ns``."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        past = list(self._history) if since_ns is not None else []
        self._listeners.add(queue)  # before the first yield: nothing falls in between
        try:
            for event in past:
                if event["timeNano"] >= (since_ns or 0) and (
                        until_ns is None or event["timeNano"] <= until_ns) and matches(
                        event, filters):
                    yield event
            while True:
                news = await _next(queue, until_ns)
                if news is None:
                    return
                if matches(news, filters):
                    yield news
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """End every stream."""
        for queue in list(self._listeners):
            queue.put_nowait(None)


async def _next(queue: asyncio.Queue[Event | None], until_ns: int | None) -> Event | None:
    if until_ns is None:
        return await queue.get()
    left = (until_ns - time.time_ns()) / 1e9
    if left <= 0:
        return None
    try:
        return await asyncio.wait_for(queue.get(), left)
    except TimeoutError:
        return None


def matches(event: Event, filters: Filters) -> bool:
    """Docker's rules: values of one name are alternatives, names must all match."""
    if not filters:
        return True
    kind, actor = event["Type"], event["Actor"]
    attributes = actor["Attributes"]
    action = event["Action"]
    if not (filters.match("type", kind) and filters.match("scope", event["scope"])
            and filters.match_labels(attributes)):
        return False
    if "event" in filters and action not in filters.get("event") and (
            action.split(":", 1)[0] not in filters.get("event")):
        return False
    names = {actor["ID"], attributes.get("name", "")}
    if kind == "container":
        names.add(attributes.get("name", "").lstrip("/"))
    for name in ("container", "image", "network", "volume", "daemon", "plugin",
                 "config", "secret", "service", "node"):
        wanted = filters.get(name)
        if not wanted:
            continue
        if name == "image" and kind == "container":
            if not any(_image_matches(w, attributes.get("image", "")) for w in wanted):
                return False
        elif name == kind:
            if not any(w in names or (len(w) >= 4 and actor["ID"].startswith(w))
                       for w in wanted) and not (name == "image" and any(
                           _image_matches(w, n) for w in wanted for n in names)):
                return False
        elif attributes.get(name) not in wanted:
            return False
    return True


def _image_matches(wanted: str, image: str) -> bool:
    return wanted == image or image.rsplit(":", 1)[0] == wanted
