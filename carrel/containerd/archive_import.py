"""Read an image archive into the content store: `docker save`, OCI layout, skopeo, podman.

The archive is a stream and its index may come last, so every member that can be a blob
goes into the store as it comes; what no image refers to in the end is collected.
"""

from __future__ import annotations

import io
import posixpath
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from carrel import errdefs
from carrel.containerd import image_tree, tarstream
from carrel.containerd.content import NamespacedContent
from carrel.containerd.tarstream import BadArchive, Entry, TarReader
from carrel.containerd.tree import clean
from carrel.containerd.unpack_stream import CHUNK, MAGIC, Prefetcher, compression, decompressor
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.image import Descriptor

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
#: of the refs under which blobs are written; they are never gone on with
IMPORT_PREFIX = "import-"
_DOCUMENTS = frozenset(("manifest.json", "index.json", "oci-layout", "repositories"))
#: of the layout before 1.10; their content is in the configuration too
_LEGACY = ("/json", "/VERSION")
_MAX_DOCUMENT = 16 << 20
_MAX_MEMBERS = 100_000


def store_blob(content: NamespacedContent, pieces: Iterable[bytes | memoryview],
               expected: str = "", size: int = 0) -> tuple[str, int]:
    """Write a blob; (digest, size).  One that exists is fine, a wrong digest is not."""
    try:
        writer = content.writer(f"{IMPORT_PREFIX}{secrets.token_hex(16)}", expected, size)
    except errdefs.AlreadyExists:
        return expected, size
    try:
        # a new ref that has all bytes shares the file of another namespace, or one that the
        # collector has not removed yet
        if not size or writer.offset != size:
            for piece in pieces:
                writer.write(piece)
        digest, size = writer.digest, writer.offset
        if expected and digest != expected:
            raise errdefs.InvalidParameter(
                f"content does not match its digest: expected {expected}, got {digest}")
        try:
            writer.commit(size, expected)
        except errdefs.AlreadyExists:
            pass
        return digest, size
    except BaseException:
        writer.abort()
        raise
    finally:
        writer.close()


class ArchiveImporter:
    """One archive; :meth:`read` gives the images in it, named by their annotations."""

    def __init__(self, content: NamespacedContent,
                 progress: Callable[[int], None] | None = None) -> None:
        self._content = content
        self._progress = progress
        self._documents: dict[str, bytes] = {}
        self._blobs: dict[str, tuple[str, int, bytes]] = {}   # path -> digest, size, head
        self._aliases: dict[str, str] = {}
        self._received = 0

    def read(self, source: io.RawIOBase) -> list[Descriptor]:
        """Blocking; for a thread.  The archive itself may be compressed."""
        stream, kind = decompressor(source)
        prefetch = Prefetcher(stream, hashing=False) if kind else None
        try:
            reader = TarReader(prefetch.next_chunk if prefetch else lambda: stream.read(CHUNK))
            for entry in reader:
                self._member(reader, entry)
            reader.drain()
        finally:
            if prefetch is not None:
                prefetch.close()
        found = self._images()
        for descriptor in found:
            image_tree.label_tree(self._content, descriptor)
        return found

    # --- members ---

    def _member(self, reader: TarReader, entry: Entry) -> None:
        try:
            path = clean(entry.name).decode("utf-8")
        except UnicodeDecodeError:
            raise BadArchive(f"member with the name {entry.name[:64]!r}") from None
        if len(self._blobs) + len(self._aliases) > _MAX_MEMBERS:
            raise BadArchive(f"image archive with more than {_MAX_MEMBERS} members")
        if entry.kind in (tarstream.SYMLINK, tarstream.LINK):
            link = entry.link.decode("utf-8", "replace")
            base = posixpath.dirname(path) if entry.kind == tarstream.SYMLINK else ""
            self._aliases[path] = posixpath.normpath(posixpath.join(base, link))
        elif entry.kind == tarstream.REGULAR:
            if path in _DOCUMENTS:
                self._documents[path] = reader.read(_MAX_DOCUMENT)
            elif not path.endswith(_LEGACY):
                self._blob(reader, entry, path)

    def _blob(self, reader: TarReader, entry: Entry, path: str) -> None:
        expected = ""
        if path.startswith("blobs/"):
            expected = path[len("blobs/"):].replace("/", ":", 1)
            digests.parse(expected)
        head = b""

        def pieces() -> Iterable[memoryview]:
            nonlocal head
            for piece in reader.chunks():
                head = head or bytes(piece[:8])
                self._received += len(piece)
                if self._progress is not None:
                    self._progress(self._received)
                yield piece

        digest, _ = store_blob(self._content, pieces(), expected, entry.size)
        if not head and entry.size:
            with self._content.open(digest) as file:
                head = file.read(8)
        self._blobs[path] = (digest, entry.size, head)

    def _find(self, path: str) -> tuple[str, int, bytes]:
        path = posixpath.normpath(path)
        for _ in range(8):
            if path in self._blobs:
                return self._blobs[path]
            if path not in self._aliases:
                break
            path = self._aliases[path]
        raise BadArchive(f"the archive's manifest names {path!r}, which is not in it")

    # --- images ---

    def _images(self) -> list[Descriptor]:
        legacy = self._from_docker() if "manifest.json" in self._documents else []
        if "index.json" not in self._documents:
            if "manifest.json" not in self._documents:
                raise errdefs.InvalidParameter(
                    "unrecognized image format: neither index.json nor manifest.json is in "
                    "the archive")
            return self._store_docker(legacy)
        index = oci.parse_index(self._documents["index.json"], oci.OCI_INDEX)
        found = [self._named(d) for d in index.manifests if self._content.exists(d.digest)]
        if index.manifests and not found:
            raise BadArchive("none of the images of index.json is in the archive")
        return self._with_tags(found, legacy)

    def _named(self, descriptor: Descriptor) -> Descriptor:
        data = self._content.read(descriptor.digest, oci.MAX_MANIFEST)
        if len(data) != descriptor.size:
            raise BadArchive(f"index.json gives {descriptor.digest} the wrong size")
        kind = oci.media_type_of(oci.load_json(data, manifest=True), descriptor.media_type)
        name = descriptor.annotations.get(IMAGE_NAME) or descriptor.annotations.get(REF_NAME, "")
        full = ""
        # a bare "latest" is a tag within the layout, not a name
        if ":" in name or "/" in name:
            full = str(references.parse(name).tagged())
        return _descriptor(kind, data, full)

    def _with_tags(self, found: list[Descriptor], legacy: list[tuple[dict[str, Any], list[str]]],
                   ) -> list[Descriptor]:
        """manifest.json names images that index.json leaves without a name."""
        if not legacy or any(d.annotations.get(IMAGE_NAME) for d in found):
            return found
        tags = {"sha256:" + str(item["Config"]).removesuffix(".json")[-64:]: names
                for item, names in legacy}
        result = []
        for descriptor in found:
            names = []
            if descriptor.media_type in oci.MANIFESTS:
                data = self._content.read(descriptor.digest)
                names = tags.get(oci.parse_manifest(data).config.digest, [])
            result += [image_tree.annotated(descriptor, {IMAGE_NAME: name})
                       for name in names] or [descriptor]
        return result

    def _from_docker(self) -> list[tuple[dict[str, Any], list[str]]]:
        items = oci.load_json(self._documents["manifest.json"], _MAX_DOCUMENT)
        if not isinstance(items, list):
            raise BadArchive("manifest.json is not a list")
        result = []
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
                raise BadArchive("manifest.json has an entry without Config")
            layers, tags = item.get("Layers") or [], item.get("RepoTags") or []
            if not all(isinstance(x, str) for x in (*layers, *tags)):
                raise BadArchive("manifest.json has an entry with odd Layers or RepoTags")
            result.append((item, [str(references.parse(tag).tagged()) for tag in tags]))
        return result

    def _store_docker(self, items: list[tuple[dict[str, Any], list[str]]]) -> list[Descriptor]:
        found = []
        for item, names in items:
            config_digest, config_size, _ = self._find(item["Config"])
            oci.parse_config(self._content.read(config_digest, oci.MAX_CONFIG))
            layers = []
            for path in item.get("Layers") or []:
                digest, size, head = self._find(path)
                layers.append(Descriptor(_layer_type(head), digest, size))
            data = oci.encode({
                "schemaVersion": 2, "mediaType": oci.DOCKER_MANIFEST,
                "config": Descriptor(oci.DOCKER_CONFIG, config_digest, config_size),
                "layers": layers})
            store_blob(self._content, [data], digests.of(data), len(data))
            found += [_descriptor(oci.DOCKER_MANIFEST, data, name) for name in names or [""]]
        return found


def _descriptor(kind: str, data: bytes, name: str) -> Descriptor:
    return Descriptor(kind, digests.of(data), len(data),
                      annotations={IMAGE_NAME: name} if name else {})


def _layer_type(head: bytes) -> str:
    kind = compression(head)
    if kind == "gzip":
        return oci.DOCKER_LAYER_GZIP
    if kind == "zstd":
        return oci.OCI_LAYER_ZSTD
    if kind in MAGIC.values():
        raise BadArchive(f"layer compressed with {kind}")
    return oci.DOCKER_LAYER
