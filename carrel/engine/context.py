"""What the parts of the engine know of each other: one object, handed to every area.

The protocols here are the seams between the engine's areas; each has one
implementation, in the module named beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from carrel.engine.config import Config
from carrel.engine.containerd import Client
from carrel.engine.events import EventBus
from carrel.engine.explain import Traces
from carrel.engine.store import Store

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from carrel.network.api import Controller


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as a container needs it; immutable, so it may be cached."""

    id: str                     # sha256:... as `docker images` shows it
    config: dict[str, Any]      # the OCI image configuration, whole
    chain_id: str               # parent of the container's snapshot, "" for scratch
    target: dict[str, Any]      # descriptor: mediaType, digest, size, platform...
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, Any]:
        """The part that a container inherits: Env, Cmd, User, ..."""
        value = self.config.get("config")
        return value if isinstance(value, dict) else {}


class Images(Protocol):
    """carrel/engine/images.py"""

    async def start(self) -> None:
        """Load what is remembered; called once the containerd layer answers."""

    async def resolve(self, reference: str, platform: str = "") -> ResolvedImage:
        """By name, digest or id (prefix). NotFound with texts.no_such_image."""

    async def summaries(self, *, all_images: bool = False) -> list[dict[str, Any]]:
        """What ``GET /images/json`` answers, also for ``system df``."""

    async def count(self) -> int: ...

    async def layers_size(self) -> int:
        """Bytes of all layers on disk, each counted once."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    driver: str
    mountpoint: str             # the folder that is bound into containers
    labels: dict[str, str]
    options: dict[str, str]
    created_at: str
    anonymous: bool = False


class Volumes(Protocol):
    """carrel/engine/volumes.py"""

    async def ensure(self, name: str, *, driver: str = "", options: Mapping[str, str] | None = None,
                     labels: Mapping[str, str] | None = None, anonymous: bool = False) -> Volume:
        """The volume of that name, made if it is not there (``name`` "" = random)."""

    def get(self, name: str) -> Volume:
        """NotFound: ``get <name>: no such volume``."""

    async def mount(self, name: str, container: str) -> str:
        """Make its data available (counted per container); the folder to bind."""

    async def unmount(self, name: str, container: str) -> None: ...

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Conflict when a container refers to it (``Containers.users_of_volume``)."""

    async def summaries(self) -> list[dict[str, Any]]:
        """For ``system df``: as ``GET /volumes``, with UsageData."""


class ContainerView(Protocol):
    """What other areas may see of a container."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...              # without the slash
    @property
    def image_id(self) -> str: ...          # sha256:...
    @property
    def image_ref(self) -> str: ...         # as the user wrote it
    @property
    def running(self) -> bool: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def volumes(self) -> Iterable[str]: ...     # names of volumes it refers to
    @property
    def networks(self) -> Iterable[str]: ...    # ids of networks it is configured for
    @property
    def snapshot_key(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...  # the API's Config object


class Containers(Protocol):
    """carrel/engine/manager.py"""

    def find(self, ref: str) -> ContainerView:
        """By full id, name or unambiguous prefix of the id."""

    def all(self) -> Iterable[ContainerView]: ...

    def users_of_image(self, image_id: str) -> list[ContainerView]: ...

    def users_of_volume(self, name: str) -> list[ContainerView]: ...

    async def connect_network(self, ref: str, network: str, endpoint: dict[str, Any]) -> None:
        """``POST /networks/{id}/connect``: EndpointConfig of the API."""

    async def disconnect_network(self, ref: str, network: str, *, force: bool) -> None: ...


class EngineContext:
    """One daemon. Fields are set once, in the order of :mod:`carrel.engine.main`."""

    images: Images
    network: Controller
    volumes: Volumes
    containers: Containers

    def __init__(self, config: Config, store: Store, containerd: Client,
                 events: EventBus) -> None:
        self.config = config
        self.store = store
        self.containerd = containerd
        self.events = events
        self.traces = Traces()
        self.id = ""                        # the daemon's identity, kept in the store
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run something beside the request; its failure is logged, never lost."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            from carrel.engine import log

            log.error(f"{task.get_name()}: {error}", error)

    async def drain(self, seconds: float) -> None:
        """Wait for work beside requests, then cancel what is left."""
        tasks = set(self._tasks) - {asyncio.current_task()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
