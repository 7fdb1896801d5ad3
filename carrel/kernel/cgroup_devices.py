"""The device list of a container: rules in order -> one state -> v1 writes or an eBPF program.

The state is what the v1 device controller keeps: a default (deny or allow)
and exceptions from it. OCI rules are applied in order, as the kernel would.
"""

from __future__ import annotations

from carrel.errdefs import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: type 'b' or 'c', major, minor; -1 is every number
    Key = tuple[str, int, int]

_ACCESS = "rwm"

#: What every container may use, beside what its spec says (as runc and crun
#: do): mknod of anything, and the devices that the runtime puts into /dev.
DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
      for major, minor in ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (136, -1), (5, 2),
                           (10, 200))),
)


class DeviceState:
    """A default and its exceptions: ``rules[key]`` is the set of accesses that
    differ from the default."""

    __slots__ = ("allow", "rules")

    def __init__(self, allow: bool = False, rules: dict[Key, str] | None = None) -> None:
        self.allow = allow
        self.rules: dict[Key, str] = rules if rules is not None else {}

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, DeviceState) and self.allow == other.allow
                and self.rules == other.rules)

    __hash__ = None  # type: ignore[assignment]

    def apply(self, allow: bool, kind: str, major: int, minor: int, access: str) -> None:
        if kind == "a":
            # "all" always means every access to every device, whatever else it says
            self.allow = allow
            self.rules.clear()
        elif allow == self.allow:
            self._take_back((kind, major, minor), access)
        else:
            key = (kind, major, minor)
            self.rules[key] = _order(self.rules.get(key, "") + access)

    def _take_back(self, key: Key, access: str) -> None:
        """Remove accesses from the exceptions that ``key`` covers."""
        for other in list(self.rules):
            if other[0] != key[0] or not _overlap(other, key):
                continue
            if not _covers(key, other):
                if set(self.rules[other]) & set(access):
                    raise InvalidParameter(
                        f"device rule {_text(key)} {access}: a hole in the wider rule "
                        f"{_text(other)} {self.rules[other]} cannot be made")
                continue
            left = "".join(a for a in self.rules[other] if a not in access)
            if left:
                self.rules[other] = left
            else:
                del self.rules[other]


def _order(access: str) -> str:
    return "".join(a for a in _ACCESS if a in access)


def _overlap(a: Key, b: Key) -> bool:
    return all(x == y or x == -1 or y == -1 for x, y in ((a[1], b[1]), (a[2], b[2])))


def _covers(wide: Key, narrow: Key) -> bool:
    return wide[1] in (-1, narrow[1]) and wide[2] in (-1, narrow[2])


def _text(key: Key) -> str:
    major, minor = ("*" if n < 0 else str(n) for n in key[1:])
    return f"{key[0]} {major}:{minor}"


def check_rule(rule: dict[str, Any], index: int = 0) -> tuple[bool, str, int, int, str]:
    """An OCI rule as (allow, type, major, minor, access), checked."""
    if not rule.get("access"):
        raise InvalidParameter(f"device access at {index} field cannot be empty")
    access = _order(rule["access"])  # other letters mean nothing, as with runc
    if not access:
        raise InvalidParameter(
            f"device access at {index} field has none of r, w, m: {rule['access']!r}")
    kind = rule.get("type") or "a"
    if kind == "u":
        kind = "c"
    if kind not in ("a", "b", "c"):
        raise InvalidParameter(f"invalid cgroup device type {kind!r}")
    major, minor = (-1 if n is None else int(n) for n in (rule.get("major"), rule.get("minor")))
    if not (-1 <= major < 1 << 32 and -1 <= minor < 1 << 32):
        raise InvalidParameter(f"device number at {index} is out of range: {major}:{minor}")
    return bool(rule.get("allow")), kind, major, minor, access


def build(rules: list[dict[str, Any]], defaults: bool = True) -> DeviceState:
    """The state that the rules of a spec ask for; without rules: deny all.

    ``defaults``: with :data:`DEFAULT_RULES` behind the spec's own.
    """
    state = DeviceState()
    for index, rule in enumerate([*rules, *DEFAULT_RULES] if defaults else rules):
        state.apply(*check_rule(rule, index))
    return state


def parse_list(text: str) -> DeviceState:
    """v1's ``devices.list``. A default-allow group lists only ``a *:* rwm``;
    what it denies the kernel does not tell."""
    state = DeviceState()
    for line in text.splitlines():
        kind, numbers, access = line.split()
        if kind == "a":
            return DeviceState(allow=True)
        major, minor = (-1 if n == "*" else int(n) for n in numbers.split(":"))
        state.rules[kind, major, minor] = _order(access)
    return state


def transition(current: DeviceState, target: DeviceState) -> list[tuple[str, str]]:
    """The v1 writes (file, line) from one state to the other; no write takes
    away for a moment what both allow."""
    writes: list[tuple[str, str]] = []
    add, remove = ("devices.deny", "devices.allow") if target.allow else (
        "devices.allow", "devices.deny")
    rules = current.rules
    if current.allow != target.allow or target.allow:
        # the kernel does not list what a default-allow group denies: begin anew
        writes.append(("devices.allow" if target.allow else "devices.deny", "a"))
        rules = {}
    for key, access in target.rules.items():
        fresh = "".join(a for a in access if a not in rules.get(key, ""))
        if fresh:
            writes.append((add, f"{_text(key)} {fresh}"))
    for key, access in rules.items():
        stale = "".join(a for a in access if a not in target.rules.get(key, ""))
        if stale:
            writes.append((remove, f"{_text(key)} {stale}"))
    return writes
