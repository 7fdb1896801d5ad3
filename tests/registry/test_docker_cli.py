"""Images through the real docker CLI: load, save, tag, rmi, commit, import, push, pull.

With ``CARREL_E2E_ENGINE=docker`` the same tests run against Docker itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import images
from tests.containerd.harness import present
from tests.e2e.engine import Cli, Done, Stack, peers
from tests.registry.conftest import ROOT, Registry
from tests.registry.fake import Fake, basic, error, serving

pytestmark = [pytest.mark.root, pytest.mark.peers]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("cli"))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture
def docker(running: Stack, tmp_path: Path) -> Iterator[Cli]:
    """With busybox:latest and nothing else."""
    cli = running.cli(str(peers("sid") / "usr/bin/docker"))
    images.busybox_archive(tmp_path / "busybox.tar")
    cli.ok("load", "-q", "-i", str(tmp_path / "busybox.tar"))
    yield cli
    for container in cli.ok("ps", "-aq").split():
        cli.run("rm", "-f", container)
    for image in set(cli.ok("images", "-aq").split()):
        cli.run("rmi", "-f", image)


def names(cli: Cli) -> set[str]:
    return set(cli.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def test_load_says_what_it_loaded(docker: Cli, tmp_path: Path) -> None:
    images.docker_archive(tmp_path / "a.tar", {"one:1": images.busybox(),
                                               "two/x:latest": images.busybox()})
    out = docker.ok("load", "-i", str(tmp_path / "a.tar"))
    assert "Loaded image: one:1\n" in out and "Loaded image: two/x:latest\n" in out
    images.docker_archive(tmp_path / "b.tar", {"": images.Image([images.layer({"f": b""})])})
    out = docker.ok("load", "-i", str(tmp_path / "b.tar"))
    assert "Loaded image ID: sha256:" in out


def test_load_that_moves_a_name_keeps_the_old_image(docker: Cli, tmp_path: Path) -> None:
    old = docker.ok("images", "-q", "busybox").strip()
    images.docker_archive(tmp_path / "a.tar", {
        "busybox:latest": images.Image([images.layer({"f": b""})])})
    docker.ok("load", "-i", str(tmp_path / "a.tar"))
    assert docker.ok("images", "-q", "-f", "dangling=true").split() == [old]
    assert docker.ok("images", "-q", "busybox").strip() != old
    docker.ok("image", "prune", "-f")
    assert old not in docker.ok("images", "-aq")


def test_inspect_history_and_filters(docker: Cli) -> None:
    image = docker.inspect("busybox")
    assert image["Id"] == images.busybox().id
    assert image["RepoTags"] == ["busybox:latest"]
    assert image["Config"]["Cmd"] == ["sh"] and image["Os"] == "linux"
    assert image["RootFS"]["Layers"] == [images.digest(x) for x in images.busybox().layers]
    assert image["Size"] > 500_000
    assert docker.ok("history", "-q", "busybox").split()[0] == image["Id"][7:19]
    for ref in (image["Id"], image["Id"][7:], image["Id"][7:19], image["Id"][7:11],
                "busybox", "docker.io/library/busybox:latest", "index.docker.io/busybox"):
        assert docker.inspect(ref)["Id"] == image["Id"], ref
    docker.ok("tag", "busybox", "some/name:x")
    listed = docker.ok("images", "--format", "{{.Repository}}", "--filter", "reference=some/*")
    assert listed.split() == ["some/name"]
    assert docker.ok("images", "-q", "--filter", "reference=*/nothing") == ""
    assert docker.ok("images", "-q", "--filter", "label=none") == ""
    assert "invalid filter" in docker.fails("images", "--filter", "nonsense=1").err


@pytest.mark.parametrize(("argv", "text"), [
    (("rmi", "nosuch"), "No such image: nosuch:latest"),
    (("rmi", "nosuch:1"), "No such image: nosuch:1"),
    (("tag", "nosuch", "x"), "No such image: nosuch:latest"),
    (("save", "-o", "/tmp/never-written.tar", "nosuch"), "No such image: nosuch\n"),
    (("push", "127.0.0.1:1/nosuch"),
     "An image does not exist locally with the tag: 127.0.0.1:1/nosuch"),
    (("pull", "127.0.0.1:1/x"), "connection refused"),
    (("tag", "busybox", "UPPER"), "must be lowercase"),
    (("pull", "a:b:c"), "invalid reference format"),
    (("commit", "nosuch"), "No such container: nosuch"),
])
def test_errors(docker: Cli, argv: tuple[str, ...], text: str) -> None:
    assert text in docker.fails(*argv).err


def test_rmi_by_the_rules(docker: Cli) -> None:
    ident = docker.inspect("busybox")["Id"][7:19]
    docker.ok("tag", "busybox", "other:1")
    assert docker.ok("rmi", "other:1") == "Untagged: other:1\n"
    docker.ok("tag", "busybox", "other:1")
    done = docker.fails("rmi", ident)
    assert "(must be forced) - image is referenced in multiple repositories" in done.err
    docker.ok("rmi", "other:1")
    docker.ok("create", "--name", "c1", "busybox")
    done = docker.fails("rmi", "busybox")
    assert "unable to remove repository reference" in done.err and "must force" in done.err
    done = docker.fails("rmi", ident)
    assert "(must be forced) - image is being used by stopped container" in done.err
    docker.ok("run", "-d", "--name", "c2", "busybox", "sleep", "60")
    done = docker.fails("rmi", "-f", ident)
    assert "(cannot be forced) - image is being used by running container" in done.err
    docker.ok("rm", "-f", "c1", "c2")
    out = docker.ok("rmi", "busybox")
    assert "Untagged: busybox:latest" in out and "Deleted: sha256:" in out
    assert names(docker) == set()


def test_commit_and_run_the_result(docker: Cli) -> None:
    docker.ok("run", "--name", "cc", "busybox", "sh", "-c",
              "echo new > /n; rm /etc/group; rm -r /home; mkdir /home; touch /home/x; "
              "ln /n /m; chmod 4711 /m; mknod /p p")
    ident = docker.ok("commit", "-m", "why", "-a", "who", "-c", 'CMD ["cat", "/m"]',
                      "-c", "ENV A=1 B=\"two words\"", "-c", "EXPOSE 80", "-c",
                      "LABEL k=v", "cc", "made:1").strip()
    image = docker.inspect("made:1")
    assert image["Id"] == ident and image["Author"] == "who" and image["Comment"] == "why"
    assert {"A=1", "B=two words"} <= set(image["Config"]["Env"])
    assert image["Config"]["Labels"] == {"k": "v"} and "80/tcp" in image["Config"]["ExposedPorts"]
    assert image["Parent"] == docker.inspect("busybox")["Id"]
    assert docker.ok("run", "--rm", "made:1") == "new\n"
    out = docker.ok("run", "--rm", "made:1", "sh", "-c",
                    "ls /etc/group 2>&1; ls /home; stat -c '%a %h' /m; test -p /p && echo pipe")
    assert "No such file" in out and out.splitlines()[1:] == ["x", "4711 2", "pipe"]
    assert len(docker.ok("history", "-q", "made:1").split()) == 2
    done = docker.fails("commit", "-c", "RUN x", "cc")
    assert "RUN is not a valid change command" in done.err


def test_import(docker: Cli, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(images.busybox().layers[0])
    subprocess.run(["gzip", "-1", "-k", str(tmp_path / "root.tar")], check=True)
    ident = docker.ok("import", "-m", "note", "-c", "CMD echo imported",
                      str(tmp_path / "root.tar.gz"), "got:1").strip()
    assert docker.inspect("got:1")["Id"] == ident
    assert docker.ok("run", "--rm", "got:1") == "imported\n"


def test_push_pull_and_run(docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/some/busybox:1"
    docker.ok("tag", "busybox", name)
    out = docker.ok("push", name)
    assert f"The push refers to repository [{registry.address}/some/busybox]" in out
    assert "1: digest: sha256:" in out
    digest = out.split("digest: ")[1].split()[0]
    docker.ok("rmi", name, "busybox")
    out = docker.ok("pull", name)
    assert out.splitlines()[0] == "1: Pulling from some/busybox"
    for line in ("Pulling fs layer", "Download complete", "Pull complete", f"Digest: {digest}",
                 f"Status: Downloaded newer image for {name}"):
        assert line in out, out
    assert f"Status: Image is up to date for {name}" in docker.ok("pull", name)
    assert docker.inspect(name)["RepoDigests"] == [f"{registry.address}/some/busybox@{digest}"]
    assert docker.ok("run", "--rm", f"{registry.address}/some/busybox@{digest}", "echo",
                     "ran") == "ran\n"
    done = docker.fails("pull", f"{registry.address}/some/busybox:2")
    assert f"manifest for {registry.address}/some/busybox:2 not found: manifest unknown" in done.err
    docker.ok("rmi", "-f", name)
    done = docker.run("run", "--rm", name, "echo", "ran")
    assert done.out == "ran\n" and "Unable to find image" in done.err
    docker.ok("tag", name, f"{registry.address}/some/busybox:3")
    docker.ok("push", "-q", f"{registry.address}/some/busybox:3")
    docker.ok("rmi", name, f"{registry.address}/some/busybox:3")
    docker.ok("pull", "-a", "-q", f"{registry.address}/some/busybox")
    assert {name, f"{registry.address}/some/busybox:3"} <= names(docker)


@contextlib.contextmanager
def private_registry(image: images.Image) -> Iterator[Fake]:
    """Wants Basic credentials; in a loop and thread of its own."""
    fake = Fake(image)
    fake.hooks.append(lambda request: None if request.headers.get("Authorization") == basic(
        "user", "pass word") else web.Response(
            status=401, headers={"WWW-Authenticate": 'Basic realm="private"'}))
    ready, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with serving(fake):
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        loop.close()


def test_login_and_private_pull(docker: Cli) -> None:
    with private_registry(images.Image([images.layer({"f": b"x"})], {"Cmd": ["x"]})) as fake:
        assert "no basic auth credentials" in docker.fails("pull", fake.name).err
        done = docker.fails("login", "-u", "user", "--password-stdin", fake.address,
                            stdin="wrong")
        assert "401 Unauthorized" in done.err
        out = docker.ok("login", "-u", "user", "--password-stdin", fake.address,
                        stdin="pass word")
        assert "Login Succeeded" in out
        try:
            assert "Downloaded newer image" in docker.ok("pull", fake.name)
            shown = docker.ok("manifest", "inspect", "--insecure", fake.name)
            assert fake.layer in shown
        finally:
            docker.ok("logout", fake.address)
        assert docker.run("pull", fake.name).code != 0


def test_pull_ends_with_its_client(docker: Cli, tmp_path: Path) -> None:
    """Ctrl-C ends the download too, and the next pull goes on with what is there."""
    image = images.Image([images.layer({"f": os.urandom(6_000_000)})])
    with private_registry(image) as fake:
        fake.hooks.clear()
        gone = threading.Event()

        async def trickle(request: web.Request) -> web.StreamResponse | None:
            if fake.layer not in request.path or fake.counts[request.path] > 1:
                return None
            response = web.StreamResponse()
            data = fake.blobs[fake.layer]
            response.content_length = len(data)
            await response.prepare(request)
            try:
                for at in range(0, len(data), 100_000):
                    await response.write(data[at:at + 100_000])
                    await asyncio.sleep(0.4)
            except (ConnectionError, asyncio.CancelledError):
                gone.set()
                raise
            return response

        fake.hooks.append(trickle)
        with open(tmp_path / "out", "wb") as out:
            client = docker.popen("pull", fake.name, stdout=out, stderr=out)
            deadline = time.monotonic() + 30
            while b"Pulling fs layer" not in (tmp_path / "out").read_bytes():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1.5)
            client.terminate()
            client.wait(60)
        assert gone.wait(20), "the download went on without its client"
        assert fake.name not in names(docker)
        docker.ok("pull", fake.name)
        assert any("Range" in headers for _, _, headers in fake.requests(fake.layer))


def test_load_ends_with_its_client(docker: Cli, running: Stack, tmp_path: Path) -> None:
    image = images.Image([images.layer({"f": os.urandom(4_000_000)})])
    images.docker_archive(tmp_path / "a.tar", {"half:1": image})
    data = (tmp_path / "a.tar").read_bytes()
    client = docker.popen("load", "-q", stdin=subprocess.PIPE)
    assert client.stdin is not None
    client.stdin.write(data[:len(data) // 2])
    client.stdin.flush()
    time.sleep(0.5)
    client.kill()
    client.wait(60)
    ingest = running.work / "data/containerd/content/ingest"
    deadline = time.monotonic() + 30
    while ingest.is_dir() and os.listdir(ingest):
        assert time.monotonic() < deadline, "the half archive stays"
        time.sleep(0.05)
    assert "half:1" not in names(docker)
    docker.ok("load", "-q", "-i", str(tmp_path / "a.tar"))


def test_search_says_that_it_is_missing(docker: Cli) -> None:
    if os.environ.get("CARREL_E2E_ENGINE") == "docker":
        pytest.skip("Docker asks Docker Hub")
    assert "not implemented in Carrel" in docker.fails("search", "nginx").err


def test_save_for_others(docker: Cli, tmp_path: Path) -> None:
    docker.ok("tag", "busybox", "second:2")
    docker.ok("save", "-o", str(tmp_path / "s.tar"), "busybox", "second:2")
    with tarfile.open(tmp_path / "s.tar") as tar:
        document = json.load(tar.extractfile("manifest.json") or io.BytesIO())
    assert sorted(document[0]["RepoTags"]) == ["busybox:latest", "second:2"]
    shared = Path("/tmp") / f"carrel-skopeo-{os.getpid()}"
    shared.mkdir()
    try:
        (shared / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes())
        for source in ("docker-archive", "oci-archive"):
            what = ":busybox:latest" if source == "docker-archive" else ":latest"
            done = subprocess.run(
                [str(ROOT / "scripts/in-peers"), "skopeo", "inspect", "--config",
                 f"{source}:{shared}/s.tar{what}"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["rootfs"]["diff_ids"] == [
                images.digest(x) for x in images.busybox().layers]
    finally:
        for file in shared.iterdir():
            file.unlink()
        shared.rmdir()


# --- a registry that is broken ---------------------------------------------------------------


def _cut(fake: Fake) -> Callable[[web.Request], Any]:
    """Every layer's stream ends in the middle, however often it is asked for."""
    async def hook(request: web.Request) -> Any:
        if request.method == "GET" and fake.layer in request.path:
            return await fake.send(request, fake.blobs[fake.layer], cut=1000, ranges=False)
        return None
    return hook


def _fails(path: str, status: int = 500) -> Callable[[web.Request], Any]:
    return lambda request: error(status, "UNKNOWN", "unknown error") if path in request.path \
        else None


def one_line(done: Done) -> str:
    """What the client says of a failure: one line, and no more."""
    lines = done.err.strip().splitlines()
    assert done.code == 1 and len(lines) == 1, done.err
    assert "Traceback" not in done.err and len(lines[0]) < 400
    return lines[0]


@pytest.mark.parametrize("how", ["manifest-500", "layer-500", "layer-503", "layer-cut", "gone"])
def test_pull_from_a_broken_registry(docker: Cli, running: Stack, how: str) -> None:
    before = docker.ok("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Size}}")
    snapshots = running.work / "data/containerd/snapshots"
    kept = present(snapshots)
    with private_registry(images.Image([images.layer({"f": os.urandom(100_000)})])) as fake:
        name = fake.name
        fake.hooks[:] = {
            "manifest-500": [_fails("/manifests/")], "layer-500": [_fails(fake.layer)],
            "layer-503": [_fails(fake.layer, 503)], "layer-cut": [_cut(fake)], "gone": []}[how]
        if how != "gone":
            said = one_line(docker.run("pull", name, timeout=120))
            wanted = {"manifest-500": "500", "layer-500": "500", "layer-503": "503",
                      "layer-cut": "EOF|connection reset by peer"}[how]
            assert any(words in said for words in wanted.split("|")), said
            assert name not in names(docker)
            # the registry is well again: so is the pull
            fake.hooks.clear()
            assert f"Status: Downloaded newer image for {name}" in docker.ok("pull", name)
            docker.ok("rmi", name)
    if how == "gone":
        assert "connection refused" in one_line(docker.run("pull", name))
    assert names(docker) == {"busybox:latest"}
    assert docker.ok("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Size}}") == before
    assert present(snapshots) == kept


@pytest.mark.parametrize("how", ["start-500", "upload-500", "upload-cut", "manifest-500",
                                 "unauthorized", "denied"])
def test_push_to_a_broken_registry(docker: Cli, how: str) -> None:
    async def cut(request: web.Request) -> Any:
        if request.method in ("PATCH", "PUT") and "/uploads/" in request.path:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        return None

    def method(name: str, path: str, status: int, code: str, text: str
               ) -> Callable[[web.Request], Any]:
        return lambda request: error(status, code, text) if (
            request.method == name and path in request.path) else None

    with private_registry(images.busybox()) as fake:
        name = f"{fake.address}/mine:1"
        hook, wanted = {
            "start-500": (method("POST", "/uploads/", 500, "UNKNOWN", "no disk"), "500"),
            "upload-500": (method("PUT", "/uploads/", 500, "UNKNOWN", "no disk"), "500"),
            "upload-cut": (cut, "EOF|connection reset by peer"),
            "manifest-500": (method("PUT", "/manifests/", 500, "UNKNOWN", "no disk"), "500"),
            "unauthorized": (lambda request: web.Response(
                status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
                "no basic auth credentials"),
            "denied": (method("POST", "/uploads/", 403, "DENIED", "requested access is denied"),
                       "denied: requested access is denied")}[how]
        fake.hooks[:] = [hook, accepts_pushes(fake)]
        docker.ok("tag", "busybox", name)
        said = one_line(docker.run("push", name, timeout=120))
        assert any(words in said for words in wanted.split("|")), said
        # and with a registry that works it works
        fake.hooks[:] = [accepts_pushes(fake)]
        assert "1: digest: sha256:" in docker.ok("push", name)
        docker.ok("rmi", name)


def accepts_pushes(fake: Fake) -> Callable[[web.Request], Any]:
    """A registry that takes everything and has nothing."""
    async def hook(request: web.Request) -> Any:
        body = await request.read()
        if request.method == "HEAD" and "/blobs/" in request.path:
            return web.Response(status=404)
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": f"{request.path}some-upload"})
        if request.method in ("PUT", "PATCH"):
            found = request.query.get("digest") or images.digest(body)
            return web.Response(status=201 if request.method == "PUT" else 202, headers={
                "Docker-Content-Digest": found, "Location": request.path})
        return None
    return hook


def test_what_a_push_says_on_its_way(docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/said/busybox:1"
    docker.ok("tag", "busybox", name)
    layers = [x[7:19] for x in docker.inspect("busybox")["RootFS"]["Layers"]]
    lines = docker.ok("push", name).splitlines()
    assert lines[0] == f"The push refers to repository [{registry.address}/said/busybox]"
    for layer in layers:
        assert f"{layer}: Preparing" in lines and f"{layer}: Pushed" in lines, lines
    assert lines[-1].startswith("1: digest: sha256:") and " size: " in lines[-1]
    again = docker.ok("push", name).splitlines()
    for layer in layers:
        assert f"{layer}: Layer already exists" in again, again
    assert again[-1] == lines[-1]
    docker.ok("rmi", name)
