"""inspect, for every kind of thing"""

from __future__ import annotations

import sys

from . import jsonc
from .client import escape
from .command import MANY, Command
from .errors import CliError, EngineError
from .flags import Flag, go_quote
from .terminal import clean, is_terminal, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .app import App
    from .flags import Options
    from .gotemplate import Template

    Getter = Callable[[str], Any]

FORMAT_HELP = """Format the output:
'json':       JSON on one line
'TEMPLATE':   whatever a Go template makes of it"""

_KINDS = ("config", "container", "image", "network", "node", "plugin", "secret", "service",
          "task", "volume")
#: how Go's types print a null: everything that is not listed is a list
_NULL_MAPS = frozenset((
    "Annotations", "DriverOpts", "ExposedPorts", "Labels", "LogOpts", "Networks", "Options",
    "PortBindings", "Ports", "StorageOpt", "Sysctls", "Tmpfs", "Volumes", "Status", "Peers",
    "Containers", "AuxiliaryAddresses", "Data", "Config"))
_NULL_POINTERS = frozenset((
    "Health", "Healthcheck", "IPAMConfig", "Init", "MemorySwappiness", "OomKillDisable",
    "PidsLimit", "StopTimeout", "SizeRw", "SizeRootFs", "UsageData", "BindOptions",
    "VolumeOptions", "TmpfsOptions", "ImageManifestDescriptor", "Descriptor", "ClusterVolume"))
#: fields that the API leaves out when they are empty, but that Docker's own types have
_ABSENT: dict[str, tuple[str, ...]] = {
    "State": ("Health",),
    "Config": ("ExposedPorts", "Healthcheck", "Shell", "StopTimeout", "StopSignal",
               "MacAddress", "NetworkDisabled", "ArgsEscaped"),
    "HostConfig": ("Annotations", "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs", "Runtime",
                   "KernelMemory"),
}
_ABSENT_TOP = ("SizeRw", "SizeRootFs")
_ABSENT_TEXT = frozenset(("StopSignal", "MacAddress", "Runtime"))


def typed(value: Any, name: str = "") -> Any:
    """The JSON with Go's idea of what a null is, so that templates print the same."""
    from .gofunctions import Null
    if isinstance(value, dict):
        found = {k: typed(v, k) for k, v in value.items()}
        # a container is known by its HostConfig
        absent = _ABSENT_TOP if not name and "HostConfig" in value else _ABSENT.get(name, ())
        for key in absent:
            if key not in found:
                found[key] = Null(_null_text(key), absent=True)
        return found
    if isinstance(value, list):
        return [typed(v) for v in value]
    return Null(_null_text(name)) if value is None and name else value


def _null_text(name: str) -> str:
    if name in _ABSENT_TEXT:
        return ""
    if name in _NULL_POINTERS:
        return "<nil>"
    return "map[]" if name in _NULL_MAPS else "[]"


def inspect(names: list[str], get: Getter, format_text: str) -> int:
    """Print what ``get`` finds of every name; 1 if something was missing."""
    template = _template(format_text)
    found = []
    problems = []
    for name in names:
        try:
            found.append(get(name))
        except CliError as error:
            problems.append(error.message)
    _print(found, format_text, template)
    for text in problems:
        warn(text)
    return 1 if problems else 0


def _template(format_text: str) -> Template | None:
    """A template that cannot be read is refused before the engine is asked anything."""
    if format_text in ("", "json"):
        return None
    from .gotemplate import Template
    try:
        return Template(format_text)
    except CliError as error:
        reason = error.message.removeprefix("failed to parse template: ")
        raise CliError(f"template parsing error: {reason}", 64) from None


def _print(found: list[Any], format_text: str, template: Template | None) -> None:
    if not format_text:
        sys.stdout.write((jsonc.pretty(found) if found else "[]") + "\n")
        return
    if template is None:
        sys.stdout.write(jsonc.dumps(found) + "\n")
        return
    from .gotemplate import ExecError
    if not found:
        sys.stdout.write("\n")
    terminal = is_terminal(1)
    for value in found:
        try:
            text = template.execute(typed(value))
        except ExecError as error:
            sys.stdout.write("\n")
            raise CliError(f"template parsing error: {error}") from None
        sys.stdout.write((clean(text) if terminal else text) + "\n")


# ---- what there is to look at -----------------------------------------------

def _container(app: App, size: bool) -> Getter:
    return lambda name: app.engine.call("GET", f"/containers/{escape(name)}/json",
                                        {"size": size})


def _image(app: App, platform: str = "") -> Getter:
    return lambda name: app.engine.call("GET", f"/images/{escape(name, '/:@')}/json", {
        "platform": platform_json(platform) if platform else None})


def platform_json(text: str) -> str:
    """"linux/arm64/v8" as the API wants it."""
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise CliError(f"invalid platform: {go_quote(text)}: must be os[/arch[/variant]]")
    return jsonc.dumps(dict(zip(("os", "architecture", "variant"), parts, strict=False)))


def _network(app: App, verbose: bool = False) -> Getter:
    return lambda name: app.engine.call("GET", f"/networks/{escape(name)}",
                                        {"verbose": verbose or None})


def _volume(app: App) -> Getter:
    return lambda name: app.engine.call("GET", f"/volumes/{escape(name)}")


def _any(app: App, size: bool) -> Getter:
    getters = [_container(app, size), _image(app), _network(app), _volume(app)]

    def get(name: str) -> Any:
        for getter in getters:
            try:
                return getter(name)
            except EngineError as error:
                if error.status != 404 and not (error.status == 400 and "invalid" in error.text):
                    raise
        raise CliError(f"Error: No such object: {name}")
    return get


def _run(app: App, options: Options, args: list[str]) -> int:
    kind = options["type"]
    size = options["size"]
    if kind == "container":
        return inspect(args, _container(app, size), options["format"])
    if options.changed("type") and not kind:
        raise CliError(f'type is empty: must be one of {_kind_list()}')
    if kind and kind not in _KINDS:
        raise CliError(f"unknown type: {go_quote(kind)}: must be one of {_kind_list()}")
    if kind in ("config", "node", "plugin", "secret", "service", "task"):
        raise CliError(f"inspecting a {kind} is not built yet")
    getter = {"": lambda: _any(app, size), "image": lambda: _image(app),
              "network": lambda: _network(app), "volume": lambda: _volume(app)}[kind]()
    return inspect(args, getter, options["format"])


def _kind_list() -> str:
    return ", ".join(go_quote(k) for k in _KINDS)


def _run_container(app: App, options: Options, args: list[str]) -> int:
    return inspect(args, _container(app, options["size"]), options["format"])


def _run_image(app: App, options: Options, args: list[str]) -> int:
    return inspect(args, _image(app, options["platform"]), options["format"])


def _run_network(app: App, options: Options, args: list[str]) -> int:
    return inspect(args, _network(app, options["verbose"]), options["format"])


def _run_volume(app: App, options: Options, args: list[str]) -> int:
    return inspect(args, _volume(app), options["format"])


_FORMAT = Flag("format", "f", "string", FORMAT_HELP)
_SIZE = Flag("size", "s", "bool", "Show the size of the files too")

COMMANDS = {
    "inspect": Command(_run, "[OPTIONS] NAME|ID [NAME|ID...]", 1, MANY, (
        _FORMAT, Flag("size", "s", "bool", "Show the size of a container's files too"),
        Flag("type", "", "string", "Look only among containers, images, networks or volumes"))),
    "container inspect": Command(_run_container, "[OPTIONS] CONTAINER [CONTAINER...]", 1, MANY,
                                 (_FORMAT, _SIZE)),
    "image inspect": Command(_run_image, "[OPTIONS] IMAGE [IMAGE...]", 1, MANY, (
        _FORMAT, Flag("platform", "", "string", "Look at the image for this platform"))),
    "network inspect": Command(_run_network, "[OPTIONS] NETWORK [NETWORK...]", 1, MANY, (
        _FORMAT, Flag("verbose", "v", "bool", "Show more"))),
    "volume inspect": Command(_run_volume, "[OPTIONS] VOLUME [VOLUME...]", 1, MANY, (_FORMAT,)),
}
