"""Settings of the API that Carrel does not carry out, and what happens to each.

A key of Docker's HostConfig and Config is carried out, or it stands here: refused as
soon as it asks for anything, or inert because Docker on Linux does nothing with it
either. tests/engine/test_honesty.py has the whole list, so that no key is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from carrel import errdefs
from carrel.engine.explain import RESERVED
from carrel.engine.spec import linux

Bad = errdefs.InvalidParameter
Unbuilt = errdefs.NotImplementedYet

#: HostConfig: key -> the error when it has any value but its zero value
HOST: dict[str, errdefs.CarrelError] = {
    "DeviceRequests": Unbuilt("device requests (--gpus) are not implemented in Carrel"),
    "StorageOpt": Bad("--storage-opt is not supported by the overlay snapshotter of this daemon"),
    "Cgroup": Bad("HostConfig.Cgroup is not supported: use CgroupParent"),
    "KernelMemory": Bad("kernel memory limits (--kernel-memory) no longer exist in Linux"),
    "KernelMemoryTCP": Unbuilt("KernelMemoryTCP is not implemented in Carrel"),
    "CpuCount": Bad("CpuCount is a setting of Windows: use NanoCpus (--cpus)"),
    "CpuPercent": Bad("CpuPercent is a setting of Windows: use NanoCpus (--cpus)"),
    "IOMaximumIOps": Bad("Invalid QoS settings: linux does not support Maximum IO Bandwidth or "
                         "Maximum IO IOps"),
    "IOMaximumBandwidth": Bad("Invalid QoS settings: linux does not support Maximum IO Bandwidth "
                              "or Maximum IO IOps"),
}
#: HostConfig: recorded and shown, and nothing to do
HOST_INERT = {
    "ContainerIDFile": "the client writes that file",
    "UsernsMode": "'host' is what every container has while the daemon remaps no users; "
                  "other values are refused",
    "Isolation": "'default' is the only value on Linux; others are refused",
}
#: Config: likewise
CONFIG_INERT = {
    "AttachStdin": "the client attaches", "AttachStdout": "the client attaches",
    "AttachStderr": "the client attaches", "ArgsEscaped": "only on Windows",
    "OnBuild": "triggers of later builds; a commit copies them",
}


def host_config(value: Mapping[str, Any]) -> None:
    """Refuse what is asked for and would not happen."""
    for name, error in HOST.items():
        if value.get(name):
            raise type(error)(error.message)
    for name in value.get("Annotations") or ():
        if not name:
            raise Bad("invalid annotation: empty key")
        if name.startswith(RESERVED):
            raise Bad(f"annotation {name[:80]!r} is reserved: its prefix {RESERVED} belongs to "
                      "the engine")


def discard(value: dict[str, Any], unified: bool) -> list[str]:
    """What this machine's cgroups cannot do and Docker drops with a warning: taken out
    of ``value``, so that ``inspect`` does not show a limit that is none."""
    warnings = []
    if unified:
        if value["OomKillDisable"]:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable "
                            "discarded.")
        value["OomKillDisable"] = None
        if value["MemorySwappiness"] is not None and value["MemorySwappiness"] != -1:
            warnings.append("Your kernel does not support memory swappiness capabilities or the "
                            "cgroup is not mounted. Memory swappiness discarded.")
        value["MemorySwappiness"] = None
        if value["CpuRealtimePeriod"] or value["CpuRealtimeRuntime"]:
            raise Bad("Your kernel does not support CPU real-time scheduler: there is none in "
                      "cgroup v2")
    elif value["Memory"] > 0 and value["MemorySwap"] != -1 and not linux.swap_limits():
        warnings.append("Your kernel does not support swap limit capabilities or the cgroup is not "
                        "mounted. Memory limited without swap.")
        value["MemorySwap"] = -1
    for name, text in (("BlkioWeight", "Block I/O weight"),
                       ("BlkioWeightDevice", "Block I/O weight_device")):
        if value[name] and not _weights(unified, name):
            warnings.append(f"Your kernel does not support {text} or the cgroup is not mounted. "
                            f"{'Weight' if name == 'BlkioWeight' else 'Weight-device'} discarded.")
            value[name] = 0 if name == "BlkioWeight" else []
    return warnings


def _weights(unified: bool, name: str) -> bool:
    """Block I/O weights need a scheduler that knows them."""
    if not unified:
        base, device = "/sys/fs/cgroup/blkio", "_device" if "Device" in name else ""
        return any(os.path.exists(f"{base}/blkio.{kind}weight{device}") for kind in ("", "bfq."))
    # io.weight is in every group but the root, which has io.bfq.weight neither: the
    # groups of the first level tell
    wanted = ("io.bfq.weight",) if "Device" in name else ("io.weight", "io.bfq.weight")
    try:
        groups = [e.path for e in os.scandir("/sys/fs/cgroup") if e.is_dir()]
    except OSError:
        return False
    return any(os.path.exists(f"{g}/{f}") for g in groups for f in wanted)
