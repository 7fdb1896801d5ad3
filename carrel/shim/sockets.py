"""Unix sockets without the ``socket`` module, whose enumerations and wrappers would
be a tenth of a shim's memory.  Names and meanings are the module's."""

from __future__ import annotations

import _socket
import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM

from carrel.kernel.terminal import receive_descriptors, send_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AF_UNIX", "SOCK_CLOEXEC", "SOCK_SEQPACKET", "SOCK_STREAM", "Socket", "listen", "pair",
           "receive_descriptors", "send_descriptors", "unix"]


class Socket(_socket.socket):
    """Close-on-exec from its first moment, as all that ``_socket`` makes."""

    __slots__ = ()

    def accept(self) -> Socket:
        fd, _ = self._accept()  # type: ignore[attr-defined]
        return Socket(fileno=fd)

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def unix() -> Socket:
    return Socket(AF_UNIX, SOCK_STREAM)


def pair() -> tuple[Socket, Socket]:
    """A connected pair that keeps packets apart."""
    one, other = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


def listen(path: str) -> Socket:
    """A listening socket on a path, mode 0600 from its first moment; a dead
    one's file is replaced, a live one's is an error."""
    listener = unix()
    try:
        umask = os.umask(0o177)
        try:
            try:
                listener.bind(path)
            except OSError:
                if not os.path.lexists(path) or _answers(path):
                    raise
                os.unlink(path)
                listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with unix() as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
