"""A plan that is sent to another process is the plan that was made."""

from __future__ import annotations

import os
from typing import Any

import pytest

from carrel.kernel import seccomp
from carrel.kernel.fake import FakeKernel
from carrel.kernel.plan import Operation
from carrel.oci import json
from carrel.runtime import draft, parcel, rehearse, stock

_BUNDLE = "/nonexistent/parcel"


def _planned(**changes: Any) -> tuple[Any, FakeKernel]:
    """(child, kernel) of a start much like a daemon's, made against nothing."""
    spec = json.loads(rehearse.text())
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(spec.get(name), dict):
            spec[name] |= value
        else:
            spec[name] = value
    raw = json.dumps(spec).encode()
    kernel = rehearse.Stage(missing=("/dev/pts", "/dev/shm", "/etc/hosts", "/proc/scsi"))
    kernel.open.update(dict.fromkeys((0, 1, 2), "/dev/null"))
    goods = stock.Stock()
    goods.fill(kernel)
    with seccomp.pretended(spec["linux"]["seccomp"]):
        made = draft.Draft("parcel", _BUNDLE, "/nonexistent", None, kernel, raw, goods)
    maker = made.finish((7, 8, 9), [rehearse._LAYER])
    maker.descriptors.clear()  # they exist in that kernel only
    maker.child.cgroup = None  # and v2's group in none
    return maker.child, kernel


def _sent(child: Any, moved: int = 5000) -> Any:
    """As it arrives; descriptors get other numbers on their way."""
    packet, fds = parcel.pack(child)
    assert len(set(fds)) == len(fds) and min(fds) >= 0
    return parcel.unpack(packet, [fd + moved for fd in fds]), fds


def _state(value: Any, depth: int = 0) -> Any:
    """What an object holds, to the bottom, without what all share."""
    if depth > 6:
        return "..."
    if isinstance(value, (list, tuple)):
        return [_state(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {key: _state(one, depth + 1) for key, one in value.items()}
    names = [n for base in type(value).__mro__ for n in base.__dict__.get("__slots__", ())]
    if not names and not isinstance(value, Operation):
        return value
    return type(value).__name__, {n: _state(getattr(value, n), depth + 1) for n in names
                                  if n not in ("view", "child", "env", "ready", "map_fd")}


def test_what_arrives_is_what_was_planned() -> None:
    child, _ = _planned(hostname="there", process={"rlimits": [
        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}], "oomScoreAdj": 7,
        "consoleSize": {"height": 24, "width": 80}, "noNewPrivileges": True})
    found, _ = _sent(child)
    for name in ("early", "before", "after_go", "filtered"):
        mine, theirs = getattr(child, name), getattr(found, name)
        assert [one.describe() for one in mine] == [one.describe() for one in theirs]
        assert _state(mine) == _state(theirs), name
    assert len(found.before) > 20
    for name in ("argv", "env", "terminal", "preserve_fds", "unshare_flags", "clone_again",
                 "joins_late", "filters_early", "awaits_request", "wait_for_maps"):
        assert getattr(found, name) == getattr(child, name), name
    assert found.filter.bpf == child.filter.bpf and found.filter.flags == child.filter.flags
    assert (found.view.console_size, found.view.foreign_sources) == ((24, 80), False)


def test_descriptors_keep_their_places() -> None:
    child, _ = _planned()
    found, fds = _sent(child)
    assert found.stdio == (5007, 5008, 5009)
    assert found.keep_fds == [fd + 5000 for fd in child.keep_fds]
    assert found.view.null_fd == child.view.null_fd + 5000
    ready = [(one.ready, other.ready) for one, other in zip(child.before, found.before)
             if hasattr(one, "ready")]
    assert any(mine >= 0 for mine, _ in ready) and any(mine < 0 for mine, _ in ready)
    assert all(other == (mine + 5000 if mine >= 0 else -1) for mine, other in ready)
    assert {mine for mine, _ in ready if mine >= 0} < set(fds)


def test_what_is_shared_is_shared_again() -> None:
    child, _ = _planned()
    found, _ = _sent(child)
    for one in found.before:
        for name, of in (("view", found.view), ("child", found), ("env", found.env)):
            assert not hasattr(one, name) or getattr(one, name) is of


def test_it_does_the_same() -> None:
    calls = []
    for sent in (False, True):
        child, kernel = _planned()
        kernel.calls.clear()
        if sent:
            child, _ = _sent(child, moved=0)
        wanted = [one for one in (*child.before, *child.after_go)
                  if type(one).__name__ not in ("JoinCgroups", "AwaitRequest")]
        for one in wanted:
            one.execute(kernel)
        calls.append([(name, [a if not isinstance(a, int) else "fd" for a in args])
                      for name, args in kernel.calls])
    assert len(calls[0]) > 60 and calls[0] == calls[1]


@pytest.mark.parametrize("changes", [
    {"hooks": {"createContainer": [{"path": "/bin/true"}]}},
    {"process": {"env": ["LONG=" + "x" * parcel.LIMIT]}},
    {"linux": {"namespaces": [{"type": "user"}, {"type": "mount"}, {"type": "uts"}],
               "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
               "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}},
])
def test_what_cannot_travel_is_refused(changes: dict[str, Any]) -> None:
    child, _ = _planned(**changes)
    with pytest.raises(parcel.TooMuch):
        parcel.pack(child)


def test_a_listener_does_not_travel() -> None:
    child, _ = _planned()
    child.listener, child.filter = child.filter, None
    with pytest.raises(parcel.TooMuch):
        parcel.pack(child)


def test_files_of_a_cgroup() -> None:
    """Joined as the manager would: not that of the group it was born in."""
    ends = [os.pipe() for _ in range(3)]
    writers = [end[1] for end in ends]
    for cloned, unified, expected in (
            (True, writers[0], [b"", b"0", b"0"]), (False, writers[0], [b"0", b"0", b"0"]),
            (False, -1, [b"", b"0", b"0"])):
        parcel.Groups(unified, writers[1:]).join_self(cloned)
        for (reader, _), text in zip(ends, expected):
            os.set_blocking(reader, False)
            try:
                assert os.read(reader, 10) == text
            except BlockingIOError:
                assert text == b""
    for pair in ends:
        for fd in pair:
            os.close(fd)
