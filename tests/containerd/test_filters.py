"""containerd's filter language."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import errdefs
from carrel.containerd import filters

OBJECT = {"name": "alpine", "labels.a": "1", "labels.containerd.io/x": "y z", "empty": ""}


def look(path: Sequence[str]) -> tuple[str, bool]:
    value = OBJECT.get(".".join(path))
    return (value, True) if value is not None else ("", False)


@pytest.mark.parametrize(("wanted", "matches"), [
    ([], True),
    ([""], True),
    (["name==alpine"], True),
    (["name==debian"], False),
    (["name!=debian"], True),
    (["missing!=x"], True),
    (["missing==x"], False),
    (['missing==""'], False),
    (["name"], True),
    (["missing"], False),
    (["name==alpine,labels.a==1"], True),
    (["name==alpine,labels.a==2"], False),
    (["name==debian", "labels.a==1"], True),
    (['labels."containerd.io/x"=="y z"'], True),
    (['labels."containerd.io/x"'], True),
    (["name~=^al"], True),
    (["name~=/^al.*e$/"], True),
    (["name~=|^x|"], False),
    ([r'name=="al\x70ine"'], True),
    (["name==alpine, labels.a==1"], True),
    ([" name == alpine , labels.a != 1 "], False),
])
def test_match(wanted: list[str], matches: bool) -> None:
    assert filters.compile_all(wanted)(look) is matches


@pytest.mark.parametrize("bad", ["name=x", "name==", "==x", "name==a,", 'name=="x', "name~=/x",
                                 "name~=(", "a..b", "na me==x", "name==a b"])
def test_refused(bad: str) -> None:
    with pytest.raises(errdefs.InvalidParameter):
        filters.compile_all([bad])


@given(st.lists(st.text(st.sampled_from('abc._"/|\\\\=!~, \n1x{'), max_size=30), max_size=3))
def test_any_text_is_a_filter_or_refused(wanted: list[str]) -> None:
    try:
        filters.compile_all(wanted)(look)
    except errdefs.InvalidParameter:
        pass
