"""From the layers of an image in the content store to a stack of committed snapshots.

A layer may be unpacked while its blob is still being received
(:class:`~carrel.containerd.unpack_stream.Growing`); its snapshot is committed, under
the chain ID, only after the uncompressed data hashed to the diff ID that the image's
configuration names, and the blob to its own digest.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from carrel import errdefs
from carrel.containerd import snapshots as snapshot_store
from carrel.containerd.content import NamespacedContent
from carrel.containerd.snapshots import NamespacedSnapshots
from carrel.containerd.tarstream import TarReader
from carrel.containerd.unpack import Applied, Extractor, open_root
from carrel.containerd.unpack_stream import (
    CHUNK,
    STOP_SECONDS,
    FileReader,
    Growing,
    Prefetcher,
    decompressor,
)
from carrel.oci import digest as digests
from carrel.proto.mount_pb2 import Mount

UNCOMPRESSED_LABEL = "containerd.io/uncompressed"
GC_SNAPSHOT_LABEL = f"containerd.io/gc.ref.snapshot.{snapshot_store.NAME}"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Extracted:
    """A layer as it was found to be."""

    diff_id: str
    applied: Applied
    #: of the uncompressed tar
    size: int


def apply_stream(source: FileReader, root: str, lowers: list[str],
                 known_diff_id: str = "", progress: Progress | None = None,
                 *, whiteouts: bool = True) -> Extracted:
    """Unpack a (compressed) tar below ``root``.  Runs in a thread; blocks.

    ``known_diff_id``: what the stream hashes to, where its blob is that very tar and
    was verified already: then nothing is hashed here.
    """
    stream, kind = decompressor(source)
    hashing = bool(kind) or not known_diff_id
    root_fd = open_root(root)
    prefetch = Prefetcher(stream, hashing=hashing) if hashing else None
    try:
        reader = TarReader(prefetch.next_chunk if prefetch else lambda: stream.read(CHUNK))
        applied = Extractor(root_fd, lowers, whiteouts=whiteouts, progress=progress).apply(reader)
        reader.drain()
        diff_id = prefetch.digest if prefetch else known_diff_id
        size = prefetch.size if prefetch else source.offset
    finally:
        if prefetch is not None:
            prefetch.close()
        os.close(root_fd)
    return Extracted(diff_id, applied, size)


def directories_of(mounts: list[Mount]) -> tuple[str, list[str]]:
    """(directory to write to, lower directories, top first) of a snapshotter's mounts."""
    if len(mounts) != 1:
        raise errdefs.NotImplementedYet(f"applying to {len(mounts)} mounts is not built")
    mount = mounts[0]
    if mount.type == "bind":
        return mount.source, []
    if mount.type != "overlay":
        raise errdefs.NotImplementedYet(f"applying to a mount of type {mount.type} is not built")
    upper, lowers = "", []
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = value
        elif key == "lowerdir":
            lowers = value.split(":")
    if not upper:
        raise errdefs.InvalidParameter("cannot apply a layer to a read-only mount")
    return upper, lowers


@dataclass
class Layer:
    """One layer to unpack; ``growing`` while its blob is on its way."""

    digest: str
    diff_id: str
    open: Callable[[], BinaryIO]
    growing: Growing
    #: the blob was checked against its digest before
    verified: bool = True


class Unpacker:
    """Unpacks stacks of layers into one namespace's snapshots.  Blocking: for threads."""

    def __init__(self, content: NamespacedContent, snapshots: NamespacedSnapshots) -> None:
        self._content = content
        self._snapshots = snapshots
        self._stop = threading.Event()

    def stop(self) -> None:
        """From another thread: give up soon."""
        self._stop.set()

    def stored_layer(self, digest: str, diff_id: str) -> Layer:
        """A layer whose blob is in the content store."""
        size = self._content.info(digest).size
        return Layer(digest, diff_id,
                     lambda: self._content.open(digest),
                     Growing(size, done=True))

    def unpack(self, layers: list[Layer],
               progress: Callable[[Layer, str, int], None] | None = None) -> str:
        """Unpack what is missing; the chain ID of the whole stack.

        ``progress`` is told ("extracting", bytes) and ("extracted", bytes).
        """
        chains = digests.chain_ids([layer.diff_id for layer in layers])
        for number, layer in enumerate(layers):
            parent = chains[number - 1] if number else ""
            with _OnlyOne(self._snapshots.namespace, chains[number], self._stop):
                if not self._present(chains[number]):
                    self._layer(layer, chains[number], parent, progress)
                elif progress is not None:
                    progress(layer, "extracted", 0)
        return chains[-1] if chains else ""

    def _present(self, chain: str) -> bool:
        """Whether a snapshot is there; what is there joins our lease before we rely on it."""
        if not self._snapshots.exists(chain):
            return False
        if self._snapshots.lease:
            from carrel.containerd.leases import add_resource

            with self._content.store.metadata.transaction() as db:
                add_resource(db, self._snapshots.namespace, self._snapshots.lease,
                             f"snapshots/{snapshot_store.NAME}", chain)
        return self._snapshots.exists(chain)

    def _layer(self, layer: Layer, chain: str, parent: str,
               progress: Callable[[Layer, str, int], None] | None) -> None:
        key = f"extract-{time.time_ns() % 10**9}-{secrets.token_hex(2)} {chain}"
        labels = {snapshot_store.LAYER_LABEL: chain}
        mounts = self._snapshots.prepare(key, parent, labels)
        try:
            root, lowers = directories_of(mounts)
            if progress is not None:
                progress(layer, "extracting", 0)
            extracted = self._extract(layer, root, lowers, progress)
            if extracted.diff_id != layer.diff_id:
                raise errdefs.InvalidParameter(
                    f"wrong diff id calculated on extraction: {extracted.diff_id}, "
                    f"expected {layer.diff_id} (layer {layer.digest})")
            layer.growing.wait_finished(self._stop)
            try:
                # synced: a row must never outlive a power cut that its files did not
                self._snapshots.commit(chain, key, labels, measured=(
                    extracted.applied.disk, extracted.applied.entries))
            except errdefs.AlreadyExists:
                self._snapshots.remove(key)
        except BaseException:
            self._discard(key)
            raise
        if progress is not None:
            progress(layer, "extracted", extracted.applied.size)

    def _extract(self, layer: Layer, root: str, lowers: list[str],
                 progress: Callable[[Layer, str, int], None] | None) -> Extracted:
        known = layer.diff_id if layer.verified and layer.digest == layer.diff_id else ""

        def told(size: int) -> None:
            if progress is not None:
                progress(layer, "extracting", size)

        with layer.open() as file:
            source = FileReader(file.fileno(), layer.growing, self._stop)
            return apply_stream(source, root, lowers, known, told)

    def _discard(self, key: str) -> None:
        try:
            self._snapshots.remove(key)
        except errdefs.NotFound:
            pass


_unpacking: dict[tuple[str, str], tuple[threading.Lock, int]] = {}
_guard = threading.Lock()


class _OnlyOne:
    """Two pulls of images with a common layer unpack it once; who waits can be stopped."""

    def __init__(self, namespace: str, chain: str, stop: threading.Event) -> None:
        self._key = (namespace, chain)
        self._stop = stop

    def __enter__(self) -> None:
        with _guard:
            lock, users = _unpacking.get(self._key) or (threading.Lock(), 0)
            _unpacking[self._key] = (lock, users + 1)
        while not lock.acquire(timeout=STOP_SECONDS):
            if self._stop.is_set():
                self._leave()
                raise errdefs.Cancelled("unpacking was given up")

    def __exit__(self, *exc: object) -> None:
        self._leave().release()

    def _leave(self) -> threading.Lock:
        with _guard:
            lock, users = _unpacking[self._key]
            if users == 1:
                del _unpacking[self._key]
            else:
                _unpacking[self._key] = (lock, users - 1)
        return lock
