"""Carrel as a service of systemd in the guest of ``make vm-test``: installed as a user
would, with the default folders. None of this runs anywhere else.

The guest is emulated, 40 times slower than any machine: one daemon serves all tests,
most questions go to the API, and nothing waits for less than a minute.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images, leakcheck
from tests.conftest import BIN, ROOT

SOCKET = "/run/carrel/carrel.sock"
DAEMON_JSON = Path("/etc/carrel/daemon.json")
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 120.0
IMAGE = "busybox:latest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    for item in items:
        if not str(item.path).startswith(here):
            continue
        item.add_marker(pytest.mark.root)
        item.add_marker(pytest.mark.vm)
        item.add_marker(pytest.mark.timeout(600))
        if not os.environ.get("CARREL_IN_VM"):
            item.add_marker(pytest.mark.skip(reason="only in the guest of make vm-test"))


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(SOCKET)


class Machine:
    """The guest with carreld on it."""

    def __init__(self) -> None:
        self.made: list[str] = []

    # --- the two clients ----------------------------------------------------------
    def carrel(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([str(BIN / "carrel"), *words], capture_output=True, text=True,
                              timeout=PATIENCE, stdin=subprocess.DEVNULL, check=False)
        if check and done.returncode:
            raise AssertionError(f"carrel {' '.join(words)}: {done.returncode}\n{done.stdout}"
                                 f"{done.stderr}\n{journal()}")
        return done

    def call(self, method: str, path: str, body: Any = None, expect: tuple[int, ...] = ()
             ) -> Any:
        """One request; the decoded answer."""
        link = _Connection("engine")
        link.request(method, path, None if body is None else json.dumps(body),
                     {"Content-Type": "application/json"})
        answer = link.getresponse()
        raw = answer.read()
        link.close()
        good = answer.status in expect if expect else answer.status < 400
        assert good, f"{method} {path}: {answer.status} {raw!r}\n{journal()}"
        try:
            return json.loads(raw)
        except ValueError:
            return raw

    # --- containers -----------------------------------------------------------------
    def create(self, *command: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        made = self.call("POST", "/containers/create", {
            "Image": IMAGE, "Cmd": list(command), **config,
            "HostConfig": {"NetworkMode": "none", **(host or {})}})
        self.made.append(made["Id"])
        return str(made["Id"])

    def start(self, *command: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        ident = self.create(*command, host=host, **config)
        self.call("POST", f"/containers/{ident}/start")
        return ident

    def run(self, *command: str, host: dict[str, Any] | None = None) -> tuple[int, str]:
        """Exit code and output of a container, both streams."""
        ident = self.start(*command, host=host)
        code = self.call("POST", f"/containers/{ident}/wait")["StatusCode"]
        text = self.logs(ident)
        self.remove(ident)
        return int(code), text

    def logs(self, ident: str) -> str:
        return _plain(self.call("GET", f"/containers/{ident}/logs?stdout=1&stderr=1"))

    def exec(self, ident: str, *command: str, **config: Any) -> tuple[int, str]:
        made = self.call("POST", f"/containers/{ident}/exec", {
            "Cmd": list(command), "AttachStdout": True, "AttachStderr": True, **config})
        raw = self.call("POST", f"/exec/{made['Id']}/start", {})
        raw = raw if isinstance(raw, bytes) else str(raw).encode()
        code = wait_for(lambda: self.call("GET", f"/exec/{made['Id']}/json")["ExitCode"])
        return int(code), _plain(raw)

    def inspect(self, ident: str) -> Any:
        return self.call("GET", f"/containers/{ident}/json")

    def remove(self, ident: str) -> None:
        self.call("DELETE", f"/containers/{ident}?force=1&v=1", expect=(204, 404))
        if ident in self.made:
            self.made.remove(ident)

    def remove_all(self) -> None:
        for ident in list(self.made):
            self.remove(ident)

    # --- the service ------------------------------------------------------------------
    def restart(self, settings: dict[str, Any] | None = None) -> None:
        if settings is not None:
            DAEMON_JSON.parent.mkdir(exist_ok=True)
            DAEMON_JSON.write_text(json.dumps(settings))
        # tests restart it more often than a start limit allows
        subprocess.run(["systemctl", "reset-failed", "carrel"], check=False, timeout=PATIENCE)
        done = subprocess.run(["systemctl", "restart", "carrel"], capture_output=True, text=True,
                              check=False, timeout=300)
        assert done.returncode == 0, done.stderr + journal()


def _plain(raw: Any) -> str:
    """stdcopy frames as text."""
    if not isinstance(raw, bytes):
        return str(raw)
    found = b""
    while len(raw) >= 8:
        size = int.from_bytes(raw[4:8], "big")
        found += raw[8:8 + size]
        raw = raw[8 + size:]
    return found.decode(errors="replace")


def journal() -> str:
    return subprocess.run(["journalctl", "-u", "carrel", "-n", "40", "--no-pager", "-o", "cat"],
                          capture_output=True, text=True, check=False).stdout


def unit_property(unit: str, name: str) -> str:
    return subprocess.run(["systemctl", "show", "-P", name, unit], capture_output=True, text=True,
                          check=True, timeout=PATIENCE).stdout.strip()


def wait_for(question: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first answer that is not None or False."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < deadline, f"still {answer!r}\n{journal()}"
        time.sleep(0.2)


def cgroup(ident: str) -> Path:
    return CGROUPS / "carrel" / ident


LIVE = {"live-restore": True}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Installed, started, with an image."""
    before = _look()
    machine = Machine()
    DAEMON_JSON.parent.mkdir(exist_ok=True)
    DAEMON_JSON.write_text(json.dumps(LIVE))
    script = str(ROOT / "scripts" / "install-service")
    done = subprocess.run([script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr + journal()
    archive = tmp_path_factory.mktemp("image") / "busybox.tar"
    images.busybox_archive(archive)
    machine.carrel("load", "-q", "-i", str(archive))
    yield machine
    done = subprocess.run([script, "--remove"], capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr + journal()
    deadline = time.monotonic() + 30
    while leaks := _look().difference(before):
        assert time.monotonic() < deadline, f"left behind: {leaks}"
        time.sleep(0.5)


def _look() -> leakcheck.Snapshot:
    """The machine, with all cgroups and processes of Carrel's (the guest's own come and go)."""
    found = leakcheck.take(cgroups="carrel")
    mine = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "carrel" in command and int(pid) not in (os.getpid(), os.getppid()):
                mine.add(f"{pid} {command}")
    found.facts["processes"] = frozenset(mine)
    return found


@pytest.fixture
def machine(service: Machine) -> Iterator[Machine]:
    yield service
    service.remove_all()
