"""A rehearsed start leaves nothing, and a worker that is made ahead has done one."""

from __future__ import annotations

import os

from carrel import runtime
from carrel.kernel import seccomp
from carrel.oci import json
from carrel.runtime import rehearse


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
