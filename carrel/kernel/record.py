"""The record of what was done to the kernel, and why.

Every call that changes or asks the kernel for something on a container's
behalf passes through :func:`carrel.kernel.libc.call` or :func:`note`, and is
appended to the active :class:`Recorder`, if there is one.  With no recorder
the cost is one global load and one comparison.

A record is one tuple ``(step, call, args, result, errno, start_ns, ns)``:

* ``step``   -- which part of the story this call served, e.g. ``"5 process"``
* ``call``   -- the name in the man page, or ``"write"``, ``"netlink"``, ``"nft"``
* ``args``   -- tuple of printable arguments, symbolic where that helps
* ``result`` -- what the call returned, ``None`` on error
* ``errno``  -- 0, or the errno
* ``start_ns``, ``ns`` -- ``time.monotonic_ns()`` at entry, and the duration

This module imports nothing but ``time``: it lives in the runtime's hot path.
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    Record = tuple[str, str, tuple[object, ...], object, int, int, int]


class Recorder:
    """Collects records; bounded, so that a long life cannot eat memory."""

    __slots__ = ("dropped", "limit", "records")

    def __init__(self, limit: int = 4096) -> None:
        self.records: list[Record] = []
        self.limit = limit
        self.dropped = 0

    def add(self, record: Record) -> None:
        if len(self.records) < self.limit:
            self.records.append(record)
        else:
            self.dropped += 1


active: Recorder | None = None
current_step = ""


class step:  # noqa: N801  (reads as a statement: ``with step("2 mounts"):``)
    """Name the step of the story that the calls inside serve."""

    __slots__ = ("name", "previous")

    def __init__(self, name: str) -> None:
        self.name = name
        self.previous = ""

    def __enter__(self) -> None:
        global current_step
        self.previous = current_step
        current_step = self.name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global current_step
        if error is not None and not getattr(error, "carrel_step", ""):
            error.carrel_step = self.name  # type: ignore[attr-defined]
        current_step = self.previous


def start(limit: int = 4096) -> Recorder:
    """Begin recording in this process; the recorder is returned."""
    global active
    active = Recorder(limit)
    return active


def stop() -> None:
    """Stop recording in this process."""
    global active
    active = None


def note(call: str, args: tuple[object, ...], result: object = None, errno: int = 0,
         start_ns: int = 0) -> None:
    """Record a call that did not go through ``libc.call`` (a file write, a
    netlink message, an nft transaction, a call of Python's ``os``)."""
    if active is not None:
        now = monotonic_ns()
        active.add((current_step, call, args, result, errno, start_ns or now,
                    now - start_ns if start_ns else 0))
