"""carreld's own settings: each has an effect, or is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carrel import errdefs
from carrel.engine import flags, flagtable
from carrel.engine.config import Config


def _load(tmp_path: Path, *arguments: str, file: dict[str, Any] | None = None) -> Config:
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps(file or {}))
    return flags.load(["--config-file", str(path), *arguments])


def test_every_flag_has_a_field_and_help() -> None:
    for group in flagtable.FLAGS.values():
        for _, field, _, text in group:
            assert field in Config.__struct_fields__
            assert text
    fields = set(flagtable.names().values())
    assert set(Config.__struct_fields__) - fields == {"given"}


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags.load(["--help"])
    shown = capsys.readouterr().out
    for name in flagtable.names():
        assert f"--{name}" in shown
    assert "max-concurrent" not in shown


@pytest.mark.parametrize(("arguments", "text"), [
    (["--max-concurrent-downloads", "9"], "--max-concurrent-downloads"),
    (["--max-concurrent-uploads=1"], "--max-concurrent-uploads"),
    (["--max-download-attempts=1"], "--max-download-attempts"),
    (["--log-opt", "compress=true"], "compress"), (["--log-driver", "syslog"], "syslog"),
    (["-s", "vfs"], "storage driver 'vfs'"), (["--mtu", "5"], "MTU"),
    (["--default-ipc-mode", "host"], "IPC mode"), (["--default-runtime", "x"], "'x'"),
    (["--containerd", "/c.sock", "--registry-mirror", "http://m"], "registry-mirror"),
    (["--default-ulimit", "bogus=1"], "ulimit"), (["--add-runtime", "carrel=/x"], "reserved"),
    (["--exec-opt", "x=y"], "Unknown option"), (["--label", "x"], "--label"),
])
def test_refused_flags(tmp_path: Path, arguments: list[str], text: str) -> None:
    with pytest.raises(errdefs.CarrelError, match=text):
        _load(tmp_path, *arguments)


@pytest.mark.parametrize(("file", "text"), [
    ({"userns-remap": "default"}, "userns-remap"), ({"experimental": True}, "experimental"),
    ({"authorization-plugins": ["x"]}, "authorization-plugins"), ({"bogus": 1}, "bogus"),
    ({"features": {"x": True}}, "features"), ({"selinux-enabled": 1}, "selinux-enabled"),
    ({"runtimes": {"x": {"path": "/x", "runtimeArgs": ["-v"]}}}, "runtimeArgs"),
    ({"runtimes": {"x": {"bogus": 1}}}, "bogus"), ({"debug": "yes"}, "debug"),
    ({"log-level": 3}, "log_level"), ({"default-ulimits": {"x": {"Soft": 1}}}, "ulimit"),
    ({"hosts": "unix:///x"}, "hosts"), ({"mtu": 1 << 70}, "invalid MTU"),
])
def test_refused_files(tmp_path: Path, file: dict[str, Any], text: str) -> None:
    with pytest.raises(errdefs.CarrelError, match=text):
        _load(tmp_path, file=file)


def test_a_daemon_json_of_docker_that_asks_for_nothing_special(tmp_path: Path) -> None:
    config = _load(tmp_path, file={
        "max-concurrent-downloads": 3, "experimental": False, "storage-opts": [], "features":
        {"containerd-snapshotter": True}, "userns-remap": "", "log-opts": {"max-size": "10m"},
        "exec-opts": ["native.cgroupdriver=cgroupfs"], "live-restore": True})
    assert config.live_restore and config.log_opts == {"max-size": "10m"}


def test_switches_as_dockerd_has_them(tmp_path: Path) -> None:
    config = _load(tmp_path, "--icc=false", "--no-ip-masq", "--live-restore=true", "-D")
    assert (config.icc, config.ip_masq, config.live_restore, config.debug) == (
        False, False, True, True)


def test_default_runtime_follows_the_containerd(tmp_path: Path) -> None:
    assert _load(tmp_path).default_runtime == "carrel"
    assert _load(tmp_path, "--containerd", "/c.sock").default_runtime == "runc"
    assert _load(tmp_path, "--containerd", "embedded").default_runtime == "carrel"


def test_a_setting_in_two_places(tmp_path: Path) -> None:
    with pytest.raises(errdefs.CarrelError, match="both as a flag"):
        _load(tmp_path, "--debug", file={"debug": True})
