"""The OCI distribution protocol: manifests and blobs of one registry, both ways."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

import aiohttp

from carrel import errdefs
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.oci.image import Descriptor
from carrel.oci.reference import Reference
from carrel.registry import hosts
from carrel.registry.auth import Asker, Credential
from carrel.registry.errors import Transient, general, pull_error
from carrel.registry.hosts import Endpoint
from carrel.registry.transport import (
    ATTEMPTS,
    BROKEN,
    Transport,
    answer_of,
    break_of,
    read_limited,
)

__all__ = ["Credential", "RegistryClient", "Resolved"]

ACCEPT = ", ".join((oci.OCI_INDEX, oci.DOCKER_LIST, oci.OCI_MANIFEST, oci.DOCKER_MANIFEST,
                    "*/*"))


@dataclass(frozen=True)
class Resolved:
    """What a reference stands for, checked."""

    media_type: str
    digest: str
    data: bytes
    endpoint: Endpoint

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.data))


@dataclass(frozen=True)
class Blob:
    """A blob that is being received, from ``start`` on."""

    start: int
    chunks: AsyncIterator[bytes]


class RegistryClient:
    """``async with RegistryClient(ask) as client: await client.resolve(reference)``"""

    def __init__(self, ask: Asker, *, mirrors: tuple[str, ...] = (),
                 insecure: tuple[str, ...] = (), default_scheme: str = "",
                 **transport: Any) -> None:
        self._mirrors = mirrors
        self._insecure = insecure
        self._default_scheme = default_scheme
        self.transport = Transport(ask, insecure, **transport)

    async def __aenter__(self) -> RegistryClient:
        await self.transport.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.transport.close()

    def endpoints(self, reference: Reference, *, pull: bool = True) -> list[Endpoint]:
        return hosts.endpoints(reference, mirrors=self._mirrors, insecure=self._insecure,
                               default_scheme=self._default_scheme, pull=pull)

    # --- pulling ---

    async def resolve(self, reference: Reference) -> Resolved:
        """The manifest or index of a tag or digest, from the first endpoint that has it."""
        last: errdefs.CarrelError | None = None
        for endpoint in self.endpoints(reference):
            try:
                return await self._resolve_at(endpoint, reference)
            except errdefs.CarrelError as error:
                if not endpoint.mirror:
                    raise
                last = error
        raise last or errdefs.NotFound(f"no registry for {reference}")

    async def _resolve_at(self, endpoint: Endpoint, reference: Reference) -> Resolved:
        what = reference.digest or reference.tag or "latest"
        data, declared, told = await self._manifest(endpoint, reference, what)
        digest = digests.of(data)
        if reference.digest:
            digests.verify(reference.digest, data)
            digest = reference.digest
        elif told and digests.is_digest(told):
            digests.verify(told, data)
            digest = told
        kind = oci.media_type_of(oci.load_json(data, manifest=True), declared)
        return Resolved(kind, digest, data, endpoint)

    async def _manifest(self, endpoint: Endpoint, reference: Reference, what: str,
                        accept: str = ACCEPT) -> tuple[bytes, str, str]:
        """(bytes, Content-Type, Docker-Content-Digest) of one manifest."""
        for attempt in range(1, ATTEMPTS + 1):
            async with self.transport.request(
                    "GET", endpoint, f"{reference.path}/manifests/{what}",
                    scope=pull_scope(reference), reference=str(reference),
                    headers={"Accept": accept}) as response:
                if response.status != 200:
                    raise pull_error(await answer_of(response), reference)
                try:
                    data = await read_limited(response, oci.MAX_MANIFEST)
                except Transient as error:
                    if attempt == ATTEMPTS:
                        raise errdefs.Unavailable(str(error)) from error
                    await self.transport.pause(attempt)
                    continue
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                return data, kind, response.headers.get("Docker-Content-Digest", "")
        raise errdefs.Unavailable(f"{endpoint.host} does not answer")

    async def manifest(self, endpoint: Endpoint, reference: Reference,
                       descriptor: Descriptor) -> bytes:
        """A manifest by its descriptor: size, digest and type must be what that says."""
        data, _, _ = await self._manifest(endpoint, reference, descriptor.digest,
                                          descriptor.media_type)
        if len(data) != descriptor.size:
            raise errdefs.InvalidParameter(
                f"manifest {descriptor.digest} has {len(data)} bytes, not {descriptor.size}")
        digests.verify(descriptor.digest, data)
        oci.media_type_of(oci.load_json(data, manifest=True), descriptor.media_type)
        return data

    async def small_blob(self, reference: Reference, descriptor: Descriptor, limit: int,
                         endpoint: Endpoint | None = None) -> bytes:
        """A configuration, whole and checked."""
        if descriptor.size > limit:
            raise errdefs.InvalidParameter(
                f"{descriptor.digest} of {descriptor.size} bytes exceeds the limit of {limit}")
        endpoint = endpoint or self.endpoints(reference)[-1]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self.blob(endpoint, reference, descriptor, 0) as blob:
                    data = b"".join([chunk async for chunk in blob.chunks])
                digests.verify(descriptor.digest, data)
                return data
            except Transient as error:
                if attempt == ATTEMPTS:
                    raise errdefs.Unavailable(str(error)) from error
                await self.transport.pause(attempt)
        raise errdefs.Unavailable(f"{endpoint.host} does not answer")

    @contextlib.asynccontextmanager
    async def blob(self, endpoint: Endpoint, reference: Reference, descriptor: Descriptor,
                   offset: int) -> AsyncIterator[Blob]:
        """Receive a blob from ``offset``; :class:`Transient` when the connection breaks.

        The caller goes on from what it has; ``start`` may be 0 nevertheless, where the
        server does not know Range.  Never more bytes than the descriptor says.
        """
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        async with self.transport.request(
                "GET", endpoint, f"{reference.path}/blobs/{descriptor.digest}",
                scope=pull_scope(reference), reference=str(reference),
                headers=headers) as response:
            start = _start_of(response, offset, descriptor.size)
            if start is None:
                answer = await answer_of(response)
                if answer.status == 404:
                    raise errdefs.NotFound(f"blob {descriptor.digest} not found: {answer.words}")
                raise pull_error(answer, reference)
            yield Blob(start, _bounded(response, start, descriptor))

    async def tags(self, reference: Reference) -> list[str]:
        """All tags of a repository, from the first endpoint that can tell."""
        last: errdefs.CarrelError | None = None
        for endpoint in self.endpoints(reference):
            try:
                return await self._tags_at(endpoint, reference)
            except errdefs.CarrelError as error:
                if not endpoint.mirror:
                    raise
                last = error
        raise last or errdefs.NotFound(f"no registry for {reference}")

    async def _tags_at(self, endpoint: Endpoint, reference: Reference) -> list[str]:
        """Page by page."""
        rest, found = f"{reference.path}/tags/list", list[str]()
        for _ in range(1000):
            async with self.transport.request("GET", endpoint, rest, scope=pull_scope(reference),
                                              reference=str(reference)) as response:
                if response.status != 200:
                    raise pull_error(await answer_of(response), reference)
                document = oci.load_json(await read_limited(response, oci.MAX_MANIFEST))
                found += [t for t in document.get("tags") or [] if isinstance(t, str)]
                following = _next_query(response.headers.get("Link", ""))
            if not following:
                return found
            # the path stays ours: only the query of the link is taken
            rest = f"{reference.path}/tags/list?{following}"
        raise errdefs.SystemFailure(f"{endpoint.host}: the list of tags does not end")

    # --- pushing ---

    async def has_blob(self, endpoint: Endpoint, reference: Reference, digest: str) -> bool:
        async with self.transport.request(
                "HEAD", endpoint, f"{reference.path}/blobs/{digest}",
                scope=push_scope(reference), reference=str(reference)) as response:
            if response.status == 200:
                return True
            if response.status == 404:
                return False
            raise push_error(await answer_of(response))

    async def manifest_digest(self, endpoint: Endpoint, reference: Reference, what: str) -> str:
        """What the registry has under a tag or digest; "" for nothing."""
        async with self.transport.request(
                "HEAD", endpoint, f"{reference.path}/manifests/{what}",
                scope=push_scope(reference), reference=str(reference),
                headers={"Accept": ACCEPT}) as response:
            if response.status == 200:
                return response.headers.get("Docker-Content-Digest", "")
            if response.status in (404, 405):
                return ""
            raise push_error(await answer_of(response))

    async def begin_upload(self, endpoint: Endpoint, reference: Reference, digest: str,
                           mount_from: str = "") -> str:
        """The URL to upload to; "" when the blob could be mounted from another repository."""
        rest = f"{reference.path}/blobs/uploads/"
        scope = push_scope(reference)
        if mount_from:
            rest += "?" + urlencode({"mount": digest, "from": mount_from})
            scope += f" repository:{mount_from}:pull"
        async with self.transport.request("POST", endpoint, rest, scope=scope,
                                          reference=str(reference),
                                          headers={"Content-Length": "0"}) as response:
            if response.status == 201 and mount_from:
                return ""
            if response.status != 202:
                raise push_error(await answer_of(response))
            return self._location(endpoint, response)

    async def upload(self, endpoint: Endpoint, reference: Reference, url: str, digest: str,
                     size: int, body: Callable[[], AsyncIterator[bytes]]) -> None:
        """All of a blob in one PUT."""
        joint = "&" if urlsplit(url).query else "?"
        async with self.transport.request(
                "PUT", endpoint, "", url=f"{url}{joint}digest={quote(digest, safe=':')}",
                scope=push_scope(reference), reference=str(reference), data=body,
                headers={"Content-Type": "application/octet-stream",
                         "Content-Length": str(size)}) as response:
            if response.status != 201:
                raise push_error(await answer_of(response))

    async def put_manifest(self, endpoint: Endpoint, reference: Reference, what: str,
                           data: bytes, media_type: str) -> None:
        async with self.transport.request(
                "PUT", endpoint, f"{reference.path}/manifests/{what}", data=data,
                scope=push_scope(reference), reference=str(reference),
                headers={"Content-Type": media_type}) as response:
            if response.status not in (200, 201):
                raise push_error(await answer_of(response))
            told = response.headers.get("Docker-Content-Digest", "")
        if told and told != digests.of(data):
            raise errdefs.SystemFailure(
                f"{endpoint.host} stored {what} under the digest {told[:80]}, not "
                f"{digests.of(data)}")

    def _location(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> str:
        url = urljoin(str(response.url), response.headers.get("Location", ""))
        if urlsplit(url).netloc != urlsplit(str(response.url)).netloc:
            # the upload carries our Authorization and our data: same host only
            raise errdefs.Forbidden(f"refusing to upload to another host than {endpoint.host}")
        if urlsplit(str(response.url)).scheme == "https":
            url = urlsplit(url)._replace(scheme="https").geturl()
        return url

    # --- login ---

    async def check_login(self, endpoint: Endpoint) -> str:
        """Try credentials at ``/v2/``; an identity token where the service gives one."""
        async with self.transport.request("GET", endpoint, "", scope="") as response:
            if response.status != 200:
                answer = await answer_of(response)
                if answer.status in (401, 403):
                    raise errdefs.Unauthorized(
                        f"login attempt to {response.url} failed with status: "
                        f"{response.status} {response.reason}")
                raise general(answer)
        return self.transport.authorizer(endpoint.host).identity_token


def pull_scope(reference: Reference) -> str:
    return f"repository:{reference.path}:pull"


def push_scope(reference: Reference) -> str:
    return f"repository:{reference.path}:pull,push"


def push_error(answer: Any) -> errdefs.CarrelError:
    if answer.status == 403 or answer.code == "DENIED":
        return errdefs.Forbidden(answer.words)
    return general(answer)


def _next_query(link: str) -> str:
    """The query of ``<...?last=x&n=y>; rel="next"``."""
    target, _, relation = link.partition(">")
    if "next" not in relation or not target.startswith("<"):
        return ""
    query = urlsplit(target[1:]).query
    return query if query.isascii() and query.isprintable() else ""


def _start_of(response: aiohttp.ClientResponse, offset: int, size: int) -> int | None:
    """Where the body begins; None for an error answer."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != size:
            raise errdefs.InvalidParameter(
                f"{response.host} gives {length} bytes for a blob of {size}")
        return 0
    if response.status == 206 and offset:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        first = rest.partition("-")[0]
        if unit != "bytes" or not first.isdigit() or int(first) > offset:
            raise errdefs.InvalidParameter(f"{response.host} answers another range than asked")
        return int(first)
    return None


async def _bounded(response: aiohttp.ClientResponse, start: int, descriptor: Descriptor,
                   ) -> AsyncIterator[bytes]:
    """The body, which ends exactly at the descriptor's size."""
    position = start
    try:
        async for chunk in response.content.iter_any():
            position += len(chunk)
            if position > descriptor.size:
                raise errdefs.InvalidParameter(
                    f"{response.host} sends more than the {descriptor.size} bytes of "
                    f"{descriptor.digest}")
            yield chunk
    except BROKEN as error:
        raise Transient(f"{descriptor.digest}: {break_of(error)}") from error
    if position < descriptor.size:
        raise Transient(f"{descriptor.digest}: unexpected EOF after {position} bytes")

