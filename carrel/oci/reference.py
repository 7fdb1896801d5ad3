"""Image references: ``[domain/]path[:tag][@digest]``, normalised as Docker does.

``alpine`` means ``docker.io/library/alpine:latest``; the familiar form goes back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from carrel.errdefs import InvalidParameter
from carrel.oci import digest as digests

DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
#: of the path alone, without the domain
MAX_NAME = 255

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?)"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH}(?:/{_PATH})*)"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"{_NAME}(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII)
_TAG_ONLY = re.compile(_TAG, re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)
#: longer text cannot be a reference (domain 255, path 255, tag 128, digest 160);
#: refused before the regular expression sees it
_MAX_TEXT = 1024


class InvalidReference(InvalidParameter):
    def __init__(self, reason: str = "") -> None:
        super().__init__("invalid reference format" + (f": {reason}" if reason else ""))


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference; ``str()`` is its canonical text."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """``docker.io/library/alpine``"""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """``alpine``"""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        head, _, rest = self.path.partition("/")
        return rest if head + "/" == OFFICIAL_PREFIX and "/" not in rest else self.path

    @property
    def suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """``alpine:3``, as a person writes and reads it."""
        return self.familiar_name + self.suffix

    @property
    def is_name_only(self) -> bool:
        return not self.tag and not self.digest

    def __str__(self) -> str:
        return self.name + self.suffix

    def with_tag(self, tag: str) -> Reference:
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidReference("invalid tag format")
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        digests.parse(digest)
        return Reference(self.domain, self.path, "", digest)

    def tagged(self) -> Reference:
        """With ``:latest`` where neither tag nor digest was given."""
        return self.with_tag(DEFAULT_TAG) if self.is_name_only else self


def _split_domain(text: str) -> tuple[str, str]:
    head, slash, rest = text.partition("/")
    looks_like_host = "." in head or ":" in head or head == "localhost" or head.lower() != head
    if not slash or not looks_like_host:
        domain, rest = DEFAULT_DOMAIN, text
    else:
        domain = DEFAULT_DOMAIN if head == LEGACY_DOMAIN else head
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = OFFICIAL_PREFIX + rest
    return domain, rest


def parse(text: str) -> Reference:
    """Normalise what a person typed; raises :class:`InvalidReference`."""
    if len(text) > _MAX_TEXT:
        raise InvalidReference()
    if _IDENTIFIER.fullmatch(text):
        raise InvalidReference(f"invalid repository name ({text}), cannot specify "
                               "64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    remote = rest.partition(":")[0].partition("@")[0]
    if remote.lower() != remote:
        raise InvalidReference(f"repository name ({remote}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{rest}")
    # with a domain in front, the expression may still take it for a path component
    if match is None or match["domain"] != domain:
        raise InvalidReference()
    path, digest = match["path"], match["digest"] or ""
    if len(path) > MAX_NAME:
        raise InvalidReference(f"repository name must not be more than {MAX_NAME} characters")
    if digest:
        try:
            digests.parse(digest)
        except digests.InvalidDigest as error:
            raise InvalidReference(error.message) from None
    return Reference(domain, path, match["tag"] or "", digest)


def parse_canonical(text: str) -> Reference:
    """A stored name: it must already be in its canonical form."""
    reference = parse(text)
    if str(reference) != text:
        raise InvalidReference(f"{text} is not a canonical name")
    return reference


def is_identifier(text: str) -> bool:
    """64 hexadecimal digits: an image ID without its algorithm."""
    return _IDENTIFIER.fullmatch(text) is not None
