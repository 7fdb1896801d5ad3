"""``--log-opt``: which options a log driver takes, and what they add to each line.

``compress``, ``mode=non-blocking`` and the regular expressions are refused rather
than ignored: a log that is said to be compressed and is not fills a disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from carrel import errdefs
from carrel.engine import validate
from carrel.engine.model import Container

Bad = errdefs.InvalidParameter
DRIVERS = ("json-file", "none")
_UNBUILT = ("labels-regex", "env-regex")
#: for drivers whose logs cannot be read back; json-file needs no second copy
_INERT = frozenset({"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
_KNOWN = _INERT | {"max-size", "max-file", "labels", "labels-regex", "env", "env-regex", "tag",
                   "compress", "mode", "max-buffer-size"}
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_FIELD = re.compile(r"\{\{-?\s*\.(\w{1,20})\s*-?\}\}", re.ASCII)


def check(value: Mapping[str, Any]) -> None:
    """``HostConfig.LogConfig``, and the daemon's own ``--log-driver`` and ``--log-opt``."""
    driver = value.get("Type") or ""
    options = value.get("Config") or {}
    if not isinstance(driver, str) or not isinstance(options, dict):
        raise Bad("invalid JSON: LogConfig")
    if driver and driver not in DRIVERS:
        raise Bad(f"logger: no log driver named '{driver[:40]}' is registered")
    for key, text in options.items():
        if not isinstance(text, str) or "\0" in text or "\0" in key:
            raise Bad(f"invalid JSON: LogConfig.Config.{key[:40]} must be a string")
    if driver != "none":  # which has no options and, as in Docker, takes all
        _json_file(options)


def _json_file(options: Mapping[str, str]) -> None:
    for key in options:
        if key not in _KNOWN:
            raise Bad(f"unknown log opt '{key[:80]}' for json-file log driver")
        if key in _UNBUILT and options[key]:
            raise errdefs.NotImplementedYet(
                f"log opt '{key}' is not implemented in Carrel: name the "
                f"{key.removesuffix('-regex')} one by one in '{key.removesuffix('-regex')}'")
    _numbers(options)
    compress = options.get("compress", "")
    if compress in _TRUE:
        raise errdefs.NotImplementedYet("log opt 'compress' is not implemented in Carrel: rotated "
                                        "logs stay as they are")
    if compress and compress not in _FALSE:
        raise Bad(f"invalid value for 'compress' log option: {compress[:40]!r}")
    mode = options.get("mode", "")
    if mode == "non-blocking":
        raise errdefs.NotImplementedYet("log opt 'mode=non-blocking' is not implemented in Carrel")
    if mode not in ("", "blocking"):
        raise Bad(f"logger: logging mode not supported: {mode[:40]}")
    if "max-buffer-size" in options:
        raise Bad("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
    _check_tag(options.get("tag", ""))


def _numbers(options: Mapping[str, str]) -> None:
    if max_size(options) < 0:
        raise Bad("max-size must be a positive number")
    count = options.get("max-file")
    if count is not None and not (count.isascii() and count.isdigit() and len(count) < 10
                                  and int(count) > 0):
        raise Bad("max-file cannot be less than 1")


def max_size(options: Mapping[str, str]) -> int:
    """Bytes after which the log is rotated; 0: never."""
    text = options.get("max-size", "")
    if text in ("", "-1"):
        return 0
    return validate.size(text) or -1


def _values(container: Container) -> dict[str, str]:
    """The fields of a tag, by Docker's names."""
    command = [container.record.path, *container.record.args]
    return {
        "ID": container.id[:12], "FullID": container.id, "Name": container.name,
        "Command": " ".join(command), "ImageID": container.image_id[:12],
        "ImageFullID": container.image_id, "ImageName": container.image_ref,
        "Hostname": os.uname().nodename, "DaemonName": "docker",
    }


_NAMES = frozenset({"ID", "FullID", "Name", "Command", "ImageID", "ImageFullID", "ImageName",
                    "Hostname", "DaemonName"})


def _check_tag(text: str) -> None:
    """Fields in text; of Go's templates nothing else is understood, so nothing else passes."""
    if len(text) > 1024:
        raise Bad("log tag is too long")
    for match in _FIELD.finditer(text):
        if match[1] not in _NAMES:
            raise Bad(f"invalid log tag {text[:80]!r}: there is no field {match[1]}")
    if "{{" in _FIELD.sub("", text) or "}}" in _FIELD.sub("", text):
        raise errdefs.NotImplementedYet(
            f"log tag {text[:80]!r}: of templates only fields such as {{{{.Name}}}} are "
            "implemented in Carrel")


def attributes(container: Container) -> dict[str, str]:
    """What ``labels``, ``env`` and ``tag`` add to each line as its ``attrs``."""
    options = container.record.log_opts
    result = {}
    for name in filter(None, options.get("labels", "").split(",")):
        if name in container.labels:
            result[name] = container.labels[name]
    wanted = set(filter(None, options.get("env", "").split(",")))
    for entry in container.record.config.get("Env") or ():
        name, _, value = entry.partition("=")
        if name in wanted:
            result[name] = value
    if options.get("tag"):
        values = _values(container)
        result["tag"] = _FIELD.sub(lambda m: values[m[1]], options["tag"])
    return result
