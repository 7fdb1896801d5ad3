"""A real registry (docker-registry of the peers' root) on loopback."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.transferkit import Kit

ROOT = Path(__file__).resolve().parent.parent.parent
#: "tester" with the password "secret", by bcrypt, which is all that the registry reads
HTPASSWD = "tester:$2y$05$%s\n"


@dataclass
class Registry:
    address: str
    data: Path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    pytest.fail("docker-registry did not start")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
        f"  delete:\n    enabled: true\nhttp:\n  addr: {address}\nlog:\n  level: error\n")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [str(ROOT / "scripts/in-peers"), "docker-registry", "serve", str(config)],
            stdout=log, stderr=log)
        try:
            _wait(address, process)
            yield Registry(address, folder / "data")
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "kit")
    yield kit
    kit.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "other")
    yield kit
    kit.close()
