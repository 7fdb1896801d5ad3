"""``containerd.services.snapshots.v1.Snapshots`` over the overlay snapshotter."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import values
from carrel.containerd.snapshots import NamespacedSnapshots, SnapshotInfo, Snapshotter
from carrel.proto import snapshots_pb2
from carrel.proto.rpc import Context

_LIST_CHUNK = 100
#: our kinds are those of the protocol
_KINDS = {1: snapshots_pb2.VIEW, 2: snapshots_pb2.ACTIVE, 3: snapshots_pb2.COMMITTED}


class SnapshotsService:
    """The wire side; what it does is in :mod:`carrel.containerd.snapshots`."""

    def __init__(self, snapshotter: Snapshotter, collect: Callable[[], object]) -> None:
        self._snapshotter = snapshotter
        self._collect = collect

    def _of(self, name: str, context: Context) -> NamespacedSnapshots:
        if not name:
            raise errdefs.InvalidParameter("snapshotter argument missing")
        if name != self._snapshotter.name:
            raise errdefs.InvalidParameter(f"snapshotter not loaded: {name}",
                                           hint=f"the one here is {self._snapshotter.name}")
        return self._snapshotter.of(context.namespace, context.lease)

    async def Prepare(self, request: snapshots_pb2.PrepareSnapshotRequest, context: Context,
                      ) -> snapshots_pb2.PrepareSnapshotResponse:
        mounts = self._of(request.snapshotter, context).prepare(
            request.key, request.parent, request.labels)
        return snapshots_pb2.PrepareSnapshotResponse(mounts=mounts)

    async def View(self, request: snapshots_pb2.ViewSnapshotRequest, context: Context,
                   ) -> snapshots_pb2.ViewSnapshotResponse:
        mounts = self._of(request.snapshotter, context).view(
            request.key, request.parent, request.labels)
        return snapshots_pb2.ViewSnapshotResponse(mounts=mounts)

    async def Mounts(self, request: snapshots_pb2.MountsRequest, context: Context,
                     ) -> snapshots_pb2.MountsResponse:
        mounts = self._of(request.snapshotter, context).mounts(request.key)
        return snapshots_pb2.MountsResponse(mounts=mounts)

    async def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, context: Context,
                     ) -> Empty:
        view = self._of(request.snapshotter, context)
        # counting files and bringing them to the disk takes its time
        await asyncio.to_thread(view.commit, request.name, request.key, dict(request.labels),
                                parent=request.parent)
        return Empty()

    async def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, context: Context,
                     ) -> Empty:
        self._of(request.snapshotter, context).remove(request.key)
        return Empty()

    async def Stat(self, request: snapshots_pb2.StatSnapshotRequest, context: Context,
                   ) -> snapshots_pb2.StatSnapshotResponse:
        info = self._of(request.snapshotter, context).stat(request.key)
        return snapshots_pb2.StatSnapshotResponse(info=_info(info))

    async def Update(self, request: snapshots_pb2.UpdateSnapshotRequest, context: Context,
                     ) -> snapshots_pb2.UpdateSnapshotResponse:
        info = self._of(request.snapshotter, context).update(
            request.info.name, request.info.labels, request.update_mask.paths)
        return snapshots_pb2.UpdateSnapshotResponse(info=_info(info))

    async def List(self, request: snapshots_pb2.ListSnapshotsRequest, context: Context,
                   ) -> AsyncIterator[snapshots_pb2.ListSnapshotsResponse]:
        batch: list[snapshots_pb2.Info] = []
        for info in self._of(request.snapshotter, context).walk(request.filters):
            batch.append(_info(info))
            if len(batch) == _LIST_CHUNK:
                yield snapshots_pb2.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield snapshots_pb2.ListSnapshotsResponse(info=batch)

    async def Usage(self, request: snapshots_pb2.UsageRequest, context: Context,
                    ) -> snapshots_pb2.UsageResponse:
        view = self._of(request.snapshotter, context)
        size, inodes = await asyncio.to_thread(view.usage, request.key)
        return snapshots_pb2.UsageResponse(size=size, inodes=inodes)

    async def Cleanup(self, request: snapshots_pb2.CleanupRequest, context: Context) -> Empty:
        view = self._of(request.snapshotter, context)
        await self._snapshotter.directories.settled()
        await asyncio.to_thread(view.cleanup)
        return Empty()


def _info(info: SnapshotInfo) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(name=info.name, parent=info.parent, kind=_KINDS[info.kind],
                              created_at=values.stamp(info.created),
                              updated_at=values.stamp(info.updated), labels=info.labels)
