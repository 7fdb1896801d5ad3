"""The daemon's settings: flags over the TOML file over the defaults."""

from __future__ import annotations

import argparse
import logging
import tomllib
from dataclasses import dataclass, field
from typing import Any

from carrel import errdefs
from carrel.containerd.introspection import REVISION, VERSION

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "/etc/carrel/containerd.toml"
_LEVELS = {"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING",
           "error": "ERROR", "fatal": "CRITICAL", "panic": "CRITICAL"}


@dataclass
class Settings:
    address: str = "/run/carrel/containerd/containerd.sock"
    root: str = "/var/lib/carrel/containerd"
    state: str = "/run/carrel/containerd"
    log_level: str = "info"
    uid: int = 0
    gid: int = 0
    mirrors: list[str] = field(default_factory=list)
    insecure: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def level(self) -> str:
        """The name that Python's logging has for the level."""
        return _LEVELS[self.log_level]


#: keys of the file -> settings; the names are containerd's where it has them
_KEYS: dict[tuple[str, ...], str] = {
    ("root",): "root", ("state",): "state", ("grpc", "address"): "address",
    ("grpc", "uid"): "uid", ("grpc", "gid"): "gid", ("debug", "level"): "log_level",
    ("registry", "mirrors"): "mirrors", ("registry", "insecure"): "insecure",
}
_IGNORED = {("version",)}


def parser() -> argparse.ArgumentParser:
    """containerd's flags, of which Go programs' clients write one dash or two."""
    flags = argparse.ArgumentParser(
        prog="carrel-containerd", allow_abbrev=False,
        description="Keep images, snapshots and running containers; speak containerd's gRPC.")
    flags.add_argument("--address", "-a", help="socket of the gRPC services")
    flags.add_argument("--root", help="folder of what lasts")
    flags.add_argument("--state", help="folder of what ends with the machine's uptime")
    flags.add_argument("--config", "-c", help=f"TOML file (default {DEFAULT_CONFIG} if it exists)")
    flags.add_argument("--log-level", "-l", choices=sorted(_LEVELS), metavar="LEVEL",
                       help="trace, debug, info, warn, error, fatal or panic")
    flags.add_argument("--version", "-v", action="version",
                       version=f"carrel-containerd github.com/containerd/containerd {VERSION} "
                               f"{REVISION}")
    commands = flags.add_subparsers(dest="command", metavar="COMMAND")
    publish = commands.add_parser("publish", help="pass an event on (shims use it)")
    publish.add_argument("--namespace", required=True)
    publish.add_argument("--topic", required=True)
    return flags


def load(arguments: argparse.Namespace) -> Settings:
    """The settings that hold; what is wrong in the file is an error with its name."""
    settings = Settings()
    _read_file(arguments.config, settings)
    for name in ("address", "root", "state", "log_level"):
        value = getattr(arguments, name)
        if value is not None:
            setattr(settings, name, value)
    if settings.log_level not in _LEVELS:
        raise errdefs.InvalidParameter(f'unknown log level "{settings.log_level}"')
    for name in ("address", "root", "state"):
        if not getattr(settings, name).startswith("/"):
            raise errdefs.InvalidParameter(
                f'{name} must be an absolute path, not "{getattr(settings, name)}"')
    return settings


def _read_file(path: str | None, settings: Settings) -> None:
    try:
        with open(path or DEFAULT_CONFIG, "rb") as file:
            raw = tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return
        raise errdefs.InvalidParameter(f"configuration file {path} does not exist") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise errdefs.InvalidParameter(f"configuration file {path}: {error}") from error
    for key, value in _flatten((), raw):
        if key in _KEYS:
            name = _KEYS[key]
            if type(value) is not type(getattr(settings, name)):
                raise errdefs.InvalidParameter(
                    f"configuration file {path}: {'.'.join(key)} must be of type "
                    f"{type(getattr(settings, name)).__name__}")
            setattr(settings, name, value)
        elif key not in _IGNORED:
            settings.warnings.append(f"configuration key {'.'.join(key)} is not known; ignored")


def _flatten(prefix: tuple[str, ...], table: dict[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _flatten((*prefix, key), value)
        else:
            found.append(((*prefix, key), value))
    return found
