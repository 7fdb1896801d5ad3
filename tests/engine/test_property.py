"""Whatever a create request holds: an answer in JSON, no 5xx, and nothing left when refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carrel.engine import schema
from tests.engine.rawhttp import call
from tests.engine.stack import IMAGE, Stack

pytestmark = pytest.mark.root

_TEXT = st.text(max_size=12) | st.sampled_from([
    "", "0", "host", "none", "container:x", "a\nb", "\0", "../../x", "/tmp:/y",
    "/tmp:/y:ro", "x:/y",
    "vol:/v:nocopy", "A=b", "80/tcp", "65536/udp", "1.2.3.4", "::1", "SIGKILL", "ALL", "\ud800",
    "net.ipv4.ip_forward", "seccomp={}", "label=disable", "busybox", "-1", "1e9", "é" * 300])
_NUMBER = st.integers() | st.sampled_from([0, -1, 1, 1 << 31, (1 << 63) - 1, 6 << 20])
_ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _NUMBER | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6)
_NAMED = ("Name", "Type", "Config", "Path", "Weight", "Rate", "Soft", "Hard", "PathOnHost",
          "Source", "Target", "BindOptions", "TmpfsOptions", "VolumeOptions", "ReadOnly",
          "Test", "Interval", "MaximumRetryCount", "HostIp", "HostPort",
          "IPAMConfig", "Aliases", "Propagation")
_OBJECT = st.dictionaries(st.sampled_from(_NAMED), _ANY, max_size=4)
_OF_KIND: dict[str, st.SearchStrategy[Any]] = {
    "str": _TEXT, "int": _NUMBER, "bool": st.booleans(), "any": _ANY,
    "strs": st.lists(_TEXT, max_size=3), "command": st.lists(_TEXT, max_size=3) | _TEXT,
    "strmap": st.dictionaries(_TEXT, _TEXT, max_size=3), "obj": _OBJECT,
    "objmap": st.dictionaries(_TEXT, _OBJECT | st.lists(_OBJECT, max_size=2), max_size=2),
    "objs": st.lists(_OBJECT, max_size=2),
}


def _fields(fields: schema.Fields) -> st.SearchStrategy[dict[str, Any]]:
    """A few fields, mostly of their own types: deep enough to get past the first check."""
    def value(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        kind = _OF_KIND[fields[name][0]]
        return st.tuples(st.just(name), st.one_of(kind, kind, kind, _ANY))

    return st.lists(st.sampled_from(sorted(fields)).flatmap(value), max_size=3).map(dict)


_BODIES = st.builds(
    lambda config, host, networks: {"Image": IMAGE, **config, "HostConfig": host,
                                    **({"NetworkingConfig": networks} if networks else {})},
    _fields({k: v for k, v in schema.CONFIG.items() if k != "Image"}), _fields(schema.HOST_CONFIG),
    st.none() | _ANY | st.fixed_dictionaries({
        "EndpointsConfig": st.dictionaries(_TEXT, _fields(schema.ENDPOINT) | _ANY, max_size=2)}))


def _left(stack: Stack) -> tuple[int, int]:
    containers = call(stack.sock, "GET", "/containers/json?all=1").json
    volumes = call(stack.sock, "GET", "/volumes").json["Volumes"]
    return len(containers), len(volumes)


@settings(max_examples=150, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                 HealthCheck.data_too_large])
@given(body=_BODIES)
def test_create(stack: Stack, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    answer = call(stack.sock, "POST", "/containers/create", data)
    assert 200 <= answer.status < 500 or answer.status == 501, (answer.raw, body)
    if answer.status != 201:
        assert answer.json["message"]
        return
    ident = answer.json["Id"]
    shown = call(stack.sock, "GET", f"/containers/{ident}/json")
    assert shown.status == 200 and shown.json["Id"] == ident
    assert call(stack.sock, "GET", "/containers/json?all=1").status == 200
    assert call(stack.sock, "DELETE", f"/containers/{ident}?v=1&force=1").status == 204


def test_nothing_is_left_by_refused_requests(stack: Stack) -> None:
    before = _left(stack)
    for body in ({"Image": IMAGE, "HostConfig": {"Binds": ["new:/a", "/b:/c:bogus"]}},
                 {"Image": IMAGE, "Volumes": {"/v": {}},
                  "HostConfig": {"LogConfig": {"Type": "x"}}},
                 {"Image": IMAGE, "HostConfig": {"Mounts": [
                     {"Type": "volume", "Source": "made", "Target": "/x"},
                     {"Type": "volume", "Target": "/y", "VolumeOptions": {
                         "DriverConfig": {"Name": "nowhere"}}}]}},
                 {"Image": "nothing", "Volumes": {"/v": {}}}):
        answer = call(stack.sock, "POST", "/containers/create", body)
        assert 400 <= answer.status < 500, answer.raw
    assert _left(stack) == before
