"""The zygote: a warm process that forks shims (docs/ARCHITECTURE.md has the protocol).

It is a child of this daemon and lives as long as its control socket.  When it
dies it is started anew; a request that was under way is sent once more, and
without a zygote the caller starts the shim's program instead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from typing import Any

from carrel import errdefs

log = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_PACKET = 64 << 10
_FIRST_BACKOFF, _LAST_BACKOFF = 0.05, 10.0


class Zygote:
    """Keeps one zygote running and asks it for shims."""

    def __init__(self, program: str, debug: bool = False) -> None:
        self._program = program
        self._debug = debug
        self._socket: socket.socket | None = None
        self._pid = 0
        self._pidfd = -1
        self._seq = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._backoff = _FIRST_BACKOFF
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.ready = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def available(self) -> bool:
        return self._socket is not None

    def start(self) -> None:
        """Start it; a failure is logged and tried again, as the daemon works without."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = self._spawn(theirs)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            ours.close()
            log.warning("start zygote %s: %s; shims are started cold", self._program, error)
            if error.errno != 2:
                self._again()
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._readable)
        loop.add_reader(self._pidfd, self._died)

    def _spawn(self, theirs: socket.socket) -> int:
        """posix_spawn: no copy of this process, and every other descriptor is close-on-exec."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # the file actions run one after the other: 3 must not be a source of a later one
        control = os.dup(theirs.fileno()) if theirs.fileno() == 3 else theirs.fileno()
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1),
                       (os.POSIX_SPAWN_DUP2, control, 3)]
            arguments = [self._program, "zygote", *(["-debug"] if self._debug else [])]
            return os.posix_spawn(
                self._program, arguments, os.environ, file_actions=actions, setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM], setsigmask=[])
        finally:
            os.close(null)
            if control != theirs.fileno():
                os.close(control)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(_PACKET)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("zygote: %s", error)
            packet = b""
        if not packet:
            self._lost()
            return
        try:
            message = json.loads(packet)
        except ValueError:
            log.error("zygote sent no JSON: %r", packet[:200])
            return
        if message.get("op") == "ready":
            self._backoff = _FIRST_BACKOFF
            self.ready.set()
            return
        future = self._waiting.pop(message.get("seq", 0), None)
        if future is not None and not future.done():
            future.set_result(message)

    def _lost(self) -> None:
        """The control socket is at its end."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.ready.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(errdefs.Unavailable("the zygote died"))

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        _, status = os.waitpid(self._pid, 0)
        self._lost()
        if not self._stopping:
            log.warning("zygote %d ended with %d; starting another", self._pid,
                        os.waitstatus_to_exitcode(status))
            self._pid = 0
            self._again()

    def _again(self) -> None:
        if not self._stopping:
            self._timer = asyncio.get_running_loop().call_later(self._backoff, self.start)
            self._backoff = min(self._backoff * 2, _LAST_BACKOFF)

    async def fork(self, request: dict[str, Any]) -> tuple[int, str]:
        """Pid and address of a new shim; tried once more when the zygote dies meanwhile.

        Unavailable when there is no zygote: start the program then.
        """
        try:
            return await self._fork(request)
        except errdefs.Unavailable:
            if self._stopping:
                raise
            try:
                async with asyncio.timeout(1.0):
                    await self.ready.wait()
            except TimeoutError:
                raise errdefs.Unavailable("no zygote") from None
            return await self._fork(request)

    async def _fork(self, request: dict[str, Any]) -> tuple[int, str]:
        if self._socket is None:
            raise errdefs.Unavailable("no zygote")
        self._seq += 1
        seq = self._seq
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[seq] = future
        try:
            try:
                self._socket.send(json.dumps({"op": "start", "seq": seq, **request}).encode())
            except BlockingIOError:
                # more requests under way than the socket holds
                await asyncio.get_running_loop().sock_sendall(
                    self._socket, json.dumps({"op": "start", "seq": seq, **request}).encode())
            except OSError as error:
                raise errdefs.Unavailable(f"zygote: {error}") from error
            async with asyncio.timeout(_START_TIMEOUT):
                answer = await future
        except TimeoutError:
            raise errdefs.DeadlineExceeded(
                f"zygote: no shim in {_START_TIMEOUT:g} s") from None
        finally:
            self._waiting.pop(seq, None)
        if "error" in answer:
            raise errdefs.SystemFailure(f"start shim: {answer['error']}")
        return int(answer["pid"]), str(answer["address"])

    async def stop(self) -> None:
        """Let it end; its shims live on."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._lost()
        for _ in range(100):
            if self._pidfd < 0:
                return
            await asyncio.sleep(0.01)
        log.warning("zygote %d does not end; killing it", self._pid)
        os.kill(self._pid, signal.SIGKILL)
        while self._pidfd >= 0:
            await asyncio.sleep(0.01)
