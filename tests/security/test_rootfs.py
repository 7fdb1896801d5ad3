"""Hostile root file systems: what an image holds never leads the runtime out of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carrel.kernel import paths
from carrel.runtime import api, child, identity, mounts
from tests.conftest import ROOT
from tests.runtime.conftest import Bundle
from tests.security.conftest import Canary, Kernel, contain, enter

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def leaked(canary: Canary) -> Iterator[int]:
    """A descriptor of the host's that whoever starts us forgot to mark."""
    fd = os.open(canary.folder, os.O_RDONLY | os.O_DIRECTORY)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD, 60)   # inheritable, and nobody else's
    os.close(fd)
    yield high
    os.close(high)


# --- E03: the working directory is a descriptor of the host --------------------------


def test_cwd_by_descriptor_is_refused(bundle: Bundle, canary: Canary, leaked: int) -> None:
    (bundle.rootfs / "work").symlink_to(f"/proc/self/fd/{leaked}")
    bundle.spec["root"]["readonly"] = False
    for cwd in ("/work", *(f"/proc/self/fd/{n}" for n in (3, 4, 5, 6, 7, 8, 9, 11, 13, leaked)),
                f"/proc/self/fd/{leaked}/etc", "/proc/thread-self/cwd/../../../.."):
        bundle.spec["process"]["cwd"] = cwd
        found = contain(bundle, "sh", "-c", "ls -a; cat secret etc/passwd ../secret")
        assert "of the host" not in found.text and "host-canary" not in found.text, cwd
        assert found.error or found.status != 0, cwd
    canary.check()


def test_exec_cwd_by_descriptor_is_refused(running: api.Container, canary: Canary,
                                           leaked: int) -> None:
    for number in (*range(3, 16), leaked):
        found = enter(running, {"args": ["cat", "secret"], "cwd": f"/proc/self/fd/{number}"})
        assert found.error or found.status != 0
        assert "of the host" not in found.text


def test_without_the_guards_the_descriptor_leads_to_the_host(
        bundle: Bundle, canary: Canary, leaked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three guards alone is enough; without all of them this is an escape."""
    bundle.spec["process"]["cwd"] = f"/proc/self/fd/{leaked}"
    guards: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda m: m.setattr(child, "close_all_but", lambda *_: None),
        lambda m: m.setattr(identity.MakeWorkingDirectory, "execute", lambda *_: None),
        lambda m: m.setattr(identity, "check_working_directory", lambda *_: None)]
    for on in range(3):
        with monkeypatch.context() as patch:
            for number, switch_off in enumerate(guards):
                if number != on:
                    switch_off(patch)
            assert contain(bundle, "cat", "secret").error, on
    for switch_off in guards:
        switch_off(monkeypatch)
    assert contain(bundle, "cat", "secret").text == "of the host\n"


# --- E04: descriptors ----------------------------------------------------------------


def _descriptors(text: str) -> set[str]:
    return {line.split(" -> ")[0].split()[-1] for line in text.splitlines() if " -> " in line}


def test_no_descriptor_reaches_a_payload(bundle: Bundle, leaked: int) -> None:
    report = bundle.folder / "hook-fds"
    bundle.spec["hooks"] = {"createRuntime": [{
        "path": "/bin/busybox", "args": ["sh", "-c", f"ls -l /proc/$$/fd > {report}"]}]}
    script = "ls -l /proc/1/fd; true"
    assert _descriptors(contain(bundle, "sh", "-c", script).text) == {"0", "1", "2"}
    # the shell has its script on 10 at most and the file that it writes on 1
    assert str(leaked) not in _descriptors(report.read_text())
    kept = contain(bundle, "sh", "-c", script, kernel=Kernel(close_range=lambda *_: None))
    assert str(leaked) in _descriptors(kept.text), "the test would not see it"


def test_no_descriptor_reaches_an_exec(running: api.Container, leaked: int) -> None:
    found = enter(running, {"args": ["sh", "-c", "ls -l /proc/$$/fd; true"]})
    assert _descriptors(found.text) == {"0", "1", "2"}


def test_a_created_container_holds_what_it_needs_only(bundle: Bundle, leaked: int) -> None:
    bundle.args("true")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    try:
        held = {fd: os.readlink(f"/proc/{made.pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{made.pid}/fd")}
        others = sorted(t.split(":")[0] for fd, t in held.items() if int(fd) > 2)
        # its end of the conversation, the fifo that holds it back, the private procfs
        assert len(others) == 3 and others[2] == "socket" and others[0] == "/", held
        assert any(t.endswith("exec.fifo") for t in others), held
    finally:
        made.delete(force=True)
        os.waitpid(made.pid, 0)


# --- E05, E06: fake devices ----------------------------------------------------------


def _own_dev(bundle: Bundle) -> Path:
    """The image's /dev is the container's: no tmpfs over it."""
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"]
                             if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
    bundle.spec["root"]["readonly"] = False
    (bundle.rootfs / "dev").mkdir(exist_ok=True)
    return bundle.rootfs / "dev"


@pytest.mark.parametrize("target", ["/proc/sysrq-trigger", "/proc/self/mem", "CANARY"])
def test_a_null_device_that_is_a_link_stops_the_start(bundle: Bundle, canary: Canary,
                                                      target: str) -> None:
    dev = _own_dev(bundle)
    (dev / "null").symlink_to(target.replace("CANARY", f"{canary.folder}/secret"))
    assert "different file where a device belongs" in contain(bundle, "true").error
    canary.check()


def test_what_masks_a_file_is_the_hosts_null_device(bundle: Bundle) -> None:
    dev = _own_dev(bundle)
    os.mknod(dev / "null", 0o20666, os.makedev(1, 3))
    found = contain(bundle, "stat", "-c", "%t:%T", "/proc/interrupts", "/proc/keys")
    assert found.text.split() == ["1:3", "1:3"]


def test_a_fake_null_device_of_the_host_is_seen(tmp_path: Path) -> None:
    """Whatever is at /dev/null: it is looked at by its descriptor."""
    fake = tmp_path / "null"
    fake.write_text("")
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from carrel.kernel import syscalls as k
from carrel.runtime import inside
k.unshare(k.CLONE_NEWNS)
k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
inside.open_null(k)
k.mount({str(fake)!r}, "/dev/null", None, 4096)
try:
    inside.open_null(k)
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-ISB", "-c", program], capture_output=True, text=True,
                          check=True)
    assert "is not the null device" in done.stdout


@pytest.mark.parametrize("name", ["console", "ptmx", "pts/0", "fd", "stdin", "core", "tty"])
def test_links_in_dev_create_nothing_on_the_host(bundle: Bundle, canary: Canary, name: str
                                                 ) -> None:
    dev = _own_dev(bundle)
    (dev / "pts").mkdir()
    bundle.spec["process"]["terminal"] = True
    for target in (f"{canary.folder}/new", f"{canary.folder}/secret",
                   "../../../../../../../.." + f"{canary.folder}/new"):
        (dev / name).unlink(missing_ok=True)
        (dev / name).symlink_to(target)
        contain(bundle, "true", stdio=None)
        canary.check()


def test_a_bound_file_as_console_stays_as_it_was(bundle: Bundle, canary: Canary) -> None:
    """crun's CVE-2025-52565 class: the terminal's bind went through the link."""
    dev = _own_dev(bundle)
    (dev / "console").symlink_to("/mnt/file")
    bundle.spec["process"]["terminal"] = True
    bundle.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    bundle.spec["mounts"].append({"destination": "/mnt/file", "type": "bind",
                                  "source": f"{canary.folder}/secret", "options": ["bind"]})
    contain(bundle, "sh", "-c", "echo changed > /dev/console", stdio=None)
    canary.check()


def test_a_device_is_looked_at_not_opened(tmp_path: Path) -> None:
    """An engine that opened a container's node as root would start a watchdog."""
    (tmp_path / "file").write_text("plain")
    os.mknod(tmp_path / "node", 0o20600, os.makedev(5, 0))  # /dev/tty: ENXIO when opened
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    found = {}
    for name in ("file", "node", "fifo", "link"):
        where = os.open(tmp_path / name, os.O_PATH | os.O_NOFOLLOW)
        fd = paths.open_plain_file(where)
        found[name] = os.read(fd, 9) if fd >= 0 else b""
        os.close(where)
        if fd >= 0:
            os.close(fd)
    assert found == {"file": b"plain", "node": b"", "fifo": b"", "link": b""}


# --- E07: /proc and /sys -------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_proc_and_sys_go_on_ordinary_directories(bundle: Bundle, canary: Canary, name: str
                                                 ) -> None:
    (bundle.rootfs / name).symlink_to(canary.folder)
    assert "must be mounted on ordinary directory" in contain(bundle, "true").error
    (bundle.rootfs / name).unlink()
    (bundle.rootfs / name).write_text("a file")
    assert contain(bundle, "true").error
    canary.check()


@pytest.mark.parametrize(("destination", "words"), [
    ("/proc", "not of type proc"), ("/proc/sys", "inside /proc"), ("/link", "inside /proc"),
    ("/proc/self/attr", "inside /proc"), ("/proc/1", "inside /proc")])
def test_nothing_covers_proc(bundle: Bundle, tmp_path: Path, destination: str, words: str,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake").mkdir()
    (bundle.rootfs / "link").symlink_to("proc/sys")
    bundle.spec["mounts"].append({"destination": destination, "type": "bind",
                                  "source": str(tmp_path / "fake"), "options": ["bind"]})
    assert words in contain(bundle, "true").error
    monkeypatch.setattr(mounts, "check_proc", lambda *_: None)
    assert not contain(bundle, "true").error or destination == "/proc", "the test would not see it"


def test_statistics_may_be_covered(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "fake").write_text("mine\n")
    bundle.spec["mounts"].append({"destination": "/proc/uptime", "type": "bind",
                                  "source": str(tmp_path / "fake"), "options": ["bind"]})
    assert contain(bundle, "cat", "/proc/uptime").text == "mine\n"


def test_a_sysctl_goes_to_the_kernel_not_to_a_fake_file(bundle: Bundle) -> None:
    """Written through a procfs that is mounted nowhere."""
    fake = bundle.rootfs / "proc/sys/kernel"
    fake.mkdir(parents=True)
    (fake / "domainname").write_text("fake")
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"] if m["destination"] != "/proc"]
    bundle.spec["linux"]["maskedPaths"] = bundle.spec["linux"]["readonlyPaths"] = []
    bundle.spec["linux"]["sysctl"] = {"kernel.domainname": "real.example"}
    found = contain(bundle, "sh", "-c", "cat /proc/sys/kernel/domainname; uname -a")
    assert found.text.startswith("fake") and not found.error
    assert (fake / "domainname").read_text() == "fake"


# --- E08, E31: parents that are links ------------------------------------------------


LINKS = ("{canary}", "../../../../../../../../../../{canary}", "/proc/self/root/{canary}",
         "/proc/1/cwd/{canary}")


@pytest.mark.parametrize("link", LINKS)
def test_mount_points_are_made_inside(bundle: Bundle, canary: Canary, tmp_path: Path, link: str
                                      ) -> None:
    bundle.spec["root"]["readonly"] = False
    (bundle.rootfs / "link").symlink_to(link.format(canary=canary.folder))
    (bundle.rootfs / "dev").symlink_to(link.format(canary=f"{canary.folder}/etc"))
    (tmp_path / "data").mkdir()
    bundle.spec["mounts"] += [
        {"destination": "/link/new/deep", "type": "bind", "source": str(tmp_path / "data"),
         "options": ["bind"]},
        {"destination": "/link/tmpfs", "type": "tmpfs", "source": "tmpfs"}]
    bundle.spec["linux"]["devices"] = [
        {"path": "/link/device", "type": "c", "major": 1, "minor": 3}]
    bundle.spec["process"]["cwd"] = "/link/working"
    contain(bundle, "true")
    canary.check()


def test_without_resolve_in_root_the_links_lead_to_the_host(
        bundle: Bundle, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.spec["root"]["readonly"] = False
    (bundle.rootfs / "link").symlink_to(canary.folder)
    bundle.spec["linux"]["devices"] = [
        {"path": "/link/device", "type": "c", "major": 1, "minor": 3}]
    monkeypatch.setattr(paths, "IN_ROOT", 0)
    contain(bundle, "true")
    assert canary.changes()


def test_files_of_the_engine_are_bound_inside(bundle: Bundle, canary: Canary, tmp_path: Path
                                              ) -> None:
    """E31: /etc, /etc/hosts, /etc/resolv.conf as links and as a fifo."""
    hosts = tmp_path / "hosts"
    hosts.write_text("the engine's\n")
    bundle.spec["root"]["readonly"] = False
    bundle.spec["mounts"].append({"destination": "/etc/hosts", "type": "bind",
                                  "source": str(hosts), "options": ["rbind", "rprivate"]})
    etc = bundle.rootfs / "etc"
    etc.symlink_to("/")
    assert contain(bundle, "cat", "/hosts").text == "the engine's\n"
    etc.unlink()
    etc.symlink_to(canary.folder / "etc")
    contain(bundle, "true")
    etc.unlink()
    etc.mkdir()
    (etc / "hosts").symlink_to(f"../../../../../{canary.folder}/secret")
    contain(bundle, "sh", "-c", "echo x >> /etc/hosts")
    (etc / "hosts").unlink()
    os.mkfifo(etc / "hosts")
    assert contain(bundle, "cat", "/etc/hosts").text.startswith("the engine's\n")
    canary.check()


