"""The shim's poll loop: one thread, epoll, timers, and answers that come later.

Handlers must not block.  What takes time (another runtime's program, the exit
of a process) is awaited by a generator that yields a :class:`Later`.
"""

from __future__ import annotations

import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    #: a piece of work that may wait: yields what it waits for, gets its value back
    Work = Generator["Later", Any, Any]

#: how long a descriptor is left alone whose handler failed
FAILED_REST_SECONDS = 1.0

IN, OUT, HUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR


class Later:
    """A value that will be there later; exactly one of resolve and fail happens."""

    __slots__ = ("_callbacks", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[Later], None]] = []

    def resolve(self, value: Any = None) -> None:
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        self._finish(None, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            return
        self.done = True
        self.value = value
        self.error = error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def then(self, callback: Callable[[Later], None]) -> None:
        """Call back once the value is there, at once if it is already."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)


def run(work: Work) -> Later:
    """Drive a generator to its end; the result comes out of the returned Later."""
    result = Later()

    def step(previous: Later | None) -> None:
        while True:
            try:
                if previous is not None and previous.error is not None:
                    waited = work.throw(previous.error)
                else:
                    waited = work.send(None if previous is None else previous.value)
            except StopIteration as stop:
                result.resolve(stop.value)
                return
            except Exception as error:
                result.fail(error)
                return
            if not waited.done:
                waited.then(step)
                return
            previous = waited

    step(None)
    return result


class Lock:
    """Turns for generators: ``yield from lock.acquire()`` ... ``lock.release()``."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Later] = []

    def acquire(self) -> Work:
        if self._held:
            turn = Later()
            self._waiting.append(turn)
            yield turn
        self._held = True

    def release(self) -> None:
        if self._waiting:
            self._waiting.pop(0).resolve()
        else:
            self._held = False


class Timer:
    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """epoll, a few timers (a plain list: there are never many), and what is due next."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._soon: list[Callable[[], None]] = []
        self._running = True
        self.on_error: Callable[[Exception], None] | None = None

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor; call it before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run it after the events at hand were handled."""
        self._soon.append(callback)

    def sleep(self, seconds: float) -> Later:
        later = Later()
        self.call_later(seconds, later.resolve)
        return later

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            self.turn()

    def turn(self) -> None:
        """One round: wait, handle events, then timers, then what was put off."""
        for fd, events in self._epoll.poll(self._timeout(), 64):
            handler = self._handlers.get(fd)
            if handler is not None and not self._guard(handler, events):
                self._rest(fd, handler)
        if self._timers:
            now = monotonic()
            due = [t for t in self._timers if t.when <= now or t.callback is None]
            if due:
                self._timers = [t for t in self._timers if t not in due]
                for timer in sorted(due, key=lambda t: t.when):
                    if timer.callback is not None:
                        self._guard(timer.callback)
        while self._soon:
            callbacks, self._soon = self._soon, []
            for callback in callbacks:
                self._guard(callback)

    def _timeout(self) -> float:
        if self._soon:
            return 0.0
        live = [t.when for t in self._timers if t.callback is not None]
        return max(0.0, min(live) - monotonic()) if live else -1.0

    def _guard(self, callback: Callable[..., None], *args: object) -> bool:
        """An error in one handler is reported; it does not end the container's parent."""
        try:
            callback(*args)
        except Exception as error:
            if self.on_error is None:
                raise
            self.on_error(error)
            return False
        return True

    def _rest(self, fd: int, handler: Callable[[int], None]) -> None:
        """Its event is still there: without a pause the loop would only serve this one."""
        if self._handlers.get(fd) is handler:
            self._epoll.modify(fd, 0)
            self.call_later(FAILED_REST_SECONDS, lambda: self._again(fd, handler))

    def _again(self, fd: int, handler: Callable[[int], None]) -> None:
        if self._handlers.get(fd) is handler:
            self._epoll.modify(fd, IN)

    def close(self) -> None:
        self._epoll.close()
