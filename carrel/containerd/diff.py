"""The Diff service: apply a layer to mounts, and make a layer from mounts."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import hashlib
import secrets
from typing import Any

from carrel import errdefs
from carrel.containerd.content import ContentStore, ContentWriter
from carrel.containerd.diff_walk import LayerWalk
from carrel.containerd.transfer_work import in_thread
from carrel.containerd.unpack_layers import (
    UNCOMPRESSED_LABEL,
    apply_stream,
    directories_of,
)
from carrel.containerd.unpack_stream import FileReader, Growing
from carrel.oci import image as oci
from carrel.proto import descriptor_pb2, diff_pb2, mount_pb2
from carrel.proto.rpc import Context

_GATHER = 1 << 20
#: igzip's fastest that still looks for matches over the whole window
_LEVEL = 1


class DiffService:
    """``containerd.services.diff.v1.Diff``"""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def Apply(self, request: diff_pb2.ApplyRequest, context: Context,
                    ) -> diff_pb2.ApplyResponse:
        content = self._content.of(context.namespace, context.lease)
        root, lowers = directories_of(list(request.mounts))

        def work() -> tuple[str, int]:
            size = content.info(request.diff.digest).size
            with content.open(request.diff.digest) as file:
                source = FileReader(file.fileno(), Growing(size, done=True))
                extracted = apply_stream(source, root, lowers)
            return extracted.diff_id, extracted.size

        digest, size = await in_thread(work)
        return diff_pb2.ApplyResponse(applied=descriptor_pb2.Descriptor(
            media_type=oci.OCI_LAYER, digest=digest, size=size))

    async def Diff(self, request: diff_pb2.DiffRequest, context: Context,
                   ) -> diff_pb2.DiffResponse:
        content = self._content.of(context.namespace, context.lease)
        media_type = request.media_type or oci.OCI_LAYER_GZIP
        if media_type not in (oci.OCI_LAYER, oci.OCI_LAYER_GZIP, oci.DOCKER_LAYER,
                              oci.DOCKER_LAYER_GZIP):
            raise errdefs.NotImplementedYet(f"diff of the media type {media_type} is not built")
        root, whiteouts = changed_directory(list(request.left), list(request.right))
        ref = request.ref or f"diff-{secrets.token_hex(16)}"

        def work() -> tuple[str, int, str]:
            writer = content.writer(ref)
            try:
                writer.truncate(0)
                layer = _Layer(writer, compress=media_type.endswith("gzip"))
                LayerWalk(layer.write, whiteouts=whiteouts).run(root)
                diff_id = layer.finish()
                digest, size = writer.digest, writer.offset
                labels = {**request.labels, UNCOMPRESSED_LABEL: diff_id}
                try:
                    writer.commit(size, "", labels)
                except errdefs.AlreadyExists:
                    content.update_labels(digest, labels)
                return digest, size, diff_id
            except BaseException:
                writer.abort()
                raise
            finally:
                writer.close()

        digest, size, diff_id = await in_thread(work)
        return diff_pb2.DiffResponse(diff=descriptor_pb2.Descriptor(
            media_type=media_type, digest=digest, size=size,
            annotations={UNCOMPRESSED_LABEL: diff_id}))


class _Layer:
    """Gathers, hashes and compresses what the walk writes."""

    def __init__(self, writer: ContentWriter, *, compress: bool) -> None:
        self._writer = writer
        self._hash = hashlib.sha256()
        self._gathered = bytearray()
        self._compressor: Any = None
        if compress:
            from isal import isal_zlib

            self._compressor = isal_zlib.compressobj(_LEVEL, wbits=31)

    def write(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= _GATHER:
            self._flush()

    def _flush(self) -> None:
        data, self._gathered = bytes(self._gathered), bytearray()
        self._hash.update(data)
        if self._compressor is not None:
            data = self._compressor.compress(data)
        if data:
            self._writer.write(data)

    def finish(self) -> str:
        """The diff ID."""
        self._flush()
        if self._compressor is not None:
            self._writer.write(self._compressor.flush())
        return "sha256:" + self._hash.hexdigest()


def changed_directory(left: list[mount_pb2.Mount], right: list[mount_pb2.Mount],
                      ) -> tuple[str, bool]:
    """(directory that holds the change from ``left`` to ``right``, whether it has whiteouts)."""
    if len(right) != 1 or len(left) > 1:
        raise errdefs.NotImplementedYet("diff of more than one mount is not built")
    if right[0].type == "bind" and not left:
        return right[0].source, False
    if right[0].type == "overlay":
        upper, lowers = directories_of(right)
        if left and _layers_of(left[0]) == lowers:
            return upper, True
    raise errdefs.NotImplementedYet(
        "diff is built only between a writable snapshot and its parent")


def _layers_of(mount: mount_pb2.Mount) -> list[str]:
    if mount.type == "bind":
        return [mount.source]
    for option in mount.options:
        if option.startswith("lowerdir="):
            return option[len("lowerdir="):].split(":")
    return []

