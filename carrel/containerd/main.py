"""carrel-containerd: the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Any

from carrel import errdefs
from carrel.containerd import config

log = logging.getLogger("carrel.containerd")


#: taken out of the environment: a runtime that inherits it speaks to systemd for us
_NOTIFY_SOCKET = os.environ.pop("NOTIFY_SOCKET", "")


def main() -> int:
    """Run the daemon, or ``publish``; the exit status."""
    arguments = config.parser().parse_args(_go_flags(sys.argv[1:]))
    try:
        settings = config.load(arguments)
        if arguments.command == "publish":
            from carrel.containerd.publish import publish

            return publish(settings.address, arguments.namespace, arguments.topic)
        logging.basicConfig(
            level=settings.level, stream=sys.stderr,
            format="time=%(asctime)s level=%(levelname)s msg=%(message)s logger=%(name)s")
        # what the libraries below say is of no use to a person who runs this
        for noisy in ("hpack", "h2", "asyncio", "grpclib"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        for warning in settings.warnings:
            log.warning("%s", warning)
        os.umask(0o022)
        return _run(_serve(settings))
    except errdefs.CarrelError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"carrel-containerd: {error.message}{hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"carrel-containerd: {error}", file=sys.stderr)
        return 1


def _go_flags(arguments: list[str]) -> list[str]:
    """Go programs take ``-address`` for ``--address``; clients that start us may write it."""
    return ["-" + a if len(a) > 2 and a[0] == "-" and a[1] != "-" and a[2] not in "=" else a
            for a in arguments]


def _run(work: Any) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result: int = runner.run(work)
        return result


async def _serve(settings: config.Settings) -> int:
    from carrel.containerd.service import build
    from carrel.containerd.sockets import listen
    from carrel.kernel import memory
    from carrel.proto import grpc

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    services = build(settings.root, settings.state, address=settings.address,
                     debug=settings.log_level in ("debug", "trace"),
                     mirrors=tuple(settings.mirrors), insecure=tuple(settings.insecure))
    try:
        await services.start()
        server = grpc.server(services.servicers())
        await server.start(sock=listen(settings.address, 0o660, settings.uid, settings.gid))
        memory.settle()
        notify("READY=1")
        log.info("serving %s", settings.address)
        await stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
        server.close()
        # streams (events, waits) have no end of their own: they are cut after a moment
        try:
            async with asyncio.timeout(1.0):
                await server.wait_closed()
        except TimeoutError:
            pass
        os.unlink(settings.address)
    finally:
        await services.stop()
    return 0


def notify(state: str) -> None:
    """Tell systemd, where it asked for it."""
    address = _NOTIFY_SOCKET
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except FileNotFoundError:
            pass  # an engine that started us listens only until we are ready
        except OSError as error:
            log.warning("sd_notify: %s", error)


if __name__ == "__main__":
    sys.exit(main())
