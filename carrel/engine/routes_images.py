"""The Engine API's image endpoints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import filters, images_actions, images_view, jsonio, web
from carrel.engine.images_remove import PRUNE_FILTERS, Remover, prune
from carrel.engine.images_transfer import NdJson, answering, credentials
from carrel.engine.server import VERSION
from carrel.oci import reference as references
from carrel.oci.reference import Reference

if TYPE_CHECKING:
    from carrel.engine.context import EngineContext
    from carrel.engine.images import ImageService

_NAME = "{name:.+}"
#: what may follow the repository in ``tag=``
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{32,}", re.ASCII)


def routes(ctx: EngineContext) -> list[web.RouteDef]:
    handlers = ImageRoutes(ctx)
    return [
        web.get("/images/json", handlers.listing),
        web.get("/images/search", handlers.search),
        web.get("/images/get", handlers.save_many),
        web.post("/images/create", handlers.create),
        web.post("/images/load", handlers.load),
        web.post("/images/prune", handlers.prune),
        web.get(f"/images/{_NAME}/json", handlers.inspect),
        web.get(f"/images/{_NAME}/history", handlers.history),
        web.get(f"/images/{_NAME}/get", handlers.save_one),
        web.post(f"/images/{_NAME}/push", handlers.push),
        web.post(f"/images/{_NAME}/tag", handlers.tag),
        web.delete(f"/images/{_NAME}", handlers.remove),
        web.get(f"/distribution/{_NAME}/json", handlers.distribution),
        web.post("/auth", handlers.auth),
        web.post("/commit", handlers.commit),
    ]


class ImageRoutes:
    def __init__(self, ctx: EngineContext) -> None:
        self._ctx = ctx

    @property
    def _images(self) -> ImageService:
        from carrel.engine.images import ImageService

        images = self._ctx.images
        assert isinstance(images, ImageService)
        return images

    # --- looking ---

    async def listing(self, request: web.Request) -> web.StreamResponse:
        wanted = filters.parse(request.query.get("filters"), images_view.LIST_FILTERS)
        await self._images.refresh()
        found = await images_view.filtered(
            self._images, wanted, shared_size=jsonio.flag(request, "shared-size"),
            manifests=jsonio.flag(request, "manifests"))
        for summary in found:
            _with_virtual_size(request, summary)
        return jsonio.response(found)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        found = await self._images.find(request.match_info["name"])
        return jsonio.response(_with_virtual_size(request, images_view.inspect(
            self._images, found.record, manifests=jsonio.flag(request, "manifests"))))

    async def history(self, request: web.Request) -> web.StreamResponse:
        found = await self._images.find(request.match_info["name"])
        return jsonio.response(images_view.history(self._images, found.record))

    async def search(self, request: web.Request) -> web.StreamResponse:
        raise errdefs.NotImplementedYet(
            "search of Docker Hub is not implemented in Carrel: see https://hub.docker.com/search")

    async def distribution(self, request: web.Request) -> web.StreamResponse:
        reference = references.parse(request.match_info["name"]).tagged()
        auth = credentials(request.headers.get("X-Registry-Auth"))
        return jsonio.response(await images_actions.distribution(self._ctx, reference, auth))

    # --- in and out ---

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Pull (fromImage) or import (fromSrc)."""
        query = request.query
        if query.get("fromSrc"):
            from carrel.engine import images_build

            return await answering(request, lambda out: images_build.import_image(
                self._ctx, self._images, out, request))
        text = query.get("fromImage", "")
        if not text:
            raise errdefs.InvalidParameter("one of fromImage and fromSrc is needed")
        reference = _with_tag(text, query.get("tag", ""))
        auth = credentials(request.headers.get("X-Registry-Auth"))

        async def work(out: NdJson) -> None:
            chosen = [reference]
            if reference.is_name_only:
                chosen = await images_actions.all_tags(self._ctx, reference, auth)
            for one in chosen:
                await images_actions.pull(self._ctx, self._images, out, one,
                                          query.get("platform", ""), auth)

        return await answering(request, work)

    async def push(self, request: web.Request) -> web.StreamResponse:
        reference = _with_tag(request.match_info["name"], request.query.get("tag", ""))
        if reference.digest:
            raise errdefs.InvalidParameter("cannot push a digest reference")
        auth = credentials(request.headers.get("X-Registry-Auth"))
        chosen = [reference]
        if reference.is_name_only:
            chosen = self._all_tags(reference)

        async def work(out: NdJson) -> None:
            for one in chosen:
                await images_actions.push(self._ctx, self._images, out, one, auth)

        return await answering(request, work)

    def _all_tags(self, reference: Reference) -> list[Reference]:
        found = [candidate for record in self._images.by_id() for name in self._images.tags_of(
            record) if (candidate := references.parse(name)).name == reference.name]
        if not found:
            raise errdefs.NotFound("An image does not exist locally with the tag: "
                                   f"{reference.familiar_name}")
        return sorted(found, key=lambda r: r.tag)

    async def load(self, request: web.Request) -> web.StreamResponse:
        quiet = jsonio.flag(request, "quiet")
        return await answering(request, lambda out: images_actions.load(
            self._ctx, self._images, out, request.content.iter_any(), quiet=quiet),
            always=True)    # Docker answers 200 to any archive, and tells the rest in the stream

    async def save_one(self, request: web.Request) -> web.StreamResponse:
        return await images_actions.save(
            self._ctx, self._images, request, [request.match_info["name"]],
            request.query.get("platform", ""))

    async def save_many(self, request: web.Request) -> web.StreamResponse:
        names = request.query.getall("names", [])
        if not names:
            raise errdefs.InvalidParameter("no image to save was named")
        return await images_actions.save(self._ctx, self._images, request, list(names),
                                         request.query.get("platform", ""))

    # --- names ---

    async def tag(self, request: web.Request) -> web.StreamResponse:
        found = await self._images.find(request.match_info["name"])
        reference = _with_tag(request.query.get("repo", ""), request.query.get("tag", ""))
        if reference.digest:
            raise errdefs.InvalidParameter("refusing to create a tag with a digest reference")
        reference = reference.tagged()
        await self._images.name_target(str(reference), found.record.target)
        self._ctx.events.publish("image", "tag", found.record.id,
                                 {"name": reference.familiar})
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        remover = Remover(self._ctx, self._images)
        return jsonio.response(await remover.remove(
            request.match_info["name"], force=jsonio.flag(request, "force"),
            prune=not jsonio.flag(request, "noprune")))

    async def prune(self, request: web.Request) -> web.StreamResponse:
        wanted = filters.parse(request.query.get("filters"), PRUNE_FILTERS)
        return jsonio.response(await prune(self._ctx, self._images, wanted))

    # --- others ---

    async def commit(self, request: web.Request) -> web.StreamResponse:
        from carrel.engine import images_build

        body = await jsonio.read_object(request, optional=True)
        ident = await images_build.commit(self._ctx, self._images, request.query, body)
        return jsonio.response({"Id": ident}, 201)

    async def auth(self, request: web.Request) -> web.StreamResponse:
        """`docker login`: try the credentials at the registry."""
        body: dict[str, Any] = await jsonio.read_object(request)
        from carrel.engine import images_login

        token = await images_login.login(self._ctx, body)
        return jsonio.response({"IdentityToken": token, "Status": "Login Succeeded"})


def _with_virtual_size(request: web.Request, shown: dict[str, Any]) -> dict[str, Any]:
    """Clients before 1.44 read the size under its older name."""
    if request[VERSION] < (1, 44):
        shown["VirtualSize"] = shown["Size"]
    return shown


def _with_tag(text: str, tag: str) -> Reference:
    """A repository and the separate ``tag`` parameter, which may hold a digest."""
    reference = references.parse(text)
    if not tag:
        return reference
    if reference.digest:
        return reference
    if _DIGEST.fullmatch(tag):
        return reference.with_digest(tag)
    return reference.with_tag(tag)
