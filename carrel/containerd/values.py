"""Small things that every store needs: names, labels, digests, times."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from carrel import errdefs

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*\Z")
_IDENTIFIER_LENGTH = 76
_LABEL_LENGTH = 4096
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")


def now() -> int:
    """Nanoseconds since the epoch, as stored."""
    return time.time_ns()


def stamp(ns: int) -> Timestamp:
    """A stored time as the protocols carry it."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)


def check_identifier(name: str, what: str = "identifier") -> str:
    """Container ids, namespaces, exec ids: they become file names."""
    if not name:
        raise errdefs.InvalidParameter(f"{what} must not be empty")
    if len(name) > _IDENTIFIER_LENGTH:
        raise errdefs.InvalidParameter(
            f'{what} "{name}" greater than maximum length ({_IDENTIFIER_LENGTH} characters)')
    if not _IDENTIFIER.match(name):
        raise errdefs.InvalidParameter(f'{what} "{name}" must match {_IDENTIFIER.pattern[:-2]}')
    return name


def check_labels(labels: Mapping[str, str]) -> None:
    """Labels are kept in memory by clients: they are bounded, as in containerd."""
    for key, value in labels.items():
        if len(key) + len(value) > _LABEL_LENGTH:
            raise errdefs.InvalidParameter(
                f"label key and value length ({len(key) + len(value)} bytes) greater than "
                f"maximum size ({_LABEL_LENGTH} bytes), key: {key[:64]}")


def check_digest(digest: str) -> str:
    """``sha256:`` or ``sha512:`` with lower-case hex of the exact length, nothing else."""
    if not _DIGEST.match(digest):
        raise errdefs.InvalidParameter(f'invalid digest "{digest[:160]}"')
    return digest


def masked_labels(old: Mapping[str, str], new: Mapping[str, str],
                  paths: Iterable[str]) -> dict[str, str] | None:
    """Labels after an update by field mask; None where the mask names no labels.

    ``labels`` replaces all, ``labels.KEY`` sets one (or removes it when the new
    value is empty or missing).
    """
    result: dict[str, str] | None = None
    for path in paths:
        if path == "labels":
            result = dict(new)
        elif path.startswith("labels."):
            if result is None:
                result = dict(old)
            key = path[len("labels."):]
            value = new.get(key, "")
            if value:
                result[key] = value
            else:
                result.pop(key, None)
    if result is not None:
        check_labels(result)
    return result
