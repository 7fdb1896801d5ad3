"""When the seccomp filter is installed: while start is on its way, where it allows what is
done after it; after the wait otherwise."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from carrel.kernel import seccomp
from carrel.oci import seccomp_default
from carrel.runtime import api
from carrel.runtime.childplan import AFTER_EARLY_FILTER
from tests.runtime.conftest import Bundle

pytestmark = pytest.mark.root


def dockers() -> dict[str, Any]:
    return seccomp_default.profile({"CAP_CHOWN"})


def forbidding(*names: str) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": list(names), "action": "SCMP_ACT_ERRNO"}]}


def mode_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return status.split("\nSeccomp:\t", 1)[1].split("\n", 1)[0]


def created(bundle: Bundle, tmp_path: Path) -> int:
    bundle.args("grep", "-E", "Seccomp:|CapEff|NoNewPrivs", "/proc/self/status").write()
    out = (tmp_path / "out").open("w")
    done = bundle.cli("create", bundle.id, capture_output=False, stdout=out, stderr=out)
    assert done.returncode == 0
    found = bundle.cli("state", bundle.id).stdout
    return int(found.split('"pid": ', 1)[1].split(",", 1)[0])


def output(bundle: Bundle, tmp_path: Path) -> dict[str, str]:
    assert bundle.cli("start", bundle.id).returncode == 0
    for _ in range(100):
        rows = dict(line.split(":\t") for line in (tmp_path / "out").read_text().splitlines())
        if len(rows) == 3:
            return rows
        time.sleep(0.02)
    raise AssertionError((tmp_path / "out").read_text())


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_dockers_filter_stands_before_start(bundle: Bundle, tmp_path: Path,
                                            no_new_privileges: bool) -> None:
    bundle.spec["linux"]["seccomp"] = dockers()
    bundle.spec["process"]["noNewPrivileges"] = no_new_privileges
    bundle.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    bundle.spec["process"]["capabilities"] = {
        kind: ["CAP_CHOWN"]
        for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}
    pid = created(bundle, tmp_path)
    deadline = time.monotonic() + 5
    while mode_of(pid) != "2" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mode_of(pid) == "2"
    rows = output(bundle, tmp_path)
    assert rows["Seccomp"] == "2"
    assert rows["NoNewPrivs"] == str(int(no_new_privileges))
    assert int(rows["CapEff"], 16) == 1  # CAP_CHOWN, and what installing takes is gone


@pytest.mark.parametrize("name", ["setresuid", "capset", "openat2", "chdir"])
def test_a_filter_that_forbids_what_follows_is_the_last_step(bundle: Bundle, tmp_path: Path,
                                                             name: str) -> None:
    bundle.spec["linux"]["seccomp"] = forbidding(name)
    bundle.spec["process"]["noNewPrivileges"] = True
    pid = created(bundle, tmp_path)
    time.sleep(0.1)
    assert mode_of(pid) == "0"
    assert output(bundle, tmp_path)["Seccomp"] == "2"


def test_a_filter_that_cannot_be_installed_early_is_an_error_of_start(
        bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Init has said that it is ready and cannot be asked: start tells."""
    bundle.spec["linux"]["seccomp"] = dockers()
    bundle.args("true").write()

    def refuse(_filter: seccomp.Filter) -> int:
        raise OSError(errno.EACCES, "refused here")

    monkeypatch.setattr(seccomp.Filter, "install", refuse)
    container = api.create(bundle.id, str(bundle.folder), bundle.root)
    try:
        with pytest.raises(Exception, match="refused here"):
            container.start()
        assert os.waitstatus_to_exitcode(os.waitpid(container.pid, 0)[1]) == 1
    finally:
        container.delete(force=True)


def test_the_default_filter_allows_what_is_done_under_it() -> None:
    assert seccomp.allows(dockers(), AFTER_EARLY_FILTER)
    assert not seccomp.allows(forbidding("write"), AFTER_EARLY_FILTER)
    with_condition = dockers()
    for rule in with_condition["syscalls"]:
        if "write" in rule["names"]:
            rule["args"] = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    assert not seccomp.allows(with_condition, AFTER_EARLY_FILTER)
