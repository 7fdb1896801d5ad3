"""What the exploit tests share: bundles run in process, one engine, canaries on the host."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.kernel import syscalls
from carrel.runtime import api
from tests import leakcheck
from tests.engine.stack import Stack, clean, start_stack
from tests.runtime.conftest import Bundle, bundle

__all__ = ["bundle"]  # a fixture


class Canary:
    """A folder of the host that no container has business in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "etc").mkdir(parents=True)
        (folder / "empty").mkdir()
        (folder / "secret").write_text("of the host\n")
        (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (folder / "etc" / "passwd").chmod(0o600)
        self._before = self._look()

    def _look(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for base, folders, files in os.walk(self.folder):
            for name in (".", *folders, *files):
                path = os.path.join(base, name)
                info = os.lstat(path)
                content = ""
                if stat.S_ISREG(info.st_mode):
                    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                found[path] = (info.st_ino, info.st_mode, info.st_uid, info.st_gid,
                               info.st_nlink, info.st_ctime_ns, content)
        return found

    def changes(self) -> list[str]:
        now = self._look()
        return sorted(p for p in {*now, *self._before} if now.get(p) != self._before.get(p))

    def check(self) -> None:
        assert self.changes() == []


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "host-canary")


class Outcome:
    """What one container did: its output, or the error of its start."""

    def __init__(self, text: str = "", status: int = -1, error: str = "") -> None:
        self.text, self.status, self.error = text, status, error


class Kernel:
    """The real one with hooks: ``instead`` (name -> function) replaces calls."""

    def __init__(self, **instead: Any) -> None:
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        return self._instead.get(name) or getattr(syscalls, name)


def contain(bundle: Bundle, *words: str, **more: Any) -> Outcome:
    """Run ``words`` in a container made by this very process."""
    if words:
        bundle.args(*words)
    reader, writer = os.pipe()
    stdio = None if bundle.spec["process"]["terminal"] else (-1, writer, writer)
    try:
        made = api.create(bundle.id, bundle.write(), bundle.root,
                          **{"stdio": stdio, "spec": bundle.spec, **more})
    except Exception as refused:
        os.close(reader)
        return Outcome(error=api.message(refused))
    finally:
        os.close(writer)
    error = ""
    try:
        made.start()
    except OSError as caught:
        error = api.message(caught)
    if stdio is None and made.console >= 0:
        os.close(reader)
        reader, made.console = made.console, -1
    text = b""
    try:
        while chunk := os.read(reader, 65536):
            text += chunk
    except OSError:
        pass  # a terminal that nobody has any more
    os.close(reader)
    _, status = os.waitpid(made.pid, 0)
    made.delete(force=True)
    return Outcome(text.decode(errors="surrogateescape"), os.waitstatus_to_exitcode(status), error)


def enter(container: api.Container, process: dict[str, Any], **more: Any) -> Outcome:
    """Exec ``process`` in a running container."""
    reader, writer = os.pipe()
    try:
        made = container.exec({"cwd": "/", "env": ["PATH=/bin"], **process},
                              stdio=(-1, writer, writer), **more)
    except OSError as error:
        os.close(reader)
        return Outcome(error=api.message(error))
    finally:
        os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(made.pid, 0)[1])
    os.close(made.pidfd)
    return Outcome(text, status)


@pytest.fixture
def running(bundle: Bundle) -> Iterator[api.Container]:
    """A container that sleeps."""
    bundle.args("sleep", "60")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    made.start()
    yield made
    made.kill(9)
    os.waitpid(made.pid, 0)
    made.delete(force=True)


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One engine for all of these tests, started with a careless umask."""
    machine = leakcheck.take()
    before = os.umask(0)
    try:
        stack = start_stack(tmp_path_factory.mktemp("security"))
    finally:
        os.umask(before)
    yield stack
    clean(stack)
    leaks = leakcheck.wait_until_clean(machine, 30)
    assert not leaks, f"left behind: {leaks}"


@pytest.fixture
def stack(engine: Stack) -> Iterator[Stack]:
    yield engine
    ids = engine.out("ps", "-aq").split()
    if ids:
        engine.docker("rm", "-f", "-v", *ids)
