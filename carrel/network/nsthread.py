"""The one thread of ``carreld`` that enters network namespaces.

Why this is safe: a network namespace is an attribute of a *thread* (``unshare`` and ``setns``
act on the caller only), and nothing but the jobs given to :meth:`NamespaceThread.run` ever runs on
this one.  The event loop's thread never leaves the host's namespace.  A job that needs something
opened inside a namespace gets a socket; a socket keeps the namespace it was opened in, so it is
used from anywhere.  A job that cannot get back ends the thread instead of doing the next job in the
wrong place; the next ``run`` fails loudly.

The same thread does all netlink work: requests wait for the kernel's RTNL lock, which the teardown
of other namespaces holds for milliseconds, and the event loop must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from carrel import errdefs
from carrel.kernel import netlink, netns, nftables, rtnetlink

T = TypeVar("T")
_Job = tuple[Callable[["Kernel"], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Kernel:
    """What jobs work with: the host's sockets, and a way into other namespaces.

    Lives on the namespace thread; made there, so that its sockets are the host's.
    """

    def __init__(self) -> None:
        self.home = netns.current()
        self.route = netlink.Socket()
        self.nft = nftables.open_socket()
        self.ruleset = nftables.Ruleset()
        #: the elements of the port maps as they should be: the rules can be made anew at any time
        self.published: dict[tuple[str, bytes], nftables.Port] = {}
        #: puts the engine's table back when somebody has removed it
        self.restore_rules: Callable[[Kernel], None] | None = None
        self._indices: dict[str, int] = {}
        #: br_netfilter shows bridged packets to the inet rules (another engine wants that)
        self.bridge_filter = False
        #: namespace path -> what a plan that is being executed has opened of it
        self.inside: dict[str, Inside] = {}

    def index(self, name: str, *, fresh: bool = False) -> int:
        """The index of an interface of the host (bridges seldom come and go: remembered)."""
        known = None if fresh else self._indices.get(name)
        if known is None:
            known = self._indices[name] = rtnetlink.link(self.route, name).index
        return known

    @contextlib.contextmanager
    def entered(self, fd: int) -> Iterator[None]:
        """The calling thread is in the namespace ``fd`` for the length of the block."""
        netns.enter(fd)
        try:
            yield
        finally:
            self.go_home()

    def go_home(self) -> None:
        try:
            netns.enter(self.home)
        except OSError as error:
            raise Lost("cannot get back to the host's network namespace") from error

    def close(self) -> None:
        for inside in self.inside.values():
            inside.close()
        self.inside.clear()
        self.route.close()
        self.nft.close()
        self.ruleset.close()
        os.close(self.home)


class Inside:
    """A namespace that is open: its descriptor, an rtnetlink socket that belongs to it, and the
    resolver's sockets once they were made."""

    __slots__ = ("fd", "resolver", "route")

    def __init__(self, fd: int, route: netlink.Socket) -> None:
        self.fd = fd
        self.route = route
        self.resolver: tuple[socket.socket, socket.socket] | None = None

    def take_resolver(self) -> tuple[socket.socket, socket.socket] | None:
        """The sockets, which are the caller's from now on."""
        taken, self.resolver = self.resolver, None
        return taken

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            self.route.close()
            os.close(self.fd)
            self.fd = -1
        for sock in self.take_resolver() or ():
            sock.close()


class Lost(BaseException):
    """The thread is in a namespace that it cannot leave: it must do nothing more."""


class NamespaceThread:
    """Runs jobs one after the other; the results come back to the event loop."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._alive = False

    def start(self) -> None:
        if self._thread is None:
            self._alive = True
            self._thread = threading.Thread(target=self._main, name="netns", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Do what was asked for, then end."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    @property
    def idle(self) -> bool:
        return self._jobs.empty()

    async def run(self, job: Callable[[Kernel], T]) -> T:
        """Run ``job(kernel)`` on the thread. A cancelled caller does not stop the job: it is
        waited for, so that what it acquired can be given back by who asked for it."""
        if not self._alive:
            raise errdefs.SystemFailure("the network namespace thread has ended",
                                        hint="restart carreld")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((job, future, loop))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise

    def _main(self) -> None:
        kernel = Kernel()
        try:
            while True:
                item = self._jobs.get()
                if item is None:
                    return
                job, future, loop = item
                try:
                    result = job(kernel)
                except Exception as error:
                    _deliver(loop, future.set_exception, error)
                except Lost as lost:
                    self._alive = False
                    problem = errdefs.SystemFailure(str(lost))
                    problem.__cause__ = lost.__cause__
                    _deliver(loop, future.set_exception, problem)
                    return
                else:
                    _deliver(loop, future.set_result, result)
                del job, future, item
        finally:
            self._alive = False
            kernel.close()


def _deliver(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], value: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, value)
    except RuntimeError:  # the loop was closed: nobody waits any more
        pass
