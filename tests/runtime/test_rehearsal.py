"""A rehearsed start leaves nothing, and a worker that is made ahead has done one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from carrel import runtime
from carrel.kernel import seccomp
from carrel.oci import json
from carrel.runtime import rehearse
from carrel.runtime.create import Settings
from carrel.runtime.draft import Draft


def test_it_touches_no_descriptor_no_file_and_no_cached_filter() -> None:
    runtime.warm()
    raw = rehearse.text()
    rehearse.once(raw)
    open_before, filters = os.listdir("/proc/self/fd"), dict(seccomp._memory)
    umask, folder = os.umask(0o022), os.getcwd()
    os.umask(umask)
    rehearse.once(raw)
    assert os.listdir("/proc/self/fd") == open_before
    assert seccomp._memory == filters
    assert (os.umask(umask), os.getcwd()) == (umask, folder)
    assert not os.path.exists("/sys/fs/cgroup/pids/rehearsal")


def test_the_configuration_is_one_that_a_daemon_would_send() -> None:
    spec = json.loads(rehearse.text())
    assert {m["type"] for m in spec["mounts"]} >= {"proc", "tmpfs", "devpts", "sysfs", "bind"}
    assert spec["linux"]["seccomp"]["syscalls"]


def test_a_draft_is_used_only_for_what_it_was_made_for(tmp_path: Path) -> None:
    runtime.warm()
    bundle, root = str(tmp_path), str(tmp_path / "state")
    (tmp_path / "rootfs").mkdir()
    raw = rehearse.text()
    mounts: list[dict[str, Any]] = [{"type": "overlay", "source": "overlay", "options": []}]

    def fits(config: bytes = raw, id: str = "c", terminal: bool | None = False,
             given: list[dict[str, Any]] | None = mounts, no_pivot: bool = False) -> bool:
        with seccomp.pretended(json.loads(raw)["linux"]["seccomp"]):
            plan = Draft("c", bundle, root, raw=raw)
        found = plan.fits(config, id, bundle, root, terminal, given, Settings(no_pivot=no_pivot))
        plan.close()
        return found

    before = os.listdir("/proc/self/fd")
    assert fits()
    assert fits(terminal=None)
    assert not fits(config=raw + b" ")
    assert not fits(id="d")
    assert not fits(terminal=True)
    assert not fits(given=None)
    assert not fits(no_pivot=True)
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(bundle) == ["rootfs"]


def test_a_draft_with_a_namespace_that_is_another_by_now_is_not_used(tmp_path: Path) -> None:
    runtime.warm()
    (tmp_path / "rootfs").mkdir()
    path = tmp_path / "ns"
    path.symlink_to("/proc/self/ns/uts")
    spec = json.loads(rehearse.text())
    spec["linux"]["namespaces"] = [
        {"type": "uts", "path": str(path)} if n["type"] == "uts" else n
        for n in spec["linux"]["namespaces"]]
    raw = json.dumps(spec).encode()
    mounts: list[dict[str, Any]] = [{"type": "overlay", "source": "overlay", "options": []}]

    def draft() -> Draft:
        with seccomp.pretended(spec["linux"]["seccomp"]):
            return Draft("c", str(tmp_path), str(tmp_path), raw=raw)

    one, two, three = draft(), draft(), draft()
    assert one.fits(raw, "c", str(tmp_path), str(tmp_path), False, mounts, Settings())
    one.close()
    path.unlink()
    assert not two.fits(raw, "c", str(tmp_path), str(tmp_path), False, mounts, Settings())
    path.symlink_to("/proc/self/ns/ipc")
    assert not three.fits(raw, "c", str(tmp_path), str(tmp_path), False, mounts, Settings())
