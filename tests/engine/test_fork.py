"""``carrel-containerd`` is forked, and yet a program of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.engine.fork import Forked
from tests.engine.stack import CARRELD, ROOT, Stack, clean, start_stack

pytestmark = pytest.mark.root


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    os.environ["CARREL_TEST_SECRET"] = "hidden"
    try:
        stack = start_stack(tmp_path)
    finally:
        del os.environ["CARREL_TEST_SECRET"]
    yield stack
    clean(stack)


def _layer(parent: int) -> int:
    done = subprocess.run(["pgrep", "-P", str(parent), "-f", "carrel-containerd --address"],
                          text=True, capture_output=True, check=True)
    return int(done.stdout)


def test_nothing_of_carreld_is_in_it(own: Stack) -> None:
    proc = Path(f"/proc/{_layer(own.pid)}")
    assert (proc / "comm").read_text().strip() == "carrel-containe"
    words = (proc / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode().split()
    assert words[0] == f"{ROOT}/.venv/bin/carrel-containerd"
    assert words[words.index("--state") + 1] == f"{own.exec_root}/containerd"
    assert os.getsid(int(proc.name)) == int(proc.name)
    assert os.readlink(proc / "fd/0") == "/dev/null"
    links = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
    assert not [link for link in links if link.startswith(f"{own.data_root}/engine")]
    # what it hands on to runtimes
    zygote = int(subprocess.run(["pgrep", "-P", proc.name], text=True, capture_output=True,
                                check=True).stdout)
    environment = Path(f"/proc/{zygote}/environ").read_bytes()
    assert b"SECRET" not in environment and b"NOTIFY_SOCKET" not in environment
    assert b"PATH=" in environment


def test_memory_is_shared(own: Stack) -> None:
    rollup = Path(f"/proc/{_layer(own.pid)}/smaps_rollup").read_text()
    found = re.search(r"Shared_Dirty: +([0-9]+) kB", rollup)
    assert found and int(found[1]) > 4096


def test_it_ends_with_a_start_that_fails(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "engine" / "engine.db").mkdir(parents=True)     # no database
    done = subprocess.run([str(CARRELD), "--data-root", str(data), "--exec-root", "/run/broken"],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-f", str(data)], capture_output=True,
                         check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("code", "status"), [
    ("os._exit(0)", 0), ("os._exit(7)", 7), ("time.sleep(60)", -15),
    ("signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)", -9)])
async def test_how_a_fork_ends(code: str, status: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"import os, signal, time; {code}"],
                               stdout=subprocess.PIPE)
    child = Forked(process.pid)
    if status == -15:
        child.terminate()
    elif status == -9:
        assert process.stdout and process.stdout.readline()
        child.terminate()
        child.kill()
    first, second = await asyncio.gather(child.wait(), child.wait())
    assert first == second == status == await child.wait()
    child.terminate()   # it is gone: nobody else gets the signal
    child.kill()
    process.returncode = status
    if process.stdout:
        process.stdout.close()


@pytest.mark.parametrize(("words", "between"), [(["x"], b"\0"), (["x" * 50] * 30, b" ")])
def test_a_command_line_of_its_own(words: list[str], between: bytes) -> None:
    """A longer one than it had goes on where the environment was."""
    code = ("import os, sys\nfrom carrel.kernel import title\nos.environ.clear()\n"
            "title.set_command_line(['/a/program', *eval(sys.stdin.read())])\n"
            "os.write(1, open('/proc/self/cmdline', 'rb').read().rstrip(b'\\0'))")
    done = subprocess.run([sys.executable, "-c", code], input=repr(words).encode(), check=True,
                          capture_output=True, env={"PAD": "y" * 2000}, cwd=ROOT)
    assert done.stdout == between.join(word.encode() for word in ["/a/program", *words])
