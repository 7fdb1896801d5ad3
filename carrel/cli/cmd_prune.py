"""prune, of everything or of one kind"""

from __future__ import annotations

import sys

from .client import filters_json
from .command import Command
from .errors import CliError, EngineError
from .flags import Flag
from .terminal import clean, confirm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

_QUESTION = "Are you sure you want to continue?"


def _filters(app: App, options: Options) -> dict[str, list[str]]:
    """Those of the command line and "pruneFilters" of the configuration."""
    found = {k: list(v) for k, v in options["filter"].items()}
    for text in app.config.values.get("pruneFilters") or []:
        key, equals, value = str(text).partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found


def _ask(options: Options, warning: str) -> bool:
    if options["force"]:
        return True
    sys.stdout.flush()
    return confirm(f"WARNING! {warning}\n{_QUESTION}")


def _post(app: App, what: str, filters: dict[str, list[str]]) -> dict[str, Any]:
    answer = app.engine.call("POST", f"/{what}/prune", {"filters": filters_json(filters)})
    return answer if isinstance(answer, dict) else {}


def _names(title: str, names: list[str]) -> None:
    if names:
        print(title + "\n" + "\n".join(clean(n) for n in names) + "\n")


def _reclaimed(amount: int) -> None:
    from .units import human_size
    print(f"Total reclaimed space: {human_size(amount)}")


def _containers(app: App, filters: dict[str, list[str]]) -> int:
    answer = _post(app, "containers", filters)
    _names("Deleted Containers:", answer.get("ContainersDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def _networks(app: App, filters: dict[str, list[str]]) -> None:
    answer = _post(app, "networks", filters)
    _names("Deleted Networks:", answer.get("NetworksDeleted") or [])


def _volumes(app: App, filters: dict[str, list[str]]) -> int:
    answer = _post(app, "volumes", filters)
    _names("Deleted Volumes:", answer.get("VolumesDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def _images(app: App, filters: dict[str, list[str]], everything: bool) -> int:
    answer = _post(app, "images", {**filters, "dangling": ["false" if everything else "true"]})
    lines = []
    for item in answer.get("ImagesDeleted") or []:
        if item.get("Untagged"):
            lines.append(f"untagged: {item['Untagged']}")
        elif item.get("Deleted"):
            lines.append(f"deleted: {item['Deleted']}")
    _names("Deleted Images:", lines)
    return int(answer.get("SpaceReclaimed") or 0)


def _build_cache(app: App, filters: dict[str, list[str]], everything: bool) -> int:
    """An engine without a builder has no cache: that is no error."""
    try:
        answer = app.engine.call("POST", "/build/prune", {
            "all": everything, "filters": filters_json(filters) or ""})
    except EngineError as error:
        if error.status in (404, 501):
            return 0
        raise
    answer = answer if isinstance(answer, dict) else {}
    _names("Deleted build cache objects:", answer.get("CachesDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def _container_prune(app: App, options: Options, args: list[str]) -> int:
    if not _ask(options, "This will remove all stopped containers."):
        return 1
    _reclaimed(_containers(app, _filters(app, options)))
    return 0


def _image_prune(app: App, options: Options, args: list[str]) -> int:
    warning = "This will remove all images without at least one container associated to them." \
        if options["all"] else "This will remove all dangling images."
    if not _ask(options, warning):
        return 1
    _reclaimed(_images(app, _filters(app, options), options["all"]))
    return 0


def _network_prune(app: App, options: Options, args: list[str]) -> int:
    if not _ask(options,
                "This will remove all custom networks not used by at least one container."):
        return 1
    _networks(app, _filters(app, options))
    return 0


def _volume_prune(app: App, options: Options, args: list[str]) -> int:
    filters = _filters(app, options)
    if options["all"]:
        if "all" in filters:
            raise CliError("conflicting options: cannot specify both --all and --filter all=1")
        filters["all"] = ["true"]
    kind = "all" if options["all"] else "anonymous"
    if not _ask(options, f"This will remove {kind} local volumes not used by at least one "
                "container."):
        return 1
    _reclaimed(_volumes(app, filters))
    return 0


def _system_prune(app: App, options: Options, args: list[str]) -> int:
    filters = _filters(app, options)
    if options["volumes"] and "until" in filters:
        raise CliError('ERROR: The "until" filter is not supported with "--volumes"')
    lines = ["all stopped containers", "all networks not used by at least one container"]
    if options["volumes"]:
        lines.append("all anonymous volumes not used by at least one container")
    lines.append("all images without at least one container associated to them"
                 if options["all"] else "all dangling images")
    lines.append("all build cache" if options["all"] else "unused build cache")
    warning = "This will remove:\n" + "".join(f"  - {line}\n" for line in lines)
    if filters:
        shown = sorted(f"{k}={v}" for k, values in filters.items() for v in values)
        warning += "\n  Items to be pruned will be filtered with:\n" + "".join(
            f"  - {text}\n" for text in shown)
    if not _ask(options, warning):
        return 1
    freed = _containers(app, filters)
    _networks(app, filters)
    if options["volumes"]:
        freed += _volumes(app, filters)
    freed += _images(app, filters, options["all"])
    freed += _build_cache(app, {k: v for k, v in filters.items() if k == "until"},
                          options["all"])
    _reclaimed(freed)
    return 0


_COMMON = (
    Flag("filter", "", "filter", "Remove only what fits, such as until=24h or label=key"),
    Flag("force", "f", "bool", "Do not ask"),
)

COMMANDS = {
    "container prune": Command(_container_prune, "[OPTIONS]", 0, 0, _COMMON),
    "image prune": Command(_image_prune, "[OPTIONS]", 0, 0, (
        *_COMMON, Flag("all", "a", "bool", "Remove all unused images, not only untagged ones"))),
    "network prune": Command(_network_prune, "[OPTIONS]", 0, 0, _COMMON),
    "volume prune": Command(_volume_prune, "[OPTIONS]", 0, 0, (
        *_COMMON, Flag("all", "a", "bool", "Remove named volumes too"))),
    "system prune": Command(_system_prune, "[OPTIONS]", 0, 0, (
        *_COMMON, Flag("all", "a", "bool", "Remove all unused images, not only untagged ones"),
        Flag("volumes", "", "bool", "Remove anonymous volumes too"))),
}
