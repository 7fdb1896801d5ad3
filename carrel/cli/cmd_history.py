"""carrel history"""

from __future__ import annotations

from .client import escape
from .cmd_ps import FORMAT_HELP, created_ago
from .command import Command
from .flags import Flag
from .tables import Listing, ellipsis, short_id, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options


def _created_at(step: dict[str, Any], trunc: bool) -> str:
    from .units import rfc3339_nano
    created = step.get("Created") or 0
    return rfc3339_nano(created, 0, fixed=False) if created > 0 else "N/A"


def _since(step: dict[str, Any], trunc: bool) -> str:
    if not step["human"]:
        return _created_at(step, trunc)
    created = step.get("Created") or 0
    return created_ago(created) if created > 0 else "N/A"


def _created_by(step: dict[str, Any], trunc: bool) -> str:
    text = (step.get("CreatedBy") or "").replace("\t", " ")
    return ellipsis(text, 45) if trunc else text


def _size(step: dict[str, Any], trunc: bool) -> str:
    from .units import human_size
    return human_size(step.get("Size") or 0, 3) if step["human"] else str(step.get("Size") or 0)


HISTORY = Listing(
    "*image.historyContext",
    {
        "Comment": lambda s, trunc: s.get("Comment") or "",
        "CreatedAt": _created_at,
        "CreatedBy": _created_by,
        "CreatedSince": _since,
        "ID": lambda s, trunc: short_id(s["Id"]) if trunc else s["Id"],
        "Size": _size,
    },
    {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
     "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"},
    ("ID", "CreatedSince", "CreatedBy", "Size", "Comment"),
)


def _run(app: App, options: Options, args: list[str]) -> None:
    platform = None
    if options["platform"]:
        from .cmd_inspect import platform_json
        platform = platform_json(options["platform"])
    steps = app.engine.call("GET", f"/images/{escape(args[0], '/:@')}/history",
                            {"platform": platform}) or []
    trunc = not options["no-trunc"]
    if options["quiet"] and options["format"] in ("", "table"):
        for step in steps:
            print(short_id(step["Id"]) if trunc else step["Id"])
        return
    human = options["human"]
    columns = HISTORY.columns if human else ("ID", "CreatedAt", "CreatedBy", "Size", "Comment")
    show(HISTORY, [{**s, "human": human} for s in steps], options["format"], trunc=trunc,
         columns=columns)


COMMANDS = {"history": Command(_run, "[OPTIONS] IMAGE", 1, 1, (
    Flag("format", "", "string", FORMAT_HELP),
    Flag("human", "H", "bool", "Show sizes and times as people read them", True),
    Flag("no-trunc", "", "bool", "Do not shorten anything"),
    Flag("platform", "", "string", "Show the history for this platform"),
    Flag("quiet", "q", "bool", "Print the IDs only"),
))}
