"""``carrel-containerd`` as a fork of ``carreld``, made before either has begun.

Two thirds of what both hold in memory is the same: asyncio, TLS, SQLite, gRPC, protobuf.
Imported once and then forked, it is in memory once, as far as neither writes to it: that
saves 8 MiB of the two's 50, and a tenth of a second of every start. Nothing else
is shared: the child has the command line, the environment and the session that it
would have as a program of its own, and no descriptor of ours.

It is done while this process has one thread and no event loop, and never again: a
``carrel-containerd`` that has to be replaced later is executed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys

from carrel.kernel import memory, syscalls, title

#: what both import; a module that only one needs would be in the other's memory too
_COMMON = (
    "asyncio", "concurrent.futures.thread", "secrets", "sqlite3", "uuid", "uvloop",
    "google.protobuf.field_mask_pb2", "carrel.oci.image", "carrel.proto.grpc",
    *(f"carrel.proto.{name}_pb2" for name in (
        "containers", "content", "descriptor", "event_types", "events", "images", "metrics",
        "mount", "namespaces", "platform", "snapshots", "streaming", "task", "task_events",
        "tasks", "transfer", "transfer_imagestore", "transfer_importexport",
        "transfer_progress", "transfer_registry", "transfer_streaming", "version")),
)


class Forked:
    """A child, with as much of ``asyncio.subprocess.Process`` as is needed of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._ended: asyncio.Event | None = None

    async def wait(self) -> int:
        """Until it has ended: its exit status, or minus the signal that killed it."""
        loop = asyncio.get_running_loop()
        if self._ended is None:
            self._ended = asyncio.Event()
            loop.add_reader(self._pidfd, self._reap, loop)
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert self._ended is not None
        self._ended.set()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)


def containerd(command: list[str], environment: dict[str, str]) -> Forked:
    """Start it; ``command`` is what would be executed."""
    for name in _COMMON:
        importlib.import_module(name)
    # what is there is nobody's garbage: a collection in either would write to all of it
    gc.collect()
    gc.freeze()
    memory.trim()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(command, environment)
    return Forked(pid)


def _child(command: list[str], environment: dict[str, str]) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        syscalls.close_range(3, 0xFFFFFFFF)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:] = command
        title.set_command_line(command)
        from carrel.containerd.main import main

        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
