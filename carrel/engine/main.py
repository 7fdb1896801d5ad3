"""``carreld``: the composition of one daemon, from its first lock to its last commit."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from carrel import errdefs
from carrel.engine import flags, log
from carrel.engine.config import PROCESS, Config
from carrel.kernel import memory

if TYPE_CHECKING:
    from carrel.engine.child import Child

#: taken out of the environment: a runtime that inherits it speaks to systemd for us
_NOTIFY_SOCKET = os.environ.pop("NOTIFY_SOCKET", "")


def main() -> int:
    try:
        config = flags.load(sys.argv[1:])
        if config.validate:
            print("configuration OK")
            return 0
        log.configure("debug" if config.debug else config.log_level)
        if os.geteuid() != 0:
            raise errdefs.Forbidden("carreld needs to be started with root privileges")
        with _locked(config):
            return _run(config)
    except errdefs.CarrelError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"carreld: {error.message}{hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"carreld: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        log.error(f"internal error: {error!r}", error)
        return 1


@contextlib.contextmanager
def _locked(config: Config) -> Iterator[None]:
    """Folders, and the lock that a second daemon on the same data meets."""
    os.umask(0o022)
    for path, mode in ((config.data_root, 0o710), (config.exec_root, 0o711),
                       (config.engine_dir, 0o700), (f"{config.engine_dir}/containers", 0o710),
                       # what lies there is for us and the runtime, and neither needs a door
                       *((f"{config.exec_root}/{name}", 0o700)
                         for name in ("io", "shm", "containers"))):
        os.makedirs(path, mode=mode, exist_ok=True)
        os.chmod(path, mode)
    fd = os.open(f"{config.engine_dir}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errdefs.Conflict(
                f"another carreld works on {config.data_root}",
                hint="stop it, or use another --data-root and --exec-root") from None
        _write_pidfile(config.pidfile)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(config.pidfile)
    finally:
        os.close(fd)


def _write_pidfile(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as f:  # others may know it: a pid is no secret
        f.write(f"{os.getpid()}\n")


def _run(config: Config) -> int:
    child = None
    if not config.foreign:
        from carrel.engine import child as layer

        if config.containerd == PROCESS or layer.serves(config.containerd_socket):
            child = layer.Child(config)
            child.begin()
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, child))
    finally:
        if child:
            child.abandon()


async def _serve(config: Config, child: Child | None) -> int:
    from carrel.engine.daemon import Daemon

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    daemon = Daemon(config, child)
    try:
        await daemon.start(stopping)
        loop.add_signal_handler(signal.SIGHUP, daemon.reload)
        memory.settle()
        if not stopping.is_set():
            notify("READY=1")
            log.info(f"API listen on {', '.join(config.hosts)}")
        await stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
    finally:
        await daemon.stop()
    return 0


def notify(state: str) -> None:
    """Tell systemd, when it asked to be told."""
    address = _NOTIFY_SOCKET
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with contextlib.suppress(OSError):
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


if __name__ == "__main__":
    sys.exit(main())
