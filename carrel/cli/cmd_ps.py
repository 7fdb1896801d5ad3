"""carrel ps"""

from __future__ import annotations

from .client import filters_json
from .command import Command
from .flags import Flag, go_quote
from .tables import Listing, check_format, ellipsis, short_id, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

FORMAT_HELP = """Format the output:
'table':            a table with headers (default)
'table TEMPLATE':   a table whose columns a Go template names
'json':             one JSON object a line
'TEMPLATE':         whatever a Go template makes of it"""


def _names(item: dict[str, Any], trunc: bool) -> str:
    names = [n.removeprefix("/") for n in item.get("Names") or []]
    if trunc:
        # a name with a slash inside is a legacy link, not the container's own
        return next((n for n in names if "/" not in n), "")
    return ",".join(names)


def _image(item: dict[str, Any], trunc: bool) -> str:
    image: str = item.get("Image") or ""
    if not image:
        return "<no image>"
    if not trunc:
        return image
    if short_id(item.get("ImageID") or "") == short_id(image):
        return short_id(image)
    name, at, _ = image.partition("@")
    return name if at and not image.startswith("sha256:") else image


def _command(item: dict[str, Any], trunc: bool) -> str:
    text = item.get("Command") or ""
    return go_quote(ellipsis(text, 20) if trunc else text)


def created_ago(seconds: int) -> str:
    """"2 hours ago" """
    from time import time

    from .units import human_duration
    return human_duration(time() - seconds) + " ago"


def _created_at(item: dict[str, Any], trunc: bool) -> str:
    from .units import go_time
    return go_time(item["Created"])


def _size(item: dict[str, Any], trunc: bool) -> str:
    from .units import human_size
    text = human_size(item.get("SizeRw") or 0, 3)
    if item.get("SizeRootFs"):
        text += f" (virtual {human_size(item['SizeRootFs'], 3)})"
    return text


def labels_text(labels: dict[str, str] | None) -> str:
    """k=v, sorted, with commas."""
    return ",".join(sorted(f"{k}={v}" for k, v in (labels or {}).items()))


def _label(item: dict[str, Any], trunc: bool, name: str) -> str:
    return str((item.get("Labels") or {}).get(name, ""))


def _mounts(item: dict[str, Any], trunc: bool) -> str:
    names = [m.get("Name") or m.get("Source") or "" for m in item.get("Mounts") or []]
    return ",".join(ellipsis(n, 15) if trunc else n for n in names)


def _local_volumes(item: dict[str, Any], trunc: bool) -> str:
    return str(sum(1 for m in item.get("Mounts") or [] if m.get("Driver") == "local"))


def _networks(item: dict[str, Any], trunc: bool) -> str:
    return ",".join((item.get("NetworkSettings") or {}).get("Networks") or {})


def join_host_port(host: str, port: object) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port_order(port: dict[str, Any]) -> tuple[int, str, int, str]:
    return (port.get("PrivatePort") or 0, port.get("IP") or "", port.get("PublicPort") or 0,
            port.get("Type") or "")


def ports_text(ports: list[dict[str, Any]] | None) -> str:
    """Published and exposed ports, neighbours joined to ranges."""
    if not ports:
        return ""
    groups: dict[tuple[str, str], list[int]] = {}
    result: list[str] = []
    mapped: list[str] = []

    def flush(key: tuple[str, str]) -> str:
        (address, kind), (first, last) = key, groups[key]
        text = str(first) if first == last else f"{first}-{last}"
        if address:
            text = f"{join_host_port(address, text)}->{text}"
        return f"{text}/{kind}"

    for port in sorted(ports, key=_port_order):
        private, kind, address = port["PrivatePort"], port.get("Type", "tcp"), port.get("IP") or ""
        public = port.get("PublicPort") or 0
        if address and public != private:
            mapped.append(f"{join_host_port(address, public)}->{private}/{kind}")
            continue
        key = (address, kind)
        group = groups.get(key)
        if group is not None and private == group[1] + 1:
            group[1] = private
            continue
        if group is not None:
            result.append(flush(key))
        groups[key] = [private, private]
    result += [flush(key) for key in groups]
    return ", ".join(result + mapped)


CONTAINERS = Listing(
    "*formatter.ContainerContext",
    {
        "Command": _command,
        "CreatedAt": _created_at,
        "ID": lambda c, trunc: short_id(c["Id"]) if trunc else c["Id"],
        "Image": _image,
        "Label": _label,
        "Labels": lambda c, trunc: labels_text(c.get("Labels")),
        "LocalVolumes": _local_volumes,
        "Mounts": _mounts,
        "Names": _names,
        "Networks": _networks,
        "Platform": lambda c, trunc: (c.get("ImageManifestDescriptor") or {}).get("platform"),
        "Ports": lambda c, trunc: ports_text(c.get("Ports")),
        "RunningFor": lambda c, trunc: created_ago(c["Created"]),
        "Size": _size,
        "State": lambda c, trunc: c.get("State") or "",
        "Status": lambda c, trunc: c.get("Status") or "",
    },
    {"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND",
     "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE",
     "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS",
     "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS"},
    ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"),
    with_argument=frozenset(("Label",)),
)


def _run(app: App, options: Options, args: list[str]) -> None:
    format_text = options["format"]
    quiet = options["quiet"]
    if not format_text and not quiet:
        format_text = app.config.text("psFormat")
    limit = 1 if options["latest"] and options["last"] == -1 else options["last"]
    compact = format_text.replace(" ", "")
    size = options["size"] or (not options.changed("size") and (
        ".Size" in compact or "json.}" in compact))
    check_format(format_text)
    items = app.engine.call("GET", "/containers/json", {
        "all": options["all"], "limit": limit if limit > 0 else None, "size": size,
        "filters": filters_json(options["filter"]),
    }) or []
    trunc = not options["no-trunc"]
    if quiet and format_text in ("", "table"):
        for item in items:
            print(short_id(item["Id"]) if trunc else item["Id"])
        return
    columns = (*CONTAINERS.columns, "Size") if options["size"] else CONTAINERS.columns
    show(CONTAINERS, items, format_text, trunc=trunc, columns=columns)


COMMANDS = {"ps": Command(_run, "[OPTIONS]", 0, 0, (
    Flag("all", "a", "bool", "Show all containers, not only those that run"),
    Flag("filter", "f", "filter", "Show only what fits, such as name=web or status=exited"),
    Flag("format", "", "string", FORMAT_HELP),
    Flag("last", "n", "int", "Show the last n containers, in any state", -1),
    Flag("latest", "l", "bool", "Show the container that was created last, in any state"),
    Flag("no-trunc", "", "bool", "Do not shorten anything"),
    Flag("quiet", "q", "bool", "Print the IDs only"),
    Flag("size", "s", "bool", "Show the size of each container's files"),
))}
