"""volume ls, create, rm"""

from __future__ import annotations

from .client import escape, filters_json
from .cmd_containers import each
from .cmd_ps import FORMAT_HELP, labels_text
from .command import MANY, Command
from .errors import CliError
from .flags import Flag
from .optvalues import label
from .tables import Listing, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options


def _label(item: dict[str, Any], trunc: bool, name: str) -> str:
    return str((item.get("Labels") or {}).get(name, ""))


def _usage(item: dict[str, Any], key: str) -> int | None:
    return (item.get("UsageData") or {}).get(key)


def _size(item: dict[str, Any], trunc: bool) -> str:
    from .units import human_size
    size = _usage(item, "Size")
    return "N/A" if size is None else human_size(size)


VOLUMES = Listing(
    "*formatter.volumeContext",
    {
        "Availability": lambda v, trunc: "N/A",
        "Driver": lambda v, trunc: v.get("Driver") or "",
        "Group": lambda v, trunc: "N/A",
        "Label": _label,
        "Labels": lambda v, trunc: labels_text(v.get("Labels")),
        "Links": lambda v, trunc: "N/A" if _usage(v, "RefCount") is None
        else str(_usage(v, "RefCount")),
        "Mountpoint": lambda v, trunc: v.get("Mountpoint") or "",
        "Name": lambda v, trunc: v.get("Name") or "",
        "Scope": lambda v, trunc: v.get("Scope") or "",
        "Size": _size,
        "Status": lambda v, trunc: "N/A",
    },
    {"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT",
     "Labels": "LABELS", "Links": "LINKS", "Size": "SIZE", "Group": "GROUP",
     "Availability": "AVAILABILITY", "Status": "STATUS"},
    ("Driver", "Name"),
    with_argument=frozenset(("Label",)),
)


def _ls(app: App, options: Options, args: list[str]) -> None:
    from .cmd_containers_look import natural
    answer = app.engine.call("GET", "/volumes", {"filters": filters_json(options["filter"])})
    volumes = (answer or {}).get("Volumes") or []
    volumes.sort(key=lambda v: natural(v.get("Name") or ""))
    format_text = options["format"]
    if not format_text and not options["quiet"]:
        format_text = app.config.text("volumesFormat")
    if options["quiet"] and format_text in ("", "table"):
        for volume in volumes:
            print(volume["Name"])
        return
    show(VOLUMES, volumes, format_text)


def _create(app: App, options: Options, args: list[str]) -> None:
    if args and options["name"]:
        raise CliError("conflicting options: cannot specify a volume-name through both --name "
                       "and as a positional arg")
    body = {"Driver": options["driver"], "DriverOpts": options["opt"],
            "Labels": {k: v for k, _, v in (i.partition("=") for i in options["label"])},
            "Name": args[0] if args else options["name"]}
    answer = app.engine.call("POST", "/volumes/create",
                             body={k: v for k, v in body.items() if v})
    print(answer["Name"])


def _rm(app: App, options: Options, args: list[str]) -> int:
    return each(args, lambda name: app.engine.call("DELETE", f"/volumes/{escape(name)}",
                                                   {"force": options["force"]}))


COMMANDS = {
    "volume ls": Command(_ls, "[OPTIONS]", 0, 0, (
        Flag("filter", "f", "filter", "Show only what fits, such as dangling=true"),
        Flag("format", "", "string", FORMAT_HELP),
        Flag("quiet", "q", "bool", "Print the names only"))),
    "volume create": Command(_create, "[OPTIONS] [VOLUME]", 0, 1, (
        Flag("driver", "d", "string", "Driver of the volume", "local"),
        Flag("label", "", "list", "Set metadata", check=label),
        Flag("name", "", "string", "Name of the volume", hidden=True),
        Flag("opt", "o", "map", "Options of the driver"))),
    "volume rm": Command(_rm, "[OPTIONS] VOLUME [VOLUME...]", 1, MANY, (
        Flag("force", "f", "bool", "Remove it by force"),)),
}
