"""carrel system df"""

from __future__ import annotations

import sys

from .cmd_images import IMAGES, rows
from .cmd_ps import CONTAINERS, FORMAT_HELP, created_ago
from .cmd_volumes import VOLUMES
from .command import Command
from .errors import CliError
from .flags import Flag
from .tables import Listing, render, show
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

_USAGE = Listing(
    "*formatter.diskUsageContext",
    {
        "Active": lambda u, trunc: str(u["active"]),
        "Reclaimable": lambda u, trunc: u["reclaimable"],
        "Size": lambda u, trunc: human_size(u["size"]),
        "TotalCount": lambda u, trunc: str(u["total"]),
        "Type": lambda u, trunc: u["type"],
    },
    {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE",
     "Reclaimable": "RECLAIMABLE"},
    ("Type", "TotalCount", "Active", "Size", "Reclaimable"),
)


def _share(free: int, total: int) -> str:
    text = human_size(free)
    return f"{text} ({free * 100 // total}%)" if total > 0 else text


def _summary(df: dict[str, Any]) -> list[dict[str, Any]]:
    images = df.get("Images") or []
    containers = df.get("Containers") or []
    volumes = df.get("Volumes") or []
    cache = df.get("BuildCache") or []
    layers = int(df.get("LayersSize") or 0)
    used = sum(i["Size"] - (i["SharedSize"] if i.get("SharedSize", -1) != -1 else 0)
               for i in images if i.get("Containers") and i.get("Size", -1) != -1)
    running = [c for c in containers if c.get("State") in ("running", "paused", "restarting")]
    container_size = sum(c.get("SizeRw") or 0 for c in containers)
    container_free = container_size - sum(c.get("SizeRw") or 0 for c in running)
    usage = [v.get("UsageData") or {} for v in volumes]
    volume_size = sum(u.get("Size", -1) for u in usage if u.get("Size", -1) != -1)
    volume_free = sum(u["Size"] for u in usage
                      if u.get("RefCount") == 0 and u.get("Size", -1) != -1)
    cache_size = sum(c.get("Size") or 0 for c in cache if not c.get("Shared"))
    cache_free = sum(c.get("Size") or 0 for c in cache
                     if not c.get("Shared") and not c.get("InUse"))
    return [
        {"type": "Images", "total": len(images), "size": layers,
         "active": sum(1 for i in images if i.get("Containers")),
         "reclaimable": _share(max(0, layers - used), layers)},
        {"type": "Containers", "total": len(containers), "active": len(running),
         "size": container_size, "reclaimable": _share(container_free, container_size)},
        {"type": "Local Volumes", "total": len(volumes), "size": volume_size,
         "active": sum(1 for u in usage if (u.get("RefCount") or 0) > 0),
         "reclaimable": _share(volume_free, volume_size)},
        {"type": "Build Cache", "total": len(cache), "size": cache_size,
         "active": sum(1 for c in cache if c.get("InUse")),
         "reclaimable": human_size(cache_free)},
    ]


_CACHE = Listing(
    "*formatter.buildCacheContext",
    {
        "CacheType": lambda c, trunc: c.get("Type") or "",
        "CreatedSince": lambda c, trunc: _ago(c.get("CreatedAt")),
        "ID": lambda c, trunc: (c.get("ID") or "")[:12] + ("*" if c.get("InUse") else ""),
        "LastUsedSince": lambda c, trunc: _ago(c.get("LastUsedAt")),
        "Shared": lambda c, trunc: "true" if c.get("Shared") else "false",
        "Size": lambda c, trunc: human_size(c.get("Size") or 0, 3),
        "UsageCount": lambda c, trunc: str(c.get("UsageCount") or 0),
    },
    {"ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED",
     "LastUsedSince": "LAST USED", "UsageCount": "USAGE", "Shared": "SHARED"},
    ("ID", "CacheType", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared"),
)


def _ago(stamp: str | None) -> str:
    from .units import epoch_of
    if not stamp:
        return ""
    try:
        return created_ago(epoch_of(stamp)[0])
    except ValueError:
        return stamp


def _verbose(df: dict[str, Any]) -> str:
    images = rows(df.get("Images") or [], digests=False)
    cache = df.get("BuildCache") or []
    cache_size = sum(c.get("Size") or 0 for c in cache if not c.get("Shared"))
    parts = [
        "Images space usage:\n\n",
        render(IMAGES, images, columns=(*IMAGES.columns, "SharedSize", "UniqueSize",
                                        "Containers")),
        "\nContainers space usage:\n\n",
        render(CONTAINERS, [{**c, "SizeRootFs": 0} for c in df.get("Containers") or []], columns=(
            "ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")),
        "\nLocal Volumes space usage:\n\n",
        render(VOLUMES, df.get("Volumes") or [], columns=("Name", "Links", "Size")),
        f"\nBuild cache usage: {human_size(cache_size)}\n\n",
        render(_CACHE, cache),
    ]
    return "".join(parts)


def _run(app: App, options: Options, args: list[str]) -> None:
    df = app.engine.call("GET", "/system/df") or {}
    if options["verbose"]:
        if options["format"]:
            raise CliError("the verbose and the format options conflict")
        sys.stdout.write(_verbose(df))
        return
    show(_USAGE, _summary(df), options["format"])


COMMANDS = {"df": Command(_run, "[OPTIONS]", 0, 0, (
    Flag("format", "", "string", FORMAT_HELP),
    Flag("verbose", "v", "bool", "Show every image, container and volume"),
))}
