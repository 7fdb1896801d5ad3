"""Interpreters for what the kernel runs: classic BPF of seccomp, eBPF of device groups.

Written from the instruction sets, not from the generators, so that a mistake
in a generator shows.
"""

from __future__ import annotations

import struct

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 0x40000000
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
MASK = (1 << 32) - 1


def seccomp(program: bytes, arch: int, number: int, *args: int) -> int:
    """The verdict for one syscall."""
    padded = [a & ((1 << 64) - 1) for a in args] + [0] * (6 - len(args))
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    accumulator = index = 0
    memory = [0] * 16
    position = steps = 0
    while True:
        steps += 1
        assert steps < 10_000, "does not end"
        code, true, false, k = struct.unpack_from("<HBBI", program, position * 8)
        position += 1
        kind = code & 0x07
        if kind == 0x00:  # LD
            assert code in (0x20, 0x00, 0x60), hex(code)
            if code == 0x20:
                assert k % 4 == 0 and k < 64
                accumulator = struct.unpack_from("<I", data, k)[0]
            else:
                accumulator = memory[k] if code == 0x60 else k
        elif kind == 0x02:
            memory[k] = accumulator
        elif kind == 0x04:  # ALU
            operand = index if code & 0x08 else k
            operation = code & 0xF0
            accumulator = {0x00: accumulator + operand, 0x10: accumulator - operand,
                           0x50: accumulator & operand, 0x40: accumulator | operand,
                           0x70: accumulator >> operand if operation == 0x70 else 0}[
                               operation] & MASK
        elif kind == 0x05:  # JMP
            operation = code & 0xF0
            if operation == 0x00:
                position += k
                continue
            taken = {0x10: accumulator == k, 0x20: accumulator > k, 0x30: accumulator >= k,
                     0x40: bool(accumulator & k)}[operation]
            position += true if taken else false
        elif kind == 0x06:
            assert code in (0x06, 0x16)
            return accumulator if code == 0x16 else k
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def device(program: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """Whether a device program lets this access pass. Registers are 64 bits,
    the 32-bit operations clear the upper half."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers: list[int | None] = [None] * 11
    position = steps = 0
    length = len(program) // 8
    while True:
        steps += 1
        assert steps < 10_000
        assert 0 <= position < length, "runs off the end"
        code, regs, offset, immediate = struct.unpack_from("<BBhi", program, position * 8)
        target, source = regs & 0xF, regs >> 4
        position += 1

        def value(register: int) -> int:
            found = registers[register]
            assert found is not None, f"r{register} is read before it is set"
            return found

        if code == 0x61:
            assert source == 1
            registers[target] = struct.unpack_from("<I", context, offset)[0]
        elif code == 0xB4:
            registers[target] = immediate & MASK
        elif code == 0xBC:
            registers[target] = value(source) & MASK
        elif code == 0x54:
            registers[target] = value(target) & immediate & MASK
        elif code == 0x74:
            registers[target] = (value(target) & MASK) >> immediate
        elif code == 0x56:
            position += offset if value(target) & MASK != immediate & MASK else 0
        elif code == 0x16:
            position += offset if value(target) & MASK == immediate & MASK else 0
        elif code == 0x5E:
            position += offset if value(target) & MASK != value(source) & MASK else 0
        elif code == 0x95:
            assert value(0) in (0, 1)
            return value(0) == 1
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
