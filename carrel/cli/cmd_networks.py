"""network ls, create, rm, connect, disconnect"""

from __future__ import annotations

from .client import escape, filters_json
from .cmd_ps import FORMAT_HELP, labels_text
from .command import MANY, Command
from .errors import CliError, EngineError
from .flags import Flag
from .optvalues import label
from .optvalues import link as check_link
from .tables import Listing, short_id, show
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options


def _label(item: dict[str, Any], trunc: bool, name: str) -> str:
    return str((item.get("Labels") or {}).get(name, ""))


def _flag_text(value: object) -> str:
    return "true" if value else "false"


def _created(item: dict[str, Any], trunc: bool) -> str:
    from .units import epoch_of, go_time
    stamp = item.get("Created") or ""
    try:
        seconds, nanoseconds = epoch_of(stamp)
    except ValueError:
        return str(stamp)
    date, clock, rest = go_time(seconds).split(" ", 2)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return f"{date} {clock}{fraction} {rest}"


NETWORKS = Listing(
    "*network.networkContext",
    {
        "CreatedAt": _created,
        "Driver": lambda n, trunc: n.get("Driver") or "",
        "ID": lambda n, trunc: short_id(n["Id"]) if trunc else n["Id"],
        "IPv4": lambda n, trunc: _flag_text(n.get("EnableIPv4")),
        "IPv6": lambda n, trunc: _flag_text(n.get("EnableIPv6")),
        "Internal": lambda n, trunc: _flag_text(n.get("Internal")),
        "Label": _label,
        "Labels": lambda n, trunc: labels_text(n.get("Labels")),
        "Name": lambda n, trunc: n.get("Name") or "",
        "Scope": lambda n, trunc: n.get("Scope") or "",
    },
    {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4",
     "IPv6": "IPV6", "Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT"},
    ("ID", "Name", "Driver", "Scope"),
    with_argument=frozenset(("Label",)),
)


def _ls(app: App, options: Options, args: list[str]) -> None:
    from .cmd_containers_look import natural
    networks = app.engine.call("GET", "/networks",
                               {"filters": filters_json(options["filter"])}) or []
    networks.sort(key=lambda n: natural(n.get("Name") or ""))
    format_text = options["format"]
    if not format_text and not options["quiet"]:
        format_text = app.config.text("networksFormat")
    trunc = not options["no-trunc"]
    if options["quiet"] and format_text in ("", "table"):
        for network in networks:
            print(short_id(network["Id"]) if trunc else network["Id"])
        return
    show(NETWORKS, networks, format_text, trunc=trunc)


def _ipam(options: Options) -> dict[str, Any] | None:
    """Subnets with the ranges, gateways and reserved addresses that lie in them."""
    from ipaddress import ip_address, ip_network
    subnets = {}
    for text in options["subnet"]:
        try:
            subnets[text] = ip_network(text, strict=False)
        except ValueError:
            continue  # the engine says what is wrong with it
    if len(options["subnet"]) < len(options["ip-range"]) or \
            len(options["subnet"]) < len(options["gateway"]):
        raise CliError("every ip-range or gateway must have a corresponding subnet")
    found: dict[str, dict[str, Any]] = {text: {"Subnet": text} for text in options["subnet"]}
    for text, net in subnets.items():
        for other, known in subnets.items():
            if other != text and net.version == known.version and net.overlaps(known):
                raise CliError("multiple overlapping subnet configuration is not supported")

    def place(value: str, address: str, key: str) -> None:
        try:
            wanted = ip_address(address)
        except ValueError:
            raise CliError(f"invalid address: {value}") from None
        for text, net in subnets.items():
            if wanted.version == net.version and wanted in net:
                if key == "AuxiliaryAddresses":
                    name, _, rest = value.partition("=")
                    found[text].setdefault(key, {})[name] = rest
                    return
                if key in found[text]:
                    what = "range" if key == "IPRange" else "gateway"
                    raise CliError(f"cannot configure multiple {what}s "
                                   f"({value}, {found[text][key]}) on the same subnet ({text})")
                found[text][key] = value
                return
        raise CliError(f"no matching subnet for {_KIND[key]} {value}")

    for value in options["ip-range"]:
        place(value, value.partition("/")[0], "IPRange")
    for value in options["gateway"]:
        place(value, value, "Gateway")
    for name, address in options["aux-address"].items():
        place(f"{name}={address}", address, "AuxiliaryAddresses")
    order = ("Subnet", "IPRange", "Gateway", "AuxiliaryAddresses")
    config = [{k: c[k] for k in order if k in c} for c in found.values()]
    return {"Driver": options["ipam-driver"], "Options": options["ipam-opt"], "Config": config}


_KIND = {"IPRange": "range", "Gateway": "gateway", "AuxiliaryAddresses": "aux-address"}


def _create(app: App, options: Options, args: list[str]) -> None:
    body: dict[str, Any] = {
        "Name": args[0], "Driver": options["driver"], "Scope": options["scope"],
        "IPAM": _ipam(options), "Internal": options["internal"],
        "Attachable": options["attachable"], "Ingress": options["ingress"],
        "ConfigOnly": options["config-only"],
        "ConfigFrom": {"Network": options["config-from"]} if options["config-from"] else None,
        "Options": options["opt"],
        "Labels": {k: v for k, _, v in (i.partition("=") for i in options["label"])},
    }
    for flag, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if options.changed(flag):
            body[key] = options[flag]
    answer = app.engine.call("POST", "/networks/create", body=body)
    if answer.get("Warning"):
        warn(f"WARNING: {answer['Warning']}")
    print(answer["Id"])


def _rm(app: App, options: Options, args: list[str]) -> int:
    failed = False
    for name in args:
        try:
            app.engine.call("DELETE", f"/networks/{escape(name)}")
        except EngineError as error:
            if options["force"] and error.status == 404:
                continue
            warn(error.message)
            failed = True
        else:
            print(name)
    return 1 if failed else 0


def _connect(app: App, options: Options, args: list[str]) -> None:
    from .createbody import ENDPOINT
    options_text = {k: v for k, _, v in (i.partition("=") for i in options["driver-opt"])}
    ipam = {"IPv4Address": options["ip"], "IPv6Address": options["ip6"],
            "LinkLocalIPs": options["link-local-ip"]}
    endpoint = {**ENDPOINT, "IPAMConfig": {k: v for k, v in ipam.items() if v},
                "Links": options["link"] or None, "Aliases": options["alias"],
                "DriverOpts": options_text, "GwPriority": options["gw-priority"]}
    app.engine.call("POST", f"/networks/{escape(args[0])}/connect",
                    body={"Container": args[1], "EndpointConfig": endpoint})


def _disconnect(app: App, options: Options, args: list[str]) -> None:
    app.engine.call("POST", f"/networks/{escape(args[0])}/disconnect",
                    body={"Container": args[1], "Force": options["force"]})


COMMANDS = {
    "network ls": Command(_ls, "[OPTIONS]", 0, 0, (
        Flag("filter", "f", "filter", "Show only what fits, such as driver=bridge"),
        Flag("format", "", "string", FORMAT_HELP),
        Flag("no-trunc", "", "bool", "Do not shorten anything"),
        Flag("quiet", "q", "bool", "Print the IDs only"))),
    "network create": Command(_create, "[OPTIONS] NETWORK", 1, 1, (
        Flag("attachable", "", "bool", "Containers may be connected by hand"),
        Flag("aux-address", "", "map", "Addresses that the driver uses"),
        Flag("config-from", "", "string", "Copy the configuration of this network"),
        Flag("config-only", "", "bool", "Make a configuration, no network"),
        Flag("driver", "d", "string", "Driver of the network", "bridge"),
        Flag("gateway", "", "strings", "Gateway of a subnet"),
        Flag("ingress", "", "bool", "Make the swarm's routing mesh"),
        Flag("internal", "", "bool", "Keep the network apart from the outside"),
        Flag("ip-range", "", "strings", "Give containers addresses of this range"),
        Flag("ipam-driver", "", "string", "Driver that hands out addresses", "default"),
        Flag("ipam-opt", "", "map", "Options of that driver"),
        Flag("ipv4", "", "bool", "Give containers IPv4 addresses", True),
        Flag("ipv6", "", "bool", "Give containers IPv6 addresses"),
        Flag("label", "", "list", "Set metadata", check=label),
        Flag("opt", "o", "map", "Options of the driver"),
        Flag("scope", "", "string", "Scope of the network"),
        Flag("subnet", "", "strings", "Subnet of the network (10.1.0.0/24)"))),
    "network rm": Command(_rm, "NETWORK [NETWORK...]", 1, MANY, (
        Flag("force", "f", "bool", "A network that is not there is no error"),)),
    "network connect": Command(_connect, "[OPTIONS] NETWORK CONTAINER", 2, 2, (
        Flag("alias", "", "strings", "Add a name in the network"),
        Flag("driver-opt", "", "strings", "Options of the driver"),
        Flag("gw-priority", "", "int", "The network of the highest priority is the way out"),
        Flag("ip", "", "string", "IPv4 address (172.30.100.104)"),
        Flag("ip6", "", "string", "IPv6 address (2001:db8::33)"),
        Flag("link", "", "list", "Link to another container", check=check_link),
        Flag("link-local-ip", "", "strings", "Link-local addresses"))),
    "network disconnect": Command(_disconnect, "[OPTIONS] NETWORK CONTAINER", 2, 2, (
        Flag("force", "f", "bool", "Disconnect even if the container is gone"),)),
}
