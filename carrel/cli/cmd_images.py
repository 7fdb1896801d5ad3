"""carrel images"""

from __future__ import annotations

from .client import filters_json
from .cmd_ps import FORMAT_HELP, created_ago
from .command import Command
from .errors import CliError
from .flags import Flag
from .reference import parse
from .tables import Listing, check_format, short_id, show
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

_NONE = "<none>"


def _created_at(row: dict[str, Any], trunc: bool) -> str:
    from .units import go_time
    return go_time(row["Created"])


def _size(value: int | None) -> str:
    from .units import human_size
    return "N/A" if value is None or value == -1 else human_size(value, 3)


def _full_size(value: int) -> str:
    from .units import human_size
    return human_size(value)


def _counted(value: int | None) -> str:
    return "N/A" if value is None or value == -1 else str(value)


def _unique(row: dict[str, Any], trunc: bool) -> str:
    from .units import human_size
    shared = row.get("SharedSize")
    if shared is None or shared == -1 or row.get("Size") is None:
        return "N/A"
    return human_size(row["Size"] - shared)


IMAGES = Listing(
    "*formatter.imageContext",
    {
        "Containers": lambda r, trunc: _counted(r.get("Containers")),
        "CreatedAt": _created_at,
        "CreatedSince": lambda r, trunc: created_ago(r["Created"]) if r["Created"] > 0 else "N/A",
        "Digest": lambda r, trunc: r["digest"],
        "ID": lambda r, trunc: short_id(r["Id"]) if trunc else r["Id"],
        "Repository": lambda r, trunc: r["repository"],
        "SharedSize": lambda r, trunc: _size(r.get("SharedSize")),
        "Size": lambda r, trunc: _size(r.get("Size") or 0),
        "Tag": lambda r, trunc: r["tag"],
        "UniqueSize": _unique,
        "VirtualSize": lambda r, trunc: _full_size(r.get("Size") or 0),
    },
    {"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST",
     "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "SIZE",
     "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE"},
    ("Repository", "Tag", "ID", "CreatedSince", "Size"),
)


def rows(images: list[dict[str, Any]], *, digests: bool, all_digests: bool = False,
         ) -> list[dict[str, Any]]:
    """One row for every name of every image."""
    found = []
    for image in images:
        tags = _by_name(image.get("RepoTags"), ":")
        known = _by_name(image.get("RepoDigests"), "@")
        if not tags and not known:
            found.append({**image, "repository": _NONE, "tag": _NONE, "digest": _NONE})
            continue
        for name, values in tags.items():
            here = known.pop(name, []) if digests else (known.pop(name, []) and [])
            for tag in values:
                found += [{**image, "repository": name, "tag": tag, "digest": digest}
                          for digest in here or [_NONE]]
        for name, values in known.items():
            found += [{**image, "repository": name, "tag": _NONE, "digest": digest}
                      for digest in (values if all_digests else [""])]
    return found


def _by_name(names: list[str] | None, mark: str) -> dict[str, list[str]]:
    """"a/b:c" -> {"a/b": ["c"]}, names as people write them."""
    found: dict[str, list[str]] = {}
    for text in names or []:
        if text in ("<none>:<none>", "<none>@<none>"):
            continue
        try:
            reference = parse(text)
        except CliError:
            continue
        value = reference.digest if mark == "@" else reference.tag
        if value:
            found.setdefault(reference.familiar_name(), []).append(value)
    return found


def _run(app: App, options: Options, args: list[str]) -> None:
    if options["tree"]:
        raise CliError("--tree is not built yet")
    filters = {k: list(v) for k, v in options["filter"].items()}
    if args:
        filters.setdefault("reference", []).append(args[0])
    format_text = options["format"]
    if not format_text and not options["quiet"]:
        format_text = app.config.text("imagesFormat")
    check_format(format_text)
    images = app.engine.call("GET", "/images/json", {
        "all": options["all"], "filters": filters_json(filters)}) or []
    images.sort(key=lambda i: -int(i.get("Created") or 0))
    trunc = not options["no-trunc"]
    digests = options["digests"] or ".Digest" in format_text
    found = rows(images, digests=digests, all_digests=options["digests"])
    if options["quiet"] and format_text in ("", "table"):
        for row in found:
            print(short_id(row["Id"]) if trunc else row["Id"])
        return
    columns = IMAGES.columns
    if options["digests"]:
        columns = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
    show(IMAGES, found, format_text, trunc=trunc, columns=columns)
    if not found and args and not options["filter"]:
        _hint(args[0])


def _hint(name: str) -> None:
    """A name that is a command's is most likely a slip: `carrel images ls`."""
    if name in ("build", "history", "import", "inspect", "list", "load", "ls", "prune", "pull",
                "push", "rm", "save", "tag"):
        warn(f'\nNo images found matching "{name}": did you mean "carrel image {name}"?')


COMMANDS = {"images": Command(_run, "[OPTIONS] [REPOSITORY[:TAG]]", 0, 1, (
    Flag("all", "a", "bool", "Show all images, also those that only others build on"),
    Flag("digests", "", "bool", "Show digests"),
    Flag("filter", "f", "filter", "Show only what fits, such as dangling=true"),
    Flag("format", "", "string", FORMAT_HELP),
    Flag("no-trunc", "", "bool", "Do not shorten anything"),
    Flag("quiet", "q", "bool", "Print the IDs only"),
    Flag("tree", "", "bool", "Show the platforms of each image as a tree"),
))}
