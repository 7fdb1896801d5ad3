"""``POST /containers/create``: everything is checked, then everything is made or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import (
    links,
    logopts,
    mountspec,
    names,
    netglue,
    prepare,
    refused,
    schema,
    tasks,
    texts,
    timefmt,
    validate,
)
from carrel.engine.context import ResolvedImage
from carrel.engine.model import Container, MountPoint, Record
from carrel.engine.spec.process import merge_environment

if TYPE_CHECKING:
    from carrel.engine.manager import Manager


async def create(manager: Manager, name: str, body: dict[str, Any], platform: str
                 ) -> tuple[Container, list[str]]:
    """A container in state ``created``, and warnings."""
    config = schema.check({k: v for k, v in body.items()
                           if k not in ("HostConfig", "NetworkingConfig")},
                          schema.CONFIG, "ContainerConfig")
    host = complete_host(manager, schema.check(body.get("HostConfig"), schema.HOST_CONFIG,
                                               "HostConfig"))
    if not host["Runtime"] and isinstance(body.get("Runtime"), str):
        host["Runtime"] = body["Runtime"]  # where docker-py puts it
    validate.config(config)
    refused.host_config(host)
    logopts.check(host["LogConfig"])
    if host["CgroupParent"] and manager.ctx.config.systemd_cgroups:
        validate.slice_name(host["CgroupParent"])
    warnings = validate.host_config(host, config) + refused.discard(host, manager.unified)
    endpoints = netglue.wanted_endpoints(host, body.get("NetworkingConfig"),
                                         config.get("MacAddress"))
    links.check(manager, host)
    runtime = host["Runtime"] or manager.ctx.config.default_runtime
    tasks.resolve_runtime(manager.ctx.config, runtime)
    host["Runtime"] = runtime
    if name:
        name = names.check_name(name)
        manager.check_free(name)
    if not config.get("Image"):
        raise errdefs.InvalidParameter("Config.Image must not be empty")
    image = await manager.ctx.images.resolve(config["Image"], platform)
    record = _record(manager, image, config, host, endpoints)
    for network, settings in endpoints.items():
        manager.ctx.network.check_endpoint(netglue.endpoint_spec(network, settings), mode="")
    points = mountspec.collect(host, image.defaults.get("Volumes") or (),
                               config.get("Volumes") or (), _inherited(manager, host))
    _default_log(manager, record)
    return await _make(manager, name, record, points), warnings


def complete_host(manager: Manager, given: dict[str, Any]) -> dict[str, Any]:
    """All fields, with the defaults of this daemon."""
    host = schema.complete(given, schema.HOST_CONFIG)
    config = manager.ctx.config
    if not host["NetworkMode"] or host["NetworkMode"] == "default":
        host["NetworkMode"] = "bridge"
    host["ShmSize"] = host["ShmSize"] or config.default_shm_size
    host["IpcMode"] = host["IpcMode"] or config.default_ipc_mode
    if not host["CgroupnsMode"]:
        private = manager.unified and not host["Privileged"]
        host["CgroupnsMode"] = config.default_cgroupns_mode or ("private" if private else "host")
    policy = host["RestartPolicy"] or {}
    host["RestartPolicy"] = {"Name": policy.get("Name") or "no",
                             "MaximumRetryCount": policy.get("MaximumRetryCount") or 0}
    if host["Memory"] > 0 and host["MemorySwap"] == 0:
        host["MemorySwap"] = host["Memory"] * 2
    if not host["Privileged"]:
        from carrel.engine.spec import linux

        for key, default in (("MaskedPaths", linux.MASKED), ("ReadonlyPaths", linux.READONLY)):
            if host[key] is None:
                host[key] = list(default)
    return host


def _record(manager: Manager, image: ResolvedImage, config: dict[str, Any],
            host: dict[str, Any], endpoints: dict[str, dict[str, Any]]) -> Record:
    ident = names.new_id()
    merged = merge_image(config, image.defaults)
    for port in host["PortBindings"] or {}:
        merged.setdefault("ExposedPorts", None)
        merged["ExposedPorts"] = {**(merged["ExposedPorts"] or {}), port: {}}
    command = [*(merged["Entrypoint"] or ()), *(merged["Cmd"] or ())]
    if not command:
        raise errdefs.InvalidParameter(texts.no_command())
    if not merged["Hostname"] and not host["NetworkMode"].startswith("container:"):
        merged["Hostname"] = os.uname().nodename if "host" in (
            host["NetworkMode"], host["UTSMode"]) else ident[:12]
    return Record(
        id=ident, name="", created=timefmt.now(), image_ref=config["Image"], image_id=image.id,
        chain_id=image.chain_id, image_target=image.target,
        platform=str(image.config.get("os") or "linux"), path=command[0], args=command[1:],
        config=merged, host_config=host, endpoints=endpoints, runtime=host["Runtime"])


def merge_image(config: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """What the container does not say, the image says."""
    merged = schema.complete(config, schema.CONFIG)
    merged = {k: v for k, v in merged.items() if v is not None or k in (
        "Env", "Cmd", "Entrypoint", "Volumes", "OnBuild", "Image")}
    merged["User"] = merged["User"] or image.get("User") or ""
    merged["WorkingDir"] = merged["WorkingDir"] or image.get("WorkingDir") or ""
    merged["Env"] = merge_environment(image.get("Env") or (), config.get("Env") or ())
    merged["Labels"] = {**(image.get("Labels") or {}), **(config.get("Labels") or {})}
    given = config.get("Entrypoint")
    if given is None or given == []:
        if not config.get("Cmd"):
            merged["Cmd"] = image.get("Cmd")
        merged["Entrypoint"] = image.get("Entrypoint")
    elif given == [""]:
        merged["Entrypoint"] = None
    for key in ("ExposedPorts", "Volumes"):
        both = {**(image.get(key) or {}), **(config.get(key) or {})}
        if both:
            merged[key] = both
    for key in ("StopSignal", "StopTimeout", "Shell", "OnBuild"):
        if not merged.get(key) and image.get(key):
            merged[key] = image[key]
    merged["Healthcheck"] = _merge_health(config.get("Healthcheck"), image.get("Healthcheck"))
    if merged["Healthcheck"] is None:
        del merged["Healthcheck"]
    return merged


def _merge_health(own: dict[str, Any] | None, image: dict[str, Any] | None
                  ) -> dict[str, Any] | None:
    if not own or not image:
        return own or image
    if own.get("Test"):
        return {**{k: v for k, v in image.items() if k != "Test"},
                **{k: v for k, v in own.items() if v}}
    return {**image, **{k: v for k, v in own.items() if v}}


def _inherited(manager: Manager, host: dict[str, Any]) -> list[MountPoint]:
    """``--volumes-from``."""
    import msgspec

    result = []
    for text in host["VolumesFrom"] or ():
        ref, _, mode = text.partition(":")
        if mode and not set(mode.split(",")) <= {"ro", "rw", "z", "Z"}:
            raise errdefs.InvalidParameter(f"invalid mode for volumes-from: {mode[:40]}")
        for point in manager.find(ref).record.mounts:
            if point.type == "tmpfs":
                continue
            copy = msgspec.structs.replace(point, nocopy=True)
            if "ro" in mode.split(","):
                copy.rw = False
            result.append(copy)
    return result


def _default_log(manager: Manager, record: Record) -> None:
    config = manager.ctx.config
    given = record.host_config["LogConfig"]
    driver = given.get("Type") or config.log_driver
    options = dict(given.get("Config") or {})
    if driver == config.log_driver:
        options = {**config.log_opts, **options}
    logopts.check({"Type": driver, "Config": options})
    record.host_config["LogConfig"] = {"Type": driver, "Config": options}
    record.log_driver, record.log_opts = driver, options


async def _make(manager: Manager, name: str, record: Record,
                points: list[tuple[MountPoint, dict[str, Any]]]) -> Container:
    """The side effects, each with its undo."""
    ctx = manager.ctx
    async with contextlib.AsyncExitStack() as undo:
        record.name = manager.reserve(name, record.id)
        undo.callback(manager.unreserve, record.name, record.id)
        made: list[str] = []
        undo.push_async_callback(_remove_volumes, manager, made)
        record.mounts = [await _point(manager, p, o, made) for p, o in points]
        container = Container(record)
        preparing = asyncio.ensure_future(manager.tasks.prepare(record.id, record.chain_id))
        undo.push_async_callback(_remove_snapshot, manager, record.id, preparing)
        await asyncio.sleep(0)  # the request leaves: the commit runs while the layer works
        undo.callback(ctx.store.delete, "container", record.id)
        with ctx.store.transaction():
            ctx.store.take("container", record.name, record.id)
            manager.save(container)
        # answered while the layer still works; whoever needs the snapshot waits for it,
        # and a failure is told by the start, which tries once more
        container.preparing = preparing
        undo.pop_all()
    manager.add(container)
    ctx.events.publish("container", "create", record.id, container.attributes())
    prepare.begin(manager, container)
    return container


async def _remove_snapshot(manager: Manager, ident: str, preparing: asyncio.Future[Any]) -> None:
    await asyncio.wait([preparing])
    await manager.tasks.remove_snapshot(ident)


async def _remove_volumes(manager: Manager, names_made: list[str]) -> None:
    for name in names_made:
        with contextlib.suppress(errdefs.CarrelError):
            await manager.ctx.volumes.remove(name, force=True)


async def _point(manager: Manager, point: MountPoint, options: dict[str, Any], made: list[str]
                 ) -> MountPoint:
    """A volume is made here, so that it is there when the container is."""
    if point.type == "bind" and point.create_source:
        make_source(point)
    if point.type != "volume":
        return point
    driver = options.get("DriverConfig") or {}
    known = point.name and _exists(manager, point.name)
    volume = await manager.ctx.volumes.ensure(
        point.name, driver=driver.get("Name") or options.get("Driver") or "",
        options=driver.get("Options") or {}, labels=options.get("Labels") or {},
        anonymous=not point.name)
    if not known:
        made.append(volume.name)
    point.name, point.source, point.driver = volume.name, volume.mountpoint, volume.driver
    return point


def make_source(point: MountPoint) -> None:
    """``-v`` makes a host folder that is missing; ``--mount`` does not."""
    if os.path.lexists(point.source):
        return
    if not point.create_source:
        raise errdefs.InvalidParameter(
            'invalid mount config for type "bind": bind source path does not exist: '
            f"{point.source}")
    try:
        os.makedirs(point.source, exist_ok=True)
    except OSError as error:
        raise errdefs.SystemFailure(
            f"error while creating mount source path '{point.source}': {error}") from None


def _exists(manager: Manager, name: str) -> bool:
    try:
        manager.ctx.volumes.get(name)
    except errdefs.NotFound:
        return False
    return True
