"""libseccomp through ctypes: rules in, BPF out. Loaded only when a filter is not cached.

In front of libseccomp's program stands a small one of ours, which answers for
what libseccomp cannot:

* a syscall newer than its tables, that the profile names without arguments,
  gets the profile's action (such numbers are equal on all architectures);
* ``socketcall`` (i386, s390) with the call "socket" gets the default action when
  the profile limits ``socket`` by its arguments: they are in memory there,
  where no filter sees them, and libseccomp lets every family through;
* a syscall newer than every one that the profile names gets ENOSYS, so that a
  libc probes and falls back, as if the kernel were as old as the profile.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_int, c_uint, c_uint32, c_uint64, c_void_p
from errno import EEXIST, ENOSYS, EPERM

from carrel.errdefs import InvalidParameter, SystemFailure, Unavailable
from carrel.kernel.seccomp import ACTIONS, ARCHITECTURES, NOTIFY, OPERATORS, library_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_CTL_NNP, _CTL_OPTIMIZE, _BAD_ARCH = 3, 8, 2
_BINARY_TREE = 2
#: below this many rules the tree is no gain (and <= 2.5.4 errs on an empty one)
_TREE_FROM = 32
_UNKNOWN = -1
_X32_BIT = 0x40000000

#: Syscalls that a libseccomp of this decade may not know; from 424 on every
#: architecture uses the same number.
NEWER = {
    "process_mrelease": 448, "futex_waitv": 449, "set_mempolicy_home_node": 450,
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454,
    "futex_wait": 455, "futex_requeue": 456, "statmount": 457, "listmount": 458,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462,
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466,
    "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}


class _Compare(ctypes.Structure):
    _fields_ = [("arg", c_uint), ("op", c_int), ("a", c_uint64), ("b", c_uint64)]


class _Library:
    """The few functions used, with their prototypes, declared once."""

    def __init__(self) -> None:
        try:
            lib = ctypes.CDLL(library_path(), use_errno=True)
        except OSError as error:
            raise Unavailable(f"seccomp: {error}",
                              hint="install libseccomp2, or run with seccomp=unconfined") from error
        self.init = _declare(lib, "seccomp_init", c_void_p, c_uint32)
        self.release = _declare(lib, "seccomp_release", None, c_void_p)
        self.attribute = _declare(lib, "seccomp_attr_set", c_int, c_void_p, c_int, c_uint32)
        self.arch_add = _declare(lib, "seccomp_arch_add", c_int, c_void_p, c_uint32)
        self.arch_native = _declare(lib, "seccomp_arch_native", c_uint32)
        self.arch_resolve = _declare(lib, "seccomp_arch_resolve_name", c_uint32, c_char_p)
        self.resolve = _declare(lib, "seccomp_syscall_resolve_name", c_int, c_char_p)
        self.resolve_arch = _declare(lib, "seccomp_syscall_resolve_name_arch", c_int, c_uint32,
                                     c_char_p)
        self.rule_add = _declare(lib, "seccomp_rule_add_array", c_int, c_void_p, c_uint32, c_int,
                                 c_uint, c_void_p)
        self.export = _declare(lib, "seccomp_export_bpf", c_int, c_void_p, c_int)
        self.api_get = _declare(lib, "seccomp_api_get", c_uint)


def _declare(lib: ctypes.CDLL, name: str, result: Any, *types: Any) -> Any:
    function = getattr(lib, name)
    function.restype = result
    function.argtypes = list(types)
    return function


_library: _Library | None = None


def library() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


def action(name: str, errno_ret: int | None) -> int:
    value = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (EPERM if errno_ret is None else errno_ret) & 0xFFFF
    return value


def compile(spec: Spec) -> bytes:
    """BPF for a spec that :func:`carrel.kernel.seccomp.check` accepted."""
    lib = library()
    default = action(spec["defaultAction"], spec.get("defaultErrnoRet"))
    context = lib.init(default)
    if not context:
        raise SystemFailure("error creating seccomp filter")
    try:
        rules = list(_flatten(spec))
        architectures = _add_architectures(lib, context, spec.get("architectures") or [])
        if len(rules) > _TREE_FROM:
            lib.attribute(context, _CTL_OPTIMIZE, _BINARY_TREE)  # refused before 2.5: slower
        _check(lib.attribute(context, _CTL_NNP, 0), "error setting no new privileges")
        beyond = []
        for name, rule in rules:
            if not _add_rule(lib, context, name, rule, default) and name in NEWER \
                    and not rule.get("args"):
                beyond.append((NEWER[name], action(rule["action"], rule.get("errnoRet"))))
        program = _export(lib, context)
    finally:
        lib.release(context)
    return _stub(lib, spec, architectures, rules, beyond) + program


def _flatten(spec: Spec) -> list[tuple[str, Spec]]:
    pairs = []
    for rule in spec.get("syscalls") or []:
        for name in rule["names"]:
            if not name:
                raise InvalidParameter("empty string is not a valid syscall")
            pairs.append((name, rule))
    return pairs


def _add_architectures(lib: _Library, context: int, names: list[str]) -> dict[str, int]:
    """OCI name -> libseccomp token, the native one always among them."""
    native = lib.arch_native()
    tokens = {}
    for name in names:
        token = lib.arch_resolve(name.removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise InvalidParameter(f"seccomp: this libseccomp does not know {name}")
        tokens[name] = token
        result = lib.arch_add(context, token)
        if result != -EEXIST:
            _check(result, f"error adding architecture {name} to seccomp filter")
    if native not in tokens.values():
        for name in ARCHITECTURES:
            if lib.arch_resolve(name.removeprefix("SCMP_ARCH_").lower().encode()) == native:
                tokens[name] = native
    return tokens


def _add_rule(lib: _Library, context: int, name: str, rule: Spec, default: int) -> bool:
    """False when libseccomp does not know the syscall."""
    if rule["action"] == NOTIFY and lib.api_get() < 6:
        raise Unavailable("seccomp notify unsupported",
                          hint="needs libseccomp 2.5 and Linux 5.7")
    number = lib.resolve(name.encode())
    if number == _UNKNOWN:
        return False
    act = action(rule["action"], rule.get("errnoRet"))
    if act == default:
        return True  # libseccomp refuses what says nothing
    compares = [_compare(argument) for argument in rule.get("args") or []]
    indexes = [c.arg for c in compares]
    # One rule is an "and" of different arguments; of the same argument twice
    # libseccomp cannot, and Docker's profiles mean "or" by it.
    groups = [[c] for c in compares] if len(set(indexes)) < len(indexes) else [compares]
    for group in groups:
        array = (_Compare * len(group))(*group)
        result = lib.rule_add(context, act, number, len(group),
                              ctypes.cast(array, c_void_p) if group else None)
        if result != -EEXIST:
            _check(result, f"error adding seccomp filter rule for syscall {name}")
    return True


def _compare(argument: Spec) -> _Compare:
    value, second = argument.get("value", 0), argument.get("valueTwo", 0)
    mask = (1 << 64) - 1
    return _Compare(argument.get("index", 0), OPERATORS[argument["op"]], value & mask,
                    second & mask)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise SystemFailure(f"{what}: {os.strerror(-result)}")


def _export(lib: _Library, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(lib.export(context, fd), "error exporting BPF")
        size = os.lseek(fd, 0, os.SEEK_CUR)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


# --- our part in front -------------------------------------------------------
_LOAD, _JEQ, _JGT, _JGE, _JA, _RET = 0x20, 0x15, 0x25, 0x35, 0x05, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_ARGUMENT_LOW = 16 if sys.byteorder == "little" else 20
_SYS_SOCKET = 1  # of socketcall


def _instruction(code: int, k: int, true: int = 0, false: int = 0) -> bytes:
    import struct
    return struct.pack("=HBBI", code, true, false, k)


def _stub(lib: _Library, spec: Spec, architectures: dict[str, int],
          rules: list[tuple[str, Spec]], beyond: list[tuple[int, int]]) -> bytes:
    """One section an audit architecture: newer syscalls, then the ENOSYS limit;
    whatever is left falls through to libseccomp's program."""
    sections: dict[int, list[bytes]] = {}
    limits: dict[int, dict[str, int]] = {}
    for name, token in architectures.items():
        last = max((_last(lib, token, rule_name) for rule_name, _ in rules), default=-1)
        if last >= 0:
            limits.setdefault(ARCHITECTURES[name], {})[name] = last
    for audit, by_name in limits.items():
        sections[audit] = [*_section(by_name, beyond, _wants_enosys(spec)),
                           *_no_blind_sockets(lib, architectures, by_name, spec, rules)]
    code: list[bytes] = []
    for audit, body in reversed(sections.items()):
        if not body:
            continue
        if len(body) > 250:  # a conditional jump has eight bits
            raise SystemFailure("seccomp: too many syscalls newer than libseccomp")
        body = [_instruction(_LOAD, _NUMBER), *body]
        if code:
            body.append(_instruction(_JA, len(code)))  # over the other sections
        code = [_instruction(_LOAD, _ARCH), _instruction(_JEQ, audit, 0, len(body)), *body, *code]
    return b"".join(code)


def _section(by_name: dict[str, int], beyond: list[tuple[int, int]], enosys: bool) -> list[bytes]:
    """For one audit architecture, which may hold two tables (x86-64 and x32)."""
    body: list[bytes] = []
    for number, act in dict(beyond).items():
        for name in by_name:
            bit = _X32_BIT if name == "SCMP_ARCH_X32" else 0
            body += [_instruction(_JEQ, number | bit, 0, 1), _instruction(_RET, act)]
    if not enosys:
        return body
    answer = _instruction(_RET, ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS)
    x32 = by_name.get("SCMP_ARCH_X32")
    plain = max((n for name, n in by_name.items() if name != "SCMP_ARCH_X32"), default=None)
    if x32 is not None and plain is not None:
        body += [
            _instruction(_JGE, _X32_BIT, 2, 0),
            # x86-64: what passes must not meet the x32 test
            _instruction(_JGT, plain, 0, 3), answer,
            _instruction(_JGT, x32 | _X32_BIT, 0, 1), answer]
    elif x32 is not None:
        body += [_instruction(_JGE, _X32_BIT, 0, 2),
                 _instruction(_JGT, x32 | _X32_BIT, 0, 1), answer]
    elif plain is not None:
        body += [_instruction(_JGT, plain, 0, 1), answer]
    return body


def _no_blind_sockets(lib: _Library, architectures: dict[str, int], by_name: dict[str, int],
                      spec: Spec, rules: list[tuple[str, Spec]]) -> list[bytes]:
    sockets = [rule for name, rule in rules if name == "socket"]
    if not sockets or not all(rule.get("args") for rule in sockets) or any(
            name == "socketcall" for name, _ in rules):
        return []
    default = action(spec["defaultAction"], spec.get("defaultErrnoRet"))
    body = []
    for name in by_name:
        number = lib.resolve_arch(architectures[name], b"socketcall")
        if number >= 0:
            body += [_instruction(_JEQ, number, 0, 4), _instruction(_LOAD, _ARGUMENT_LOW),
                     _instruction(_JEQ, _SYS_SOCKET, 0, 1), _instruction(_RET, default),
                     _instruction(_LOAD, _NUMBER)]
    return body


def _last(lib: _Library, token: int, name: str) -> int:
    """The number of a syscall on one architecture; -1 when it has none."""
    number: int = lib.resolve_arch(token, name.encode())
    if number == _UNKNOWN:
        number = NEWER.get(name, -1)
    return number & ~_X32_BIT if number >= 0 else -1


def _wants_enosys(spec: Spec) -> bool:
    """A default that lets pass needs no stub, nor one that says ENOSYS itself."""
    if spec["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        return False
    return not (spec["defaultAction"] == "SCMP_ACT_ERRNO" and spec.get("defaultErrnoRet") == ENOSYS)
