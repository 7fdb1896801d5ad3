"""What hangs below an image's target in the content store: manifests, configuration, layers.

The garbage collector follows labels, not JSON: :func:`label_tree` writes on every blob
the labels that containerd writes, so that either can collect the other's store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from carrel import errdefs
from carrel.containerd import images
from carrel.containerd.content import NamespacedContent
from carrel.oci import image as oci
from carrel.oci.image import Descriptor, Platform

GC_CONTENT = "containerd.io/gc.ref.content."
SOURCE_LABEL = "containerd.io/distribution.source."
#: indexes may hold indexes; nobody needs more than this
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Selected:
    """The one image of a target that a platform runs."""

    descriptor: Descriptor
    manifest: oci.Manifest
    config: oci.ImageConfig


def from_record(target: images.Descriptor) -> Descriptor:
    return Descriptor(target.media_type, target.digest, target.size,
                      annotations=dict(target.annotations))


def to_record(descriptor: Descriptor) -> images.Descriptor:
    return images.Descriptor(descriptor.media_type, descriptor.digest, descriptor.size,
                             dict(descriptor.annotations))


def children(data: bytes, media_type: str) -> list[tuple[str, Descriptor]]:
    """``(label suffix, descriptor)`` of what a document names, as containerd labels them."""
    if media_type in oci.INDEXES:
        index = oci.parse_index(data, media_type)
        return [(f"m.{n}", child) for n, child in enumerate(index.manifests)]
    if media_type in oci.MANIFESTS:
        manifest = oci.parse_manifest(data, media_type)
        return [("config", manifest.config),
                *((f"l.{n}", layer) for n, layer in enumerate(manifest.layers))]
    return []


def walk(content: NamespacedContent, descriptor: Descriptor, *, missing_ok: bool = True,
         _depth: int = 0) -> Iterator[tuple[Descriptor, list[tuple[str, Descriptor]]]]:
    """Every document and blob below a target, parents first, each blob once per parent."""
    if _depth > _MAX_DEPTH:
        raise errdefs.InvalidParameter("image index is nested too deeply")
    below: list[tuple[str, Descriptor]] = []
    if descriptor.media_type in oci.INDEXES | oci.MANIFESTS:
        try:
            below = children(content.read(descriptor.digest, oci.MAX_MANIFEST),
                             descriptor.media_type)
        except errdefs.NotFound:
            if not missing_ok:
                raise
            return
    yield descriptor, below
    for _, child in below:
        yield from walk(content, child, missing_ok=missing_ok, _depth=_depth + 1)


def label_tree(content: NamespacedContent, target: Descriptor) -> None:
    """Write the collector's labels on every document that is here."""
    for descriptor, below in walk(content, target):
        if below:
            content.update_labels(descriptor.digest,
                                  {GC_CONTENT + key: child.digest for key, child in below})


def select(content: NamespacedContent, target: Descriptor, platform: Platform) -> Selected:
    """The image for ``platform`` below a target; NotFound with the platform's name."""
    manifest_descriptor = _select_manifest(content, target, platform, 0)
    manifest = oci.parse_manifest(
        content.read(manifest_descriptor.digest, oci.MAX_MANIFEST),
        manifest_descriptor.media_type)
    config = oci.parse_config(content.read(manifest.config.digest, oci.MAX_CONFIG))
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise errdefs.InvalidParameter(
            f"image has {len(manifest.layers)} layers but {len(config.rootfs.diff_ids)} diff IDs")
    return Selected(manifest_descriptor, manifest, config)


def _select_manifest(content: NamespacedContent, target: Descriptor, platform: Platform,
                     depth: int) -> Descriptor:
    if target.media_type in oci.MANIFESTS:
        return target
    if target.media_type not in oci.INDEXES or depth > _MAX_DEPTH:
        raise errdefs.InvalidParameter(f"unsupported image media type {target.media_type!r}")
    index = oci.parse_index(content.read(target.digest, oci.MAX_MANIFEST), target.media_type)
    # an archive may hold some of an index's images only
    here = [d for d in index.manifests if content.exists(d.digest)] or index.manifests
    chosen = oci.select(here, platform)
    if chosen is None:
        raise errdefs.NotFound(f"no matching manifest for {platform} in the manifest list entries")
    return _select_manifest(content, chosen, platform, depth + 1)


def annotated(descriptor: Descriptor, annotations: dict[str, str]) -> Descriptor:
    return msgspec.structs.replace(
        descriptor, annotations={**descriptor.annotations, **annotations})


def total_size(content: NamespacedContent, target: Descriptor) -> int:
    """Bytes in the content store of everything below a target, each blob once."""
    seen = {d.digest: d.size for d, _ in walk(content, target) if content.exists(d.digest)}
    return sum(seen.values())
