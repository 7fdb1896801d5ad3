"""Seccomp: verdicts of compiled filters, the cache, and a filter really installed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from carrel.errdefs import InvalidParameter
from carrel.kernel import seccomp
from carrel.oci import seccomp_default
from tests.kernel import bpf

DEFAULT_CAPABILITIES = {
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
DENIED = bpf.ERRNO | errno.EPERM
NO_SUCH = bpf.ERRNO | errno.ENOSYS
X32 = bpf.X32_BIT


@pytest.fixture(scope="module")
def default() -> bytes:
    return seccomp.compile(seccomp_default.profile(DEFAULT_CAPABILITIES, "x86_64", "6.1"))


VERDICTS = [
    # (what, arch, syscall, arguments, verdict)
    ("read", bpf.X86_64, 0, (), bpf.ALLOW),
    ("read i386", bpf.I386, 3, (), bpf.ALLOW),
    ("read x32", bpf.X86_64, X32 | 0, (), bpf.ALLOW),
    ("socket AF_UNIX", bpf.X86_64, 41, (1,), bpf.ALLOW),
    ("socket AF_INET6", bpf.X86_64, 41, (10,), bpf.ALLOW),
    ("socket AF_KCM-ish 37", bpf.X86_64, 41, (37,), bpf.ALLOW),
    ("socket AF_ALG", bpf.X86_64, 41, (38,), DENIED),
    ("socket AF_NFC", bpf.X86_64, 41, (39,), bpf.ALLOW),
    ("socket AF_VSOCK", bpf.X86_64, 41, (40,), DENIED),
    *[(f"socket {f}", bpf.X86_64, 41, (f,), bpf.ALLOW) for f in range(41, 64)],
    ("socket AF_ALG with a high bit", bpf.X86_64, 41, (38 | 1 << 32,), DENIED),
    ("socket AF_VSOCK with a high bit", bpf.X86_64, 41, (40 | 1 << 32,), DENIED),
    ("socket AF_ALG with the sign", bpf.X86_64, 41, (38 | 1 << 63,), DENIED),
    ("socket AF_ALG i386", bpf.I386, 359, (38,), DENIED),
    ("socket AF_INET i386", bpf.I386, 359, (2,), bpf.ALLOW),
    ("socketcall socket i386", bpf.I386, 102, (1,), DENIED),
    ("socketcall connect i386", bpf.I386, 102, (3,), bpf.ALLOW),
    ("socketcall recvmmsg i386", bpf.I386, 102, (19,), bpf.ALLOW),
    ("socket AF_ALG x32", bpf.X86_64, X32 | 41, (38,), DENIED),
    ("socket AF_ALG x32 with a high bit", bpf.X86_64, X32 | 41, (38 | 1 << 32,), DENIED),
    ("socket AF_INET x32", bpf.X86_64, X32 | 41, (2,), bpf.ALLOW),
    ("clone as fork", bpf.X86_64, 56, (17,), bpf.ALLOW),
    ("clone thread", bpf.X86_64, 56, (0x3D0F00,), bpf.ALLOW),
    *[(f"clone {flag:#x}", bpf.X86_64, 56, (flag | 17,), DENIED)
      for flag in (0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x2000000)],
    ("clone newuser i386", bpf.I386, 120, (0x10000000 | 17,), DENIED),
    ("clone newuser x32", bpf.X86_64, X32 | 56, (0x10000000 | 17,), DENIED),
    ("clone3", bpf.X86_64, 435, (), NO_SUCH),
    ("clone3 i386", bpf.I386, 435, (), NO_SUCH),
    ("clone3 x32", bpf.X86_64, X32 | 435, (), NO_SUCH),
    *[(f"personality {p:#x}", bpf.X86_64, 135, (p,), bpf.ALLOW)
      for p in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)],
    ("personality ADDR_NO_RANDOMIZE", bpf.X86_64, 135, (0x40000,), DENIED),
    ("personality i386", bpf.I386, 136, (0x40000,), DENIED),
    ("unshare", bpf.X86_64, 272, (0x10000000,), DENIED),
    ("mount", bpf.X86_64, 165, (), DENIED),
    ("bpf", bpf.X86_64, 321, (), DENIED),
    ("keyctl", bpf.X86_64, 250, (), DENIED),
    ("add_key", bpf.X86_64, 248, (), DENIED),
    ("io_uring_setup", bpf.X86_64, 425, (), DENIED),
    ("userfaultfd", bpf.X86_64, 323, (), DENIED),
    ("kexec_load", bpf.X86_64, 246, (), DENIED),
    ("pivot_root", bpf.X86_64, 155, (), DENIED),
    ("reboot", bpf.X86_64, 169, (), DENIED),
    ("chroot, by the capability", bpf.X86_64, 161, (), bpf.ALLOW),
    ("ptrace since 4.8", bpf.X86_64, 101, (), bpf.ALLOW),
    ("arch_prctl", bpf.X86_64, 158, (), bpf.ALLOW),
    # newer than the libseccomp of Debian 12, in the profile
    ("cachestat", bpf.X86_64, 451, (), bpf.ALLOW),
    ("fchmodat2", bpf.X86_64, 452, (), bpf.ALLOW),
    ("fchmodat2 i386", bpf.I386, 452, (), bpf.ALLOW),
    ("fchmodat2 x32", bpf.X86_64, X32 | 452, (), bpf.ALLOW),
    ("mseal", bpf.X86_64, 462, (), bpf.ALLOW),
    ("futex_wait", bpf.X86_64, 455, (), bpf.ALLOW),
    # newer than everything in the profile
    ("a syscall of the future", bpf.X86_64, 600, (), NO_SUCH),
    ("a syscall of the future, i386", bpf.I386, 600, (), NO_SUCH),
    ("a syscall of the future, x32", bpf.X86_64, X32 | 600, (), NO_SUCH),
]


@pytest.mark.parametrize(("what", "arch", "number", "args", "verdict"), VERDICTS,
                         ids=[v[0] for v in VERDICTS])
def test_default_profile_verdict(default: bytes, what: str, arch: int, number: int,
                                 args: tuple[int, ...], verdict: int) -> None:
    assert bpf.seccomp(default, arch, number, *args) == verdict


def test_foreign_architecture_is_not_let_in(default: bytes) -> None:
    assert bpf.seccomp(default, bpf.AARCH64, 63) != bpf.ALLOW


def test_every_number_is_decided_alike_by_tree_and_by_list() -> None:
    """libseccomp's binary tree against its linear form, by rules few enough for the latter."""
    names = sorted(seccomp_default.ALWAYS)
    whole = seccomp.compile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": names, "action": "SCMP_ACT_ALLOW"}]})
    parts = [seccomp.compile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": names[i:i + 30], "action": "SCMP_ACT_ALLOW"}]}) for i in range(0, len(names), 30)]
    for number in range(463):
        allowed = bpf.seccomp(whole, bpf.X86_64, number) == bpf.ALLOW
        assert allowed == any(
            bpf.seccomp(p, bpf.X86_64, number) == bpf.ALLOW for p in parts), number


def test_admin_gets_what_its_capabilities_open() -> None:
    program = seccomp.compile(seccomp_default.profile({"CAP_SYS_ADMIN", "CAP_BPF"}))
    for number in (165, 272, 435, 321):  # mount, unshare, clone3, bpf
        assert bpf.seccomp(program, bpf.X86_64, number, 0x10000000) == bpf.ALLOW
    assert bpf.seccomp(program, bpf.X86_64, 169) == DENIED  # reboot


def test_old_kernel_keeps_ptrace_out() -> None:
    program = seccomp.compile(seccomp_default.profile(set(), "x86_64", "4.4.0-31"))
    assert bpf.seccomp(program, bpf.X86_64, 101) == DENIED


def test_allow_by_default_needs_no_enosys() -> None:
    program = seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]})
    assert bpf.seccomp(program, bpf.X86_64, 83) == bpf.ERRNO | 77
    assert bpf.seccomp(program, bpf.X86_64, 5000) == bpf.ALLOW


def test_arguments_and_masks() -> None:
    def rule(op: str, value: int, two: int = 0, index: int = 1) -> dict[str, Any]:
        return {"names": ["kill"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": index, "value": value, "valueTwo": two, "op": op}]}

    def verdict(rules: list[dict[str, Any]], *args: int) -> bool:
        program = seccomp.compile({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules})
        return bpf.seccomp(program, bpf.X86_64, 62, *args) == bpf.ALLOW

    assert verdict([rule("SCMP_CMP_EQ", 9)], 1, 9)
    assert not verdict([rule("SCMP_CMP_EQ", 9)], 9, 1)
    assert verdict([rule("SCMP_CMP_NE", 9)], 1, 8)
    assert verdict([rule("SCMP_CMP_GE", 9)], 1, 9) and not verdict([rule("SCMP_CMP_GT", 9)], 1, 9)
    assert verdict([rule("SCMP_CMP_LE", 9)], 1, 9) and not verdict([rule("SCMP_CMP_LT", 9)], 1, 9)
    masked = rule("SCMP_CMP_MASKED_EQ", 0xFF00000000, 0x1200000000)
    assert verdict([masked], 1, 0x12FFFFFFFF) and not verdict([masked], 1, 0x13FFFFFFFF)
    both = {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
        {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 9,
                                                        "op": "SCMP_CMP_EQ"}]}
    assert verdict([both], 5, 9) and not verdict([both], 5, 8)
    either = {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
        {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 9,
                                                        "op": "SCMP_CMP_EQ"}]}
    assert verdict([either], 0, 9) and verdict([either], 0, 5) and not verdict([either], 0, 6)


@pytest.mark.parametrize(("change", "text"), [
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "default action"),
    ({"defaultAction": "SCMP_ACT_NONSENSE"}, "not a valid action"),
    ({"defaultAction": ""}, "defaultAction is missing"),
    ({"architectures": ["SCMP_ARCH_VAX"]}, "not a valid arch"),
    ({"flags": ["SECCOMP_FILTER_FLAG_NEW"]}, "not known"),
    ({"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "write syscall"),
    ({"syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}, "six arguments"),
    ({"syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 0, "op": "EQ"}]}]}, "not a valid operator"),
])
def test_nonsense_is_refused_by_name(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", **change})


def test_flags() -> None:
    assert seccomp.flags({}) == 4  # SPEC_ALLOW unless the profile says something
    assert seccomp.flags({"flags": []}) == 0
    assert seccomp.flags({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}) == 2
    assert seccomp.flag_supported("SECCOMP_FILTER_FLAG_LOG")
    assert seccomp.action_available("SCMP_ACT_LOG")


def test_cache_on_disk_spares_libseccomp(tmp_path: Path) -> None:
    spec = seccomp_default.profile(DEFAULT_CAPABILITIES)
    code = ("import json,sys; from carrel.kernel import seccomp\n"
            "b = seccomp.compile(json.load(sys.stdin), sys.argv[1])\n"
            "print(len(b), 'libseccomp' in open('/proc/self/maps').read())")

    def run() -> list[str]:
        return subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=True,
                              input=json.dumps(spec), capture_output=True, text=True,
                              env={"PYTHONPATH": str(Path(__file__).parents[2])}).stdout.split()

    first = run()
    assert first[1] == "True"
    assert run() == [first[0], "False"]
    [entry] = (tmp_path / "c").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    # a truncated, a tampered and a foreign entry are compiled anew
    whole = entry.read_bytes()
    for broken in (whole[:-8], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        entry.write_bytes(broken)
        assert run() == first
        assert entry.read_bytes() == whole
    entry.chmod(0o644)
    assert run()[1] == "True"


def _in_child(work: Any) -> Any:
    """What ``work`` returns, computed in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(work()).encode())
        except BaseException as error:
            os.write(write, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


@pytest.mark.root
def test_installed_filter_acts() -> None:
    filter_ = seccomp.Filter(seccomp.compile(seccomp_default.profile(DEFAULT_CAPABILITIES)),
                             seccomp.flags({}))
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *args: int) -> int:
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
        return ctypes.get_errno() if result < 0 else 0

    def work() -> list[int]:
        filter_.install()
        return [call(41, socket.AF_UNIX, socket.SOCK_STREAM, 0), call(41, 38, 5, 0),
                call(41, 38 | 1 << 32, 5, 0), call(435, 0, 0), call(272, 0x10000000), call(600)]

    assert _in_child(work) == [0, errno.EPERM, errno.EPERM, errno.ENOSYS, errno.EPERM,
                               errno.ENOSYS]


@pytest.mark.root
def test_notify_gives_a_listener() -> None:
    spec = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}
    assert seccomp.needs_listener(spec)
    filter_ = seccomp.Filter(seccomp.compile(spec), seccomp.flags(spec), listener=True)
    assert _in_child(lambda: os.readlink(f"/proc/self/fd/{filter_.install()}")) \
        == "anon_inode:seccomp notify"


# --- profiles in Docker's format ---------------------------------------------------
def test_load_resolves_conditions() -> None:
    text = json.dumps({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"name": "write", "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW",
             "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW",
             "includes": {"arches": ["amd64"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}]})

    def names(caps: set[str], arch: str, kernel: str) -> list[str]:
        loaded = seccomp_default.load(text, caps, arch, kernel)
        assert loaded is not None
        return [n for rule in loaded["syscalls"] for n in rule["names"]]

    assert names(set(), "x86_64", "6.1.0-13") == ["read", "write", "clone", "arch_prctl", "ptrace"]
    assert names({"CAP_SYS_ADMIN"}, "aarch64", "4.4") == ["read", "write", "mount"]
    loaded = seccomp_default.load(text, set())
    assert loaded is not None
    assert loaded["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    seccomp.compile(loaded)


def test_load_says_what_is_wrong() -> None:
    with pytest.raises(InvalidParameter, match="Decoding seccomp profile failed"):
        seccomp_default.load("{", set())
    with pytest.raises(InvalidParameter, match="archMap"):
        seccomp_default.load('{"defaultAction":"SCMP_ACT_ALLOW","architectures":["x"],'
                             '"archMap":[{}]}', set())
    assert seccomp_default.load("{}", set()) is None


def test_default_has_as_many_names_as_docker() -> None:
    """361 names without a condition in Docker 28's profile, 425 in any allow rule."""
    assert len(seccomp_default.ALWAYS) == 361
    every = set(seccomp_default.ALWAYS) | set(seccomp_default.SINCE_4_8.split()) | {
        "socket", "personality", "clone"}
    for _, text in seccomp_default.BY_MACHINE:
        every |= set(text.split())
    for text in seccomp_default.BY_CAPABILITY.values():
        every |= set(text.split())
    assert len(every) == 426
