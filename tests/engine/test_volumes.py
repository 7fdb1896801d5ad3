"""The volume service with a store and a disk of its own; containers are a stand-in."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from carrel import errdefs
from carrel.engine import volumemount
from carrel.engine.context import EngineContext
from carrel.engine.store import Store
from carrel.engine.volumes import VolumeService, disk_usage, view


class Containers:
    """Who refers to which volume."""

    def __init__(self) -> None:
        self.users: dict[str, list[SimpleNamespace]] = {}

    def users_of_volume(self, name: str) -> list[SimpleNamespace]:
        return self.users.get(name, [])


class Events(list[tuple[str, str, str]]):
    def publish(self, kind: str, action: str, ident: str, attributes: Any = None) -> None:
        self.append((kind, action, ident))


@pytest.fixture
def ctx(tmp_path: Path) -> EngineContext:
    return cast(EngineContext, SimpleNamespace(
        config=SimpleNamespace(engine_dir=str(tmp_path)), store=Store(str(tmp_path / "db")),
        containers=Containers(), events=Events()))


async def test_life(ctx: EngineContext) -> None:
    service = VolumeService(ctx)
    volume = await service.ensure("data", labels={"a": "b"})
    assert view(volume) | {"CreatedAt": ""} == {
        "CreatedAt": "", "Driver": "local", "Labels": {"a": "b"}, "Name": "data", "Options": None,
        "Mountpoint": f"{ctx.config.engine_dir}/volumes/data/_data", "Scope": "local"}
    assert os.stat(os.path.dirname(volume.mountpoint)).st_mode & 0o777 == 0o701
    assert await service.ensure("data", labels={"other": "ignored"}) == volume
    anonymous = await service.ensure("", anonymous=True)
    assert len(anonymous.name) == 64 and view(anonymous)["Labels"] == {
        "com.docker.volume.anonymous": ""}
    (Path(volume.mountpoint) / "file").write_bytes(b"x" * 1000)
    os.symlink("/etc", Path(volume.mountpoint) / "link")
    # another daemon reads the same
    again = VolumeService(ctx)
    assert again.get("data") == volume and len(again.all()) == 2
    rows = {r["Name"]: r["UsageData"] for r in await again.summaries()}
    assert rows["data"]["RefCount"] == 0 and 1000 <= rows["data"]["Size"] < 1100
    await again.remove("data")
    assert not os.path.exists(os.path.dirname(volume.mountpoint)) and os.path.exists("/etc/passwd")
    with pytest.raises(errdefs.NotFound, match="get data: no such volume"):
        again.get("data")
    await again.remove("data", force=True)


async def test_in_use(ctx: EngineContext) -> None:
    service = VolumeService(ctx)
    await service.ensure("data")
    cast(Containers, ctx.containers).users["data"] = [SimpleNamespace(id="c" * 64, running=False)]
    with pytest.raises(errdefs.Conflict, match=r"remove data: volume is in use - \[c{64}\]"):
        await service.remove("data", force=True)


@pytest.mark.parametrize("name", ["../x", "a/b", "x", ".hidden", "a\n", "-x", "a" * 256, "ä"])
async def test_names(ctx: EngineContext, name: str) -> None:
    with pytest.raises(errdefs.InvalidParameter):
        await VolumeService(ctx).ensure(name)
    assert os.listdir(f"{ctx.config.engine_dir}/volumes") == []


@pytest.mark.parametrize(("options", "kind", "text"), [
    ({"foo": "x"}, errdefs.InvalidParameter, 'create v1: invalid option: "foo"'),
    ({"type": "tmpfs"}, errdefs.InvalidParameter, 'create v1: missing required option: "device"'),
    ({"size": "1g"}, errdefs.NotImplementedYet, "quota"),
])
async def test_options_are_checked_first(ctx: EngineContext, options: dict[str, str],
                                         kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        await VolumeService(ctx).ensure("v1", options=options)
    with pytest.raises(errdefs.NotFound, match='plugin "nfsx" not found'):
        await VolumeService(ctx).ensure("v1", driver="nfsx")


def test_mount_options() -> None:
    assert volumemount.parse("ro,noexec,size=1m,uid=1000") == (1 | 8, "size=1m,uid=1000")
    assert volumemount.parse("rw,nosuid,suid,bind") == (0x1000, "")
    assert volumemount.parse("") == (0, "")


@pytest.mark.root
@pytest.mark.usefixtures("leak_check")
async def test_mounted_at_first_use(ctx: EngineContext, tmp_path: Path) -> None:
    service = VolumeService(ctx)
    await service.ensure("mem", options={"type": "tmpfs", "device": "tmpfs", "o": "size=64k,ro"})
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "here").touch()
    await service.ensure("bound", options={
        "type": "none", "device": str(tmp_path / "source"), "o": "bind"})
    path = await service.mount("mem", "one")
    assert os.path.ismount(path) and os.statvfs(path).f_flag & os.ST_RDONLY
    assert await service.mount("mem", "two") == path
    await service.unmount("mem", "one")
    assert os.path.ismount(path)
    await service.unmount("mem", "two")
    assert not os.path.ismount(path)
    assert os.listdir(await service.mount("bound", "one")) == ["here"]
    await service.unmount("bound", "one")
    await service.mount("bound", "one")
    await service.remove("bound")
    assert os.listdir(tmp_path / "source") == ["here"]  # the source of a bind is not the volume's
    await service.ensure("broken", options={"type": "nosuchfs", "device": "x"})
    with pytest.raises(errdefs.SystemFailure, match="failed to mount local volume"):
        await service.mount("broken", "one")


async def test_interrupted_removal_is_finished(ctx: EngineContext) -> None:
    service = VolumeService(ctx)
    folder = Path(f"{ctx.config.engine_dir}/volumes/.removed-0123/_data")
    folder.mkdir(parents=True)
    (folder / "file").touch()
    assert VolumeService(ctx).all() == service.all() == []
    assert os.listdir(f"{ctx.config.engine_dir}/volumes") == []


def test_disk_usage_counts_an_inode_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 500)
    os.link(tmp_path / "a", tmp_path / "b")
    os.symlink(tmp_path / "a", tmp_path / "c")
    assert 500 <= disk_usage(str(tmp_path)) < 500 + 200
