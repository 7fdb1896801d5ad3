"""What a configuration may not say."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errdefs import InvalidParameter
from carrel.oci import runtime_spec
from carrel.runtime.template import default_spec


def with_(path: str, value: Any) -> dict[str, Any]:
    spec = default_spec()
    where: Any = spec
    *parents, last = path.split(".")
    for name in parents:
        where = where.setdefault(name, {})
    where[last] = value
    return spec


def test_the_default_passes() -> None:
    runtime_spec.check(default_spec())
    runtime_spec.check(default_spec(rootless=True))


@pytest.mark.parametrize("path,value,text", [
    ("ociVersion", "2.0", "ociVersion"), ("ociVersion", None, "ociVersion"),
    ("root", None, "root"), ("root.path", "", "root.path"), ("root", [], "root"),
    ("process.cwd", "a", "absolute"), ("process.cwd", "", "empty"),
    ("process.args", [], "args"), ("process.args", ["a\0b"], "args"),
    ("process.args", "sh", "args"),
    ("process.env", [1], "env"),
    ("process.user.uid", 2**32, "uid"), ("process.user.uid", -1, "uid"),
    ("process.user.uid", "0", "uid"), ("process.user.uid", True, "uid"),
    ("process.user.additionalGids", [2**31], "additionalGids"),
    ("process.oomScoreAdj", 1001, "oomScoreAdj"),
    ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1}], "hard"),
    ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2, "twice"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], "duplicated"),
    ("linux.namespaces", [{"type": "moon"}], "does not exist"),
    ("linux.namespaces", [], "without a private"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], "mappings"),
    ("linux.sysctl", {"kernel.core_pattern": "|/x"}, "namespace"),
    ("linux.sysctl", {"kernel/core_pattern": "|/x"}, "namespace"),
    ("linux.sysctl", {"kernel.shm_rmid_forced": "1\n"}, "one line"),
    ("linux.sysctl", {"net/../kernel/core_pattern": "x"}, "name"),
    ("linux.sysctl", {"net..x": "1"}, "name"),
    ("linux.sysctl", {"kernel.hostname": "x"}, "conflict"),
    ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "isn't enabled"),
    ("linux.devices", [{"path": "dev/x", "type": "c"}], "absolute"),
    ("linux.devices", [{"path": "/dev/x", "type": "z"}], "type"),
    ("linux.cgroupsPath", "/a/../../b", "cgroupsPath"),
    ("hostname", "a" * 65, "hostname"), ("hostname", "a\nb", "hostname"),
    ("mounts", [{"destination": "/"}], "root itself"), ("mounts", [{}], "destination"),
    ("mounts", {}, "list"),
    ("hooks", {"prestart": [{"path": "x"}]}, "absolute"),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "timeout"),
])
def test_refused(path: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        runtime_spec.check(with_(path, value))


def test_sysctls_need_the_namespace_they_belong_to() -> None:
    runtime_spec.check(with_("linux.sysctl", {"net.ipv4.ip_forward": "1",
                                              "net/ipv4/conf/eth0.100/forwarding": "1",
                                              "kernel.shmmax": "1", "fs.mqueue.msg_max": "5"}))
    spec = with_("linux.sysctl", {"net.ipv4.ip_forward": "1"})
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"]
                                   if n["type"] != "network"]
    with pytest.raises(InvalidParameter, match="host network namespace"):
        runtime_spec.check(spec)
