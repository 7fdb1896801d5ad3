"""Volumes of the ``local`` driver: folders with a name, or a mount that is made when first used.

    <data-root>/engine/volumes/<name>/_data

Records are in the engine's store. Removing renames the folder first, so that the name is free at
once and a daemon that dies in between finishes the work when it starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from carrel import errdefs
from carrel.engine import timefmt, volumemount
from carrel.engine.context import EngineContext, Volume

KIND = "volume"
DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}", re.ASCII)
_GONE = ".removed-"


def check_name(name: str) -> None:
    if len(name) == 1:
        raise errdefs.InvalidParameter(
            "volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.fullmatch(name):
        raise errdefs.InvalidParameter(
            f'create {name[:256]}: "{name[:256]}" includes invalid characters for a local volume '
            'name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host '
            "directory, use absolute path")


class VolumeService:
    """All volumes. Only the event loop changes it; disks are touched by worker threads."""

    def __init__(self, ctx: EngineContext) -> None:
        self._ctx = ctx
        self._root = f"{ctx.config.engine_dir}/volumes"
        self._known: dict[str, Volume] = {}
        self._mounted: dict[str, set[str]] = {}     # volume -> containers that use it now
        self._locks: dict[str, asyncio.Lock] = {}   # of mounts that are being made or undone
        os.makedirs(self._root, mode=0o701, exist_ok=True)
        for name, document in ctx.store.all(KIND):
            self._known[name] = msgspec.convert(document, Volume)
        for entry in os.listdir(self._root):
            if entry.startswith(_GONE):
                self._discard(entry)

    def _folder(self, name: str) -> str:
        return f"{self._root}/{name}"

    def mountpoint(self, name: str) -> str:
        return f"{self._root}/{name}/_data"

    # -- life -------------------------------------------------------------------------------

    async def ensure(self, name: str, *, driver: str = "", options: Mapping[str, str] | None = None,
                     labels: Mapping[str, str] | None = None, anonymous: bool = False) -> Volume:
        if not name:
            name = secrets.token_hex(32)
        known = self._known.get(name)
        wanted = driver or DRIVER
        if known is not None:
            if driver and driver != known.driver:
                raise errdefs.Conflict(
                    f"create {name}: conflict: volume name must be unique: a volume with this name "
                    f"exists with the {known.driver} driver")
            return known
        check_name(name)
        if wanted != DRIVER:
            raise errdefs.NotFound(
                f"create {name}: error looking up volume plugin {wanted}: "
                f'plugin "{wanted}" not found')
        volumemount.check_options(name, options or {})
        return self._create(name, dict(options or {}), dict(labels or {}), anonymous)

    def _create(self, name: str, options: dict[str, str], labels: dict[str, str],
                anonymous: bool) -> Volume:
        if anonymous:
            labels[ANONYMOUS_LABEL] = ""
        volume = Volume(
            name=name, driver=DRIVER, mountpoint=self.mountpoint(name), labels=labels,
            options=options, created_at=timefmt.rfc3339(time.time_ns()), anonymous=anonymous)
        os.makedirs(self._folder(name), mode=0o701, exist_ok=True)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(volume.mountpoint, 0o755)
            self._ctx.store.put(KIND, name, volume)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(volume.mountpoint)
                os.rmdir(self._folder(name))
            raise
        self._known[name] = volume
        self._ctx.events.publish("volume", "create", name, {"driver": DRIVER})
        return volume

    def get(self, name: str) -> Volume:
        volume = self._known.get(name)
        if volume is None:
            raise errdefs.NotFound(f"get {name}: no such volume")
        return volume

    def all(self) -> list[Volume]:
        return sorted(self._known.values(), key=lambda v: v.name)

    async def remove(self, name: str, *, force: bool = False) -> None:
        if name not in self._known:
            if force:
                return
            raise errdefs.NotFound(f"get {name}: no such volume")
        users = self._ctx.containers.users_of_volume(name)
        if users:
            ids = ", ".join(c.id for c in users)
            raise errdefs.Conflict(f"remove {name}: volume is in use - [{ids}]")
        async with self._lock(name):
            if name not in self._known:
                return
            await self._unmount_now(self._known[name])
            gone = f"{_GONE}{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._folder(name), f"{self._root}/{gone}")
            self._ctx.store.delete(KIND, name)
            del self._known[name]
            self._mounted.pop(name, None)
        self._locks.pop(name, None)
        await asyncio.to_thread(self._discard, gone)
        self._ctx.events.publish("volume", "destroy", name, {"driver": DRIVER})

    def _discard(self, entry: str) -> None:
        """Remove a renamed volume's folder. What is mounted there still keeps it."""
        from carrel.containerd.removal import remove_tree

        parent = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(parent, entry)
        finally:
            os.close(parent)

    # -- use --------------------------------------------------------------------------------

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def mount(self, name: str, container: str) -> str:
        volume = self.get(name)
        with contextlib.suppress(FileExistsError):  # removed by hand: empty again
            os.makedirs(volume.mountpoint, mode=0o755)
        if volume.options.get("device") or volume.options.get("type"):
            async with self._lock(name):
                if not await asyncio.to_thread(volumemount.is_mounted, volume):
                    await asyncio.to_thread(volumemount.mount, volume)
        self._mounted.setdefault(name, set()).add(container)
        self._ctx.events.publish("volume", "mount", name, {
            "container": container, "driver": DRIVER})
        return volume.mountpoint

    async def unmount(self, name: str, container: str) -> None:
        users = self._mounted.get(name)
        volume = self._known.get(name)
        if users is None or volume is None or container not in users:
            return
        users.discard(container)
        if not users:
            async with self._lock(name):
                if not users and not self._others_run(name, container):
                    await self._unmount_now(volume)
        self._ctx.events.publish("volume", "unmount", name, {
            "container": container, "driver": DRIVER})

    def _others_run(self, name: str, container: str) -> bool:
        """Containers that were started by an earlier daemon are not in our count."""
        return any(c.running and c.id != container
                   for c in self._ctx.containers.users_of_volume(name))

    async def _unmount_now(self, volume: Volume) -> None:
        if not volume.options:
            return
        if await asyncio.to_thread(volumemount.is_mounted, volume):
            await asyncio.to_thread(volumemount.unmount, volume)

    # -- accounting -------------------------------------------------------------------------

    async def summaries(self) -> list[dict[str, Any]]:
        result = []
        for volume in self.all():
            size = -1
            if not volume.options:
                size = await asyncio.to_thread(disk_usage, volume.mountpoint)
            row = view(volume)
            row["UsageData"] = {
                "RefCount": len(self._ctx.containers.users_of_volume(volume.name)), "Size": size}
            result.append(row)
        return result


def view(volume: Volume) -> dict[str, Any]:
    """A volume as the API shows it."""
    return {"CreatedAt": volume.created_at, "Driver": volume.driver,
            "Labels": volume.labels or None, "Mountpoint": volume.mountpoint, "Name": volume.name,
            "Options": volume.options or None, "Scope": "local"}


def disk_usage(path: str) -> int:
    """Bytes in files below a folder (each inode once), by descriptors, links not followed."""
    total = 0
    seen: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):
        for _, _, files, fd in os.fwalk(path, follow_symlinks=False):
            for name in files:
                with contextlib.suppress(OSError):
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    key = (found.st_dev, found.st_ino)
                    if found.st_nlink == 1 or key not in seen:
                        seen.add(key)
                        total += found.st_size
    return total
