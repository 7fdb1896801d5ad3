"""Images: names for a manifest or an index in the content store."""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import filters, values
from carrel.containerd.events import EventBus
from carrel.containerd.leases import add_resource, remove_resource
from carrel.containerd.metadata import Metadata, pack, unpack
from carrel.proto import descriptor_pb2, image_events_pb2, images_pb2
from carrel.proto.rpc import Context

_COLUMNS = "name, media_type, digest, size, annotations, labels, created, updated"


@dataclass(slots=True)
class Descriptor:
    """What a name stands for: media type, digest, size."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Image:
    name: str
    target: Descriptor
    labels: dict[str, str] = field(default_factory=dict)
    created: int = 0
    updated: int = 0


class ImageStore:
    """Images of every namespace; :meth:`of` gives one namespace's view."""

    def __init__(self, metadata: Metadata, events: EventBus | None = None) -> None:
        self.metadata = metadata
        self.events = events

    def of(self, namespace: str, lease: str = "") -> NamespacedImages:
        return NamespacedImages(self, namespace, lease)


class NamespacedImages:
    """The images of one namespace."""

    def __init__(self, store: ImageStore, namespace: str, lease: str = "") -> None:
        self._store = store
        self._metadata = store.metadata
        self.namespace = namespace
        self.lease = lease

    def get(self, name: str) -> Image:
        row = self._metadata.row(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",
            (self.namespace, name))
        if row is None:
            raise errdefs.NotFound(f'image "{name}": not found')
        return _image(row)

    def walk(self, wanted: Sequence[str] = ()) -> Iterator[Image]:
        accept = filters.compile_all(wanted)
        for row in self._metadata.rows(
                f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name",
                (self.namespace,)):
            image = _image(row)
            if accept(_lookup(image)):
                yield image

    def create(self, image: Image) -> Image:
        _validate(image)
        image.created = image.created or values.now()
        image.updated = image.updated or image.created
        self._metadata.ensure_namespace(self.namespace)
        with self._metadata.transaction() as db:
            self._lease(db, image.name)
            try:
                db.execute(f"INSERT INTO images(namespace, {_COLUMNS})"
                           " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._row(image))
            except sqlite3.IntegrityError:
                raise errdefs.AlreadyExists(f'image "{image.name}": already exists') from None
        self._tell("/images/create",
                   image_events_pb2.ImageCreate(name=image.name, labels=image.labels))
        return image

    def update(self, image: Image, paths: Iterable[str] = ()) -> Image:
        """Change what the field mask ``paths`` names; without one, target and labels."""
        paths = list(paths)
        with self._metadata.transaction() as db:
            old = self.get(image.name)
            if paths:
                new = _masked(old, image, paths)
            else:
                new = Image(image.name, image.target, dict(image.labels), old.created)
            _validate(new)
            new.updated = image.updated or values.now()
            db.execute(f"INSERT OR REPLACE INTO images(namespace, {_COLUMNS})"
                       " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._row(new))
        self._tell("/images/update",
                   image_events_pb2.ImageUpdate(name=new.name, labels=new.labels))
        return new

    def put(self, image: Image) -> Image:
        """Create or, where the name exists, point it to the new target."""
        with self._metadata.transaction():
            try:
                self.get(image.name)
            except errdefs.NotFound:
                return self.create(image)
            return self.update(image)

    def delete(self, name: str, target: str = "") -> None:
        """Remove the name; with ``target`` only while it stands for that digest."""
        with self._metadata.transaction() as db:
            image = self.get(name)
            if target and image.target.digest != target:
                raise errdefs.NotFound(
                    f'image "{name}": target digest is {image.target.digest}, not {target}')
            db.execute("DELETE FROM images WHERE namespace = ? AND name = ?",
                       (self.namespace, name))
            remove_resource(db, self.namespace, "images", name)
        self._tell("/images/delete", image_events_pb2.ImageDelete(name=name))

    def _lease(self, db: sqlite3.Connection, name: str) -> None:
        if self.lease:
            add_resource(db, self.namespace, self.lease, "images", name)

    def _row(self, image: Image) -> tuple[object, ...]:
        target = image.target
        return (self.namespace, image.name, target.media_type, target.digest, target.size,
                pack(target.annotations), pack(image.labels), image.created, image.updated)

    def _tell(self, topic: str, event: image_events_pb2.ImageCreate | image_events_pb2.ImageUpdate
              | image_events_pb2.ImageDelete) -> None:
        if self._store.events is not None:
            self._store.events.publish(self.namespace, topic, event)


def _image(row: tuple[Any, ...]) -> Image:
    name, media_type, digest, size, annotations, labels, created, updated = row
    return Image(name, Descriptor(media_type, digest, size, unpack(annotations)),
                 unpack(labels), created, updated)


def _validate(image: Image) -> None:
    if not image.name:
        raise errdefs.InvalidParameter("image name must not be empty")
    if len(image.name) > 4096 or "\0" in image.name:
        raise errdefs.InvalidParameter("image name is too long or holds a NUL byte")
    values.check_labels(image.labels)
    try:
        values.check_digest(image.target.digest)
    except errdefs.InvalidParameter as error:
        raise errdefs.InvalidParameter(f"Target.Digest {error}") from None
    if image.target.size <= 0:
        raise errdefs.InvalidParameter(f"Target.Size must be > 0, not {image.target.size}")
    if not image.target.media_type:
        raise errdefs.InvalidParameter("Target.MediaType must be set")


def _masked(old: Image, new: Image, paths: list[str]) -> Image:
    labels = values.masked_labels(old.labels, new.labels, paths)
    target = old.target
    for path in paths:
        if path == "target":
            target = new.target
        elif path == "annotations":
            target = Descriptor(target.media_type, target.digest, target.size,
                                dict(new.target.annotations))
        elif path.startswith("annotations."):
            key = path.partition(".")[2]
            changed = {**target.annotations, key: new.target.annotations.get(key, "")}
            target = Descriptor(target.media_type, target.digest, target.size, changed)
        elif path != "labels" and not path.startswith("labels."):
            raise errdefs.InvalidParameter(f'cannot update "{path}" field on image "{old.name}"')
    return Image(old.name, target, old.labels if labels is None else labels, old.created)


def _lookup(image: Image) -> filters.Lookup:
    def find(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "name":
            return image.name, True
        if path[0] == "target" and len(path) > 1:
            value = {"digest": image.target.digest,
                     "mediatype": image.target.media_type}.get(path[1], "")
            return value, bool(value)
        if path[0] == "labels":
            return filters.in_labels(image.labels, path[1:])
        if path[0] == "annotations":
            return filters.in_labels(image.target.annotations, path[1:])
        return "", False

    return find


def descriptor_message(target: Descriptor) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(media_type=target.media_type, digest=target.digest,
                                     size=target.size, annotations=target.annotations)


def from_descriptor(message: descriptor_pb2.Descriptor) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))


def image_message(image: Image) -> images_pb2.Image:
    return images_pb2.Image(name=image.name, labels=image.labels,
                            target=descriptor_message(image.target),
                            created_at=values.stamp(image.created),
                            updated_at=values.stamp(image.updated))


def from_image(message: images_pb2.Image) -> Image:
    labels: Mapping[str, str] = message.labels
    return Image(message.name, from_descriptor(message.target), dict(labels))


class ImagesService:
    """``containerd.services.images.v1.Images``"""

    def __init__(self, store: ImageStore, collect: Callable[[], object],
                 collect_now: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._collect = collect
        self._collect_now = collect_now

    async def Get(self, request: images_pb2.GetImageRequest, context: Context,
                  ) -> images_pb2.GetImageResponse:
        image = self._store.of(context.namespace).get(request.name)
        return images_pb2.GetImageResponse(image=image_message(image))

    async def List(self, request: images_pb2.ListImagesRequest, context: Context,
                   ) -> images_pb2.ListImagesResponse:
        found = self._store.of(context.namespace).walk(request.filters)
        return images_pb2.ListImagesResponse(images=[image_message(image) for image in found])

    async def Create(self, request: images_pb2.CreateImageRequest, context: Context,
                     ) -> images_pb2.CreateImageResponse:
        image = from_image(request.image)
        if request.HasField("source_date_epoch"):
            image.created = image.updated = request.source_date_epoch.ToNanoseconds()
        made = self._store.of(context.namespace, context.lease).create(image)
        return images_pb2.CreateImageResponse(image=image_message(made))

    async def Update(self, request: images_pb2.UpdateImageRequest, context: Context,
                     ) -> images_pb2.UpdateImageResponse:
        image = from_image(request.image)
        if request.HasField("source_date_epoch"):
            image.updated = request.source_date_epoch.ToNanoseconds()
        made = self._store.of(context.namespace, context.lease).update(
            image, request.update_mask.paths)
        return images_pb2.UpdateImageResponse(image=image_message(made))

    async def Delete(self, request: images_pb2.DeleteImageRequest, context: Context) -> Empty:
        target = request.target.digest if request.HasField("target") else ""
        self._store.of(context.namespace).delete(request.name, target)
        if request.sync:
            await self._collect_now()
        else:
            self._collect()
        return Empty()
