"""What this build can do, in the shape of the specification's features document."""

from __future__ import annotations

import os

from carrel.kernel import capability, seccomp
from carrel.oci import runtime_spec
from carrel.runtime import options, planner
from carrel.runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def features() -> dict[str, Any]:
    namespaces = [n for n, f in planner.NAMESPACE_FILES.items()
                  if os.path.exists(f"/proc/self/ns/{f}")]
    return {
        "ociVersionMin": "1.0.0", "ociVersionMax": runtime_spec.VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart",
                  "poststop"],
        "mountOptions": options.known(),
        "linux": {
            "namespaces": sorted(namespaces),
            "capabilities": list(capability.NAMES[:capability.last() + 1]),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False,
                       "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(a for a in seccomp.ACTIONS if seccomp.action_available(a)),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FILTER_FLAGS),
                "supportedFlags": sorted(f for f in seccomp.FILTER_FLAGS
                                         if seccomp.flag_supported(f)),
            },
            "apparmor": {"enabled": True}, "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": runtime_spec.IDMAP_BUILT}},
        },
        "annotations": {"io.carrel.runtime.version": VERSION,
                        "org.opencontainers.runc.checkpoint.enabled": "false"},
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    }
