"""nftables, two ways.

* :class:`Ruleset` runs text through ``libnftables.so.1`` (ctypes): for whole rulesets, when the
  daemon starts and when a network comes or goes.  The library is loaded at first use.
* The functions that build messages speak raw nf_tables netlink: for the few things on the path of
  a container's start (elements of a map, the resolver's redirection in a new namespace), where
  the library would take 7 to 30 times as long.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_uint, c_void_p
from errno import EINVAL
from struct import Struct
from time import monotonic_ns

from carrel.kernel import record, rtnetlink
from carrel.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Socket,
    attr,
    nest,
    string,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NFPROTO_INET, NFPROTO_IPV4 = 1, 2
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETTABLE, _NEWGEN = _SUBSYSTEM | 1, _SUBSYSTEM | 15
_GROUP_NFTABLES = 7
_NEWTABLE, _DELTABLE = _SUBSYSTEM | 0, _SUBSYSTEM | 2
_NEWCHAIN, _NEWRULE = _SUBSYSTEM | 3, _SUBSYSTEM | 6
_NEWSETELEM, _DELSETELEM = _SUBSYSTEM | 12, _SUBSYSTEM | 14
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA = 1, 2
_DATA_VALUE = 1
_HOOK_LOCAL_OUT = 3
_META_L4PROTO = 16
_GENMSG = Struct(">BBH")

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


def _be32(kind: int, value: int) -> bytes:
    return attr(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def _message(kind: int, family: int, flags: int, body: bytes, text: str) -> Message:
    return Message(kind, flags, _GENMSG.pack(family, 0, 0) + body, text)


def transaction(socket: Socket, messages: list[Message]) -> None:
    """All or nothing."""
    begin = Message(_BATCH_BEGIN, 0, _GENMSG.pack(0, 0, 10), "begin")
    end = Message(_BATCH_END, 0, _GENMSG.pack(0, 0, 10), "commit")
    socket.request([begin, *messages, end], trailer=1)


def open_socket() -> Socket:
    return Socket(NETLINK_NETFILTER)


def watch() -> Socket:
    """A socket that becomes readable when somebody changes tables, chains or rules. Elements of
    sets, which come and go with every container, do not wake it."""
    sock = Socket(NETLINK_NETFILTER)
    try:
        sock.join(_GROUP_NFTABLES, ignore=(_NEWSETELEM, _DELSETELEM, _NEWGEN))
    except BaseException:
        sock.close()
        raise
    return sock


def has_table(socket: Socket, table: str) -> bool:
    """Whether ``inet <table>`` is there."""
    ask = _message(_GETTABLE, NFPROTO_INET, NLM_F_ACK, string(1, table), f"list table {table}")
    try:
        socket.ask(ask)
    except FileNotFoundError:
        return False
    return True


class Port:
    """One element of the maps of published ports: where it comes in, where it goes."""

    __slots__ = ("data", "key", "map", "text")

    def __init__(self, proto: str, host_ip: str, host_port: int, target: str,
                 target_port: int) -> None:
        """``host_ip`` "" = any local address of the target's family."""
        family, address = rtnetlink.packed(target)
        key = PROTOCOLS[proto].to_bytes(1, "little") + b"\0\0\0"
        if host_ip:
            host_family, host = rtnetlink.packed(host_ip)
            if host_family != family:
                raise ValueError(f"cannot map {host_ip} to {target}")
            key += host
        self.key = key + _port(host_port)
        self.data = address + _port(target_port)
        self.map = ("ports6" if family == rtnetlink.AF_INET6 else "ports4") + (
            "_at" if host_ip else "")
        at = f"{host_ip} . " if host_ip else ""
        self.text = f"{{ {proto} . {at}{host_port} : {target} . {target_port} }}"


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big") + b"\0\0"


def _element(kind: int, flags: int, verb: str, table: str, port: Port) -> Message:
    element = nest(_LIST_ELEM, nest(_ELEM_KEY, attr(_DATA_VALUE, port.key)),
                   nest(_ELEM_DATA, attr(_DATA_VALUE, port.data)))
    body = string(1, table) + string(2, port.map) + nest(3, element)
    return _message(kind, NFPROTO_INET, flags, body,
                    f"{verb} element inet {table} {port.map} {port.text}")


def add_port(table: str, port: Port) -> Message:
    return _element(_NEWSETELEM, NLM_F_CREATE, "add", table, port)


def delete_port(table: str, port: Port) -> Message:
    return _element(_DELSETELEM, 0, "delete", table, port)


def _expression(name: str, *parts: bytes) -> bytes:
    return nest(_LIST_ELEM, string(1, name), nest(2, *parts))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _be32(1, 1), _be32(2, 0), nest(3, attr(_DATA_VALUE, value)))


def _load(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", _be32(1, 1), _be32(2, base), _be32(3, offset), _be32(4, size))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", _be32(1, register), nest(2, attr(_DATA_VALUE, value)))


def redirect_output(table: str, address: str, port: int, targets: dict[str, int], *,
                    replace: bool = False) -> list[Message]:
    """A table whose one chain sends what the namespace itself sends to ``address:port`` to other
    ports of that address: ``targets`` is {"udp": port, "tcp": port}."""
    _, raw = rtnetlink.packed(address)
    hook = nest(4, _be32(1, _HOOK_LOCAL_OUT), _be32(2, -100))
    chain = string(1, table) + string(3, "output") + hook + string(7, "nat")
    make = _message(_NEWTABLE, NFPROTO_IPV4, NLM_F_CREATE, string(1, table),
                    f"add table ip {table}")
    drop = _message(_DELTABLE, NFPROTO_IPV4, 0, string(1, table), f"delete table ip {table}")
    messages = [
        *((make, drop) if replace else ()),
        make,
        _message(_NEWCHAIN, NFPROTO_IPV4, NLM_F_CREATE, chain,
                 f"add chain ip {table} output {{ type nat hook output priority -100; }}"),
    ]
    for proto, target in targets.items():
        rule = nest(
            4,
            _load(1, 16, 4), _equals(raw),
            _expression("meta", _be32(1, 1), _be32(2, _META_L4PROTO)),
            _equals(bytes([PROTOCOLS[proto]])),
            _load(2, 2, 2), _equals(port.to_bytes(2, "big")),
            _immediate(1, raw), _immediate(2, target.to_bytes(2, "big")),
            _expression("nat", _be32(1, 1), _be32(2, NFPROTO_IPV4), _be32(3, 1), _be32(4, 1),
                        _be32(5, 2), _be32(6, 2)))
        body = string(1, table) + string(2, "output") + rule
        messages.append(_message(
            _NEWRULE, NFPROTO_IPV4, NLM_F_CREATE | NLM_F_APPEND, body,
            f"add rule ip {table} output ip daddr {address} {proto} dport {port} "
            f"dnat to {address}:{target}"))
    return messages


class Ruleset:
    """libnftables in the calling thread's network namespace; one thread uses it."""

    def __init__(self) -> None:
        self._library: Any = None
        self._context: Any = None

    def _open(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise FileNotFoundError(
                2, "libnftables is missing (Debian package libnftables1)",
                "libnftables.so.1") from error
        for name, result, arguments in (
                ("nft_ctx_new", c_void_p, (c_uint,)),
                ("nft_ctx_free", None, (c_void_p,)),
                ("nft_ctx_buffer_output", c_int, (c_void_p,)),
                ("nft_ctx_buffer_error", c_int, (c_void_p,)),
                ("nft_ctx_get_output_buffer", c_char_p, (c_void_p,)),
                ("nft_ctx_get_error_buffer", c_char_p, (c_void_p,)),
                ("nft_run_cmd_from_buffer", c_int, (c_void_p, c_char_p))):
            call = getattr(library, name)
            call.restype = result
            call.argtypes = list(arguments)
        context = library.nft_ctx_new(0)
        if not context:
            raise OSError(12, "nft_ctx_new failed")
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        self._library = library
        self._context = context

    def run(self, text: str) -> str:
        """Run commands as one transaction; what they print."""
        if self._context is None:
            self._open()
        begin = monotonic_ns()
        status = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        problem: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        record.note("nft", (text,), None if status else 0, EINVAL if status else 0, begin)
        if status:
            error = OSError(EINVAL, "nftables refused the rules: " + _first_line(problem))
            error.add_note(problem.decode("utf-8", "replace"))
            error.add_note(text)
            raise error
        return output.decode("utf-8", "replace")

    def close(self) -> None:
        """Give the library's memory back until it is needed again."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None


def _first_line(raw: bytes) -> str:
    lines = raw.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else "no reason given"
