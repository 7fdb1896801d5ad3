"""Everything that reads what somebody else wrote: no kernel needed."""

from __future__ import annotations

import json as standard
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errdefs import InvalidParameter
from carrel.kernel import syscalls as k
from carrel.oci import json
from carrel.runtime import arguments, cli_manage, cli_other, cli_start, options, planner, state
from tests.conftest import ROOT

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20)


@given(VALUES)
def test_json_round_trip_agrees_with_the_standard_library(value: object) -> None:
    assert standard.loads(json.dumps(value)) == value
    assert json.loads(standard.dumps(value)) == value
    assert standard.loads(json.dumps(value, "  ")) == value


@pytest.mark.parametrize("text", [
    '{"a":1,"a":2}', "[1,]", "NaN", "[Infinity]", "", "  ", "{} x", '{"a"', "[" * 100_000,
    "1" * 5000, '"\x01"', b"\xff\xfe",
])
def test_bad_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(InvalidParameter):
        json.loads(text)


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError):
        json.dumps(math.nan)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../x", "a\n", "a\0b", "x" * 256, "\uff41",
                                "a b"])
def test_ids_that_are_no_names_are_refused(id: str) -> None:
    with pytest.raises(InvalidParameter):
        state.check_id(id)


@pytest.mark.parametrize("id", ["a", "a.b", "A_b+c-1", "x" * 255, "..."])
def test_ids_of_the_specification_are_taken(id: str) -> None:
    state.check_id(id)


@pytest.mark.parametrize("text", ["4294967296", "2147483648", "-1", "0x0", " 1", "1:", "\u0661",
                                  "1_0", "root", "+1", ""])
def test_a_user_is_a_small_number(text: str) -> None:
    with pytest.raises(InvalidParameter):
        cli_start._id(text, "uid")


@pytest.mark.parametrize("text,number", [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15),
                                         ("0", 0), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("64", 64)])
def test_signals(text: str, number: int) -> None:
    assert cli_manage.signal_number(text) == number


@pytest.mark.parametrize("text", ["65", "-1", "NOPE", "", "\u0661", "9 "])
def test_unknown_signals(text: str) -> None:
    with pytest.raises(InvalidParameter):
        cli_manage.signal_number(text)


def test_mount_options_are_sorted_by_what_they_act_on() -> None:
    parsed = options.parse(["rbind", "ro", "nosuid", "rprivate", "size=64k", "rro", "noatime"])
    assert parsed.bind == "rbind"
    assert parsed.attr_set == k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOATIME
    assert parsed.propagation == [(k.MS_PRIVATE, True)]
    assert parsed.recursive_set == k.MOUNT_ATTR_RDONLY
    assert parsed.data == ["size=64k"]


def test_the_last_of_two_contrary_options_wins() -> None:
    assert options.parse(["ro", "rw"]).attr_set & k.MOUNT_ATTR_RDONLY == 0
    assert options.parse(["rw", "ro"]).attr_set & k.MOUNT_ATTR_RDONLY
    both = options.parse(["noatime", "strictatime"])
    assert both.attr_set & k.MOUNT_ATTR__ATIME == k.MOUNT_ATTR_STRICTATIME
    assert both.attr_clear & k.MOUNT_ATTR__ATIME == k.MOUNT_ATTR__ATIME


def test_command_line_forms() -> None:
    table = (("bundle", "value", "b", ""), ("detach", "flag", "d", ""), ("env", "list", "e", ""))
    parsed = arguments.parse(["-b", "x", "--detach", "-e", "A=1", "--env=B=2", "id", "-d"], table)
    assert parsed.text("bundle") == "x" and parsed.flag("detach")
    assert parsed.texts("env") == ["A=1", "B=2"]
    assert parsed.rest == ["id", "-d"]  # options end at the first argument
    assert arguments.parse(["--", "-b"], table).rest == ["-b"]


@pytest.mark.parametrize("words", [["--nope"], ["-b"], ["--detach=maybe"]])
def test_command_line_errors(words: list[str]) -> None:
    with pytest.raises(InvalidParameter):
        arguments.parse(words, (("bundle", "value", "b", ""), ("detach", "flag", "d", "")))


@pytest.mark.parametrize("text,seconds", [("5s", 5.0), ("100ms", 0.1), ("1m30s", 90.0),
                                          ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert cli_other._duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0s", "5", "s", "-1s", "1..2s", "1x"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(InvalidParameter):
        cli_other._duration(text)


@pytest.mark.parametrize("text", ["0-1000000000", "1-0", "a", "1,,2", "-1", "99999"])
def test_lists_are_bounded_before_anything_is_allocated(text: str) -> None:
    with pytest.raises(InvalidParameter):
        planner.parse_list(text)


def test_sysctl_names() -> None:
    assert planner.sysctl_path("net.ipv4.ip_forward") == "net/ipv4/ip_forward"
    assert planner.sysctl_path("net/ipv4/conf/eth0.100/x") == "net/ipv4/conf/eth0.100/x"
    assert planner.sysctl_path("net.ipv4.conf.eth0/100.x") == "net/ipv4/conf/eth0.100/x"


def test_bad_json_in_a_program_that_has_not_imported_json() -> None:
    """The C scanner wants json.decoder for its errors; without it, that of Python 3.11 fails in
    its own way, and that of 3.13 imports it."""
    script = """
import sys
sys.path[:0] = [sys.argv[1]]
from carrel.errdefs import InvalidParameter
from carrel.oci import json
if "json.decoder" in sys.modules:
    sys.exit("json was imported")
for text in ('{', '{"a"', '[1,', '{"a":1,}', '"\\x00"', 'x', ''):
    try:
        json.loads(text)
    except InvalidParameter:
        continue
    sys.exit(f"accepted {text!r}")
"""
    done = subprocess.run([sys.executable, "-ISBc", script, str(ROOT)], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
