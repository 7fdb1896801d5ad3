"""Which capabilities a container gets."""

from __future__ import annotations

from collections.abc import Iterable

from carrel import errdefs
from carrel.kernel import capability

DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)
_ALL = "ALL"


def normalize(names: Iterable[str]) -> list[str]:
    """``net_admin`` as ``CAP_NET_ADMIN``; unknown names are an error."""
    result = []
    for name in names:
        upper = name.upper()
        if upper != _ALL and not upper.startswith("CAP_"):
            upper = f"CAP_{upper}"
        if upper in (_ALL, "CAP_ALL"):
            upper = _ALL
        elif upper not in capability.NUMBERS:
            raise errdefs.InvalidParameter(f'invalid capability: "{name[:40]}"')
        result.append(upper)
    return result


def everything() -> list[str]:
    """All that this daemon may hand on."""
    _, _, _, bounding = capability.held()
    return [n for number, n in enumerate(capability.NAMES) if bounding >> number & 1]


def effective(add: Iterable[str], drop: Iterable[str], privileged: bool) -> list[str]:
    """Docker's rule: ALL on either side first, then single names."""
    if privileged:
        return everything()
    added, dropped = normalize(add), normalize(drop)
    if _ALL in added:
        return [c for c in everything() if c not in dropped]
    if _ALL in dropped:
        return [c for c in dict.fromkeys(added) if c != _ALL]
    base = [c for c in DEFAULT if c not in dropped]
    return base + [c for c in dict.fromkeys(added) if c not in base]
