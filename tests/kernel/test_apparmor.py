"""The profile's text, and what is said where it cannot be loaded; tests/vm has its effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.errdefs import SystemFailure
from carrel.kernel import apparmor


def test_the_abi_is_pinned_where_the_policy_has_it(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "_ABI", str(tmp_path / "3.0"))
    assert apparmor.text().lstrip().startswith("profile carrel-default ")
    (tmp_path / "3.0").touch()
    assert apparmor.text().startswith("abi <abi/3.0>,\n")


def test_signals_come_from_those_who_manage_containers() -> None:
    lines = [line.strip() for line in apparmor.text(("/usr/bin/own", "crun")).splitlines()]
    assert [line for line in lines if line.startswith("signal (receive)")] == [
        f'signal (receive) peer="{name}",' for name in ("unconfined", "runc", "crun",
                                                         "/usr/bin/own")]


def test_loaded_reads_whole_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "profiles"
    listed.write_text("carrel-default-2 (enforce)\nwith space (complain)\nx//y (enforce)\n")
    monkeypatch.setattr(apparmor, "_LOADED", str(listed))
    assert not apparmor.loaded("carrel-default")
    assert apparmor.loaded("with space")
    assert apparmor.loaded("x//y")


def test_a_kernel_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "enabled"
    monkeypatch.setattr(apparmor, "_ENABLED", str(switch))
    monkeypatch.setattr(apparmor, "_LOADED", str(tmp_path))
    assert not apparmor.enabled()
    for text, answer in (("N\n", False), ("Y\n", True)):
        switch.write_text(text)
        assert apparmor.enabled() is answer


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_parser_gets_the_profile_and_no_environment(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("LD_PRELOAD_OF_SOMEBODY", "x")
    monkeypatch.setattr(apparmor, "_PARSERS", (
        _program(tmp_path / "parser", f"(echo $*; /usr/bin/env; cat) > {seen}"),))
    apparmor.load()
    text = seen.read_text()
    assert text.startswith("--replace --skip-cache\n")
    assert "LD_PRELOAD_OF_SOMEBODY" not in text
    assert "profile carrel-default" in text


def test_what_the_parser_says_is_in_the_error(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "_PARSERS", (
        _program(tmp_path / "parser", "echo 'syntax error, line 3' >&2; exit 1"),))
    with pytest.raises(SystemFailure, match="exit code 1: syntax error, line 3"):
        apparmor.load()
    monkeypatch.setattr(apparmor, "_PARSERS", (str(tmp_path / "none"),))
    with pytest.raises(SystemFailure, match="not installed"):
        apparmor.load()
