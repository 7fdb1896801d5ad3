"""The overlay snapshotter's directories and mounts.

    snapshots/<id>/fs      the layer: lower directory of children, or upper of this one
    snapshots/<id>/work    overlayfs' work directory, of active snapshots
    snapshots/pool-<n>/    the same two, made ahead; gone when the daemon stops

Ids are never used again, so a directory without a row in the database is
rubbish of an interrupted call; :meth:`Directories.sweep` removes those.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from carrel.containerd.removal import remove_tree
from carrel.kernel import storage
from carrel.proto import mount_pb2

log = logging.getLogger(__name__)

VIEW, ACTIVE, COMMITTED = 1, 2, 3
#: pairs of directories made ahead
_POOL_LOW, _POOL_FULL = 3, 8
#: three directories take up to half a millisecond in a group that nobody used yet, and three
#: times that where a large image was deleted
_SLOW_NS = 800_000
_GROUPS_TRIED = 4


class Directories:
    """``root/<id>``: made in a transaction, removed after one."""

    def __init__(self, root: str) -> None:
        self.root = root
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._worker: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._pending: set[Future[None]] = set()
        #: empty pairs made ahead: one rename on the path of a start instead of three mkdirs
        self._pool: list[str] = []
        self._pool_number = 0
        self._filling = False
        #: index=off lets one lower directory serve many mounts without ESTALE surprises
        self._options = (["index=off"] if os.path.exists("/sys/module/overlay/parameters/index")
                         else [])

    def upper(self, number: int) -> str:
        return f"{self.root}/{number}/fs"

    def create(self, number: int, kind: int, parent: int, *, layer: bool = False) -> None:
        """The directories of a new snapshot; the root directory looks like the parent's.

        ``layer``: thousands of files will be written into it.
        """
        name = str(number)
        try:
            if layer:
                self._make_apart(name)
            elif kind != ACTIVE or not self._take(name):
                self._make(name, with_work=kind == ACTIVE)
            if parent:
                status = os.stat(f"{parent}/fs", dir_fd=self._fd, follow_symlinks=False)
                if status.st_uid or status.st_gid:
                    os.chown(f"{name}/fs", status.st_uid, status.st_gid, dir_fd=self._fd,
                             follow_symlinks=False)
                if status.st_mode & 0o7777 != 0o755:
                    os.chmod(f"{name}/fs", status.st_mode & 0o7777, dir_fd=self._fd)
        except FileExistsError:
            raise
        except BaseException:
            remove_tree(self._fd, name)
            raise

    def _make(self, name: str, *, with_work: bool) -> None:
        os.mkdir(name, 0o700, dir_fd=self._fd)
        os.mkdir(f"{name}/fs", 0o755, dir_fd=self._fd)
        if with_work:
            os.mkdir(f"{name}/work", 0o711, dir_fd=self._fd)

    def _make_apart(self, name: str) -> None:
        """In a block group of its own, where the file system has such (ext4).

        ext4 does not hand out an inode that was freed in the last minutes, but looks at each
        of them for every file that it makes in that group: after the removal of an image,
        the next one beside it took eight times as long.  The group follows from a hash of
        the name, so the name is a random one first; and a group that is slow already for
        these three directories is left for another.
        """
        if os.path.lexists(f"{self.root}/{name}"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        made: list[tuple[int, str]] = []
        with self._lock:
            apart = storage.set_topdir(self._fd, True)
            try:
                while len(made) < (_GROUPS_TRIED if apart else 1) and (
                        not made or made[-1][0] > _SLOW_NS):
                    random = f"apart-{secrets.token_hex(8)}"
                    begin = time.perf_counter_ns()
                    self._make(random, with_work=True)
                    made.append((time.perf_counter_ns() - begin, random))
            finally:
                if apart:
                    storage.set_topdir(self._fd, False)
                made.sort()
                for _, random in made[1:]:
                    remove_tree(self._fd, random)
            os.rename(made[0][1], name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _take(self, name: str) -> bool:
        """Give a pair of the pool this name; False when the pool is empty."""
        with self._lock:
            pair = self._pool.pop() if self._pool else ""
            fill = len(self._pool) <= _POOL_LOW and not self._filling
            self._filling = self._filling or fill
        if fill:
            self._submit(self._fill)
        if not pair:
            return False
        if os.path.lexists(f"{self.root}/{name}"):
            # rename(2) would replace an empty directory silently
            with self._lock:
                self._pool.append(pair)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        os.rename(pair, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return True

    def _fill(self) -> None:
        try:
            while len(self._pool) < _POOL_FULL:
                self._pool_number += 1
                name = f"pool-{self._pool_number}"
                with self._lock:
                    self._make(name, with_work=True)
                    self._pool.append(name)
        except OSError as error:
            log.warning("make snapshot directories ahead in %s: %s", self.root, error)
        finally:
            self._filling = False

    def discard(self, number: int) -> None:
        """Delete a snapshot's directories now."""
        remove_tree(self._fd, str(number))

    def mounts(self, number: int, kind: int, parents: Sequence[int]) -> list[mount_pb2.Mount]:
        """What to mount to see the snapshot; ``parents`` nearest first."""
        if not parents:
            mode = "ro" if kind == VIEW else "rw"
            return [mount_pb2.Mount(type="bind", source=self.upper(number),
                                    options=[mode, "rbind"])]
        if kind == ACTIVE:
            options = [f"workdir={self.root}/{number}/work", f"upperdir={self.upper(number)}"]
        elif len(parents) == 1:
            return [mount_pb2.Mount(type="bind", source=self.upper(parents[0]),
                                    options=["ro", "rbind"])]
        else:
            options = []
        options.append("lowerdir=" + ":".join(map(self.upper, parents)))
        return [mount_pb2.Mount(type="overlay", source="overlay",
                                options=options + self._options)]

    def sync(self) -> None:
        """Bring unpacked layers to the disk (one call for the whole file system)."""
        storage.syncfs(self._fd)

    # --- removal, off the path of any call ---

    def remove(self, number: int) -> Future[None]:
        """Delete a snapshot's directories in the background."""
        return self._submit(self._remove, str(number))

    def _submit(self, work: Callable[..., None], *arguments: str) -> Future[None]:
        with self._lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
            future = self._worker.submit(work, *arguments)
            self._pending.add(future)
        future.add_done_callback(self._done)
        return future

    def _remove(self, name: str) -> None:
        try:
            remove_tree(self._fd, name)
        except OSError as error:
            # swept again at the next start; the data of a mount below was not touched
            log.error("remove snapshot directory %s/%s: %s", self.root, name, error)
            raise

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._pending.discard(future)
        future.exception()

    async def settled(self) -> None:
        """Until everything that was to be removed is gone."""
        while True:
            with self._lock:
                waiting = [asyncio.wrap_future(f) for f in self._pending]
            if not waiting:
                return
            await asyncio.wait(waiting)

    def sweep(self, known: set[int]) -> list[str]:
        """Remove what no row names; the names are returned."""
        with os.scandir(self.root) as entries:
            names = [e.name for e in entries]
        rubbish = [n for n in names if not n.isdigit() or int(n) not in known]
        for name in rubbish:
            try:
                with self._lock:
                    if name not in self._pool:
                        remove_tree(self._fd, name)
            except OSError as error:
                log.error("sweep %s/%s: %s", self.root, name, error)
        return rubbish

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        for name in self._pool:
            remove_tree(self._fd, name)
        os.close(self._fd)
