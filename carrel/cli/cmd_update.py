"""carrel update"""

from __future__ import annotations

from .client import escape
from .command import MANY, Command
from .createbody import restart_policy
from .errors import CliError
from .flags import Flag
from .optvalues import memory_swap
from .terminal import clean, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import App
    from .flags import Options

FLAGS = (
    Flag("blkio-weight", "", "uint16",
         "Relative share of disk time, 10 to 1000; 0 leaves it (default 0)"),
    Flag("cpu-period", "", "int64", "Period of the CPU quota, in microseconds"),
    Flag("cpu-quota", "", "int64", "CPU time per period, in microseconds"),
    Flag("cpu-rt-period", "", "int64", "Period of the real-time quota, in microseconds"),
    Flag("cpu-rt-runtime", "", "int64", "Real-time CPU time per period, in microseconds"),
    Flag("cpu-shares", "c", "int64", "Relative share of CPU time"),
    Flag("cpus", "", "decimal", "Number of CPUs"),
    Flag("cpuset-cpus", "", "string", "CPUs that may be used (0-3, 0,1)"),
    Flag("cpuset-mems", "", "string", "Memory nodes that may be used (0-3, 0,1)"),
    Flag("kernel-memory", "", "bytes", "Limit of kernel memory", hidden=True),
    Flag("memory", "m", "bytes", "Limit of memory"),
    Flag("memory-reservation", "", "bytes", "Soft limit of memory"),
    Flag("memory-swap", "", "bytes", "Limit of memory and swap together; -1 for no limit",
         check=memory_swap),
    Flag("pids-limit", "", "int64", "Limit of the number of processes (-1 for none)"),
    Flag("restart", "", "string", "What to do when the container exits"),
)


def _run(app: App, options: Options, args: list[str]) -> int:
    if not any(options.changed(f.name) for f in FLAGS):
        raise CliError("you must provide one or more flags when using this command")
    try:
        policy = restart_policy(options["restart"])
    except ValueError as error:
        raise CliError(str(error)) from None
    body = {
        "CpuShares": options["cpu-shares"], "Memory": options["memory"],
        "NanoCpus": options["cpus"], "CgroupParent": "",
        "BlkioWeight": options["blkio-weight"], "BlkioWeightDevice": None,
        "BlkioDeviceReadBps": None, "BlkioDeviceWriteBps": None, "BlkioDeviceReadIOps": None,
        "BlkioDeviceWriteIOps": None, "CpuPeriod": options["cpu-period"],
        "CpuQuota": options["cpu-quota"], "CpuRealtimePeriod": options["cpu-rt-period"],
        "CpuRealtimeRuntime": options["cpu-rt-runtime"], "CpusetCpus": options["cpuset-cpus"],
        "CpusetMems": options["cpuset-mems"], "Devices": None, "DeviceCgroupRules": None,
        "DeviceRequests": None, "MemoryReservation": options["memory-reservation"],
        "MemorySwap": options["memory-swap"], "MemorySwappiness": None, "OomKillDisable": None,
        "PidsLimit": options["pids-limit"] if options.changed("pids-limit") else None,
        "Ulimits": None, "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0, "RestartPolicy": policy,
    }
    failed = False
    warnings: list[str] = []
    for container in args:
        try:
            answer = app.engine.call("POST", f"/containers/{escape(container)}/update", body=body)
        except CliError as error:
            warn(error.message)
            failed = True
            continue
        print(container)
        warnings += (answer or {}).get("Warnings") or []
    if warnings:
        print(clean("\n".join(warnings)))
    return 1 if failed else 0


COMMANDS = {"update": Command(_run, "[OPTIONS] CONTAINER [CONTAINER...]", 1, MANY, FLAGS)}
