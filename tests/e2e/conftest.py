"""The whole stack, started once, and the real clients that drive it.

``stack``  a running carreld with busybox:latest loaded; one for all the tests here
``cli``    runs one of the clients against it: docker 28.5, docker 20.10, carrel
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import images, leakcheck
from tests.e2e.engine import BIN, Cli, OverContainerd, Stack, newest_client, peers

ORIGINAL = os.environ.get("CARREL_E2E_ENGINE") == "docker"
KINDS: dict[str, Callable[[Path], Stack]] = {
    "embedded": Stack,
    "process": lambda work: Stack(work, "--containerd=process"),
    "containerd-2.1": OverContainerd,
}
DOCKER_NEW = ("docker-28.5", newest_client)
DOCKER_OLD = ("docker-20.10", lambda: str(peers("bookworm") / "usr/bin/docker"))
CARREL = ("carrel", lambda: str(BIN / "carrel"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root, the peers' clients and the whole stack."""
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.peers)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs with the containerd layer inside carreld; those marked ``transports``
    also over carrel-containerd by gRPC, and over a real containerd with its own shim."""
    if "stack" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("transports")
        kinds = [*KINDS] if marked and not ORIGINAL else [*KINDS][:1]
        metafunc.parametrize("stack", kinds, indirect=True, scope="package")


@pytest.fixture(scope="package")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
          ) -> Iterator[Stack]:
    """One engine for these tests; at its end nothing of it may be left."""
    if os.geteuid():
        pytest.skip("needs root")
    before = leakcheck.take()
    work = tmp_path_factory.mktemp("stack")
    running = KINDS[request.param](work)
    running.start()
    try:
        archive = work / "busybox.tar"
        images.busybox_archive(archive)
        running.cli(DOCKER_NEW[1]()).ok("load", "-q", "-i", str(archive))
        yield running
    finally:
        running.stop()
    leaks = leakcheck.wait_until_clean(before, 30)
    assert not leaks, f"the engine left behind: {leaks}"


@pytest.fixture
def docker(stack: Stack) -> Iterator[Cli]:
    """The newest docker CLI; what a test made is gone after it."""
    yield from _clean(stack, stack.cli(DOCKER_NEW[1]()))


@pytest.fixture(params=[DOCKER_NEW, DOCKER_OLD, CARREL], ids=lambda p: p[0])
def cli(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Cli]:
    """Each of the clients in turn."""
    yield from _clean(stack, stack.cli(request.param[1]()))


def _clean(stack: Stack, client: Cli) -> Iterator[Cli]:
    before = leakcheck.take()
    yield client
    left = client.ok("ps", "-aq").split()
    if left:
        client.run("rm", "-f", "-v", *left)
    # carreld keeps a few ready-made things (pools): they are its own, not the test's
    deadline = time.monotonic() + 30
    while True:
        leaks = leakcheck.take().difference(before)
        leaks = {kind: kept for kind, found in leaks.items()
                 if (kept := [f for f in found if not stack.is_pool(f)])}
        if not leaks or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert not leaks, f"left behind: {leaks}"


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path


def have(program: str) -> bool:
    return subprocess.run(["/bin/sh", "-c", f"command -v {program}"], capture_output=True,
                          check=False).returncode == 0
