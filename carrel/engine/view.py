"""The daemon's side of looks into a container's files: requests to the worker process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import layers
from carrel.engine.model import Container

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

_HEAD = 1 << 20
_BOOT = ("import sys; sys.path[:0] = {paths!r}; "
         "from carrel.engine.viewworker import main; sys.exit(main())")
#: everything that a worker reads or writes may take long; a stuck one is seen in the end
_PATIENCE = 600.0
#: errors that say something about the path that was asked for, not about the daemon
_OF_THE_PATH = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST,
                errno.EXDEV, errno.EINVAL)


def _command() -> list[str]:
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    site = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    return [sys.executable, "-ISB", "-c", _BOOT.format(paths=[here, *site])]


class Worker:
    """One request, one process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, request: dict[str, Any]) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *_command(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, limit=_HEAD, close_fds=True)
        worker = cls(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        return worker

    async def answer(self) -> dict[str, Any]:
        """The head of what it says; its refusals are our errors."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _PATIENCE)
        if not line:
            raise errdefs.SystemFailure("the file worker ended without an answer")
        value: dict[str, Any] = json.loads(line)
        if "error" in value:
            raise _error(value)
        return value

    async def chunks(self) -> AsyncIterator[bytes]:
        assert self._process.stdout is not None
        while block := await self._process.stdout.read(256 << 10):
            yield block
        if await self._process.wait() != 0:
            raise errdefs.SystemFailure("the file worker failed while sending")

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    def end_of_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def close(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _error(value: dict[str, Any]) -> errdefs.CarrelError:
    kind, message = value.get("kind"), str(value["error"])
    if kind == "missing":
        return errdefs.NotFound(message)
    if kind == "invalid":
        return errdefs.InvalidParameter(message)
    path = value.get("path")
    number = value.get("errno")
    if number == errno.EROFS:
        return errdefs.Forbidden("container rootfs is marked read-only")
    text = f"{message.lower()}{f': {path}' if path else ''}"
    if number == errno.ENOENT:
        return errdefs.NotFound(text)  # it went away while we looked
    if number in _OF_THE_PATH:
        return errdefs.InvalidParameter(text)
    return errdefs.SystemFailure(text)


@contextlib.asynccontextmanager
async def worker(request: dict[str, Any]) -> AsyncIterator[Worker]:
    running = await Worker.start(request)
    try:
        yield running
    finally:
        await running.close()


def _plain(mounts: list[Any]) -> list[dict[str, Any]]:
    return [{"type": m.type, "source": m.source, "options": list(m.options)} for m in mounts]


def mount_folder(manager: Manager) -> str:
    """An empty folder to mount on; only the worker's own namespace sees it."""
    path = f"{manager.ctx.config.exec_root}/view"
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


@contextlib.asynccontextmanager
async def target(manager: Manager, container: Container) -> AsyncIterator[dict[str, Any]]:
    """The part of a request that names the container's file system, volumes included.

    A stopped container is locked meanwhile: it must not start on a file system
    that is mounted elsewhere for writing.
    """
    if container.alive:
        yield {"pid": container.state.pid, "name": container.name}
        return
    async with container.lock:
        if container.state.status in ("running", "paused"):  # meanwhile
            yield {"pid": container.state.pid, "name": container.name}
            return
        mounts = await manager.snapshot_mounts(container)
        binds = [{"source": p.source, "destination": p.destination, "subpath": p.subpath}
                 for p in container.record.mounts if p.type in ("bind", "volume") and p.source]
        yield {"mounts": _plain(mounts), "folder": mount_folder(manager), "binds": binds,
               "name": container.name}


class _Root:
    def __init__(self, where: dict[str, Any]) -> None:
        self._where = where

    async def read(self, path: str, limit: int) -> bytes:
        async with worker({**self._where, "op": "read", "path": path, "limit": limit}) as w:
            await w.answer()
            return b"".join([block async for block in w.chunks()])


@contextlib.asynccontextmanager
async def container_root(manager: Manager, container: Container) -> AsyncIterator[_Root]:
    """For single files, while the caller holds the container (a start, an exec)."""
    if container.alive:
        yield _Root({"pid": container.state.pid})
        return
    yield _Root({"mounts": read_only(await manager.snapshot_mounts(container)),
                 "folder": mount_folder(manager)})


def read_only(mounts: list[Any]) -> list[dict[str, Any]]:
    """The same view with nothing written: all layers as lower ones."""
    folders = layers.of(mounts)
    if len(folders) == 1:
        return [{"type": "bind", "source": folders[0], "options": []}]
    return [{"type": "overlay", "source": "overlay",
             "options": ["ro", "lowerdir=" + ":".join(folders)]}]


async def copy_up(mounts: list[Any], pairs: list[tuple[str, str]]) -> None:
    """Image content to the folders of fresh volumes."""
    folder = os.path.dirname(layers.of(mounts)[0]) or "/"
    async with worker({"op": "copy_up", "mounts": read_only(mounts), "folder": folder,
                       "pairs": pairs}) as w:
        await w.answer()


async def changes(manager: Manager, container: Container) -> list[dict[str, Any]]:
    """``docker diff``: the upper folder against those below; no mount is needed."""
    from carrel.engine import viewdiff

    mounts = await manager.snapshot_mounts(container)
    ignore = {p.destination for p in container.record.mounts}
    return await asyncio.to_thread(viewdiff.changes, layers.of(mounts), ignore)
