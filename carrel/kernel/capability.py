"""Capabilities by name."""

from __future__ import annotations

from carrel.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_last: int | None = None


def last() -> int:
    """The highest capability that this kernel knows."""
    global _last
    if _last is None:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as f:
            _last = int(f.read())
    return _last


def mask(names: Iterable[str]) -> tuple[int, list[str]]:
    """The bits of ``names``, and the names that are unknown here.

    An unknown name is not an error: it is a right that cannot be given.
    """
    bits, unknown = 0, []
    top = last()
    for name in names:
        number = NUMBERS.get(name)
        if number is None or number > top:
            unknown.append(name)
        else:
            bits |= 1 << number
    return bits, unknown


def held() -> tuple[int, int, int, int]:
    """(inheritable, permitted, effective, bounding) of this process."""
    values = {}
    with open("/proc/self/status", "rb") as f:
        for line in f:
            if line.startswith(b"Cap"):
                key, _, value = line.partition(b":")
                values[key] = int(value, 16)
    return values[b"CapInh"], values[b"CapPrm"], values[b"CapEff"], values[b"CapBnd"]


def drop_bounding(kernel: Any, keep: int) -> None:
    """Take everything outside ``keep`` out of the bounding set."""
    for number in range(last() + 1):
        if not keep >> number & 1:
            kernel.prctl(syscalls.PR_CAPBSET_DROP, number)


def set_ambient(kernel: Any, bits: int) -> None:
    kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    number = 0
    while bits >> number:
        if bits >> number & 1:
            kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
        number += 1
