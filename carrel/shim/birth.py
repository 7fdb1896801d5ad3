"""What comes before a shim serves, from cold or from the zygote: its socket, and leaving
whoever started it.  A cold start answers when this is done, so little is imported here."""

from __future__ import annotations

import os

from carrel.shim.sockets import Socket, listen

_PATH_MAX = 107
_LAST_FD = (1 << 31) - 1  # to there it is one close_range(2)


class Config:
    """What one shim is told."""

    __slots__ = ("bundle", "debug", "id", "namespace", "publish", "socket")

    def __init__(self, namespace: str, identity: str, bundle: str, socket_path: str, publish: str,
                 debug: bool = False) -> None:
        self.namespace = namespace
        self.id = identity
        self.bundle = bundle
        self.socket = socket_path
        self.publish = publish
        self.debug = debug

    def fields(self) -> list[str]:
        """For :meth:`told`, in another process; no NUL is in any."""
        return [self.namespace, self.id, self.bundle, self.socket, self.publish,
                "debug" if self.debug else ""]

    @classmethod
    def told(cls, fields: list[str]) -> Config:
        namespace, identity, bundle, socket, publish, debug = fields
        return cls(namespace, identity, bundle, socket, publish, bool(debug))

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"


def socket_path(address: str, namespace: str, identity: str, directory: str = "") -> str:
    """Where the shim of this container listens: beside its containerd, in ``s``."""
    from _blake2 import blake2b  # hashlib loads all of OpenSSL: 5 ms, and much memory
    name = blake2b(f"{address}/{namespace}/{identity}".encode(), digest_size=16).hexdigest()
    beside = os.path.join(os.path.dirname(address.removeprefix("unix://")), "s")
    for place in (directory, beside, "/run/containerd/s"):
        if place and len(os.path.join(place, name)) <= _PATH_MAX:
            return os.path.join(place, name)
    raise AssertionError("the last place is short enough")


def open_listener(config: Config) -> Socket:
    """Listen, and note the address in the bundle for a containerd that restarts."""
    try:
        listener = listen(config.socket)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(config.socket), 0o711, exist_ok=True)
        listener = listen(config.socket)
    try:
        write_file(os.path.join(config.bundle, "address"), config.address)
    except BaseException:
        listener.close()
        os.unlink(config.socket)
        raise
    return listener


def write_file(path: str, text: str) -> None:
    """All of it or nothing."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def leave_parent(*keep: int) -> None:
    """In the child: own session, no streams, nothing inherited but ``keep``."""
    os.setsid()
    leave_all(*keep)


def leave_all(*keep: int) -> None:
    """No streams, nothing inherited but ``keep``, as a daemon is."""
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != null:
            os.dup2(null, fd)
    first = 3
    for fd in sorted(keep):
        if fd > first:
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _LAST_FD)


def adjust_oom_score() -> None:
    """One above the daemon's: the kernel shall take a shim before it, and a container first."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        try:
            score = int(os.read(fd, 16))
            if score < 0:
                os.pwrite(fd, b"%d" % (score + 1), 0)
        finally:
            os.close(fd)
    except OSError:
        pass  # not permitted in some containers; then it stays as it is
