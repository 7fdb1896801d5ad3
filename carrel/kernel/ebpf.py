"""cgroup v2 devices: a device list as an eBPF program, attached to a cgroup.

The kernel calls the program at each open and mknod of a device node with
``struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor}`` and
denies where it returns 0. ``access_type`` is ``access << 16 | type``.
"""

from __future__ import annotations

import os
import struct
from ctypes import addressof, c_char, c_int, c_uint, c_void_p, create_string_buffer
from errno import ENOSPC

from carrel.errdefs import SystemFailure
from carrel.kernel import libc, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.kernel.cgroup_devices import DeviceState

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "i686": 357,
            "ppc64le": 361, "s390x": 351}
_bpf = libc.syscall("bpf", _SYSCALL.get(os.uname().machine, 321), c_int, c_void_p, c_uint)

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ALLOW_MULTI, _REPLACE = 2, 4
_LICENSE = create_string_buffer(b"Apache-2.0")

# registers: 1 holds the context, 2 type, 3 access, 4 major, 5 minor, 6 scratch
_MOV_IMM, _MOV_REG, _AND_IMM, _RSH_IMM = 0xB4, 0xBC, 0x54, 0x74
_LOAD_WORD = 0x61
_JNE_IMM, _JNE32_IMM, _JNE_REG, _EXIT = 0x55, 0x56, 0x5D, 0x95
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0,
                 immediate: int = 0) -> bytes:
    # a 32-bit immediate may use the sign bit: minor numbers do not, majors neither
    value = immediate - (1 << 32) if immediate >= 1 << 31 else immediate
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


def device_program(state: DeviceState) -> bytes:
    """The instructions for a device list: each exception in turn, then the default.

    In an allow list an exception must grant every access asked for; in a deny
    list one that takes away any of them is enough to deny.
    """
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0), _instruction(_AND_IMM, 2, immediate=0xFFFF),
        _instruction(_LOAD_WORD, 3, 1, 0), _instruction(_RSH_IMM, 3, immediate=16),
        _instruction(_LOAD_WORD, 4, 1, 4), _instruction(_LOAD_WORD, 5, 1, 8)]
    for (kind, major, minor), access in state.rules.items():
        code += _exception(state.allow, kind, major, minor, access)
    code += [_instruction(_MOV_IMM, 0, immediate=int(state.allow)), _instruction(_EXIT)]
    return b"".join(code)


def _exception(default: bool, kind: str, major: int, minor: int, access: str) -> list[bytes]:
    bits = sum(_ACCESS[a] for a in access)
    tests: list[tuple[int, int, int]] = [(_JNE32_IMM, 2, _TYPES[kind])]
    if major >= 0:
        tests.append((_JNE32_IMM, 4, major))
    if minor >= 0:
        tests.append((_JNE32_IMM, 5, minor))
    body: list[bytes] = []
    if default:
        # deny when one of the asked accesses is among these
        mask: list[bytes] = [_instruction(_MOV_REG, 6, 3), _instruction(_AND_IMM, 6,
                                                                        immediate=bits)]
        skip_on_zero = 0x16  # JEQ32_IMM
        mask.append(_instruction(skip_on_zero, 6, offset=2, immediate=0))
    else:
        # allow when all of the asked accesses are among these
        mask = [_instruction(_MOV_REG, 6, 3), _instruction(_AND_IMM, 6, immediate=bits),
                _instruction(0x5E, 6, 3, offset=2)]  # JNE32_REG
    tail = [*mask, _instruction(_MOV_IMM, 0, immediate=int(not default)), _instruction(_EXIT)]
    for index, (jump, register, value) in enumerate(tests):
        left = len(tests) - index - 1 + len(tail)
        body.append(_instruction(jump, register, offset=left, immediate=value))
    return body + tail


# --- bpf(2) --------------------------------------------------------------------
def load(program: bytes) -> int:
    """BPF_PROG_LOAD; the program's fd."""
    code = (c_char * len(program)).from_buffer_copy(program)
    attributes = struct.pack("=IIQQIIQII16sII", _TYPE_CGROUP_DEVICE, len(program) // 8,
                             addressof(code), addressof(_LICENSE), 0, 0, 0, 0, 0, b"carrel_devices",
                             0, _ATTACH_CGROUP_DEVICE)
    return _call(_PROG_LOAD, attributes)


def _call(command: int, attributes: bytes) -> int:
    buffer = create_string_buffer(attributes, len(attributes))
    return _bpf(command, addressof(buffer), len(attributes))


def attached(cgroup_fd: int) -> list[int]:
    """Ids of the device programs attached to this very cgroup."""
    room = 16
    while True:
        ids = (c_uint * room)()
        attributes = create_string_buffer(struct.pack(
            "=IIIIQII", cgroup_fd, _ATTACH_CGROUP_DEVICE, 0, 0, addressof(ids), room, 0), 32)
        try:
            _bpf(_PROG_QUERY, addressof(attributes), 32)
        except OSError as error:
            if error.errno != ENOSPC or room > 4096:
                raise
            room *= 4
            continue
        count = struct.unpack_from("=I", attributes.raw, 24)[0]
        return list(ids[:count])


def _attach(cgroup_fd: int, program_fd: int, flags: int, replaced_fd: int = 0) -> None:
    _call(_PROG_ATTACH, struct.pack("=IIIII", cgroup_fd, program_fd, _ATTACH_CGROUP_DEVICE, flags,
                                    replaced_fd))


def _detach(cgroup_fd: int, program_fd: int) -> None:
    _call(_PROG_DETACH, struct.pack("=III", cgroup_fd, program_fd, _ATTACH_CGROUP_DEVICE))


def replace_device_program(cgroup_fd: int, program: bytes) -> None:
    """Attach; at no moment is the group without a program that it had. One
    that stood alone is replaced in place; several are detached afterwards."""
    old = attached(cgroup_fd)
    new_fd = load(program)
    old_fds = []
    try:
        for identity in old:
            old_fds.append(_call(_PROG_GET_FD_BY_ID, struct.pack("=III", identity, 0, 0)))
        if len(old_fds) == 1:
            _attach(cgroup_fd, new_fd, _ALLOW_MULTI | _REPLACE, old_fds[0])
        else:
            _attach(cgroup_fd, new_fd, _ALLOW_MULTI)
            for fd in old_fds:
                _detach(cgroup_fd, fd)
    finally:
        for fd in (new_fd, *old_fds):
            os.close(fd)
    record.note("bpf device program", (len(program) // 8, "instructions"), 0)
    if len(attached(cgroup_fd)) != 1:
        raise SystemFailure("the cgroup's device program was changed by somebody else")
