"""Netlink: framing, attributes, one socket with acknowledged requests and dumps.

A request is a list of :class:`Message` sent with **one** ``send``; the kernel works on it in the
caller's context, in order, and every answer is queued when ``send`` returns.  Only the last
message asks for an acknowledgement: errors are always reported, so one answer is enough.

A socket belongs to the network namespace in which it was opened, whatever its thread does later,
and to one thread at a time (nothing is locked here).
"""

from __future__ import annotations

import _socket as socket  # the C core: ``socket`` itself imports enum and selectors
import os
from errno import EAGAIN, EBUSY, EINTR, ENOBUFS
from struct import Struct
from time import monotonic_ns

from carrel.kernel import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

AF_NETLINK = 16
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

NETLINK_ADD_MEMBERSHIP = 1

_SO_ATTACH_FILTER = 26
_BPF, _KIND, _FPROG = Struct("=HBBI"), Struct("=H"), Struct("@HP")
_BPF_LOAD_HALF, _BPF_JUMP_EQUAL, _BPF_RETURN = 0x28, 0x15, 0x06
_HEADER = Struct("=IHHII")
_ATTR = Struct("=HH")
_ERROR = Struct("=i")
_ATTR_MAX = 0xFFFF - _ATTR.size
#: a dump answer is at most this long (the kernel looks at the size of our buffer)
_BUFFER = 65536
_DUMP_RETRIES = 8
_SEQUENCE_MAX = 0xFFFF0000


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded. A payload that the length field cannot hold is refused."""
    size = len(payload)
    if size > _ATTR_MAX:
        raise OverflowError(f"netlink attribute {kind}: {size} bytes are too many")
    return _ATTR.pack(size + 4, kind) + payload + b"\0" * (-size & 3)


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def string(kind: int, text: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attr(kind, text.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attr(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, value.to_bytes(1, "little"))


_LITTLE = Struct("=H").pack(1) == b"\x01\0"


def attributes(data: bytes, offset: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Decode a run of attributes; of a repeated one the last counts."""
    return dict(each_attribute(data, offset, end))


def each_attribute(data: bytes, offset: int = 0,
                   end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Decode a run of attributes in order; a damaged tail ends it."""
    stop = len(data) if end is None else end
    while offset + 4 <= stop:
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > stop:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4:offset + size]
        offset += (size + 3) & ~3


class Message:
    """One request: its type, flags and body, what it acts on and what it means to a person."""

    __slots__ = ("body", "flags", "kind", "name", "text")

    def __init__(self, kind: int, flags: int, body: bytes, text: str, name: str = "") -> None:
        self.kind = kind
        self.flags = flags
        self.body = body
        self.text = text
        self.name = name

    def __repr__(self) -> str:
        return f"<netlink: {self.text}>"


def error(number: int, message: Message, explanation: str = "") -> OSError:
    """The OSError of a refused message: errno, the kernel's own words, the object's name."""
    text = os.strerror(number)
    if explanation:
        text = f"{text} ({explanation})"
    problem = OSError(number, text, message.name) if message.name else OSError(number, text)
    problem.add_note(f"netlink: {message.text}")
    return problem


class Socket:
    """A netlink socket of the calling thread's network namespace."""

    __slots__ = ("_sequence", "_socket", "call")

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self.call = "netlink" if protocol == NETLINK_ROUTE else "nft"
        self._socket = socket.socket(AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        except OSError:  # older kernel: shorter error texts
            pass

    def fileno(self) -> int:
        return self._socket.fileno()

    def join(self, group: int, *, ignore: tuple[int, ...] = ()) -> None:
        """Receive the notifications of a multicast group, without blocking, except those whose
        first message has a type in ``ignore``: a socket filter keeps the kernel from waking us."""
        self._socket.bind((0, 0))  # without an address of its own it would be taken for the sender
        if ignore:
            self._attach_filter(ignore)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._socket.setblocking(False)

    def _attach_filter(self, ignore: tuple[int, ...]) -> None:
        import ctypes

        # classic BPF reads big-endian, the header is in the machine's order
        kinds = [int.from_bytes(_KIND.pack(k), "big") for k in ignore]
        program = [_BPF.pack(_BPF_LOAD_HALF, 0, 0, 4)]
        program += [_BPF.pack(_BPF_JUMP_EQUAL, len(kinds) - n, 0, k) for n, k in enumerate(kinds)]
        program += [_BPF.pack(_BPF_RETURN, 0, 0, 0xFFFFFFFF), _BPF.pack(_BPF_RETURN, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                                _FPROG.pack(len(program), ctypes.addressof(code)))

    def drain(self) -> int:
        """Throw away what has been notified; how many datagrams it was."""
        count = 0
        while True:
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return count
            except OSError as failure:
                if failure.errno not in (EINTR, ENOBUFS):
                    raise
            count += 1

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, messages: list[Message], *, trailer: int = 0) -> None:
        """Send all, wait for the last to be acknowledged; the first error is raised.

        ``trailer``: so many messages at the end are not acknowledged (the end of a batch).

        The kernel does not stop at an error: what follows a refused message was still tried, so
        the caller's undo must cover the whole batch.
        """
        if not messages:
            return
        begin = monotonic_ns() if record.active is not None else 0
        if self._sequence > _SEQUENCE_MAX:
            self._sequence = 0
        first = self._sequence + 1
        last = self._send(messages, 0, len(messages) - 1 - trailer) - trailer
        problem = self._acknowledgement(messages, first, last)
        if record.active is not None:
            self._note(messages, problem, begin)
        if problem is not None:
            raise problem

    def _send(self, messages: list[Message], extra: int, acknowledged: int = -1) -> int:
        parts = []
        for number, message in enumerate(messages):
            self._sequence += 1
            flags = message.flags | NLM_F_REQUEST | extra
            if number == acknowledged:
                flags |= NLM_F_ACK
            size = len(message.body)
            parts.append(_HEADER.pack(16 + size, message.kind, flags, self._sequence, 0))
            parts.append(message.body)
            if size & 3:
                parts.append(b"\0" * (-size & 3))
        self._socket.send(b"".join(parts))
        return self._sequence

    def _acknowledgement(self, messages: list[Message], first: int, last: int) -> OSError | None:
        problem: OSError | None = None
        flags = 0
        while True:
            try:
                data = self._socket.recv(_BUFFER, flags)
            except OSError as failure:
                if failure.errno == EINTR:
                    continue
                if failure.errno == EAGAIN and problem is not None:
                    return problem
                raise
            for kind, mflags, sequence, start, end in _frames(data):
                if kind != NLMSG_ERROR:
                    continue
                number = -_ERROR.unpack_from(data, start)[0]
                if number and problem is None and first <= sequence <= last:
                    problem = error(number, messages[sequence - first],
                                    _explanation(data, mflags, start, end))
                    flags = socket.MSG_DONTWAIT  # everything that will come is queued already
                if sequence == last:
                    return problem

    def _note(self, messages: list[Message], problem: OSError | None, begin: int) -> None:
        number = (problem.errno or 0) if problem is not None else 0
        record.note(self.call, tuple(m.text for m in messages), None if number else 0, number,
                    begin)

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All answers of a dump as (type, body); asked again when the kernel's list changed
        under it, because then it may lack entries."""
        begin = monotonic_ns() if record.active is not None else 0
        for _ in range(_DUMP_RETRIES):
            answers = self._dump_once(message)
            if answers is not None:
                if record.active is not None:
                    record.note(self.call, (message.text,), len(answers), 0, begin)
                return answers
        raise error(EBUSY, message, "the list changed again and again while it was read")

    def _dump_once(self, message: Message) -> list[tuple[int, bytes]] | None:
        sequence = self._send([message], NLM_F_DUMP)
        answers: list[tuple[int, bytes]] = []
        complete = True
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except OSError as failure:
                if failure.errno == EINTR:
                    continue
                if failure.errno == ENOBUFS:
                    complete = False
                    continue
                raise
            for kind, flags, number, start, end in _frames(data):
                if number != sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    complete = False
                if kind == NLMSG_DONE:
                    return answers if complete else None
                if kind == NLMSG_ERROR:
                    code = -_ERROR.unpack_from(data, start)[0]
                    raise error(code, message, _explanation(data, flags, start, end))
                answers.append((kind, data[start:end]))

    def ask(self, message: Message) -> tuple[int, bytes]:
        """The one answer of a request that is not a dump."""
        sequence = self._send([message], 0)
        answer: tuple[int, bytes] | None = None
        while True:
            data = self._socket.recv(_BUFFER)
            for kind, flags, number, start, end in _frames(data):
                if number != sequence:
                    continue
                if kind != NLMSG_ERROR:
                    answer = (kind, data[start:end])
                    continue
                code = -_ERROR.unpack_from(data, start)[0]
                if code or answer is None:
                    raise error(code, message, _explanation(data, flags, start, end))
                return answer


def _frames(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, flags, sequence, start of body, end of body) of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if size < 16 or offset + size > len(data):
            return
        yield kind, flags, sequence, offset + 16, offset + size
        offset += (size + 3) & ~3


def _explanation(data: bytes, flags: int, start: int, end: int) -> str:
    """The kernel's sentence in an extended acknowledgement, if it said one."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    offset = start + 4 + 16
    if not flags & NLM_F_CAPPED:
        offset = start + 4 + ((_HEADER.unpack_from(data, start + 4)[0] + 3) & ~3)
    text = attributes(data, offset, end).get(NLMSGERR_ATTR_MSG, b"")
    return text.rstrip(b"\0").decode("utf-8", "replace")
