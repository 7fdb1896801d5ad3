"""One client's connection: requests one after the other, each with a task of its own.

    idle --head--> a request is answered --answer sent, body read--> idle
                         \\--hijack--> the connection is somebody else's
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import log
from carrel.engine.web.body import Chunked, Sized
from carrel.engine.web.fields import HEAD_MAX, BadRequest, Head
from carrel.engine.web.request import HIGH_WATER, Request
from carrel.engine.web.response import Response, StreamResponse, Taken

if TYPE_CHECKING:
    from carrel.engine.web.server import Server

#: for a head from its first byte (of the first request: from connecting) to its last, and for
#: a TLS handshake
HEADER_SECONDS = 10.0
#: between two requests
IDLE_SECONDS = 75.0
#: for the rest of a body that nobody reads, so that the client comes to read the answer
_REST_SECONDS = 10.0
#: for what a client still sends after something that was no request
_LAST_SECONDS = 0.5
#: what may come behind a request before its answer
_AHEAD_MAX = 64 << 10


class Connection(asyncio.Protocol):
    __slots__ = ("_answer", "_body", "_buffer", "_clock", "_dropping", "_expects", "_loop",
                 "_reading", "_request", "_searched", "_server", "_spoken", "_taken", "_task",
                 "_waiter", "exposed", "stuck", "transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        #: may a browser be at the other end?
        self.exposed = False
        #: the client takes no more now
        self.stuck = False
        self._waiter: asyncio.Future[None] | None = None
        self._buffer = bytearray()  # the next head, as far as it is here
        self._searched = 0
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._answer: StreamResponse | None = None
        self._body: Sized | Chunked | None = None
        self._expects = False       # the client waits for "100 Continue"
        self._dropping = False      # what comes is of no use any more
        self._reading = True
        self._taken = False
        self._spoken = False        # there was a request already
        self._clock: asyncio.TimerHandle | None = None

    @property
    def encrypted(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    # --- events of the transport ---

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.exposed = isinstance(transport.get_extra_info("sockname"), tuple)
        self._server.connections.add(self)
        self._wind(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._server.connections.discard(self)
        self._unwind()
        if self._request is not None:
            self._request.content.fail(ConnectionResetError("the client went away"))
        if self._task is None or self._task.done():
            self._request = self._task = self._answer = None
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._dropping:
            return
        if self._body is not None:
            self._more_body(data)
            return
        first = not self._buffer
        self._buffer += data
        if self._request is not None:
            if len(self._buffer) > _AHEAD_MAX:
                self._pause()
            return
        self._next_head()
        if first and self._spoken and self._request is None and not self._dropping:
            self._wind(HEADER_SECONDS)

    def pause_writing(self) -> None:
        self.stuck = True

    def resume_writing(self) -> None:
        self.stuck = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- a request comes in ---

    def _next_head(self) -> None:
        """A request, once its head is whole."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        try:
            if end < 0:
                self._searched = len(buffer)
                if len(buffer) > HEAD_MAX:
                    raise BadRequest("the request's head is too long")
                if buffer and not buffer[:1].isalpha() and buffer != b"\r":
                    raise BadRequest("malformed request line")
                return
            head = Head(buffer[:end])
            rest = bytes(buffer[end + 4:])
            buffer.clear()
            self._searched = 0
            self._unwind()
            self._begin(head, rest)
        except BadRequest as error:
            self._refuse(error)

    def _begin(self, head: Head, rest: bytes) -> None:
        expected = head.fields.get("expect")
        request = self._request = Request(head, self)
        self._spoken = True
        self._answer = None
        self._expects = False
        if not request.content.done:
            self._body = Chunked() if head.chunked else Sized(head.length)
            self._expects = expected is not None and head.http11
            if rest and not self._more_body(rest):
                return
        else:
            self._buffer += rest
        refused = expected is not None and expected.lower() != "100-continue"
        self._task = self._loop.create_task(self._serve(request, refused))

    def _more_body(self, data: bytes) -> bool:
        """False when it was no body."""
        request, body = self._request, self._body
        assert request is not None and body is not None
        self._expects = False
        pieces: list[bytes] = []
        try:
            rest = body.feed(data, pieces)
        except BadRequest as error:
            self._body = None
            request.content.fail(errdefs.InvalidParameter(str(error)))
            request.keep_alive = False
            self._dropping = True
            if self._task is None:
                self._refuse(error)
            elif self._task.done():
                self.close()   # its answer was sent before
            return False
        if rest is not None:
            self._body = None
            self._buffer += rest
        if self._task is not None and self._task.done():   # nobody reads it
            if rest is not None:
                self._idle()
            return True
        request.content.add(pieces, rest is not None)
        if rest is None and request.content.size > HIGH_WATER:
            self._pause()
        return True

    def _refuse(self, error: BadRequest) -> None:
        """What was no HTTP at all; in JSON as every other error."""
        from carrel.engine.jsonio import error_response

        log.debug(f"bad request: {error}")
        self._unwind()
        self._request, self._dropping = None, True
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(error_response(400, str(error)).alone())
        self._leave(_LAST_SECONDS)

    def body_awaited(self) -> None:
        """A handler waits for more of the body."""
        if self._expects and self._answer is None:
            self._expects = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume()

    def body_wanted(self) -> None:
        """The handler took most of what was here."""
        if not self._reading and self._body is not None:
            self._resume()

    # --- an answer goes out ---

    async def _serve(self, request: Request, refused: bool) -> None:
        try:
            if refused:
                await Response(status=417).finish(request)
                return
            response = await self._server.handler(request)
            if isinstance(response, Taken):
                if not self._taken:
                    self.close()
            elif self._answer is not None and self._answer is not response:
                self._abort()   # it failed half-way: only a broken connection can tell
            else:
                await response.finish(request)
        except ConnectionError:
            self.close()
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception as error:
            log.error(f"{request.method} {request.path}: {error!r}", error)
            self._abort()
        finally:
            # once this task has ended
            self._loop.call_soon(self._served, request)

    def _served(self, request: Request) -> None:
        """The answer is sent: what of the request is still to come?"""
        if self._taken or self._request is not request:
            return
        if self.transport is None or self.transport.is_closing():
            self._request = self._task = self._answer = None
            return
        request.content.drop()
        if self._dropping or self._expects:
            self._dropping = True
            self._leave(_LAST_SECONDS)
        elif self._body is None:
            self._idle()
        else:
            self._resume()
            self._wind(_REST_SECONDS)

    def _idle(self) -> None:
        request, self._request, self._task, self._answer = self._request, None, None, None
        self._unwind()
        if self._server.closing or (request is not None and not request.keep_alive):
            self.close()
            return
        self._resume()
        if self._buffer:
            self._wind(HEADER_SECONDS)
            self._next_head()
        else:
            self._wind(IDLE_SECONDS)

    def answering(self, response: StreamResponse) -> None:
        """The head of the answer goes out now."""
        if self._answer is not None:
            raise RuntimeError("a request is answered once")
        self._answer = response
        if self._expects and self._request is not None:
            self._request.keep_alive = False    # will the body come, or not?

    def write(self, *data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        if len(data) == 1:
            transport.write(data[0])
        else:
            transport.writelines(data)

    async def drained(self) -> None:
        """Until the client has taken what is waiting."""
        while self.stuck:
            waiter = self._waiter = self._waiter or self._loop.create_future()
            await asyncio.shield(waiter)
        if self.transport is None:
            raise ConnectionResetError("the client went away")

    # --- the end, or another protocol ---

    def hijack(self, protocol: Callable[[Any], asyncio.Protocol], head: bytes) -> bytes:
        """Answer with ``head``, and give the transport to another protocol (which tells us of
        its ``connection_lost``); what the client sent behind its request.

        In one turn of the loop: no byte can fall between the two.
        """
        request, transport = self._request, self.transport
        if request is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if not request.content.done:
            raise errdefs.InvalidParameter("the request's body has not ended")
        self._taken = True
        early = bytes(self._buffer)
        self._buffer.clear()
        self._resume()
        transport.set_protocol(protocol(transport))
        transport.write(head)
        return early

    def shutdown(self) -> asyncio.Task[None] | None:
        """The server ends: what is idle goes at once; the task of what is not."""
        task = self._task
        if task is None or task.done():
            self.close()
            return None
        return task

    def close(self) -> None:
        self._unwind()
        if self.transport is not None:
            self.transport.close()

    def _abort(self) -> None:
        self._unwind()
        if self.transport is not None:
            self.transport.abort()

    def _leave(self, seconds: float) -> None:
        """Close after the client has had the time to read: to close with bytes of its own
        unread would take the answer away from it."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._resume()
            self._wind(seconds)
        else:
            self.transport.close()

    # --- helpers ---

    def _pause(self) -> None:
        if self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def _wind(self, seconds: float) -> None:
        self._unwind()
        self._clock = self._loop.call_later(seconds, self.close)

    def _unwind(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
