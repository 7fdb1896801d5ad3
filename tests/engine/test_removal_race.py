"""A forced removal that meets a start under way: the container ends, nothing is left."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.engine.stack import IMAGE, Stack

pytestmark = pytest.mark.root


class _Link(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _request(sock: str, method: str, path: str) -> int:
    link = _Link(sock)
    link.request(method, path)
    answer = link.getresponse()
    answer.read()
    link.close()
    return answer.status


def _processes(ident: str) -> list[str]:
    found = []
    for files in Path("/sys/fs/cgroup").glob(f"*/carrel-test-*/{ident}/cgroup.procs"):
        with contextlib.suppress(OSError):  # it is being removed
            found += files.read_text().split()
    return found


def test_removed_while_it_starts(stack: Stack) -> None:
    for delay in (0.002, 0.004, 0.006, 0.009, 0.012, 0.016, 0.02, 0.03):
        ident = stack.out("create", "--network", "none", IMAGE, "sleep", "1000")
        starter = threading.Thread(
            target=_request, args=(stack.sock, "POST", f"/containers/{ident}/start"))
        starter.start()
        time.sleep(delay)
        status = _request(stack.sock, "DELETE", f"/containers/{ident}?force=1")
        starter.join()
        assert status == 204
        assert not _processes(ident), "the process of a removed container lives on"
