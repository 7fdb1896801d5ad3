"""The executable behind /proc/<pid>/exe can be written by nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

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


def _start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([os.path.realpath(sys.executable), "-ISBc", program, "argument"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _error_of_writing_later(program: str, said: str) -> int:
    """errno of opening the executable for writing through a handle that outlives the process
    (while it runs the kernel answers ETXTBSY anyway)."""
    with _start(program) as process:
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
def test_sealed_after_one_execve() -> None:
    assert _error_of_writing_later(PROGRAM, "sealed\n") == errno.EROFS


@pytest.mark.root
def test_without_the_seal_the_handle_would_do() -> None:
    """The guard is what makes the difference."""
    unsealed = PROGRAM.replace("seal.ensure()\n", "")
    assert _error_of_writing_later(unsealed, "open\n") != errno.EROFS
