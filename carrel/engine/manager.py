"""All containers of this daemon: who they are, how they are found, what they share."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from carrel import errdefs
from carrel.engine import names, netglue, specbuild, texts
from carrel.engine.confinement import Confinement
from carrel.engine.context import EngineContext
from carrel.engine.model import Container, Record
from carrel.engine.tasks import Tasks
from carrel.kernel import cgroup
from carrel.network.api import Sandbox

if TYPE_CHECKING:
    from carrel.engine.execs import Exec

KIND = "container"


def io_folder(exec_root: str, ident: str) -> str:
    """Where the process's sockets are; short, for a socket's path has 107 bytes at most."""
    return f"{exec_root}/io/{ident[:32]}"


class Manager:
    """Implements ``context.Containers``; operations live in modules of their names."""

    def __init__(self, ctx: EngineContext) -> None:
        self.ctx = ctx
        self.tasks = Tasks(ctx.containerd, ctx.config)
        self.execs: dict[str, Exec] = {}
        self.stopping = False
        self.unified = cgroup.layout().mode == "unified"
        self.confinement = Confinement()
        self.may_raise_limits = specbuild.may_raise_limits()
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._releasing: set[asyncio.Task[Any]] = set()
        self._cleaned: list[str] = []

    # --- registry -------------------------------------------------------------
    def load(self) -> None:
        """From the store, at start."""
        for ident, doc in self.ctx.store.all(KIND):
            record = msgspec.convert(doc, Record)
            self.add(Container(record))
            self._names[record.name] = ident

    def save(self, container: Container) -> None:
        """One commit (or part of the caller's). What was prepared for a start may be wrong now."""
        container.prepared = None
        if not container.removed:
            self.ctx.store.put(KIND, container.id, container.record)

    def add(self, container: Container) -> None:
        self._containers[container.id] = container

    def forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)
        self.unreserve(container.name, container.id)
        for exec_id, process in list(self.execs.items()):
            if process.container is container:
                del self.execs[exec_id]

    def cleaned(self, ident: str) -> None:
        """Nothing is left of a removed container. The note of it goes with the next
        removal's commit, or after a moment: it is worth no commit of its own."""
        if not self._cleaned:
            asyncio.get_running_loop().call_later(1.0, self.flush_cleaned)
        self._cleaned.append(ident)

    def flush_cleaned(self) -> None:
        if not self._cleaned:
            return
        done, self._cleaned = self._cleaned, []
        with self.ctx.store.transaction():
            for ident in done:
                self.ctx.store.delete("cleanup", ident)

    def check_free(self, name: str) -> None:
        owner = self._names.get(name)
        if owner is not None:
            raise errdefs.Conflict(texts.name_in_use(name, owner))

    def reserve(self, name: str, ident: str) -> str:
        """Take the name, or a random one."""
        if name:
            self.check_free(name)
        else:
            for _ in range(16):
                name = names.random_name()
                if name not in self._names:
                    break
            else:
                name = f"{name}_{ident[:6]}"
        self._names[name] = ident
        return name

    def unreserve(self, name: str, ident: str) -> None:
        if self._names.get(name) == ident:
            del self._names[name]

    def rename(self, container: Container, new: str) -> None:
        """Name and store change together."""
        name = names.check_name(new)
        old = container.name
        if name == old:
            raise errdefs.InvalidParameter("Renaming a container with the same name as its "
                                           "current name")
        self.check_free(name)
        self._names[name] = container.id
        container.record.name = name
        try:
            with self.ctx.store.transaction():
                self.ctx.store.release(KIND, old)
                self.ctx.store.claim(KIND, name, container.id)
                self.save(container)
        except BaseException:
            container.record.name = old
            self.unreserve(name, container.id)
            raise
        self.unreserve(old, container.id)
        if container.alive:
            self.ctx.network.rename(container.id, name)
        self.ctx.events.publish("container", "rename", container.id,
                                container.attributes(oldName=f"/{old}"))

    # --- Containers -----------------------------------------------------------
    def find(self, ref: str) -> Container:
        found = self._containers.get(ref)
        if found is not None:
            return found
        ident = self._names.get(ref.removeprefix("/"))
        if ident is not None and ident in self._containers:
            return self._containers[ident]
        if names.is_id_prefix(ref):
            matches = [c for i, c in self._containers.items() if i.startswith(ref)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise errdefs.InvalidParameter(texts.multiple_ids(ref))
        raise errdefs.NotFound(texts.no_such_container(ref[:300]))

    def get(self, ident: str) -> Container | None:
        return self._containers.get(ident)

    def all(self) -> Iterable[Container]:
        return list(self._containers.values())

    def users_of_image(self, image_id: str) -> list[Any]:
        return [c for c in self._containers.values() if c.image_id == image_id]

    def users_of_volume(self, name: str) -> list[Any]:
        return [c for c in self._containers.values() if name in c.volumes]

    def is_anonymous(self, name: str) -> bool:
        """A volume that nobody named, and nobody else uses."""
        try:
            volume = self.ctx.volumes.get(name)
        except errdefs.NotFound:
            return False
        return volume.anonymous and len(self.users_of_volume(name)) <= 1

    def joinable(self, ref: str, what: str) -> Container:
        """A container whose namespace another one wants to share."""
        other = self.find(ref)
        if not other.alive:
            raise errdefs.Conflict(
                f"cannot join {what} of a non running container: {other.id}")
        return other

    # --- folders and what lies there -------------------------------------------
    def folder(self, container: Container) -> str:
        return f"{self.ctx.config.engine_dir}/containers/{container.id}"

    def files_folder(self, container: Container) -> str:
        """hosts, hostname, resolv.conf: written at every start, so they live in memory."""
        return f"{self.ctx.config.exec_root}/containers/{container.id}"

    def io_folder(self, container: Container) -> str:
        return io_folder(self.ctx.config.exec_root, container.id)

    async def snapshot_mounts(self, container: Container) -> list[Any]:
        preparing = container.preparing
        if preparing:
            outcome = (await asyncio.gather(preparing, return_exceptions=True))[0]
            container.preparing = None
            if not isinstance(outcome, BaseException):
                container.mounts_cache = outcome
        if container.mounts_cache is None:
            try:
                container.mounts_cache = await self.tasks.mounts(container.id)
            except errdefs.NotFound:
                # never made (the daemon died), or the attempt at creation failed
                container.mounts_cache = await self.tasks.prepare(container.id,
                                                                  container.record.chain_id)
        return container.mounts_cache

    def shm_source(self, container: Container, undo: contextlib.AsyncExitStack) -> str:
        """The folder behind /dev/shm when it is shared; "" for a private one."""
        mode = container.host["IpcMode"]
        if mode.startswith("container:"):
            other = self.joinable(mode[10:], "IPC")
            if other.host["IpcMode"] != "shareable":
                raise errdefs.Conflict(
                    f"cannot join IPC of container {mode[10:]}: non-shareable IPC "
                    "(hint: use IpcMode:shareable for the donor container)")
            return self.shm_folder(other.id)
        if mode != "shareable":
            return ""
        from carrel.kernel import syscalls

        folder = self.shm_folder(container.id)
        os.makedirs(folder, mode=0o711, exist_ok=True)
        if not os.path.ismount(folder):
            syscalls.mount("shm", folder, "tmpfs", 0x2 | 0x4 | 0x8,
                           f"mode=1777,size={container.host['ShmSize']}")
        undo.callback(self.drop_shm, container)
        return folder

    def shm_folder(self, ident: str) -> str:
        return f"{self.ctx.config.exec_root}/shm/{ident}"

    def drop_shm(self, container: Container) -> None:
        if container.host["IpcMode"] != "shareable":
            return
        from carrel.kernel import syscalls

        folder = self.shm_folder(container.id)
        with contextlib.suppress(OSError):
            syscalls.umount2(folder, 2)
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    # --- network --------------------------------------------------------------
    def sandbox_of(self, container: Container) -> Sandbox | None:
        return self.ctx.network.sandbox(container.id) if container.alive else None

    async def release_network(self, container: Container) -> None:
        """Take the sandbox down; :meth:`network_released` waits for such work."""
        task: Any = asyncio.current_task()
        self._releasing.add(task)
        try:
            await self.ctx.network.remove_sandbox(container.id)
            netglue.announce(self, container, "disconnect")
        finally:
            self._releasing.discard(task)

    async def network_released(self) -> None:
        """Until addresses and ports of stopped containers are free."""
        pending = self._releasing - {asyncio.current_task()}
        if pending:
            await asyncio.wait(pending)

    async def connect_network(self, ref: str, network: str, endpoint: dict[str, Any]) -> None:
        container = self.find(ref)
        settings = netglue.endpoint_settings(endpoint, "EndpointConfig")
        mode = netglue.mode_of(container.host)
        found = self.ctx.network.network(network)
        async with container.lock:
            if mode == "host" or found.name in netglue.SPECIAL:
                raise errdefs.Forbidden(
                    "container cannot be disconnected from host network or connected to host "
                    "network")
            if mode.startswith("container:"):
                raise errdefs.Forbidden(
                    "container sharing network namespace with another container or host cannot "
                    "be connected to any other network")
            if any(self._same_network(name, found.id) for name in container.record.endpoints):
                raise errdefs.Forbidden(
                    f"endpoint with name {container.name} already exists in network {found.name}")
            self.ctx.network.check_endpoint(netglue.endpoint_spec(found.name, settings), mode="")
            if container.alive:
                await self.ctx.network.connect(container.id, found.id,
                                               netglue.endpoint_spec(found.name, settings))
                self.refresh_files(container)
            container.record.endpoints[found.name] = settings
            self.save(container)
        self.ctx.events.publish("network", "connect", found.id, {
            "container": container.id, "name": found.name, "type": found.driver})

    async def disconnect_network(self, ref: str, network: str, *, force: bool) -> None:
        container = self.find(ref)
        found = self.ctx.network.network(network)
        async with container.lock:
            if netglue.mode_of(container.host) == "host" or found.name in netglue.SPECIAL:
                raise errdefs.Forbidden(
                    "container cannot be disconnected from host network or connected to host "
                    "network")
            name = next((n for n in container.record.endpoints
                         if self._same_network(n, found.id)), None)
            if name is None:
                raise errdefs.Forbidden(
                    f"container {container.id} is not connected to network {found.name}")
            if container.alive:
                await self.ctx.network.disconnect(container.id, found.id)
                self.refresh_files(container)
            del container.record.endpoints[name]
            self.save(container)
        self.ctx.events.publish("network", "disconnect", found.id, {
            "container": container.id, "name": found.name, "type": found.driver})

    def _same_network(self, name: str, ident: str) -> bool:
        try:
            return self.ctx.network.network(name).id == ident
        except errdefs.NotFound:
            return False

    def refresh_files(self, container: Container) -> None:
        """hosts and resolv.conf after a change; same inode, it is bound inside."""
        sandbox = self.ctx.network.sandbox(container.id)
        if sandbox is None:
            return
        for name, text in (("hosts", sandbox.hosts), ("resolv.conf", sandbox.resolv_conf)):
            path = f"{self.files_folder(container)}/{name}"
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
                try:
                    os.write(fd, text.encode())
                finally:
                    os.close(fd)
