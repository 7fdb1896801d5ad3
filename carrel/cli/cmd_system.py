"""version, info, search"""

from __future__ import annotations

import os
import sys

from . import auth, jsonc
from .app import VERSION
from .client import NEWEST_API, filters_json
from .cmd_ps import FORMAT_HELP
from .command import Command
from .errors import CliError, ConnectError, EngineError
from .flags import Flag
from .tables import Listing, ellipsis, show
from .terminal import clean, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def _client(app: App) -> dict[str, Any]:
    machine = os.uname().machine
    version = sys.version_info
    return {
        "Version": VERSION, "ApiVersion": app.engine.version or NEWEST_API,
        "DefaultAPIVersion": NEWEST_API,
        "PythonVersion": f"{version.major}.{version.minor}.{version.micro}", "Os": "linux",
        "Arch": _ARCHITECTURES.get(machine, machine), "Context": app.context_name(),
    }


def by_template(value: dict[str, Any], format_text: str) -> None:
    """Print a value as --format asks."""
    if format_text == "json":
        print(jsonc.dumps(value))
        return
    from .gotemplate import ExecError, Template
    try:
        print(clean(Template(format_text).execute(value)))
    except CliError as error:
        reason = error.message.removeprefix("failed to parse template: ")
        raise CliError(f"template parsing error: {reason}", 64) from None
    except ExecError as error:
        raise CliError(str(error)) from None


def _version(app: App, options: Options, args: list[str]) -> int:
    server: dict[str, Any] | None = None
    problem: CliError | None = None
    try:
        server = app.engine.call("GET", "/version")
    except CliError as error:
        problem = error
    client = _client(app)
    if options["format"]:
        by_template({"Client": client, "Server": _server_value(server)}, options["format"])
    else:
        lines = ["Client: Carrel", *_rows(" ", (
            ("Version", client["Version"]), ("API version", _api(client)),
            ("Python version", client["PythonVersion"]),
            ("OS/Arch", f"{client['Os']}/{client['Arch']}"), ("Context", client["Context"])))]
        if server is not None:
            lines += ["", *_server(server)]
        print(clean("\n".join(lines)))
    if problem is not None:
        raise problem
    return 0


def _server_value(server: dict[str, Any] | None) -> dict[str, Any] | None:
    """As docker has it: the components, and the engine's own fields again."""
    return server


def _api(client: dict[str, Any]) -> str:
    text = str(client["ApiVersion"])
    if text != client["DefaultAPIVersion"]:
        text += f" (downgraded from {client['DefaultAPIVersion']})"
    return text


def _rows(indent: str, pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"{indent}{name + ':':<18} {value}".rstrip() if value else f"{indent}{name}:"
            for name, value in pairs]


def _server(server: dict[str, Any]) -> list[str]:
    platform = (server.get("Platform") or {}).get("Name") or ""
    lines = [f"Server: {platform}".rstrip()]
    for component in server.get("Components") or []:
        details = component.get("Details") or {}
        lines.append(f" {component.get('Name')}:")
        pairs = [("Version", component.get("Version") or "")]
        if component.get("Name") == "Engine":
            api = details.get("ApiVersion") or server.get("ApiVersion") or ""
            least = details.get("MinAPIVersion") or server.get("MinAPIVersion") or ""
            pairs += [("API version", f"{api} (minimum version {least})"),
                      ("Go version", details.get("GoVersion") or ""),
                      ("Git commit", details.get("GitCommit") or ""),
                      ("Built", details.get("BuildTime") or ""),
                      ("OS/Arch", f"{details.get('Os')}/{details.get('Arch')}"),
                      ("Experimental", details.get("Experimental") or "false")]
            lines += _rows("  ", tuple((n, v) for n, v in pairs if v))
        else:
            pairs += sorted((k, str(v)) for k, v in details.items())
            lines += _rows("  ", tuple(pairs))
    return lines


# ---- info -------------------------------------------------------------------

def _info(app: App, options: Options, args: list[str]) -> int:
    info: dict[str, Any] = {}
    errors: list[CliError] = []
    try:
        info = app.engine.call("GET", "/info")
    except ConnectError as error:
        if options["format"]:
            raise
        errors.append(error)
    except EngineError as error:
        errors.append(error)
    client = {"Debug": False, "Version": VERSION, "Context": app.context_name(), "Plugins": [],
              "Warnings": None}
    if options["format"]:
        by_template({**info, "ClientInfo": client}, options["format"])
    else:
        print(f"Client: Carrel\n Version:    {VERSION}\n Context:    {client['Context']}\n"
              " Debug Mode: false\n\nServer:")
        if info:
            print(clean("\n".join(_info_lines(info))) + "\n")
            for text in info.get("Warnings") or []:
                warn(text)
    if errors:
        message = "\n".join(f"ERROR: {e.message}" for e in errors)
        raise CliError(message + "\nerrors pretty printing info", hint=errors[0].hint)
    return 0


def _info_lines(info: dict[str, Any]) -> list[str]:
    lines = [f" Containers: {info.get('Containers', 0)}",
             f"  Running: {info.get('ContainersRunning', 0)}",
             f"  Paused: {info.get('ContainersPaused', 0)}",
             f"  Stopped: {info.get('ContainersStopped', 0)}",
             f" Images: {info.get('Images', 0)}"]

    def add(title: str, key: str) -> None:
        if info.get(key):
            lines.append(f" {title}: {info[key]}")

    add("Server Version", "ServerVersion")
    add("Storage Driver", "Driver")
    lines.extend(f"  {pair[0]}: {pair[1]}" for pair in info.get("DriverStatus") or [])
    for title in ("Logging Driver", "Cgroup Driver", "Cgroup Version"):
        add(title, title.replace(" ", ""))
    plugins = info.get("Plugins") or {}
    lines.append(" Plugins:")
    for kind in ("Volume", "Network", "Authorization", "Log"):
        if kind != "Authorization" or plugins.get(kind):
            lines.append(f"  {kind}: {' '.join(plugins.get(kind) or [])}".rstrip())
    if info.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {d}" for d in info["CDISpecDirs"])]
    lines.append(f" Swarm: {(info.get('Swarm') or {}).get('LocalNodeState') or 'inactive'}")
    if info.get("Runtimes"):
        lines += [f" Runtimes: {' '.join(info['Runtimes'])}",
                  f" Default Runtime: {info.get('DefaultRuntime', '')}"]
    lines += _linux_lines(info)
    for title, key in (("Kernel Version", "KernelVersion"),
                       ("Operating System", "OperatingSystem"), ("OSType", "OSType"),
                       ("Architecture", "Architecture")):
        add(title, key)
    from .units import bytes_size
    lines += [f" CPUs: {info.get('NCPU', 0)}",
              f" Total Memory: {bytes_size(info.get('MemTotal') or 0)}"]
    add("Name", "Name")
    add("ID", "ID")
    lines += [f" Docker Root Dir: {info.get('DockerRootDir', '')}",
              f" Debug Mode: {_flag(info.get('Debug'))}"]
    if info.get("Debug"):
        lines += [f"  File Descriptors: {info.get('NFd', 0)}",
                  f"  Goroutines: {info.get('NGoroutines', 0)}",
                  f"  System Time: {info.get('SystemTime', '')}",
                  f"  EventsListeners: {info.get('NEventsListener', 0)}"]
    for title, key in (("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"),
                       ("No Proxy", "NoProxy")):
        add(title, key)
    if info.get("Labels"):
        lines += [" Labels:", *(f"  {text}" for text in info["Labels"])]
    lines.append(f" Experimental: {_flag(info.get('ExperimentalBuild'))}")
    lines += _registry_lines(info.get("RegistryConfig") or {})
    lines.append(f" Live Restore Enabled: {_flag(info.get('LiveRestoreEnabled'))}")
    add("Product License", "ProductLicense")
    if info.get("DefaultAddressPools"):
        lines += [" Default Address Pools:", *(f"   Base: {p['Base']}, Size: {p['Size']}"
                                               for p in info["DefaultAddressPools"])]
    firewall = info.get("FirewallBackend") or {}
    if firewall.get("Driver"):
        lines.append(f" Firewall Backend: {firewall['Driver']}")
        lines += [f"  {pair[0]}: {pair[1]}" for pair in firewall.get("Info") or []]
    return lines


def _linux_lines(info: dict[str, Any]) -> list[str]:
    if info.get("OSType") != "linux":
        return []
    lines = [f" Init Binary: {info.get('InitBinary', '')}".rstrip()]
    for title, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"),
                       ("init", "InitCommit")):
        lines.append(f" {title} version: {(info.get(key) or {}).get('ID') or ''}")
    options = info.get("SecurityOptions") or []
    if options:
        lines.append(" Security Options:")
        for text in options:
            pairs = dict(part.partition("=")[::2] for part in text.split(","))
            lines.append(f"  {pairs.get('name', text)}")
            if "profile" in pairs:
                lines.append(f"   Profile: {pairs['profile']}")
    return lines


def _registry_lines(registry: dict[str, Any]) -> list[str]:
    lines = []
    insecure = [c.get("Name", "") for c in (registry.get("IndexConfigs") or {}).values()
                if not c.get("Secure")]
    networks = registry.get("InsecureRegistryCIDRs") or []
    if registry.get("IndexConfigs") or networks:
        lines += [" Insecure Registries:", *(f"  {text}" for text in [*insecure, *networks])]
    if registry.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {text}" for text in registry["Mirrors"])]
    return lines


def _flag(value: object) -> str:
    return "true" if value else "false"


# ---- search -----------------------------------------------------------------

def _description(item: dict[str, Any], trunc: bool) -> str:
    text = (item.get("description") or "").replace("\n", " ").replace("\r", " ")
    return ellipsis(text, 45) if trunc else text


_RESULTS = Listing(
    "*registry.searchContext",
    {
        "Description": _description,
        "IsAutomated": lambda r, trunc: "[OK]" if r.get("is_automated") else "",
        "IsOfficial": lambda r, trunc: "[OK]" if r.get("is_official") else "",
        "Name": lambda r, trunc: r.get("name") or "",
        "StarCount": lambda r, trunc: str(r.get("star_count") or 0),
    },
    {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS",
     "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"},
    ("Name", "Description", "StarCount", "IsOfficial"),
)


def _search(app: App, options: Options, args: list[str]) -> None:
    results = app.engine.call(
        "GET", "/images/search",
        {"term": args[0], "limit": options["limit"] or None,
         "filters": filters_json(options["filter"])},
        headers={"X-Registry-Auth": auth.header(app.config, "docker.io")}) or []
    show(_RESULTS, results, options["format"], trunc=not options["no-trunc"])


_TEMPLATE = """Format the output:
'json':       JSON on one line
'TEMPLATE':   whatever a Go template makes of it"""

COMMANDS = {
    "version": Command(_version, "[OPTIONS]", 0, 0, (
        Flag("format", "f", "string", _TEMPLATE),)),
    "info": Command(_info, "[OPTIONS]", 0, 0, (Flag("format", "f", "string", _TEMPLATE),)),
    "search": Command(_search, "[OPTIONS] TERM", 1, 1, (
        Flag("filter", "f", "filter", "Show only what fits, such as is-official=true"),
        Flag("format", "", "string", FORMAT_HELP),
        Flag("limit", "", "int", "Show so many results at most"),
        Flag("no-trunc", "", "bool", "Do not shorten anything"))),
}
