"""What a start needs and can be done between ``create`` and ``start``.

``docker run`` sends create, attach, wait and start. While those requests are on their way, the
specification is built and the container's record is written in the containerd layer. A start
that follows at once takes it, unless something was changed meanwhile; any other start does
the same work itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from carrel import errdefs
from carrel.engine import explain, specbuild
from carrel.engine.model import Container
from carrel.network.api import Sandbox, SandboxSpec

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

#: seconds for which the machine (users, devices, profiles) is taken to be as it was
_FRESH = 2.0


class Inputs(NamedTuple):
    """What a specification is built from, beside the container itself and the machine."""

    netns: str
    files: dict[str, str]
    sources: dict[str, str]
    shm: str


class Prepared:
    """A specification made ahead, and the record that holds it."""

    def __init__(self, key: str) -> None:
        #: of the network sandbox: its namespace's path is in the specification
        self.key = key
        self.inputs = Inputs("", {}, {}, "")
        self.spec = b""
        self.until = time.monotonic() + _FRESH


def begin(manager: Manager, container: Container) -> None:
    """After a create: the work starts when the answer has left."""
    host = container.host
    if explain.CURRENT.get() is not None or any(
            (host[m] or "").startswith("container:") for m in ("NetworkMode", "IpcMode", "PidMode")
    ) or any(p.subpath for p in container.record.mounts):
        return  # calls are to be seen in their order; others' state is looked at by the start
    prepared = Prepared(secrets.token_hex(32))
    container.prepared = prepared
    container.recording = manager.ctx.spawn(_prepare(manager, container, prepared),
                                            f"prepare {container.id[:12]}")


async def _prepare(manager: Manager, container: Container, prepared: Prepared) -> None:
    inputs = _expected(manager, container, prepared.key)
    sandbox = None
    if container.host["NetworkMode"] != "host":
        sandbox = Sandbox(id=container.id, spec=SandboxSpec(id=container.id), key=prepared.key,
                          netns_path=inputs.netns)
    try:
        spec = specbuild.encode(await specbuild.build(
            manager, container, sandbox, inputs.files, inputs.sources, inputs.shm))
        if container.prepared is not prepared:
            return  # changed, removed, or started already
        await manager.tasks.create_record(container.id, container.image_ref,
                                          container.record.runtime, spec)
        container.spec_written = spec
        prepared.inputs, prepared.spec = inputs, spec
    except (errdefs.CarrelError, OSError):
        container.prepared = None  # the start meets it again, and tells


def _expected(manager: Manager, container: Container, key: str) -> Inputs:
    folder = manager.files_folder(container)
    shareable = container.host["IpcMode"] == "shareable"
    return Inputs(
        netns=manager.ctx.network.namespace_path(key)
        if container.host["NetworkMode"] != "host" else "",
        files={f"/etc/{n}": f"{folder}/{n}" for n in ("hostname", "hosts", "resolv.conf")},
        sources={p.destination: p.source for p in container.record.mounts
                 if p.type in ("bind", "volume")},
        shm=manager.shm_folder(container.id) if shareable else "")


async def take(container: Container) -> Prepared | None:
    """At a start: what was made, if it is fresh. Whatever is still being written is waited for."""
    recording, container.recording = container.recording, None
    if recording is not None and not recording.done():
        await asyncio.wait([recording])
    prepared, container.prepared = container.prepared, None
    if prepared is None or not prepared.spec or time.monotonic() > prepared.until:
        return None
    return prepared
