"""``containerd.services.content.v1.Content`` over the content store."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.containerd.content import ContentStore, ContentWriter, Info, NamespacedContent, Status
from carrel.proto import content_pb2
from carrel.proto.rpc import Context

#: every client takes messages of this size (the default limit is 4 MiB)
_READ_CHUNK = 1 << 20
#: hashing and writing more than this is done beside the event loop
_INLINE_WRITE = 128 << 10
_LIST_CHUNK = 100


class ContentService:
    """The wire side; what it does is in :mod:`carrel.containerd.content`."""

    def __init__(self, store: ContentStore, collect: Callable[[], object]) -> None:
        self._store = store
        self._collect = collect

    async def Info(self, request: content_pb2.InfoRequest, context: Context,
                   ) -> content_pb2.InfoResponse:
        info = self._store.of(context.namespace).info(request.digest)
        return content_pb2.InfoResponse(info=_info(info))

    async def Update(self, request: content_pb2.UpdateRequest, context: Context,
                     ) -> content_pb2.UpdateResponse:
        view = self._store.of(context.namespace)
        paths = list(request.update_mask.paths)
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise errdefs.InvalidParameter(
                    f'cannot update "{path}" field on content info "{request.info.digest}"')
        with self._store.metadata.transaction():
            old = view.info(request.info.digest).labels
            labels = values.masked_labels(old, request.info.labels, paths or ["labels"])
            info = view.update(request.info.digest, labels)
        return content_pb2.UpdateResponse(info=_info(info))

    async def List(self, request: content_pb2.ListContentRequest, context: Context,
                   ) -> AsyncIterator[content_pb2.ListContentResponse]:
        accept = filters.compile_all(request.filters)
        batch: list[content_pb2.Info] = []
        for info in self._store.of(context.namespace).walk():
            if accept(_lookup(info)):
                batch.append(_info(info))
                if len(batch) == _LIST_CHUNK:
                    yield content_pb2.ListContentResponse(info=batch)
                    batch = []
        if batch:
            yield content_pb2.ListContentResponse(info=batch)

    async def Delete(self, request: content_pb2.DeleteContentRequest, context: Context) -> Empty:
        self._store.of(context.namespace).delete(request.digest)
        self._collect()
        return Empty()

    async def Read(self, request: content_pb2.ReadContentRequest, context: Context,
                   ) -> AsyncIterator[content_pb2.ReadContentResponse]:
        view = self._store.of(context.namespace)
        total = view.info(request.digest).size
        offset = request.offset
        size = request.size
        if offset < 0 or size < 0:
            raise errdefs.InvalidParameter("offset and size must not be negative")
        if offset > total or offset + size > total:
            raise errdefs.OutOfRange(
                f"read past object length {total} bytes, with {offset}+{size}")
        end = offset + size if size else total
        with view.open(request.digest) as file:
            if offset == end:
                yield content_pb2.ReadContentResponse(offset=offset, data=b"")
            while offset < end:
                data = os.pread(file.fileno(), min(_READ_CHUNK, end - offset), offset)
                if not data:
                    raise errdefs.SystemFailure(
                        f"content {request.digest} ends at {offset} instead of {total}")
                yield content_pb2.ReadContentResponse(offset=offset, data=data)
                offset += len(data)

    async def Status(self, request: content_pb2.StatusRequest, context: Context,
                     ) -> content_pb2.StatusResponse:
        status = self._store.of(context.namespace).status(request.ref)
        return content_pb2.StatusResponse(status=_status(status))

    async def ListStatuses(self, request: content_pb2.ListStatusesRequest, context: Context,
                           ) -> content_pb2.ListStatusesResponse:
        accept = filters.compile_all(request.filters)
        found = [status for status in self._store.of(context.namespace).statuses()
                 if accept(_status_lookup(status))]
        return content_pb2.ListStatusesResponse(statuses=[_status(s) for s in found])

    async def Abort(self, request: content_pb2.AbortRequest, context: Context) -> Empty:
        self._store.of(context.namespace).abort(request.ref)
        return Empty()

    async def Write(self, requests: AsyncIterator[content_pb2.WriteContentRequest],
                    context: Context) -> AsyncIterator[content_pb2.WriteContentResponse]:
        view = self._store.of(context.namespace, context.lease)
        session: _WriteSession | None = None
        try:
            async for request in requests:
                if session is None:
                    session = _WriteSession(view, request)
                yield await session.handle(request)
                if request.action == content_pb2.COMMIT:
                    return
        finally:
            if session is not None:
                session.writer.close()


class _WriteSession:
    """One ``Write`` stream: the first message names the ref."""

    def __init__(self, view: NamespacedContent, first: content_pb2.WriteContentRequest) -> None:
        if not first.ref:
            raise errdefs.InvalidParameter("first message must have a reference")
        self._view = view
        self._total = first.total
        self._expected = first.expected
        self.writer: ContentWriter = view.writer(first.ref, first.expected, first.total)

    async def handle(self, request: content_pb2.WriteContentRequest,
                     ) -> content_pb2.WriteContentResponse:
        self._check(request)
        if request.action in (content_pb2.WRITE, content_pb2.COMMIT):
            await self._write(request)
        if request.action == content_pb2.COMMIT:
            await asyncio.to_thread(self.writer.commit, self._total, self._expected,
                                    dict(request.labels))
        writer = self.writer
        return content_pb2.WriteContentResponse(
            action=request.action, started_at=values.stamp(writer.started),
            updated_at=values.stamp(writer.updated), offset=writer.offset,
            total=self._total or writer.total, digest=writer.digest)

    def _check(self, request: content_pb2.WriteContentRequest) -> None:
        if request.ref and request.ref != self.writer.ref:
            raise errdefs.InvalidParameter("cannot change the ref of a write")
        if request.total:
            if self._total and request.total != self._total:
                raise errdefs.InvalidParameter(
                    f"total cannot change from {self._total} to {request.total}")
            self._total = request.total
        if not request.expected:
            return
        if self._expected and request.expected != self._expected:
            raise errdefs.InvalidParameter(
                f'expected digest changed: "{self._expected}" != "{request.expected}"')
        if not self._expected:
            values.check_digest(request.expected)
            self._expected = request.expected
            if self._view.exists(request.expected):
                self.writer.abort()
                raise errdefs.AlreadyExists(f"content {request.expected}: already exists")

    async def _write(self, request: content_pb2.WriteContentRequest) -> None:
        writer = self.writer
        if request.offset and request.offset != writer.offset:
            raise errdefs.OutOfRange(
                f"write @{request.offset} must occur at current offset {writer.offset}")
        if not request.offset and writer.offset:
            await asyncio.to_thread(writer.truncate, 0)
        if len(request.data) > _INLINE_WRITE:
            await asyncio.to_thread(writer.write, request.data)
        elif request.data:
            writer.write(request.data)


def _info(info: Info) -> content_pb2.Info:
    return content_pb2.Info(digest=info.digest, size=info.size, labels=info.labels,
                            created_at=values.stamp(info.created),
                            updated_at=values.stamp(info.updated))


def _status(status: Status) -> content_pb2.Status:
    return content_pb2.Status(started_at=values.stamp(status.started),
                              updated_at=values.stamp(status.updated), ref=status.ref,
                              offset=status.offset, total=status.total, expected=status.expected)


def _lookup(info: Info) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "digest":
            return info.digest, True
        if path[0] == "size":
            return str(info.size), True
        if path[0] == "labels":
            return filters.in_labels(info.labels, path[1:])
        return "", False

    return find


def _status_lookup(status: Status) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        return (status.ref, True) if path[0] == "ref" else ("", False)

    return find
