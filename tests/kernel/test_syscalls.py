"""The wrappers: range checks, errors, numbers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from carrel.kernel import syscalls


@pytest.mark.parametrize("number", [-1, 2**31 * 2 - 1, 2**32, 2**63, 2**64])
def test_ids_are_never_masked(number: int) -> None:
    """ctypes would make setuid(2**32) a setuid(0)."""
    before = os.getresuid()
    with pytest.raises(OverflowError):
        syscalls.setresuid(number)
    with pytest.raises(OverflowError):
        syscalls.setresgid(number)
    with pytest.raises(OverflowError):
        syscalls.setgroups([number])
    assert os.getresuid() == before


@pytest.mark.parametrize("number", [2**31, 2**32, -(2**31) - 1])
def test_descriptors_are_never_masked(number: int) -> None:
    with pytest.raises(OverflowError):
        syscalls.openat2(number, "x", 0, 0)
    with pytest.raises(OverflowError):
        syscalls.setns(number, 0)


def test_an_error_is_a_plain_oserror_with_path_and_call() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.openat2(syscalls.AT_FDCWD, "/no/such", os.O_RDONLY, 0)
    assert caught.value.filename == "/no/such"
    assert any("openat2" in note for note in caught.value.__notes__)


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        syscalls.openat2(syscalls.AT_FDCWD, "/tmp\0/etc", os.O_RDONLY, 0)
    with pytest.raises(ValueError, match="NUL"):
        syscalls.execve(b"/bin/true", [b"a\0b"], [])


def test_numbers_match_the_kernel_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    checked = 0
    for name, (number, _) in syscalls._NUMBERS.items():
        if name in known:
            assert int(known[name]) == number, name
            checked += 1
    assert checked > 15


def test_new_descriptors_are_close_on_exec(tmp_path: Path) -> None:
    fd = syscalls.openat2(syscalls.AT_FDCWD, str(tmp_path), os.O_PATH, 0)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_clone_gives_a_pidfd_and_a_child() -> None:
    pid, pidfd = syscalls.clone(0)
    if pid == 0:
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    os.close(pidfd)
