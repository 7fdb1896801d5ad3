"""Pull from a registry that answers wrongly, cuts, lies or asks for credentials."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from carrel import errdefs
from carrel.oci import reference as references
from carrel.registry import auth, hosts, transport
from carrel.registry.client import Credential, RegistryClient
from tests import images
from tests.registry.fake import Fake, basic, error, serving
from tests.transferkit import Kit

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[Fake]:
    image = images.Image([images.layer({"f": os.urandom(2_000_000), "d": None})])
    async with serving(Fake(image)) as found:
        yield found


def nothing_left(kit: Kit) -> None:
    assert kit.names() == []
    assert kit.chains() == []
    assert kit.stores.leases.walk("test") == []


async def test_pull(kit: Kit, fake: Fake) -> None:
    await kit.pull(fake.name)
    assert kit.names() == [fake.name]


@pytest.mark.parametrize(("status", "code", "kind", "text"), [
    (404, "MANIFEST_UNKNOWN", errdefs.NotFound, "manifest for .* not found: manifest unknown"),
    (404, "NAME_UNKNOWN", errdefs.NotFound, "repository .* not found: name unknown"),
    (403, "DENIED", errdefs.NotFound, "pull access denied for .*, repository does not exist or may"
                                      " require 'docker login': denied"),
    (429, "TOOMANYREQUESTS", errdefs.Unavailable, "toomanyrequests"),
    (500, "UNKNOWN", errdefs.SystemFailure, "unknown"),
    (503, "UNAVAILABLE", errdefs.SystemFailure, "unavailable"),
    (401, "UNAUTHORIZED", errdefs.Unauthorized, "unauthorized"),
])
async def test_errors_of_the_manifest(kit: Kit, fake: Fake, status: int, code: str,
                                      kind: type[Exception], text: str) -> None:
    fake.hooks.append(lambda request: error(status, code, "because"))
    with pytest.raises(kind, match=text):
        await kit.pull(fake.name)
    attempts = 5 if status >= 500 else 1
    assert len(fake.log) == attempts
    nothing_left(kit)


async def test_control_characters_do_not_reach_the_terminal(kit: Kit, fake: Fake) -> None:
    fake.hooks.append(lambda request: error(404, "MANIFEST_UNKNOWN", "\x1b[31mred\r\n" * 200))
    with pytest.raises(errdefs.NotFound) as caught:
        await kit.pull(fake.name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


async def test_one_bad_gateway_is_survived(kit: Kit, fake: Fake) -> None:
    fake.hooks.append(lambda request: web.Response(status=502) if fake.counts[
        request.path] == 1 else None)
    await kit.pull(fake.name)


async def test_resume_of_a_cut_layer(kit: Kit, fake: Fake) -> None:
    """Cut three times: the rest is asked for, and little is sent twice."""
    data = fake.blobs[fake.layer]

    async def cut(request: web.Request) -> Any:
        if fake.layer in request.path and fake.counts[request.path] <= 3:
            return await fake.send(request, data, cut=len(data) // 5)
        return None

    fake.hooks.append(cut)
    await kit.pull(fake.name)
    asked = [headers.get("Range", "") for _, _, headers in fake.requests(fake.layer)]
    assert asked[0] == "" and all(r.startswith("bytes=") for r in asked[1:]) and len(asked) == 4
    assert fake.sent <= sum(map(len, fake.blobs.values())) * 1.1
    assert list(kit.content.statuses()) == []


async def test_server_that_ignores_range(kit: Kit, fake: Fake) -> None:
    data = fake.blobs[fake.layer]

    async def cut(request: web.Request) -> Any:
        if fake.layer in request.path:
            first = fake.counts[request.path] == 1
            return await fake.send(request, data, cut=len(data) // 2 if first else -1,
                                   ranges=False)
        return None

    fake.hooks.append(cut)
    await kit.pull(fake.name)
    assert kit.names() == [fake.name]


async def test_layer_that_never_comes(kit: Kit, fake: Fake) -> None:
    async def cut(request: web.Request) -> Any:
        if fake.layer in request.path:
            return await fake.send(request, fake.blobs[fake.layer], cut=0)
        return None

    fake.hooks.append(cut)
    with pytest.raises(errdefs.Unavailable):
        await kit.pull(fake.name)
    assert len(fake.requests(fake.layer)) == 5
    nothing_left(kit)


@pytest.mark.parametrize("lie", ["other bytes", "longer", "shorter", "length header"])
async def test_wrong_layer(kit: Kit, fake: Fake, lie: str) -> None:
    data = fake.blobs[fake.layer]
    wrong = {"other bytes": data[:-9] + b"\0" * 9, "longer": data + b"x",
             "shorter": data[:-1], "length header": data}[lie]

    async def answer(request: web.Request) -> Any:
        if fake.layer not in request.path:
            return None
        response = web.StreamResponse()
        if lie == "length header":
            response.content_length = len(data) + 7
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(wrong)
        return response

    fake.hooks.append(answer)
    with pytest.raises((errdefs.InvalidParameter, errdefs.Unavailable)):
        await kit.pull(fake.name)
    nothing_left(kit)
    # what was received wrongly does not spoil the next attempt
    fake.hooks.clear()
    await kit.pull(fake.name)
    assert kit.names() == [fake.name]


def altered(fake: Fake, **changes: Any) -> bytes:
    return json.dumps({**json.loads(fake.manifest), **changes}).encode()


@pytest.mark.parametrize("change", [
    {"manifests": []}, {"layers": [{"mediaType": images.LAYER, "digest": "sha256:../x",
                                    "size": 1}]},
    {"layers": [{"mediaType": images.LAYER, "digest": "sha256:" + "A" * 64, "size": 1}]},
    {"layers": [{"mediaType": images.LAYER, "digest": "sha256:abc", "size": 1}]},
    {"layers": [{"mediaType": images.LAYER, "digest": "x" * 71, "size": 1}]},
    {"layers": [{"mediaType": images.LAYER, "digest": "md5:" + "a" * 32, "size": 1}]},
    {"layers": [{"mediaType": images.LAYER, "digest": "sha256:" + "a" * 64, "size": -1}]},
    {"layers": None}, {"schemaVersion": 1}, {"schemaVersion": 3}, {"Layers": []},
    {"mediaType": images.INDEX}, {"config": 5},
], ids=str)
async def test_manifest_that_is_refused(kit: Kit, fake: Fake, change: dict[str, Any]) -> None:
    data = altered(fake, **change)
    fake.hooks.append(lambda request: web.Response(body=data, headers={
        "Content-Type": images.MANIFEST}) if "manifests" in request.path else None)
    with pytest.raises(errdefs.InvalidParameter):
        await kit.pull(fake.name)
    assert fake.requests("/blobs/") == []
    nothing_left(kit)


@pytest.mark.parametrize("data", [
    b"[]", b"{", b"\xff", b'{"schemaVersion":2,"schemaVersion":2}', b"x" * (5 << 20),
    b"[" * 100_000,
], ids=["list", "cut", "not utf-8", "twice", "5 MiB", "deep"])
async def test_manifest_that_is_rubbish(kit: Kit, fake: Fake, data: bytes) -> None:
    fake.hooks.append(lambda request: web.Response(body=data, headers={
        "Content-Type": images.MANIFEST}))
    with pytest.raises(errdefs.InvalidParameter):
        await kit.pull(fake.name)
    nothing_left(kit)


async def test_digest_header_that_lies(kit: Kit, fake: Fake) -> None:
    fake.hooks.append(lambda request: web.Response(body=fake.manifest, headers={
        "Content-Type": images.MANIFEST, "Docker-Content-Digest": "sha256:" + "0" * 64}))
    with pytest.raises(errdefs.InvalidParameter, match="does not match its digest"):
        await kit.pull(fake.name)


async def test_index_without_this_machine(kit: Kit, fake: Fake) -> None:
    index = json.dumps({"schemaVersion": 2, "mediaType": images.INDEX, "manifests": [
        {"mediaType": images.MANIFEST, "digest": fake.digest, "size": len(fake.manifest),
         "platform": {"os": "linux", "architecture": "s390x"}}]}).encode()
    fake.hooks.append(lambda request: web.Response(body=index, headers={
        "Content-Type": images.INDEX}) if request.path.endswith("/1") else None)
    with pytest.raises(errdefs.NotFound, match="no matching manifest for linux/"):
        await kit.pull(fake.name)


async def test_foreign_urls_are_never_asked(kit: Kit, fake: Fake) -> None:
    layer = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
             "digest": fake.layer, "size": 5, "urls": [f"http://{fake.address}/secret"]}
    data = altered(fake, layers=[layer])
    fake.hooks.append(lambda request: web.Response(body=data, headers={
        "Content-Type": images.MANIFEST}) if "manifests" in request.path else None)
    with pytest.raises(errdefs.NotImplementedYet):
        await kit.pull(fake.name)
    assert fake.requests("secret") == []


async def test_redirect_drops_the_authorization(fake: Fake) -> None:
    other = Fake(fake.image)
    async with serving(other):
        def hook(request: web.Request) -> Any:
            if request.headers.get("Authorization") != basic("u", "p"):
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if "/blobs/" in request.path:
                raise web.HTTPTemporaryRedirect(f"http://{other.address}{request.path}")
            return None

        fake.hooks.append(hook)

        async def ask(*_: Any) -> Credential:
            return Credential("u", "p")

        reference = references.parse(fake.name)
        async with RegistryClient(ask) as client:
            resolved = await client.resolve(reference)
            assert resolved.digest == fake.digest
            from carrel.oci import image as oci

            config = oci.parse_manifest(resolved.data).config
            await client.small_blob(reference, config, 1 << 20)
        assert other.log and all("Authorization" not in h for _, _, h in other.log)


async def test_redirect_loop(kit: Kit, fake: Fake) -> None:
    def hook(request: web.Request) -> Any:
        raise web.HTTPFound(f"http://{fake.address}{request.path}")

    fake.hooks.append(hook)
    with pytest.raises(errdefs.SystemFailure, match="redirects"):
        await kit.pull(fake.name)


class Tokens:
    """A registry that wants bearer tokens from a service on the same host."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.given = 0
        self.valid = ""
        fake.hooks.append(self.hook)

    def hook(self, request: web.Request) -> Any:
        if request.path == "/token":
            if request.headers.get("Authorization") not in (None, basic("u", "p")):
                return error(401, "UNAUTHORIZED", "authentication required")
            self.given += 1
            self.valid = f"token{self.given}"
            return web.json_response({"token": self.valid, "expires_in": 60})
        if request.headers.get("Authorization") != f"Bearer {self.valid}":
            scope = f"repository:{request.path.split('/')[2]}:pull"
            return web.Response(status=401, headers={"WWW-Authenticate": (
                f'Bearer realm="http://{self.fake.address}/token",service="fake",'
                f'scope="{scope}"')})
        return None


async def test_bearer_token(kit: Kit, fake: Fake) -> None:
    tokens = Tokens(fake)
    await kit.pull(fake.name)
    assert tokens.given == 1
    (_, path, _), = fake.requests("/token")
    assert "service=fake" in path and "scope=repository%3Arepo%3Apull" in path


async def test_token_that_ends_is_renewed_once(kit: Kit, fake: Fake) -> None:
    tokens = Tokens(fake)

    def revoke(request: web.Request) -> None:
        if "/blobs/" in request.path and tokens.given == 1:
            tokens.valid = "revoked"

    fake.hooks.insert(0, revoke)
    await kit.pull(fake.name)
    assert tokens.given == 2


async def test_endless_401_ends(kit: Kit, fake: Fake) -> None:
    tokens = Tokens(fake)
    fake.hooks.insert(0, lambda request: setattr(tokens, "valid", "never") if (
        request.path != "/token") else None)
    with pytest.raises(errdefs.Unauthorized):
        await kit.pull(fake.name)
    assert tokens.given == 1


@pytest.mark.parametrize("realm", [
    "http://auth.example/token", "https://169.254.169.254/token", "https://127.0.0.1/token",
    "https://10.1.2.3/token", "https://[::1]/token", "https://localhost/token",
    "https://u:p@auth.example/", "file:///etc/passwd", "", "https://192.168.0.1:5000/x",
])
async def test_realm_of_a_remote_registry(realm: str) -> None:
    asked: list[str] = []

    async def fetch(method: str, url: str, headers: Any, data: Any) -> tuple[int, bytes]:
        asked.append(url)
        return 200, b'{"token":"t"}'

    async def ask(*_: Any) -> Credential:
        return Credential("user", "password")

    authorizer = auth.Authorizer("registry.example", ask, fetch, ())
    with pytest.raises(errdefs.Forbidden):
        await authorizer.answer([f'Bearer realm="{realm}",service="s"'], "scope", "ref")
    assert asked == []


def test_only_loopback_literals_go_without_tls() -> None:
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"):
        assert hosts.endpoint(host, ()).schemes[0] == "http"
    for host in ("registry.example", "localhost.example", "127.0.0.1.example:80", "10.0.0.1",
                 "[::2]:5000", "0x7f000001"):
        found = hosts.endpoint(host, ())
        assert found.schemes == ("https",) and found.verify, host
    assert not hosts.endpoint("10.0.0.1:5000", ("10.0.0.0/8",)).verify
    assert hosts.endpoint("11.0.0.1:5000", ("10.0.0.0/8",)).verify
    assert not hosts.endpoint("r.example:5000", ("r.example:5000",)).verify
    assert hosts.endpoint("r.example", ("r.example:5000",)).verify


@pytest.mark.parametrize("leaving", [0, 2], ids=["first", "last"])
async def test_two_pulls_download_once_and_one_may_leave(kit: Kit, fake: Fake,
                                                         leaving: int) -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    async def slow(request: web.Request) -> Any:
        if fake.layer in request.path:
            started.set()
            await release.wait()
        return None

    fake.hooks.append(slow)
    pulls = [asyncio.ensure_future(kit.pull(fake.name)) for _ in range(3)]
    await asyncio.wait_for(started.wait(), 30)
    async with asyncio.timeout(30):
        while (download := kit.service.downloads.join("test", fake.layer)).users < 3:
            await asyncio.sleep(0.01)
        pulls[leaving].cancel()
        while download.users == 3:
            await asyncio.sleep(0.01)
    release.set()
    results = await asyncio.gather(*pulls, return_exceptions=True)
    assert isinstance(results.pop(leaving), asyncio.CancelledError)
    assert results == [None, None]
    assert len(fake.requests(fake.layer)) == 1
    assert kit.names() == [fake.name]
    assert kit.stores.leases.walk("test") == []


async def test_mirror_first_then_hub_is_not_asked(fake: Fake) -> None:
    async def ask(*_: Any) -> Credential:
        return Credential()

    fake.hooks.append(lambda request: web.Response(body=fake.manifest, headers={
        "Content-Type": images.MANIFEST}) if request.path == (
            "/v2/library/repo/manifests/1") else None)
    async with RegistryClient(ask, mirrors=(f"http://{fake.address}",)) as client:
        resolved = await client.resolve(references.parse("repo:1"))
    assert resolved.digest == fake.digest and resolved.endpoint.mirror


async def test_a_pull_that_was_given_up_is_resumed(kit: Kit, fake: Fake) -> None:
    """Also by another daemon: what was received stays on the disk."""
    data = fake.blobs[fake.layer]
    half = asyncio.Event()

    async def stall(request: web.Request) -> Any:
        if fake.layer in request.path and fake.counts[request.path] == 1:
            response = web.StreamResponse()
            response.content_length = len(data)
            await response.prepare(request)
            await response.write(data[:len(data) // 2])
            half.set()
            await asyncio.sleep(30)
        return None

    fake.hooks.append(stall)
    pulling = asyncio.ensure_future(kit.pull(fake.name))
    await half.wait()
    while not any(s.offset for s in kit.content.statuses()):
        await asyncio.sleep(0.01)
        if pulling.done():
            break
        # bytes are gathered before they are written: the cancel below writes the rest
        if half.is_set():
            break
    await asyncio.sleep(0.5)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert kit.names() == [] and kit.chains() == []
    await kit.pull(fake.name)
    ranges = [headers.get("Range") for _, _, headers in fake.requests(fake.layer)]
    assert ranges[0] is None and ranges[-1] is not None, ranges
    assert int(ranges[-1][6:-1]) > len(data) // 4


async def test_push_is_refused(kit: Kit, fake: Fake, tmp_path: Any) -> None:
    images.docker_archive(tmp_path / "a.tar", {fake.name: images.busybox()})
    await kit.load(tmp_path / "a.tar")
    fake.hooks.append(lambda request: error(403, "DENIED", "requested access is denied"))
    with pytest.raises(errdefs.Forbidden, match="denied: requested access"):
        await kit.push(fake.name)
    fake.hooks[:] = [lambda request: web.Response(status=401, headers={
        "WWW-Authenticate": 'Basic realm="x"'})]
    with pytest.raises(errdefs.Unauthorized, match="no basic auth credentials"):
        await kit.push(fake.name)


async def test_upload_is_never_sent_to_another_host(kit: Kit, fake: Fake, tmp_path: Any) -> None:
    images.docker_archive(tmp_path / "a.tar", {fake.name: images.busybox()})
    await kit.load(tmp_path / "a.tar")

    def hook(request: web.Request) -> Any:
        if request.method == "HEAD":
            return web.Response(status=404)
        return web.Response(status=202, headers={"Location": "http://other.example/upload"})

    fake.hooks.append(hook)
    with pytest.raises(errdefs.Forbidden, match="another host"):
        await kit.push(fake.name)


async def test_certificates_are_verified(kit: Kit, tmp_path: Any) -> None:
    """A self-signed one on a registry that must speak TLS."""
    import ssl
    import subprocess

    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "crt"],
        check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    fake = Fake(images.busybox())
    async with serving(fake, tls=context):
        with pytest.raises(errdefs.Unavailable, match="failed to verify certificate: x509"):
            await kit.pull(fake.name, default_scheme="https")
        # loopback without a wish is insecure by default, and TLS is found out
        await kit.pull(fake.name)
    assert kit.names() == [fake.name]
