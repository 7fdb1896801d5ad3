"""Bundles: one directory a task, between this layer, the shim and the runtime.

    STATE/io.containerd.runtime.v2.task/<namespace>/<id>/
        config.json         the runtime specification
        rootfs/             where the shim mounts the root file system
        work                -> ROOT/io.containerd.runtime.v2.task/<namespace>/<id>: for shims
                            that are not ours, which keep nothing for good
        bootstrap.json      how to reach the shim: version, address, protocol
        shim-binary-path    which program the shim is, for cleaning up after it
        log                 FIFO that a cold shim writes its log to
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from errno import EINVAL, ENOENT

from carrel import errdefs
from carrel.containerd.removal import remove_tree
from carrel.kernel import syscalls

TASKS = "io.containerd.runtime.v2.task"
#: beside the namespaces, whose names begin with no dot: bundles that are being deleted
RETIRED = ".gone"
_MNT_DETACH = 2


class Bundle:
    """The paths of one bundle."""

    __slots__ = ("_root", "_state", "id", "namespace", "path", "work")

    def __init__(self, state: str, root: str, namespace: str, name: str) -> None:
        self._state, self._root = state, root
        self.namespace = namespace
        self.id = name
        self.path = f"{state}/{TASKS}/{namespace}/{name}"
        self.work = f"{root}/{TASKS}/{namespace}/{name}"

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        return os.path.exists(self.file(name))

    def create(self, with_work: bool = True) -> None:
        """The directories; AlreadyExists when there is a bundle."""
        _make_parents(self.path)
        try:
            os.mkdir(self.path, 0o711)
        except FileExistsError:
            raise errdefs.AlreadyExists(f"bundle {self.path}: already exists") from None
        try:
            os.mkdir(self.file("rootfs"), 0o711)
            if not with_work:
                return
            _make_parents(self.work)
            try:
                os.mkdir(self.work, 0o711)
            except FileExistsError:
                pass
            os.symlink(self.work, self.file("work"))
        except BaseException:
            discard(self.retire())
            raise

    def write(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """One file, whole or not at all where it is read by others later."""
        fd = os.open(self.file(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
        finally:
            os.close(fd)

    def save_bootstrap(self, version: int, address: str) -> None:
        """What a daemon that is started later needs to find the shim."""
        text = json.dumps({"version": version, "address": address, "protocol": "ttrpc"})
        self.write("bootstrap.new", text.encode())
        os.rename(self.file("bootstrap.new"), self.file("bootstrap.json"))

    def bootstrap(self) -> tuple[int, str] | None:
        """Version and address of the shim, if one was started."""
        try:
            with open(self.file("bootstrap.json"), "rb") as file:
                return parse_bootstrap(file.read())
        except FileNotFoundError:
            pass
        try:
            with open(self.file("address"), "rb") as file:
                return parse_bootstrap(file.read())
        except FileNotFoundError:
            return None

    def shim_binary(self) -> str:
        try:
            with open(self.file("shim-binary-path"), encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def retire(self) -> list[str]:
        """Move the bundle out of the way, so that its id can be used again at once.

        Deleting it is left to :func:`discard`: while another mount namespace still has
        something mounted on ``rootfs``, its rmdir waits for an RCU grace period.
        """
        gone: list[str] = []
        for path, top in ((self.path, self._state), (self.work, self._root)):
            target = f"{top}/{TASKS}/{RETIRED}/{secrets.token_hex(8)}"
            try:
                os.rename(path, target)
            except FileNotFoundError:
                if not os.path.lexists(path):
                    continue
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                os.rename(path, target)
            gone.append(target)
        return gone


def discard(paths: list[str]) -> None:
    """Delete retired bundles; what is still mounted in them is detached, never entered."""
    for path in paths:
        try:
            syscalls.umount2(f"{path}/rootfs", _MNT_DETACH)
        except OSError as error:
            if error.errno not in (EINVAL, ENOENT):
                raise
        parent, _, name = path.rpartition("/")
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, name)
        finally:
            os.close(fd)


def retired(state: str, root: str) -> list[str]:
    """What an earlier daemon did not come to delete."""
    found: list[str] = []
    for top in (state, root):
        directory = f"{top}/{TASKS}/{RETIRED}"
        try:
            # ahead of time: on a full disk there may be no block for it
            _make_parents(directory)
            os.mkdir(directory, 0o700)
        except OSError:
            pass  # it is there, or will be tried again when it is needed
        try:
            found += [f"{directory}/{name}" for name in os.listdir(directory)]
        except FileNotFoundError:
            pass
    return found


def _make_parents(path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        os.makedirs(parent, mode=0o711, exist_ok=True)


def bundles(state: str, root: str) -> Iterator[Bundle]:
    """Every bundle there is."""
    top = f"{state}/{TASKS}"
    try:
        namespaces = sorted(os.listdir(top))
    except FileNotFoundError:
        return
    for namespace in namespaces:
        if namespace == RETIRED:
            continue
        for name in sorted(os.listdir(f"{top}/{namespace}")):
            yield Bundle(state, root, namespace, name)


def parse_bootstrap(answer: bytes) -> tuple[int, str]:
    """The answer of a shim's ``start``: JSON, or (shims before 1.7) the plain address."""
    text = answer.decode("utf-8", "replace").strip()
    version, address = 2, text
    if text.startswith("{"):
        try:
            raw = json.loads(text)
            version, address = int(raw["version"]), str(raw["address"])
            protocol = str(raw.get("protocol") or "ttrpc")
        except (ValueError, KeyError, TypeError) as error:
            raise errdefs.SystemFailure(f"shim's answer to start: {error}: {text!r}") from error
        if protocol != "ttrpc":
            raise errdefs.NotImplementedYet(f"shim speaks {protocol}; only ttrpc is built")
    if version not in (2, 3):
        raise errdefs.NotImplementedYet(f"unsupported shim version ({version})")
    if not address.startswith(("unix://", "/", "@")):
        raise errdefs.SystemFailure(f"shim's answer to start is no address: {text[:200]!r}")
    return version, address


def socket_path(address: str) -> str:
    """The path of ``unix:///path``."""
    return address.removeprefix("unix://")


