"""The event of a task's deletion, which a foreign shim may take with it.

containerd's shim ends as soon as it is told to, and does not always wait for the event that
it was about to send.  Who follows the events counts on it: what a shim has not told by its
end is told for it.
"""

from __future__ import annotations

import asyncio

from carrel.containerd import values
from carrel.containerd.events import EventBus
from carrel.proto import event_types_pb2, task_events_pb2

TOPIC = "/tasks/delete"
#: seconds after a shim's end, for what it has sent by then to be read
_GRACE = 0.2


class Farewells:
    """Which shims have yet to tell of a deletion."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._expected: dict[tuple[str, str], object] = {}

    def expect(self, namespace: str, name: str) -> object:
        """Before the shim is asked to delete; the token is for :meth:`close`."""
        token = self._expected[namespace, name] = object()
        return token

    def heard(self, envelope: event_types_pb2.Envelope) -> None:
        """A shim has told something."""
        if self._expected and envelope.topic == TOPIC:
            event = task_events_pb2.TaskDelete.FromString(envelope.event.value)
            self._expected.pop((envelope.namespace, event.container_id), None)

    def forget(self, namespace: str, name: str) -> None:
        self._expected.pop((namespace, name), None)

    async def close(self, namespace: str, event: task_events_pb2.TaskDelete, token: object,
                    ) -> None:
        """After the shim's end: tell of the deletion, unless it did."""
        key = namespace, event.container_id
        if self._expected.get(key) is token:
            await asyncio.sleep(_GRACE)
        if self._expected.get(key) is token:
            del self._expected[key]
            self._events.publish(namespace, TOPIC, event)


def deletion(name: str, pid: int, status: int, at: int) -> task_events_pb2.TaskDelete:
    """``at`` in nanoseconds."""
    return task_events_pb2.TaskDelete(container_id=name, pid=pid, exit_status=status,
                                      exited_at=values.stamp(at))
