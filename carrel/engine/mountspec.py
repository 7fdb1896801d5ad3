"""``-v``, ``--mount``, ``--tmpfs`` and an image's VOLUMEs, as one list of mount points."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from carrel import errdefs
from carrel.engine import schema
from carrel.engine.model import MountPoint

Bad = errdefs.InvalidParameter
VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}", re.ASCII)
PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_MODES = frozenset({"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated"})
_TMPFS = frozenset({
    "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync",
    "remount", "mand", "nomand", "atime", "noatime", "diratime", "nodiratime", "relatime",
    "norelatime", "strictatime", "nostrictatime", "bind", "rbind", "unbindable", "runbindable",
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
})
_TMPFS_VALUES = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})


def destination(path: str) -> str:
    """A clean absolute path inside the container."""
    if not path.startswith("/"):
        raise Bad(f"invalid mount path: '{path[:200]}' mount path must be absolute")
    clean = posixpath.normpath(path)
    clean = "/" + clean.lstrip("/")
    if clean == "/":
        raise Bad("invalid specification: destination can't be '/'")
    return clean


def parse_bind(text: str) -> MountPoint:
    """``[source:]destination[:mode]``."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise Bad(f"invalid volume specification: '{text[:200]}'")
    if len(parts) == 1:
        return MountPoint(type="volume", source="", destination=destination(parts[0]))
    source, target = parts[0], destination(parts[1])
    mode = parts[2] if len(parts) == 3 else ""
    words = [w for w in mode.split(",") if w]
    for word in words:
        if word not in _MODES and word not in PROPAGATIONS:
            raise Bad(f"invalid mode: {mode[:80]}")
    propagation = next((w for w in words if w in PROPAGATIONS), "")
    if "ro" in words and "rw" in words:
        raise Bad(f"invalid mode: {mode[:80]}")
    point = MountPoint(type="bind", source=source, destination=target, mode=mode,
                       rw="ro" not in words, propagation=propagation)
    if source.startswith("/"):
        if "nocopy" in words:
            raise Bad(f"invalid mode: {mode[:80]}")
        point.source = posixpath.normpath(source)
        point.create_source = True
        point.propagation = propagation or "rprivate"
        return point
    if not VOLUME_NAME.fullmatch(source):
        raise Bad(f'"{source[:200]}" includes invalid characters for a local volume name, only '
                  '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host '
                  "directory, use absolute path")
    if propagation:
        raise Bad(f"invalid mode: {mode[:80]}")
    point.type, point.name, point.source = "volume", source, ""
    point.nocopy = "nocopy" in words
    point.mode = mode or "z"
    return point


def _options(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of one kind of mount, each with its type checked."""
    return schema.complete(schema.check(fields[name], schema.MOUNT_OPTIONS[name], name),
                           schema.MOUNT_OPTIONS[name])


def parse_mount(value: Mapping[str, Any]) -> tuple[MountPoint, dict[str, Any]]:
    """One object of ``HostConfig.Mounts``, and the volume's options."""
    fields = schema.complete(schema.check(dict(value), schema.MOUNT, "Mount"), schema.MOUNT)
    kind, source = fields["Type"], fields["Source"]
    if not fields["Target"]:
        raise Bad(f"invalid mount config for type \"{kind[:20]}\": field Target must not be empty")
    target = destination(fields["Target"])
    point = MountPoint(type=kind, source=source, destination=target, rw=not fields["ReadOnly"])
    if kind == "bind":
        return _bind(point, fields), {}
    if kind == "volume":
        return _volume(point, fields)
    if kind == "tmpfs":
        return _tmpfs_mount(point, fields), {}
    if kind in ("npipe", "cluster", "image"):
        raise errdefs.NotImplementedYet(f"mount type \"{kind}\" is not implemented in Carrel")
    raise Bad(f'invalid mount config for type "{kind[:20]}": mount type unknown')


def _bind(point: MountPoint, fields: Mapping[str, Any]) -> MountPoint:
    options = _options(fields, "BindOptions")
    if not point.source:
        raise Bad('invalid mount config for type "bind": field Source must not be empty')
    if not point.source.startswith("/"):
        raise Bad('invalid mount config for type "bind": invalid mount path: '
                  f"'{point.source[:200]}' mount path must be absolute")
    if fields["VolumeOptions"] or fields["TmpfsOptions"] or fields["ImageOptions"]:
        raise Bad('invalid mount config for type "bind": options of another type')
    if options["ReadOnlyNonRecursive"] and options["ReadOnlyForceRecursive"]:
        raise Bad('invalid mount config for type "bind": only one of ReadOnlyNonRecursive and '
                  "ReadOnlyForceRecursive may be set")
    if (options["ReadOnlyNonRecursive"] or options["ReadOnlyForceRecursive"]) and point.rw:
        raise Bad('invalid mount config for type "bind": ReadOnlyNonRecursive and '
                  "ReadOnlyForceRecursive need ReadOnly")
    point.source = posixpath.normpath(point.source)
    point.propagation = options.get("Propagation") or "rprivate"
    if point.propagation not in PROPAGATIONS:
        raise Bad(f'invalid mount config for type "bind": invalid propagation mode: '
                  f"{str(point.propagation)[:40]}")
    if options.get("NonRecursive"):
        point.recursive = "disabled"
    elif options.get("ReadOnlyForceRecursive"):
        point.recursive = "readonly"
    elif options.get("ReadOnlyNonRecursive"):
        point.recursive = "writable"
    point.create_source = bool(options.get("CreateMountpoint"))
    if not point.create_source and not os.path.lexists(point.source):
        raise Bad('invalid mount config for type "bind": bind source path does not exist: '
                  f"{point.source}")
    return point


def _volume(point: MountPoint, fields: Mapping[str, Any]) -> tuple[MountPoint, dict[str, Any]]:
    options = _options(fields, "VolumeOptions")
    if point.source and not VOLUME_NAME.fullmatch(point.source):
        raise Bad('invalid mount config for type "volume": '
                  f'"{point.source[:200]}" includes invalid characters for a local volume name, '
                  'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed')
    if fields["BindOptions"] or fields["TmpfsOptions"] or fields["ImageOptions"]:
        raise Bad('invalid mount config for type "volume": options of another type')
    subpath = options.get("Subpath") or ""
    if subpath and (subpath.startswith("/") or ".." in subpath.split("/")):
        raise Bad('invalid mount config for type "volume": subpath must be a relative path '
                  "within the volume")
    options["DriverConfig"] = schema.check(options["DriverConfig"], schema.DRIVER_CONFIG,
                                           "VolumeOptions.DriverConfig")
    point.name, point.source = point.source, ""
    point.nocopy = bool(options.get("NoCopy"))
    point.subpath, point.mode = subpath, "z"
    return point, options


def _tmpfs_mount(point: MountPoint, fields: Mapping[str, Any]) -> MountPoint:
    if point.source:
        raise Bad('invalid mount config for type "tmpfs": field Source must not be specified')
    if fields["BindOptions"] or fields["VolumeOptions"] or fields["ImageOptions"]:
        raise Bad('invalid mount config for type "tmpfs": options of another type')
    options = _options(fields, "TmpfsOptions")
    words = [] if point.rw else ["ro"]
    for name, key, form in (("size", "SizeBytes", "d"), ("mode", "Mode", "o")):
        number = options.get(key)
        if number:
            if not isinstance(number, int) or number < 0:
                raise Bad(f'invalid mount config for type "tmpfs": {key}')
            words.append(f"{name}={number:{form}}")
    for option in options["Options"] or ():
        if not (isinstance(option, list) and len(option) in (1, 2)
                and all(isinstance(t, str) and "," not in t and "\0" not in t for t in option)):
            raise Bad('invalid mount config for type "tmpfs": Options')
        words.append("=".join(option))
        _tmpfs_word(words[-1])
    point.tmpfs_options = ",".join(words)
    return point


def _tmpfs_word(word: str) -> None:
    key, equals, _ = word.partition("=")
    if not (key in _TMPFS_VALUES if equals else word in _TMPFS):
        raise Bad(f'invalid tmpfs option ["{word[:40]}"]')


def parse_tmpfs(target: str, options: str) -> MountPoint:
    """One entry of ``HostConfig.Tmpfs``."""
    for word in options.split(",") if options else ():
        _tmpfs_word(word)
    return MountPoint(type="tmpfs", source="", destination=destination(target),
                      tmpfs_options=options, rw="ro" not in options.split(","))


def collect(host: Mapping[str, Any], image_volumes: Iterable[str], config_volumes: Iterable[str],
            inherited: Iterable[MountPoint]) -> list[tuple[MountPoint, dict[str, Any]]]:
    """All mount points by destination; what is named explicitly wins over what is
    inherited, and that over the image's volumes."""
    explicit: dict[str, tuple[MountPoint, dict[str, Any]]] = {}

    def add(point: MountPoint, options: dict[str, Any]) -> None:
        if point.destination in explicit:
            raise Bad(f"Duplicate mount point: {point.destination}")
        explicit[point.destination] = (point, options)

    for text in host["Binds"] or ():
        add(parse_bind(text), {"Driver": host["VolumeDriver"]} if host["VolumeDriver"] else {})
    for value in host["Mounts"] or ():
        add(*parse_mount(value))
    for target, options in (host["Tmpfs"] or {}).items():
        add(parse_tmpfs(target, options), {})
    result = dict(explicit)
    for point in inherited:
        result.setdefault(point.destination, (point, {}))
    for path in (*image_volumes, *config_volumes):
        target = destination(path)
        result.setdefault(target, (
            MountPoint(type="volume", source="", destination=target, from_image=True), {}))
    return [result[key] for key in sorted(result, key=lambda d: (d.count("/"), d))]
