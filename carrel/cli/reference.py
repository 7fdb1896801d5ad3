"""Names of images: ``[registry/]path[:tag][@digest]`` by the distribution's grammar."""

from __future__ import annotations

from .errors import CliError

DEFAULT_DOMAIN = "docker.io"
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_HEX = frozenset("0123456789abcdef")


class Reference:
    """A parsed name; ``domain`` and ``path`` are always complete."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    def familiar_name(self) -> str:
        """As people write it: no docker.io, no library/."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix("library/")
        return rest if "/" not in rest else self.path

    def familiar(self) -> str:
        return self.familiar_name() + (f":{self.tag}" if self.tag else "") \
            + (f"@{self.digest}" if self.digest else "")

    def tagged(self) -> Reference:
        """With the tag "latest" unless there is a tag or a digest."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, "latest", "")


def parse(text: str) -> Reference:
    """CliError "invalid reference format" for what is no name."""
    problem = CliError("invalid reference format")
    if len(text) == 64 and not set(text) - _HEX:
        raise CliError(f"invalid repository name ({text}), cannot specify 64-byte "
                       "hexadecimal strings")
    rest, at, digest = text.partition("@")
    if at and not _is_digest(digest):
        raise problem
    head, slash, tail = rest.rpartition("/")
    last, colon, tag = tail.partition(":")
    name = head + slash + last
    domain, slash, path = name.partition("/")
    if not slash or (not set(domain) & set(".:") and domain != "localhost"
                     and domain.lower() == domain):
        domain, path = DEFAULT_DOMAIN, name
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = "library/" + path
    if path.lower() != path:
        raise CliError("invalid reference format: repository name "
                       f"({path}) must be lowercase")
    if colon and not _is_tag(tag):
        raise problem
    if not path or not all(_is_component(c) for c in path.split("/")) or not _is_domain(domain):
        raise problem
    if len(domain) + 1 + len(path) > 255:
        raise CliError("invalid reference format: repository name must not be more than 255 "
                       "characters")
    return Reference(domain, path, tag, digest)


def _is_tag(tag: str) -> bool:
    return 0 < len(tag) <= 128 and tag[0] not in ".-" and not set(tag) - _TAG


def _is_digest(digest: str) -> bool:
    algorithm, colon, value = digest.partition(":")
    return bool(colon) and algorithm.isascii() and algorithm.isalnum() and len(value) >= 32 \
        and not set(value) - _HEX and (algorithm != "sha256" or len(value) == 64)


def _is_component(text: str) -> bool:
    """Letters and digits, between them ".", "_", "__" or dashes."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    separator = ""
    for char in text:
        if char in _LOWER:
            if separator and separator not in (".", "_", "__") and separator.strip("-"):
                return False
            separator = ""
        elif char in "._-":
            separator += char
        else:
            return False
    return True


def _is_domain(text: str) -> bool:
    host, colon, port = text.partition(":") if not text.startswith("[") else (text, "", "")
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return bool(host) and not set(host.lower()) - (_HEX | {":"}) and (
            not rest or (rest[0] == ":" and rest[1:].isdigit()))
    if colon and not port.isdigit():
        return False
    return all(p and p[0] != "-" and p[-1] != "-" and p.isascii()
               and p.replace("-", "").isalnum() for p in host.split("."))


def looks_like_id(text: str) -> bool:
    """Whether the engine will take this as an image's ID."""
    text = text.removeprefix("sha256:")
    return len(text) == 64 and not set(text) - _HEX
