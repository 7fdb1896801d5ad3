"""References, digests and platforms, against the rules that Docker's clients rely on."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errdefs import InvalidParameter
from carrel.oci import digest as digests
from carrel.oci import reference as references
from carrel.oci.reference import InvalidReference

SHA = "sha256:" + "a1" * 32


@pytest.mark.parametrize(("text", "canonical", "familiar"), [
    ("alpine", "docker.io/library/alpine", "alpine"),
    ("alpine:3", "docker.io/library/alpine:3", "alpine:3"),
    ("library/alpine", "docker.io/library/alpine", "alpine"),
    ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
    ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
    ("user/image", "docker.io/user/image", "user/image"),
    ("localhost/x", "localhost/x", "localhost/x"),
    ("localhost:5000/x/y/z:T_1.2-3", "localhost:5000/x/y/z:T_1.2-3",
     "localhost:5000/x/y/z:T_1.2-3"),
    ("127.0.0.1:80/x", "127.0.0.1:80/x", "127.0.0.1:80/x"),
    ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
    ("Example.COM/x", "Example.COM/x", "Example.COM/x"),
    ("UPPER/x", "UPPER/x", "UPPER/x"),
    (f"a@{SHA}", f"docker.io/library/a@{SHA}", f"a@{SHA}"),
    (f"a:t@{SHA}", f"docker.io/library/a:t@{SHA}", f"a:t@{SHA}"),
    ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f", "a__b/c---d.e_f"),
    ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
    ("a" * 247, "docker.io/library/" + "a" * 247, "a" * 247),
    ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128, "x:" + "t" * 128),
])
def test_normal_form(text: str, canonical: str, familiar: str) -> None:
    reference = references.parse(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar
    assert str(references.parse(canonical)) == canonical
    assert str(references.parse(familiar)) == canonical


@pytest.mark.parametrize("text", [
    "", " ", "a b", "Foo", "foo/Bar", "-a", "a-", "a//b", "/a", "a/", "a:", "a:-t", "a:.t",
    "a@", "a@sha256:abc", "a@md5:" + "a" * 32, "a@sha256:" + "A1" * 32, "a@sha256:" + "g" * 64,
    "a@sha256:" + "a" * 63, "a@sha256:" + "a" * 65, "a:b:c", "a:" + "t" * 129, "a..b", "a._b",
    "a___b", "b" * 64, "0123456789abcdef" * 4, "a\n", "a:t\n", "\na", "a\0", "é", "a:é", "\u0661",
    "http://a/b", "a" * 256, "x/" + "a" * 300, "localhost:99x/a", ":5000/a", "[::1/a",
    "[g::1]:5000/x", "a" * 100_000, "a:" * 50_000, "a/" * 50_000, "$(id)", "a;b", "../a", "./a",
])
def test_refused(text: str) -> None:
    started = time.process_time()
    with pytest.raises(InvalidReference, match="invalid reference format"):
        references.parse(text)
    assert time.process_time() - started < 1


COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
DOMAIN = st.sampled_from(["", "localhost", "localhost:5000", "r.example", "r.example:443",
                          "10.0.0.1:5000", "[fd00::1]:80"])
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(str.isascii)


@given(DOMAIN, st.lists(COMPONENT, min_size=1, max_size=4), st.none() | TAG,
       st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
def test_what_is_well_formed_is_taken(domain: str, path: list[str], tag: str | None,
                                      digest: str | None) -> None:
    text = "/".join([*([domain] if domain else []), *path])
    if not domain and (len(path) == 1 and re.fullmatch(r"[0-9a-f]{64}", text)):
        return
    if not domain and len(path) > 1 and ("." in path[0] or path[0] == "localhost"):
        return      # that is a domain
    text += (f":{tag}" if tag else "") + (f"@sha256:{digest}" if digest else "")
    reference = references.parse(text)
    assert reference.tag == (tag or "")
    assert reference.digest == (f"sha256:{digest}" if digest else "")
    assert references.parse(str(reference)) == reference
    assert references.parse(reference.familiar) == reference


@given(st.text(max_size=60))
def test_any_text_is_taken_whole_or_refused(text: str) -> None:
    try:
        reference = references.parse(text)
    except InvalidParameter:
        return
    assert text.isascii() and text.isprintable() and " " not in text
    assert references.parse(str(reference)) == reference
    assert ".." not in reference.path.split("/")


@given(st.text(max_size=90))
def test_digests_are_strict(text: str) -> None:
    if digests.is_digest(text):
        assert re.fullmatch(r"sha(256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})", text,
                            re.ASCII)


def test_chain_ids() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert digests.chain_id([]) == ""
    assert digests.chain_id([one]) == one
    assert digests.chain_ids([one, two]) == [one, digests.of(f"{one} {two}".encode())]
