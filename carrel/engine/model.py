"""A container as the engine knows it: what is kept on disk, and what lives beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from carrel.engine import timefmt

if TYPE_CHECKING:
    from carrel.engine.health import Monitor
    from carrel.engine.prepare import Prepared
    from carrel.engine.stdio import Stdio
    from carrel.engine.streams import Session

CREATED, RUNNING, PAUSED, RESTARTING = "created", "running", "paused", "restarting"
REMOVING, EXITED, DEAD = "removing", "exited", "dead"


class MountPoint(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One entry of ``Mounts``, and where it came from."""

    type: str                   # bind, volume, tmpfs
    source: str                 # host folder; for volumes the volume's folder
    destination: str
    name: str = ""              # volume
    driver: str = ""
    mode: str = ""              # as given after the second colon
    rw: bool = True
    propagation: str = ""
    nocopy: bool = False
    subpath: str = ""
    recursive: str = ""         # "", disabled, writable, readonly
    create_source: bool = False  # -v makes a missing host folder, --mount does not
    tmpfs_options: str = ""
    from_image: bool = False


class Health(msgspec.Struct, kw_only=True):
    status: str = "starting"
    failing_streak: int = 0
    log: list[dict[str, Any]] = msgspec.field(default_factory=list)


class State(msgspec.Struct, kw_only=True):
    """What ``inspect`` shows as State; replaced piece by piece, never half."""

    status: str = CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: str = timefmt.ZERO
    finished_at: str = timefmt.ZERO
    health: Health | None = None

    @property
    def running(self) -> bool:
        """Docker counts a container between two restarts as running."""
        return self.status in (RUNNING, PAUSED, RESTARTING)


class Record(msgspec.Struct, kw_only=True):
    """What survives the daemon."""

    id: str
    name: str
    created: str
    image_ref: str
    image_id: str
    chain_id: str
    image_target: dict[str, Any] = msgspec.field(default_factory=dict)
    platform: str = "linux"
    path: str = ""
    args: list[str] = msgspec.field(default_factory=list)
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    host_config: dict[str, Any] = msgspec.field(default_factory=dict)
    #: network name or id -> EndpointSettings as asked for
    endpoints: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    mounts: list[MountPoint] = msgspec.field(default_factory=list)
    state: State = msgspec.field(default_factory=State)
    restart_count: int = 0
    manually_stopped: bool = False
    runtime: str = ""
    log_driver: str = "json-file"
    log_opts: dict[str, str] = msgspec.field(default_factory=dict)
    #: copy-up of image content into new volumes happens at the first start
    populated: bool = False


class Container:
    """One container: its record, its lock, and who waits for it.

    ``lock`` is held by every operation that changes the container; inspect and
    list never take it.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.mounts_cache: list[Any] | None = None     # rootfs mounts of the snapshot
        self.preparing: asyncio.Future[list[Any]] | None = None  # the snapshot, being made
        self.spec_written = b""                        # what the container record holds
        self.prepared: Prepared | None = None          # for a start at once; a change drops it
        self.recording: asyncio.Future[Any] | None = None  # the record, being written ahead
        self.task_dirty = False                        # a task exists and must be deleted
        self.waiters: dict[str, list[asyncio.Future[tuple[int, str]]]] = {}
        self.pending: list[Session] = []               # attached before the start
        self.stdio: Stdio | None = None
        self.execs: dict[str, Any] = {}
        self.monitor: Monitor | None = None
        self.restart_task: asyncio.Task[Any] | None = None
        self.cleanup: asyncio.Task[Any] | None = None
        self.restart_delay = 0.0
        self.no_restart = False                        # stop was asked for
        self.exit_seen: asyncio.Event = asyncio.Event()
        self.removed = False
        self.rootfs_size: tuple[int, int] | None = None

    # --- ContainerView --------------------------------------------------------
    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def image_id(self) -> str:
        return self.record.image_id

    @property
    def image_ref(self) -> str:
        return self.record.image_ref

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def running(self) -> bool:
        return self.record.state.running

    @property
    def config(self) -> Mapping[str, Any]:
        return self.record.config

    @property
    def host(self) -> dict[str, Any]:
        return self.record.host_config

    @property
    def labels(self) -> Mapping[str, str]:
        return self.record.config.get("Labels") or {}

    @property
    def volumes(self) -> Iterable[str]:
        return [m.name for m in self.record.mounts if m.type == "volume"]

    @property
    def networks(self) -> Iterable[str]:
        return list(self.record.endpoints)

    @property
    def snapshot_key(self) -> str:
        return self.record.id

    @property
    def tty(self) -> bool:
        return bool(self.record.config.get("Tty"))

    @property
    def alive(self) -> bool:
        """There is a process."""
        return self.record.state.status in (RUNNING, PAUSED)

    # --- waiting --------------------------------------------------------------
    def wait_for(self, condition: str) -> asyncio.Future[tuple[int, str]]:
        future: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.waiters.setdefault(condition, []).append(future)
        return future

    def tell(self, *conditions: str, error: str = "") -> None:
        """Answer those who wait for one of the conditions."""
        for condition in conditions:
            for future in self.waiters.pop(condition, []):
                if not future.done():
                    future.set_result((self.record.state.exit_code, error))

    def attributes(self, **extra: str) -> dict[str, str]:
        """Attributes of this container's events."""
        return {**self.labels, "image": self.record.image_ref, "name": self.record.name, **extra}
