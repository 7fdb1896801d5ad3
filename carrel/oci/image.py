"""Image manifests, indexes and configurations: strict types over checked JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from carrel.errdefs import InvalidParameter
from carrel.oci import digest as digests

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

MANIFESTS = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
INDEXES = frozenset((OCI_INDEX, DOCKER_LIST))
SCHEMA1 = frozenset((DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED))
CONFIGS = frozenset((OCI_CONFIG, DOCKER_CONFIG))

#: what containerd accepts of one document of metadata
MAX_MANIFEST = 4 * 1024 * 1024
MAX_CONFIG = 8 * 1024 * 1024
MAX_LAYERS = 512


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    media_type: str
    digest: str
    size: int
    urls: list[str] = msgspec.field(default_factory=list)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class RootFS(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str]


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of an image configuration that Carrel acts on."""

    architecture: str
    os: str
    rootfs: RootFS
    created: str | None = None
    author: str = ""
    variant: str = ""
    config: dict[str, Any] | None = None
    history: list[History] | None = None
    os_version: str = msgspec.field(name="os.version", default="")
    docker_version: str = ""
    comment: str = ""

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, self.variant, self.os_version)


#: Go's decoder also takes "Layers" for "layers": two readers must not see two documents
_KEYS = {key.lower(): key for key in (
    "schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform",
    "urls", "annotations", "subject", "fsLayers")}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidParameter("JSON with a repeated key")
    return found


def _one_spelling(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if _KEYS.get(key.lower(), key) != key:
            raise InvalidParameter(f"manifest with the misspelt key {key!r}")
    return _no_duplicates(pairs)


def load_json(data: bytes, limit: int = MAX_MANIFEST, *, manifest: bool = False) -> Any:
    """Strict JSON: UTF-8, bounded, no repeated keys, no NaN."""
    if len(data) > limit:
        raise InvalidParameter(f"document of {len(data)} bytes exceeds the limit of {limit}")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant,
                          object_pairs_hook=_one_spelling if manifest else _no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"invalid JSON: {error}") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_T = TypeVar("_T")


def _convert(document: object, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"invalid {what}: {error}") from None


def check_descriptor(descriptor: Descriptor) -> Descriptor:
    digests.parse(descriptor.digest)
    if descriptor.size < 0:
        raise InvalidParameter(f"invalid size {descriptor.size} of {descriptor.digest}")
    return descriptor


def media_type_of(document: object, declared: str = "") -> str:
    """What a document is; refuses the ambiguous ones (manifest and index at once)."""
    if not isinstance(document, dict):
        raise InvalidParameter("manifest is not a JSON object")
    inside = document.get("mediaType", "")
    if document.get("schemaVersion") == 1 or declared in SCHEMA1:
        raise InvalidParameter(
            "Docker Image manifest version 2, schema 1 support has been removed: "
            "this image must be pushed again with a current client")
    has_index, has_layers = "manifests" in document, "layers" in document or "config" in document
    if has_index and has_layers:
        raise InvalidParameter("ambiguous document: both an index and a manifest")
    kind = inside or declared
    if declared and inside and declared != inside and declared in MANIFESTS | INDEXES:
        raise InvalidParameter(f"mediaType in manifest ({inside}) is not that of its "
                               f"descriptor ({declared})")
    if kind not in MANIFESTS | INDEXES:
        kind = OCI_INDEX if has_index else OCI_MANIFEST if has_layers else kind
    if (kind in INDEXES and has_layers) or (kind in MANIFESTS and has_index):
        raise InvalidParameter(f"document is not what its mediaType {kind} says")
    if kind not in MANIFESTS | INDEXES:
        raise InvalidParameter(f"unsupported manifest media type {kind!r}")
    return kind


def parse_manifest(data: bytes, declared: str = "") -> Manifest:
    document = load_json(data, manifest=True)
    if media_type_of(document, declared) not in MANIFESTS:
        raise InvalidParameter("expected an image manifest, found an index")
    manifest = _convert(document, Manifest, "manifest")
    if manifest.schema_version != 2:
        raise InvalidParameter(f"unsupported schema version {manifest.schema_version}")
    if len(manifest.layers) > MAX_LAYERS:
        raise InvalidParameter(f"manifest has more than {MAX_LAYERS} layers")
    for descriptor in (manifest.config, *manifest.layers):
        check_descriptor(descriptor)
    return manifest


def parse_index(data: bytes, declared: str = "") -> Index:
    document = load_json(data, manifest=True)
    if media_type_of(document, declared) not in INDEXES:
        raise InvalidParameter("expected an image index, found a manifest")
    index = _convert(document, Index, "index")
    for descriptor in index.manifests:
        check_descriptor(descriptor)
    return index


def parse_config(data: bytes) -> ImageConfig:
    document = load_json(data, MAX_CONFIG)
    config = _convert(document, ImageConfig, "image configuration")
    for diff_id in config.rootfs.diff_ids:
        digests.parse(diff_id)
    return config


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le",
             "s390x": "s390x", "riscv64": "riscv64", "i386": "386", "i686": "386"}
#: what may stand alone for a platform, beside the spellings below; as Go names them
_KNOWN = frozenset(("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le",
                    "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm"))
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm",
                  "armel": "arm", "i386": "386"}


def host_platform(machine: str) -> Platform:
    """Of ``os.uname().machine``."""
    architecture = _MACHINES.get(machine, machine)
    return Platform(architecture, "linux", "v8" if architecture == "arm64" else
                    "v7" if machine == "armv7l" else "")


_PLATFORM_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def parse_platform(text: str, default: Platform) -> Platform:
    """``linux/arm64/v8``, ``arm64`` or ``linux``."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_PLATFORM_PART.fullmatch(part) for part in parts):
        raise InvalidParameter(f'"{text}" is an invalid platform specifier')
    if len(parts) == 1:
        if parts[0].lower() in ("linux", "windows", "darwin", "freebsd"):
            return Platform(default.architecture, parts[0].lower(), default.variant)
        alone = normalise(Platform(parts[0].lower(), default.os))
        if alone.architecture not in _KNOWN:
            raise InvalidParameter(f'"{text}": unknown operating system or architecture')
        return alone
    return normalise(Platform(parts[1].lower(), parts[0].lower(),
                              parts[2].lower() if len(parts) == 3 else ""))


def normalise(platform: Platform) -> Platform:
    """One spelling for each platform: arm64 is arm64/v8, amd64/v1 is amd64."""
    architecture = _ARCHITECTURES.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if architecture == "arm64" and variant in ("", "8", "v8"):
        variant = "v8"
    elif architecture == "arm" and variant in ("", "7", "v7"):
        variant = "v7"
    elif architecture == "amd64" and variant == "v1":
        variant = ""
    elif architecture == "arm" and variant.isdigit():
        variant = "v" + variant
    return Platform(architecture, platform.os, variant, platform.os_version,
                    platform.os_features)


def rank(candidate: Platform, wanted: Platform) -> int:
    """How well ``candidate`` runs where ``wanted`` is asked for: 0 not at all, more is better."""
    have, want = normalise(candidate), normalise(wanted)
    if (have.os, have.architecture) != (want.os, want.architecture):
        return 0
    if have.variant == want.variant:
        return 100
    if want.architecture in ("arm", "arm64") and have.variant < want.variant:
        return 50 + int(have.variant[1:2] or 0)   # an older variant runs, a newer one does not
    return 10 if want.architecture == "amd64" and not have.variant else 0


def select(manifests: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """The best manifest of an index for a platform; attestations are never chosen."""
    best: tuple[int, Descriptor] | None = None
    for descriptor in manifests:
        if descriptor.annotations.get("vnd.docker.reference.type"):
            continue
        score = 1 if descriptor.platform is None else rank(descriptor.platform, wanted)
        if score and (best is None or score > best[0]):
            best = (score, descriptor)
    return best[1] if best else None
