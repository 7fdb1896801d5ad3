"""seccomp: an OCI ``linux.seccomp`` -> BPF -> installed as a child's last step.

    bpf = compile(spec["linux"]["seccomp"], cache_dir)    # in the parent
    filter = Filter(bpf, flags(spec), listener)            # before the fork
    filter.install()                                       # in the child, nothing but a syscall

Compiling takes libseccomp 15 ms, so filters are cached in memory and on disk;
a cached filter is loaded without touching libseccomp. Finding the compiler's
version without loading it: the identity of the library's file.
"""

from __future__ import annotations

import os
import sys
from _blake2 import blake2b
from errno import EINVAL, ENOSYS

from carrel.errdefs import InvalidParameter
from carrel.kernel import libc, record
from carrel.kernel.cdata import Structure, addressof, c_char, c_uint, c_ushort, c_void_p
from carrel.oci import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

SET_MODE_FILTER = 1
GET_ACTION_AVAIL = 2
FILTER_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # accepted and needless: the child has one thread
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
NEW_LISTENER = 1 << 3
NOTIFY = "SCMP_ACT_NOTIFY"
ALLOW = "SCMP_ACT_ALLOW"

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7,
}
#: OCI name -> AUDIT_ARCH; x32 shares x86-64's and marks its numbers with bit 30
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X32": 0xC000003E,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008, "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008, "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008, "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014, "SCMP_ARCH_PPC64": 0x80000015, "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016, "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3, "SCMP_ARCH_LOONGARCH64": 0xC0000102,
}

_SYSCALL_NUMBERS = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "armv7l": 383, "i686": 354,
                    "ppc64le": 358, "s390x": 348}
_machine = os.uname().machine
_seccomp = libc.syscall("seccomp", _SYSCALL_NUMBERS.get(_machine, 317), c_uint, c_uint, c_void_p)


class _SockFprog(Structure):
    _fields_ = [("len", c_ushort), ("filter", c_void_p)]


class Filter:
    """A filter ready to be installed: all memory is there before the fork."""

    __slots__ = ("_buffer", "_program", "flags")

    def __init__(self, bpf: bytes, flags: int = 0, listener: bool = False) -> None:
        if not bpf or len(bpf) % 8:
            raise InvalidParameter("not a BPF program: its length is no multiple of 8")
        self._buffer = (c_char * len(bpf)).from_buffer_copy(bpf)
        self._program = _SockFprog(len(bpf) // 8, addressof(self._buffer))
        self.flags = flags | (NEW_LISTENER if listener else 0)

    @property
    def bpf(self) -> bytes:
        return bytes(self._buffer)

    def install(self) -> int:
        """seccomp(2); with a listener the answer is its fd."""
        return _seccomp(SET_MODE_FILTER, self.flags, addressof(self._program))


def install(bpf: bytes, flags: int = 0, listener: bool = False) -> int:
    """Install at once; where fork comes between, make a :class:`Filter` before it."""
    return Filter(bpf, flags, listener).install()


def flags(spec: Spec) -> int:
    """seccomp(2)'s flags. Without the key: SPEC_ALLOW, because the kernel's
    speculation guard costs every filtered process 5 to 30 % and is of no use
    to one that cannot run foreign code in its own address space."""
    asked = spec.get("flags")
    if asked is None:
        return FILTER_FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    result = 0
    for name in asked:
        if name not in FILTER_FLAGS:
            raise InvalidParameter(f"seccomp flag {name} is not known to carrel")
        result |= FILTER_FLAGS[name]
    if result & FILTER_FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] and not needs_listener(spec):
        result &= ~FILTER_FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]  # EINVAL without one
    return result


def needs_listener(spec: Spec) -> bool:
    """Whether a rule asks another process (SCMP_ACT_NOTIFY)."""
    return any(rule.get("action") == NOTIFY for rule in spec.get("syscalls") or ())


def allows(spec: Spec, names: frozenset[str]) -> bool:
    """Whether rules without conditions allow all of these, and none forbids one."""
    missing = set(names)
    for rule in spec.get("syscalls") or ():
        if rule.get("action") != ALLOW:
            if not names.isdisjoint(rule["names"]):
                return False
        elif not rule.get("args"):
            missing.difference_update(rule["names"])
    return not missing


def check(spec: Spec) -> None:
    """Refuse what cannot work, before any side effect."""
    if not spec.get("defaultAction"):
        raise InvalidParameter("seccomp: defaultAction is missing")
    if spec["defaultAction"] == NOTIFY:
        raise InvalidParameter("SCMP_ACT_NOTIFY cannot be used as default action")
    if spec["defaultAction"] not in ACTIONS:
        raise InvalidParameter(f"string {spec['defaultAction']} is not a valid action for seccomp")
    for name in spec.get("architectures") or ():
        if name not in ARCHITECTURES:
            raise InvalidParameter(f"string {name} is not a valid arch for seccomp")
    for rule in spec.get("syscalls") or ():
        if rule.get("action") not in ACTIONS:
            raise InvalidParameter(
                f"string {rule.get('action')} is not a valid action for seccomp")
        # The child answers over a pipe after the filter stands: write(2) must pass.
        if rule["action"] == NOTIFY and "write" in rule["names"]:
            raise InvalidParameter("SCMP_ACT_NOTIFY cannot be used for the write syscall")
        for argument in rule.get("args") or ():
            if argument.get("op") not in OPERATORS:
                raise InvalidParameter(
                    f"string {argument.get('op')} is not a valid operator for seccomp")
            if not 0 <= argument.get("index", 0) <= 5:
                raise InvalidParameter("seccomp: a syscall has six arguments, index 0 to 5")
    flags(spec)


# --- compiling, and the cache ------------------------------------------------
_memory: dict[bytes, bytes] = {}
_MEMORY_LIMIT = 64
#: changes when the code that makes filters does
_GENERATION = b"carrel-seccomp-3"


def compile(spec: Spec, cache_dir: str | None = None) -> bytes:
    """The BPF program for an OCI ``linux.seccomp``.

    ``cache_dir`` must belong to root alone: what is in it gets installed.
    """
    key = _key(spec)
    found = _memory.get(key)
    if found is not None:
        return found
    path = f"{cache_dir}/{key.hex()}.bpf" if cache_dir else ""
    program = _load(path) if path else None
    if program is None:
        check(spec)
        from carrel.kernel import seccomp_compile
        program = seccomp_compile.compile(spec)
        if path:
            _store(path, program)
    while len(_memory) >= _MEMORY_LIMIT:
        del _memory[next(iter(_memory))]
    _memory[key] = program
    return program


class pretended:  # noqa: N801  (reads as a statement)
    """Inside, the filter of ``spec`` counts as compiled: to something that no
    kernel takes. For rehearsals, which install nothing."""

    __slots__ = ("_key",)

    def __init__(self, spec: Spec) -> None:
        self._key = _key(spec)

    def __enter__(self) -> None:
        _memory[self._key] = bytes(8)

    def __exit__(self, *_: object) -> None:
        _memory.pop(self._key, None)


def _key(spec: Spec) -> bytes:
    # Unsorted: another order of the same rules is compiled once more, that is all.
    text = json.dumps([spec.get(k) for k in ("defaultAction", "defaultErrnoRet",
                                             "architectures", "syscalls")]).encode()
    return blake2b(text, digest_size=20, key=_GENERATION, salt=_library_identity()[:16]).digest()


_LIBRARY_DIRECTORIES = (f"/lib/{_machine}-linux-gnu", f"/usr/lib/{_machine}-linux-gnu",
                        "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
_identity = b""


def library_path() -> str:
    """libseccomp's file, or its soname where it is in none of the usual places."""
    for directory in _LIBRARY_DIRECTORIES:
        path = f"{directory}/libseccomp.so.2"
        if os.path.exists(path):
            return path
    return "libseccomp.so.2"


def _library_identity() -> bytes:
    """Which libseccomp and which machine, without loading it."""
    global _identity
    if not _identity:
        try:
            info = os.stat(library_path())
            what = f"{info.st_size} {info.st_mtime_ns} {_machine} {sys.byteorder}"
        except OSError:
            what = f"? {_machine} {sys.byteorder}"
        _identity = blake2b(what.encode(), digest_size=16).digest()
    return _identity


def _load(path: str) -> bytes | None:
    """A cached filter: ours, a regular file, root's alone, whole; else None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077 or info.st_size > 1 << 20:
            return None
        data = os.read(fd, info.st_size + 1)
    finally:
        os.close(fd)
    body, digest = data[:-20], data[-20:]
    if not body or len(body) % 8 or blake2b(body, digest_size=20).digest() != digest:
        return None
    return body


def _store(path: str, program: bytes) -> None:
    """Atomic; a cache that cannot be written is no reason not to start."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                     | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, program + blake2b(program, digest_size=20).digest())
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        record.note("write", (path,), None, error.errno or 0)


def action_available(name: str) -> bool:
    """For ``features``: whether this kernel knows the action."""
    value = (c_uint * 1)(ACTIONS[name])
    try:
        _seccomp(GET_ACTION_AVAIL, 0, addressof(value))
    except OSError:
        return False
    return True


def flag_supported(name: str) -> bool:
    """The kernel answers EFAULT for a known flag (no program given), EINVAL for another."""
    try:
        _seccomp(SET_MODE_FILTER, FILTER_FLAGS[name] | (
            NEW_LISTENER if name.endswith("WAIT_KILLABLE_RECV") else 0), None)
    except OSError as error:
        return error.errno not in (EINVAL, ENOSYS)
    return True


__all__ = ["ACTIONS", "ARCHITECTURES", "FILTER_FLAGS", "OPERATORS", "Filter", "check", "compile",
           "flags", "install", "needs_listener"]
