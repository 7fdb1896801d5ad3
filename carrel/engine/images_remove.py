"""Removing images: names one by one, and the image with its last name."""

from __future__ import annotations

import time
from typing import Any

from carrel import errdefs
from carrel.engine import timefmt
from carrel.engine.context import ContainerView, EngineContext
from carrel.engine.filters import Filters
from carrel.engine.images import Found, ImageService
from carrel.engine.images_model import DANGLING, ImageRecord
from carrel.engine.images_view import created_ns
from carrel.oci import reference as references

PRUNE_FILTERS = frozenset(("dangling", "label", "label!", "until"))


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _conflict(record: ImageRecord, forced: bool, why: str) -> errdefs.Conflict:
    how = "must be forced" if forced else "cannot be forced"
    return errdefs.Conflict(f"conflict: unable to delete {_short(record.id)} ({how}) - {why}")


class Remover:
    """Docker's rules for `docker rmi`."""

    def __init__(self, ctx: EngineContext, images: ImageService) -> None:
        self._ctx = ctx
        self._images = images
        self._deleted: list[dict[str, str]] = []

    async def remove(self, text: str, *, force: bool, prune: bool = True,
                     ) -> list[dict[str, str]]:
        found = await self._images.find(text)
        record = found.record
        names = [n.name for n in self._images.names_of(record.id)]
        real = [n for n in names if not n.startswith(DANGLING)]
        if found.name is not None and len(real) > 1:
            await self._untag(record, found.name)
            await self._images.refresh()
            return self._deleted
        if found.name is not None:
            self._check_last_name(found, force)
        elif len(_repositories(real)) > 1 and not force:
            raise _conflict(record, True, "image is referenced in multiple repositories")
        users = self._ctx.containers.users_of_image(record.id)
        keep = self._check_users(record, users, force and found.name is not None, force)
        for name in names:
            # with the last name the collector runs, and we answer after it
            last = name == names[-1] and not keep
            if name.startswith(DANGLING):
                await self._images.delete_name(name, sync=last)
            else:
                await self._untag(record, name, keep=keep, sync=last)
        if keep:
            await self._images.refresh()
        else:
            await self._gone(record)
        return self._deleted

    def _check_last_name(self, found: Found, force: bool) -> None:
        users = self._ctx.containers.users_of_image(found.record.id)
        if users and not force:
            familiar = self._images.familiar(found.name or "")
            raise errdefs.Conflict(
                f"conflict: unable to remove repository reference \"{familiar}\" (must force) - "
                f"container {users[0].id[:12]} is using its referenced image "
                f"{_short(found.record.id)}")

    @staticmethod
    def _check_users(record: ImageRecord, users: list[ContainerView], untag_only: bool,
                     force: bool) -> bool:
        """True when only the names may go because containers still stand on the image."""
        running = next((c for c in users if c.running), None)
        if running is not None:
            if untag_only:
                return True
            raise _conflict(record, False, "image is being used by running container "
                            f"{running.id[:12]}")
        if users and not force:
            raise _conflict(record, True, "image is being used by stopped container "
                            f"{users[0].id[:12]}")
        return bool(users)

    async def _untag(self, record: ImageRecord, name: str, *, keep: bool = False,
                     sync: bool = False) -> None:
        if keep:
            await self._images.keep_dangling(name, "")
        familiar = self._images.familiar(name)
        repository = references.parse(name)
        await self._images.delete_name(name, sync=sync)
        self._deleted.append({"Untagged": familiar})
        if "@" not in name and repository.name in record.sources and not any(
                references.parse(n.name).name == repository.name and n.name != name
                for n in self._images.names_of(record.id) if not n.name.startswith(DANGLING)):
            self._deleted.append(
                {"Untagged": f"{repository.familiar_name}@{record.target.digest}"})
        self._ctx.events.publish("image", "untag", record.id, {"name": record.id})

    async def _gone(self, record: ImageRecord) -> None:
        """After the last name."""
        await self._images.refresh()
        self._deleted.append({"Deleted": record.id})
        used = {chain for other in self._images.records for chain in other.chain_ids}
        self._deleted += [{"Deleted": chain} for chain in reversed(record.chain_ids)
                          if chain not in used]
        self._ctx.events.publish("image", "delete", record.id, {"name": record.id})


def _repositories(names: list[str]) -> set[str]:
    return {references.parse(name).name for name in names}


async def prune(ctx: EngineContext, images: ImageService, filters: Filters) -> dict[str, Any]:
    """``POST /images/prune``: dangling images, or all that no container uses."""
    await images.refresh()
    dangling_only = filters.flag("dangling", True)
    until = timefmt.parse_point(filters.one("until")) if "until" in filters else time.time_ns()
    before = await images.layers_size()
    deleted: list[dict[str, str]] = []
    for ident, record in images.by_id().items():
        if ((dangling_only and images.tags_of(ident))
                or ctx.containers.users_of_image(ident)
                or (until is not None and created_ns(record) > until)
                or not filters.match_labels(record.labels)
                or filters.excludes_labels(record.labels)):
            continue
        names = [n.name for n in images.names_of(ident) if not n.name.startswith(DANGLING)]
        try:
            for name in names[:-1]:
                deleted += await Remover(ctx, images).remove(name, force=False)
            deleted += await Remover(ctx, images).remove(names[-1] if names else ident,
                                                         force=False)
        except errdefs.Conflict:
            continue        # a container took it meanwhile
    reclaimed = max(0, before - await images.layers_size())
    ctx.events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
    return {"ImagesDeleted": deleted or None, "SpaceReclaimed": reclaimed}
