"""The executable behind /proc/<pid>/exe can be written by nobody."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from carrel.kernel import seal
seal.ensure()
print("sealed" if seal.sealed() else "open", flush=True)
sys.stdin.read()
"""


def _start(program: str, folder: Path) -> subprocess.Popen[str]:
    """A copy of the interpreter: nothing else runs it, so that it is not busy afterwards."""
    copy = folder / "python3"
    shutil.copy(os.path.realpath(sys.executable), copy)
    return subprocess.Popen([str(copy), "-SBc", program, "argument"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True,
                            env={"PYTHONHOME": sys.base_prefix})


def _error_of_writing_later(program: str, said: str, folder: Path) -> int:
    """errno of opening the executable for writing through a handle that outlives the process
    (while it runs the kernel answers ETXTBSY anyway)."""
    with _start(program, folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == said
        handle = os.open(f"/proc/{process.pid}/exe", os.O_PATH)
        process.communicate("")
    assert process.returncode == 0
    try:
        os.close(os.open(f"/proc/self/fd/{handle}", os.O_WRONLY))
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(handle)
    return 0


@pytest.mark.root
def test_sealed_after_one_execve(tmp_path: Path) -> None:
    assert _error_of_writing_later(PROGRAM, "sealed\n", tmp_path) == errno.EROFS


@pytest.mark.root
def test_without_the_seal_the_handle_would_do(tmp_path: Path) -> None:
    """The guard is what makes the difference."""
    unsealed = PROGRAM.replace("seal.ensure()\n", "")
    assert _error_of_writing_later(unsealed, "open\n", tmp_path) == 0
