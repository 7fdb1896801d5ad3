"""Content digests: strictly formed, from a short list of algorithms."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from carrel.errdefs import InvalidParameter

#: algorithm -> hexadecimal digits; anything else is refused, never passed to hashlib.new
ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}
_SHAPE = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]+", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


class InvalidDigest(InvalidParameter):
    pass


def parse(text: str) -> tuple[str, str]:
    """``(algorithm, hex)`` of a digest, or :class:`InvalidDigest`."""
    if not isinstance(text, str) or not _SHAPE.fullmatch(text):
        raise InvalidDigest("invalid checksum digest format")
    algorithm, _, value = text.partition(":")
    length = ALGORITHMS.get(algorithm)
    if length is None:
        raise InvalidDigest("unsupported digest algorithm")
    if len(value) != length:
        raise InvalidDigest("invalid checksum digest length")
    if not _HEX.fullmatch(value):
        raise InvalidDigest("invalid checksum digest format")
    return algorithm, value


def is_digest(text: str) -> bool:
    try:
        parse(text)
    except InvalidDigest:
        return False
    return True


def hasher(digest: str) -> Any:
    """A new hash object of the digest's algorithm."""
    return getattr(hashlib, parse(digest)[0])()


def of(data: bytes | bytearray | memoryview) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def of_hash(algorithm: str, state: Any) -> str:
    return f"{algorithm}:{state.hexdigest()}"


def verify(digest: str, data: bytes) -> None:
    """Raise unless ``data`` hashes to ``digest``."""
    state = hasher(digest)
    state.update(data)
    if state.hexdigest() != digest.partition(":")[2]:
        raise InvalidParameter(
            f"content does not match its digest: expected {digest}, "
            f"got {of_hash(digest.partition(':')[0], state)}")


def chain_id(diff_ids: list[str]) -> str:
    """The name of a stack of layers; a snapshot is committed under it."""
    chain = ""
    for diff_id in diff_ids:
        chain = diff_id if not chain else of(f"{chain} {diff_id}".encode())
    return chain


def chain_ids(diff_ids: list[str]) -> list[str]:
    """The chain ID after each layer, lowest first."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(diff_id if not chains else of(f"{chains[-1]} {diff_id}".encode()))
    return chains
