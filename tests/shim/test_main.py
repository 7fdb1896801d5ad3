"""The program's command line, as containerd uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from carrel.proto import introspection_types_pb2, runc_options_pb2, shim_v2_pb2
from carrel.shim.daemon import socket_path
from carrel.shim.main import Flags, UsageError
from carrel.shim.starter import state_root
from tests.shim.kit import ROOT


def shim(*arguments: str, stdin: bytes = b"",
         **options: object) -> subprocess.CompletedProcess[bytes]:
    code = (f"import sys; sys.path[:0] = [{str(ROOT)!r}]; "
            "from carrel.shim.main import main; sys.exit(main())")
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [sys.executable, "-ISBc", code, *arguments], input=stdin, capture_output=True,
        timeout=60, check=False, **options)  # type: ignore[call-overload]
    return done


def test_flags_as_go_parses_them() -> None:
    flags = Flags(["-namespace", "n", "--id=i", "-debug", "-address", "", "start", "-x"])
    assert (flags["namespace"], flags["id"], flags["address"]) == ("n", "i", "")
    assert flags.switches == {"debug"}
    assert flags.action == "start"
    for bad in (["-nope"], ["-id"]):
        with pytest.raises(UsageError):
            Flags(bad)


def test_version_and_help() -> None:
    assert b"Version:" in shim("-v").stdout
    assert b"usage:" in shim("-h").stdout
    done = shim("-nope")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2, b"flag provided but not defined: -nope")


@pytest.mark.parametrize(("arguments", "what"), [
    (["start"], "namespace cannot be empty"),
    (["-namespace", "n", "start"], "bad id"),
    (["-namespace", "n", "-id", "../x", "start"], "bad id"),
    (["-namespace", "n", "-id", "i", "dance"], "unknown action"),
    (["-namespace", "n", "-id", "i"], "unknown action"),
])
def test_what_is_wrong_is_one_line(arguments: list[str], what: str) -> None:
    done = shim(*arguments)
    assert done.returncode == 1
    assert what in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_info() -> None:
    options = runc_options_pb2.Options(systemd_cgroup=False, root="/r")
    given = any_pb2.Any(type_url="containerd.runc.v1.Options",
                        value=options.SerializeToString())
    for stdin in (b"", given.SerializeToString()):
        done = shim("-info", stdin=stdin)
        assert done.returncode == 0, done.stderr
        found = introspection_types_pb2.RuntimeInfo.FromString(done.stdout)
        assert found.name == "io.containerd.carrel.v1"
        assert found.HasField("options") == bool(stdin)
        features = json.loads(found.features.value)
        assert "mount" in features["linux"]["namespaces"]


def test_delete_of_a_bundle_that_was_never_created(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    done = shim("-namespace", "n", "-id", "i", "-bundle", str(tmp_path), "delete")
    assert done.returncode == 0, done.stderr
    answer = shim_v2_pb2.DeleteResponse.FromString(done.stdout)
    assert answer.exit_status == 137
    assert answer.exited_at.seconds > 1_700_000_000


@pytest.mark.root
@pytest.mark.parametrize(("maximum", "shape"), [("2", "plain"), ("3", "json")])
def test_start_prints_the_address(tmp_path: Path, maximum: str, shape: str) -> None:
    address = f"{tmp_path}/c.sock"
    done = shim("-namespace", "n", "-id", "i", "-address", address, "start", cwd=tmp_path,
                env={**os.environ, "MAX_SHIM_VERSION": maximum, "TTRPC_ADDRESS": ""})
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    found = json.loads(text)["address"] if shape == "json" else text
    pid = int((tmp_path / "shim.pid").read_text())
    try:
        assert (tmp_path / "address").read_text() == found
        assert os.path.exists(found.removeprefix("unix://"))
        assert os.getsid(pid) != os.getsid(0)
    finally:
        from tests.shim.kit import Client
        client = Client(found.removeprefix("unix://"))
        client.call("Shutdown", shim_v2_pb2.ShutdownRequest(id="i"))
        client.close()


def test_places() -> None:
    short = socket_path("/run/carrel/containerd/containerd.sock", "n", "i")
    assert short.startswith("/run/carrel/containerd/s/")
    assert socket_path("/" + "x" * 100 + "/c.sock", "n", "i").startswith("/run/containerd/s/")
    assert socket_path("/a/c.sock", "n", "i", "/given").startswith("/given/")
    bundle = "/run/c/io.containerd.runtime.v2.task/n/i"
    assert state_root("", "n", bundle) == "/run/c/runtime/n"
    assert state_root("/r", "n", bundle) == "/r/n"
    assert state_root("", "n", "/elsewhere") == "/run/carrel/runtime/n"
