"""A container that changes its files under the engine's hands, and names meant to confuse."""

from __future__ import annotations

import ctypes
import io
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.rawhttp import Answer, call
from tests.engine.stack import IMAGE, Stack

pytestmark = pytest.mark.root

_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Flipper(threading.Thread):
    """Exchanges two names of a folder of the container, as fast as it can."""

    def __init__(self, folder: int) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.ended = threading.Event()
        self.times = 0

    def run(self) -> None:
        while not self.ended.is_set():
            if _libc.renameat2(self._folder, b"d", self._folder, b"l", _EXCHANGE) == 0:
                self.times += 1
            time.sleep(0.0002)  # two cores for everybody; a cp takes a hundred times as long


def _archive(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("way", ["absolute", "upwards", "magic"])
def test_copies_while_folders_and_links_are_exchanged(stack: Stack, tmp_path: Path,
                                                      way: str) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "f").write_text("CANARY")
    before = sorted(os.listdir(canary))
    link = {"absolute": str(canary), "upwards": "../" * 30 + str(canary).lstrip("/"),
            "magic": f"/proc/self/root{canary}"}[way]
    stack.docker("run", "-d", "--name", "race", IMAGE, "sh", "-c",
                 f"mkdir -p /race/d; echo inside > /race/d/f; ln -s {link} /race/l; echo ready; "
                 "sleep 1000")
    deadline = time.monotonic() + 30
    while "ready" not in stack.out("logs", "race"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid = stack.out("inspect", "-f", "{{.State.Pid}}", "race")
    folder = os.open(f"/proc/{pid}/root/race", os.O_RDONLY | os.O_DIRECTORY)
    flipper = Flipper(folder)
    put = _archive("written", b"by cp")

    def one(number: int) -> Answer:
        name = ("d", "l")[number % 2]
        if number % 4 < 2:
            path = f"/race/{name}" + ("/f" if number % 8 < 4 else "")
            return call(stack.sock, "GET", f"/containers/race/archive?path={path}")
        return call(stack.sock, "PUT", f"/containers/race/archive?path=/race/{name}", put,
                    headers={"Content-Type": "application/x-tar"})

    try:
        flipper.start()
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(one, range(80)))
    finally:
        flipper.ended.set()
        flipper.join()
        os.close(folder)
    assert flipper.times > 100
    assert not any(b"CANARY" in answer.raw for answer in answers)
    assert sorted(os.listdir(canary)) == before and (canary / "f").read_text() == "CANARY"
    statuses = {answer.status for answer in answers}
    assert 200 in statuses  # some of them found the folder
    assert statuses <= {200, 400, 403, 404}, [a.raw[-300:] for a in answers if a.status >= 500]


def test_names_of_processes_are_text(stack: Stack) -> None:
    """What a process calls itself is shown, and nothing more."""
    stack.docker("run", "-d", "--name", "odd", IMAGE, "sh", "-c",
                 "exec tail -f /dev/null \"$(printf '\\377\\033[31m\\nfake 1 root')\"")
    deadline = time.monotonic() + 30
    while b"tail" not in (raw := call(stack.sock, "GET", "/containers/odd/top").raw) or (
            b"printf" in raw):
        assert time.monotonic() < deadline  # the shell is still the shell
        time.sleep(0.02)
    for arguments in ("", "-ef", "aux", "-eo pid,cmd", "axo pid,args"):
        answer = call(stack.sock, "GET", "/containers/odd/top?ps_args="
                      + arguments.replace(" ", "%20"))
        assert answer.status == 200, answer.raw
        assert len({len(row) for row in answer.json["Processes"]}) == 1
        assert len(answer.json["Processes"]) == 1
    for arguments in ("--help", "-eo%20x;id", "-C%20sh", "%00", "a%0ab"):
        answer = call(stack.sock, "GET", f"/containers/odd/top?ps_args={arguments}")
        assert 400 <= answer.status <= 501 and answer.json["message"], arguments


@pytest.mark.parametrize("command", [
    ["sh", "-c", "printf '\\377\\033]0;x\\007\\n'"], ["echo", "a\nb\r\n\x1b[2J"],
    ["echo", "é" * 5000],
    ["\n"], ["../../bin/true"], ["/proc/self/exe"], ["/etc/passwd"], [""],
])
def test_exec_of_anything_answers(stack: Stack, command: list[str]) -> None:
    stack.docker("run", "-d", "--name", "box", IMAGE, "sleep", "100")
    made = call(stack.sock, "POST", "/containers/box/exec", {
        "Cmd": command, "AttachStdout": True, "AttachStderr": True})
    if made.status == 400:
        return
    assert made.status == 201
    answer = call(stack.sock, "POST", f"/exec/{made.json['Id']}/start", {})
    assert answer.status in (200, 400), answer.raw
    deadline = time.monotonic() + 30
    while (state := call(stack.sock, "GET", f"/exec/{made.json['Id']}/json").json)["Running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert state["ExitCode"] is not None


@pytest.mark.parametrize("path", [
    "", "/", ".", "..", "/../../../etc", "a" * 5000, "/a%00b", "%ff%fe", "/proc/1/root",
    "/proc/self/fd/0", "/dev/zero", "/a%0ab", "/dev/stdin/.."])
def test_paths_of_archives(stack: Stack, path: str) -> None:
    stack.docker("create", "--name", "files", IMAGE)
    for method in ("HEAD", "PUT"):
        answer = call(stack.sock, method, f"/containers/files/archive?path={path}",
                      _archive("x", b"y") if method == "PUT" else None)
        assert answer.status < 500 and answer.status, answer.raw
