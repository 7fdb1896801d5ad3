"""What the machine looks like, and the difference between two looks.

Run inside ``scripts/sandbox``, where mounts, links and rules are the test run's own.
Cgroups are machine-wide, so only those below a Carrel parent are counted.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass, field

CGROUP_ROOT = "/sys/fs/cgroup"
#: Cgroups are the machine's: each test session has a name of its own there, so that two at
#: once do not see each other.  In the environment, because test processes start more of them.
SESSION = os.environ.setdefault("CARREL_TEST_SESSION", str(os.getpid()))
#: how the first path element of every cgroup of this session begins
CGROUP_PREFIX = f"carrel-test-{SESSION}-"

#: what a zygote may have waiting: shims and their workers; its own process is counted as any other
READY_SHIMS = frozenset(f"ready-made shim {n}" for n in range(1, 5))


def cgroup_parent(area: str) -> str:
    """The cgroup below which one area of the tests makes its own, as a path: ``/...-area``."""
    return f"/{CGROUP_PREFIX}{area}"


@dataclass
class Snapshot:
    """Sets of printable facts, by kind."""

    facts: dict[str, frozenset[str]] = field(default_factory=dict)

    def difference(self, before: Snapshot) -> dict[str, list[str]]:
        """What is here now and was not before, by kind."""
        new = {k: sorted(v - before.facts.get(k, frozenset())) for k, v in self.facts.items()}
        return {k: v for k, v in new.items() if v}


def _mounts() -> frozenset[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        return frozenset(line.split()[4] for line in f)


def ready_pairs(before: Snapshot) -> set[str]:
    """The pairs that an engine may make for its pool of ready namespaces (three) from here on."""
    there = sum(name.startswith("veth ") for name in before.facts["links"])
    return {f"veth {n}" for n in range(there + 1, there + 4)}


def _links() -> frozenset[str]:
    names = set(os.listdir("/proc/sys/net/ipv4/conf")) - {"all", "default"}
    # ready-made veth pairs come and go under random names: how many there are is what counts
    pairs = [n for n in names if n.startswith("veth")]
    return frozenset(names.difference(pairs)) | {f"veth {n}" for n in range(1, len(pairs) + 1)}


def cgroups_are_plain() -> bool:
    """False where a hierarchy of version 1 exists that is not mounted here: there the shim of
    runc reads no metrics and hears of no out-of-memory."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        hierarchies = {name for line in file for name in line.split(":")[1].split(",") if name}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        mounted = {option for line in file if " - cgroup " in line
                   for option in line.split()[-1].split(",")}
    return hierarchies <= mounted


def _cgroup_tops(prefix: str) -> list[str]:
    """The folders of the first level whose names begin so, in every hierarchy."""
    hierarchies = [CGROUP_ROOT]
    if not os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers"):
        hierarchies = [f"{CGROUP_ROOT}/{h}" for h in os.listdir(CGROUP_ROOT)]
    found: list[str] = []
    for hierarchy in hierarchies:
        try:
            found += [f"{hierarchy}/{d}" for d in os.listdir(hierarchy) if d.startswith(prefix)]
        except OSError:
            continue
    return found


def _cgroups(prefix: str) -> frozenset[str]:
    found: set[str] = set()
    for top in _cgroup_tops(prefix):
        for base, dirs, _ in os.walk(top):
            found.update(os.path.join(base, d) for d in dirs)
    return frozenset(found)


def sweep_cgroups() -> list[str]:
    """Take off the cgroup parents of this session, and of sessions whose process is gone;
    what could not be removed of our own (something still runs in it)."""
    kept: list[str] = []
    for top in _cgroup_tops("carrel-test"):
        name = os.path.basename(top)
        owner = name.removeprefix("carrel-test-").partition("-")[0]
        ours = name.startswith(CGROUP_PREFIX)
        if not ours and (not owner.isdigit() or os.path.exists(f"/proc/{owner}")):
            continue
        for base, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(base)
            except OSError:
                if ours:
                    kept.append(base)
    return kept


def _processes() -> frozenset[str]:
    """Processes in our mount namespace or below us, other than this one."""
    me = os.getpid()
    mine = os.readlink("/proc/self/ns/net")
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    inside: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
                text = f.read()
            parents[pid] = int(text.rsplit(")", 1)[1].split()[1])
            names[pid] = text[text.index("(") : text.rindex(")") + 1]
            if os.readlink(f"/proc/{pid}/ns/net") == mine:
                inside.add(pid)
        except (OSError, ValueError):
            continue
    ancestors = set()
    walk = me
    while walk:
        ancestors.add(walk)
        walk = parents.get(walk, 0)
    # the kernel's own threads (children of 2) are seen where no namespace is between us and it
    found = [pid for pid in inside if pid not in ancestors and parents[pid] != 2]
    waiting = [pid for pid in found if _is_waiting_shim(pid, parents[pid])]
    # the shims that a zygote made ahead come and go: how many there are is what counts
    return frozenset(f"{pid} {names[pid]}" for pid in found if pid not in waiting) | {
        f"ready-made shim {n}" for n in range(1, len(waiting) + 1)}


def _is_waiting_shim(pid: int, parent: int) -> bool:
    """A clone of a zygote (or the worker of such a one) that no container has yet:
    a shim that has one works in its bundle's folder."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            if not f.read().endswith(b"\0zygote\0"):
                return False
        with open(f"/proc/{parent}/cmdline", "rb") as f:
            if not f.read().endswith(b"\0zygote\0"):
                return False
        return os.readlink(f"/proc/{pid}/cwd") == os.readlink(f"/proc/{parent}/cwd")
    except OSError:
        return False


def _rules() -> frozenset[str]:
    try:
        out = subprocess.run(["/usr/sbin/nft", "list", "ruleset"], capture_output=True,
                             text=True, timeout=60, check=False).stdout
    except FileNotFoundError:
        return frozenset()
    # counters and handles change; the presence of chains and rules is what counts
    lines = (re.sub(r"counter packets \d+ bytes \d+", "counter", line) for line in out.splitlines())
    return frozenset(f"{n}:{line.strip()}" for n, line in enumerate(lines) if line.strip())


def _descriptors() -> frozenset[str]:
    found: set[str] = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return frozenset(found)


def take(*, descriptors: bool = False, cgroups: str = CGROUP_PREFIX) -> Snapshot:
    """Look at the machine now; ``cgroups`` is how the names of the test's cgroups begin."""
    facts = {
        "mounts": _mounts(),
        "links": _links(),
        "cgroups": _cgroups(cgroups),
        "processes": _processes(),
        "nft rules": _rules(),
    }
    if descriptors:
        facts["descriptors of the test"] = _descriptors()
    return Snapshot(facts)


def wait_until_clean(before: Snapshot, seconds: float = 20.0,
                     cgroups: str = CGROUP_PREFIX) -> dict[str, list[str]]:
    """The leaks that are still there after at most ``seconds``; {} if none."""
    deadline = time.monotonic() + seconds
    while True:
        leaks = take(cgroups=cgroups).difference(before)
        if not leaks or time.monotonic() > deadline:
            return leaks
        time.sleep(0.05)
