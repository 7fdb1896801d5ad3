"""context ls, use, create, rm, inspect, show: shared with the docker command"""

from __future__ import annotations

import os
import sys

from . import jsonc
from .app import environment_host
from .cmd_inspect import FORMAT_HELP as INSPECT_FORMAT
from .cmd_inspect import inspect
from .cmd_ps import FORMAT_HELP
from .command import MANY, Command
from .config import ContextStore, context_id
from .endpoint import DEFAULT_HOST, Endpoint
from .errors import CliError
from .flags import Flag
from .tables import Listing, show
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .app import App
    from .flags import Options

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
_TLS_FILES = (("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))

CONTEXTS = Listing(
    "*formatter.clientContextContext",
    {
        "Current": lambda c, trunc: c["current"],
        "Description": lambda c, trunc: c["description"],
        "DockerEndpoint": lambda c, trunc: c["host"],
        "Error": lambda c, trunc: c["error"],
        "Name": lambda c, trunc: c["name"],
        "NameStarred": lambda c, trunc: c["name"] + (" *" if c["current"] else ""),
    },
    {"Name": "NAME", "NameStarred": "NAME", "Description": "DESCRIPTION",
     "DockerEndpoint": "DOCKER ENDPOINT", "Error": "ERROR", "Current": "CURRENT"},
    ("NameStarred", "Description", "DockerEndpoint", "Error"),
)


def check_name(name: str) -> None:
    if not name:
        raise CliError("context name cannot be empty")
    if name == "default":
        raise CliError('"default" is a reserved context name')
    if not name[0].isascii() or not name[0].isalnum() or len(name) < 2 or set(name) - _NAME:
        raise CliError(f'context name "{name}" is invalid, names are validated against regexp '
                       '"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"')


def _default_host() -> str:
    return environment_host() or DEFAULT_HOST


def _describe(store: ContextStore, name: str, current: str) -> dict[str, Any]:
    try:
        meta = store.get(name)
    except CliError as error:
        return {"name": name, "current": name == current, "description": "", "host": "",
                "error": error.message}
    return {"name": name, "current": name == current, "error": "",
            "description": (meta.get("Metadata") or {}).get("Description") or "",
            "host": ((meta.get("Endpoints") or {}).get("docker") or {}).get("Host") or ""}


def _ls(app: App, options: Options, args: list[str]) -> None:
    store = ContextStore(app.config)
    current = app.context_name()
    items = [{"name": "default", "current": current == "default", "error": "",
              "description": "Current DOCKER_HOST based configuration",
              "host": app.host_flag or _default_host()}]
    items += [_describe(store, name, current) for name in store.names()]
    if current not in [i["name"] for i in items]:
        items.append(_describe(store, current, current))
    if options["quiet"]:
        for item in items:
            print(item["name"])
    else:
        show(CONTEXTS, items, options["format"])
    _overridden(app)


def _overridden(app: App) -> None:
    if environment_host() and not app.context_flag:
        warn("Warning: DOCKER_HOST environment variable overrides the active context. To use a "
             "context, either set the global --context flag, or unset DOCKER_HOST environment "
             "variable.")


def _use(app: App, options: Options, args: list[str]) -> None:
    name = args[0]
    if name != "default":
        check_name(name)
        ContextStore(app.config).get(name)
    values = app.config.values
    if name == "default":
        values.pop("currentContext", None)
    else:
        values["currentContext"] = name
    app.config.save()
    print(name)
    sys.stdout.flush()
    if environment_host():
        warn(f'Warning: DOCKER_HOST environment variable overrides the active context. To use '
             f'"{name}", either set the global --context flag, or unset DOCKER_HOST environment '
             "variable.")
    else:
        sys.stderr.write(f'Current context is now "{name}"\n')


def _create(app: App, options: Options, args: list[str]) -> None:
    name = args[0]
    check_name(name)
    store = ContextStore(app.config)
    if os.path.exists(store.meta_path(name)):
        raise CliError(f'context "{name}" already exists')
    docker = options["docker"]
    unknown = sorted(set(docker) - {"from", "host", "ca", "cert", "key", "skip-tls-verify"})
    if unknown:
        raise CliError(f"unrecognized config key: {unknown[0]}")
    source = options["from"] or docker.get("from", "")
    files = _read_files(docker)
    if source and source != "default":
        meta = {**store.get(source), "Name": name}
        files = files or _stored_files(store, source)
    else:
        host = docker.get("host") or _default_host()
        Endpoint(host)
        meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {
            "Host": host, "SkipTLSVerify": docker.get("skip-tls-verify", "") in ("1", "true")}}}
    if options["description"]:
        meta["Metadata"] = {**(meta.get("Metadata") or {}),
                            "Description": options["description"]}
    _write(store, name, meta, files)
    print(name)
    sys.stdout.flush()
    sys.stderr.write(f'Successfully created context "{name}"\n')


def _read_files(docker: dict[str, str]) -> dict[str, bytes]:
    files = {}
    for key, name in _TLS_FILES:
        if docker.get(key):
            with open(os.path.expanduser(docker[key]), "rb") as f:
                files[name] = f.read(1 << 20)
    return files


def _stored_files(store: ContextStore, name: str) -> dict[str, bytes]:
    files = {}
    for _, file in _TLS_FILES:
        try:
            with open(f"{store.tls_path(name)}/{file}", "rb") as f:
                files[file] = f.read(1 << 20)
        except FileNotFoundError:
            continue
    return files


def _write(store: ContextStore, name: str, meta: dict[str, Any], files: dict[str, bytes]) -> None:
    path = store.meta_path(name)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if files:
        os.makedirs(store.tls_path(name), mode=0o700, exist_ok=True)
        for file, data in files.items():
            _write_file(f"{store.tls_path(name)}/{file}", data, 0o600)
    _write_file(path, jsonc.dumps(meta).encode(), 0o644)


def _write_file(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as f:
        f.write(data)


def _rm(app: App, options: Options, args: list[str]) -> int:
    store = ContextStore(app.config)
    current = app.config.text("currentContext")
    failed = False
    for name in args:
        try:
            if name == "default":
                raise CliError('context "default" cannot be removed')
            check_name(name)
            if name == current and not options["force"]:
                raise CliError(f'context "{name}" is in use, set -f flag to force remove')
            if not options["force"]:
                store.get(name)
            _remove(store, name)
        except CliError as error:
            warn(error.message)
            failed = True
            continue
        if name == current:
            app.config.values.pop("currentContext", None)
            app.config.save()
        print(name)
    return 1 if failed else 0


def _remove(store: ContextStore, name: str) -> None:
    """The two folders of a context; only files that a context has are removed."""
    tls = f"{store.root}/tls/{context_id(name)}"
    meta = os.path.dirname(store.meta_path(name))
    for folder in (f"{tls}/docker", tls, meta):
        try:
            for entry in os.listdir(folder):
                os.unlink(f"{folder}/{entry}")
            os.rmdir(folder)
        except FileNotFoundError:
            continue


def _inspect(app: App, options: Options, args: list[str]) -> int:
    store = ContextStore(app.config)

    def get(name: str) -> dict[str, Any]:
        if name == "default":
            return {"Name": "default", "Metadata": {}, "Endpoints": {"docker": {
                "Host": app.host_flag or _default_host(), "SkipTLSVerify": False}},
                "TLSMaterial": {}, "Storage": {"MetadataPath": "<IN MEMORY>",
                                               "TLSPath": "<IN MEMORY>"}}
        meta = store.get(name)
        tls = f"{store.root}/tls/{context_id(name)}"
        try:
            material = {"docker": sorted(os.listdir(f"{tls}/docker"))}
        except FileNotFoundError:
            material = {}
        return {"Name": meta.get("Name", name), "Metadata": meta.get("Metadata") or {},
                "Endpoints": meta.get("Endpoints") or {}, "TLSMaterial": material,
                "Storage": {"MetadataPath": os.path.dirname(store.meta_path(name)),
                            "TLSPath": tls}}
    return inspect(args or [app.context_name()], get, options["format"])


def _show(app: App, options: Options, args: list[str]) -> None:
    print(app.context_name())


COMMANDS = {
    "context ls": Command(_ls, "[OPTIONS]", 0, 0, (
        Flag("format", "", "string", FORMAT_HELP),
        Flag("quiet", "q", "bool", "Print the names only"))),
    "context use": Command(_use, "CONTEXT", 1, 1),
    "context create": Command(_create, "[OPTIONS] CONTEXT", 1, 1, (
        Flag("description", "", "string", "Description of the context"),
        Flag("docker", "", "stringToString", "The engine: host=tcp://server:2376,ca=...,"
             "cert=...,key=...,skip-tls-verify=..., or from=CONTEXT"),
        Flag("from", "", "string", "Copy this context"))),
    "context rm": Command(_rm, "CONTEXT [CONTEXT...]", 1, MANY, (
        Flag("force", "f", "bool", "Remove it even if it is in use"),)),
    "context inspect": Command(_inspect, "[OPTIONS] [CONTEXT] [CONTEXT...]", 0, MANY, (
        Flag("format", "f", "string", INSPECT_FORMAT),)),
    "context show": Command(_show, "", 0, 0),
}
