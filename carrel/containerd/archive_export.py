"""Write images as an archive: an OCI layout that also has Docker's manifest.json.

    blobs/sha256/...  index.json  manifest.json  oci-layout  repositories
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from carrel import errdefs
from carrel.containerd import image_tree
from carrel.containerd.archive_import import IMAGE_NAME, REF_NAME
from carrel.containerd.content import NamespacedContent
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.image import Descriptor, Platform

_BLOCK = 512
_SEND = 8 << 20


@dataclass(frozen=True)
class Exported:
    """One image to write; ``names`` canonical, maybe none."""

    target: Descriptor
    names: tuple[str, ...] = ()


@dataclass
class Options:
    platform: Platform
    all_platforms: bool = False
    #: leave manifest.json out
    oci_only: bool = False


def header(name: str, size: int, *, mode: int = 0o644, mtime: int = 0, kind: bytes = b"0") -> bytes:
    """A ustar header; sizes beyond 8 GiB are written base-256, which every reader knows."""
    raw = name.encode()
    if len(raw) > 100:
        raise errdefs.SystemFailure(f"archive member name too long: {name}")
    octal = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    block = bytearray(raw.ljust(100, b"\0") + b"%07o\0" % mode + b"%07o\0" % 0 + b"%07o\0" % 0
                      + octal + b"%011o\0" % mtime + b" " * 8 + kind + bytes(100)
                      + b"ustar\x0000" + bytes(64) + b"%07o\0" % 0 + b"%07o\0" % 0
                      + bytes(167))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


class ArchiveExporter:
    """Writes into a blocking socket, in a thread."""

    def __init__(self, content: NamespacedContent, sink: socket.socket, options: Options) -> None:
        self._content = content
        self._sink = sink
        self._options = options
        self._written: set[str] = set()

    def write(self, images: list[Exported]) -> None:
        manifests: list[dict[str, Any]] = []
        docker: dict[str, dict[str, Any]] = {}
        self._directory("blobs/")
        self._directory("blobs/sha256/")
        for image in images:
            target = image.target
            if not self._options.all_platforms and target.media_type in oci.INDEXES:
                self._complete(target)
            self._tree(target)
            self._docker_entry(docker, image)
            manifests += self._index_entries(image)
        self._file("index.json", oci.encode({
            "schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests}))
        if not self._options.oci_only:
            self._file("manifest.json", oci.encode(list(docker.values())))
        self._file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if not self._options.oci_only:
            self._file("repositories", oci.encode(_repositories(docker)))
        self._sink.sendall(bytes(2 * _BLOCK))

    def _complete(self, target: Descriptor) -> None:
        """The wanted platform must be whole; others are written as far as they are here."""
        selected = image_tree.select(self._content, target, self._options.platform)
        for layer in selected.manifest.layers:
            self._content.info(layer.digest)

    def _tree(self, target: Descriptor) -> None:
        for descriptor, _ in image_tree.walk(self._content, target):
            if descriptor.digest not in self._written and self._content.exists(
                    descriptor.digest):
                self._blob(descriptor.digest)

    def _index_entries(self, image: Exported) -> list[dict[str, Any]]:
        base = {"mediaType": image.target.media_type, "digest": image.target.digest,
                "size": image.target.size}
        if not image.names:
            return [base]
        entries = []
        for name in image.names:
            reference = references.parse(name)
            annotations = {IMAGE_NAME: name}
            if reference.tag:
                annotations[REF_NAME] = reference.tag
            entries.append({**base, "annotations": annotations})
        return entries

    def _docker_entry(self, docker: dict[str, dict[str, Any]], image: Exported) -> None:
        try:
            selected = image_tree.select(self._content, image.target, self._options.platform)
        except errdefs.NotFound:
            return      # nothing that this machine's Docker could load
        config = selected.manifest.config.digest
        item = docker.setdefault(config, {
            "Config": _path(config), "RepoTags": None,
            "Layers": [_path(layer.digest) for layer in selected.manifest.layers]})
        for name in image.names:
            reference = references.parse(name)
            if reference.tag and not reference.digest:
                item["RepoTags"] = [*(item["RepoTags"] or []), reference.familiar]

    # --- members ---

    def _directory(self, name: str) -> None:
        self._sink.sendall(header(name, 0, mode=0o755, kind=b"5"))

    def _file(self, name: str, data: bytes) -> None:
        self._sink.sendall(header(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def _blob(self, digest: str) -> None:
        self._written.add(digest)
        with self._content.open(digest) as file:
            size = os.fstat(file.fileno()).st_size
            self._sink.sendall(header(_path(digest), size, mode=0o444))
            sent = 0
            while sent < size:
                count = os.sendfile(self._sink.fileno(), file.fileno(), sent,
                                    min(_SEND, size - sent))
                if not count:
                    raise errdefs.SystemFailure(f"content {digest} became shorter")
                sent += count
        self._sink.sendall(bytes(-size % _BLOCK))


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _repositories(docker: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The index of the oldest readers: name -> tag -> top layer."""
    found: dict[str, dict[str, str]] = {}
    for item in docker.values():
        layers = item["Layers"]
        for name in item["RepoTags"] or []:
            repository, _, tag = name.rpartition(":")
            if layers:
                found.setdefault(repository, {})[tag] = layers[-1].rpartition("/")[2]
    return found
