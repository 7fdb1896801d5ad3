"""What a bind mount keeps of its source's flags: as remount(2), in user namespaces too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.runtime import options
from tests.runtime.conftest import Bundle

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]
MAPPINGS = [{"hostID": 100000, "containerID": 0, "size": 65534}]


@pytest.fixture
def source(leak_check: None, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "source"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_words_for_access_times() -> None:
    def asked(*words: str) -> set[str]:
        return options.parse(words).access_times

    assert asked("bind", "dev") == set()
    assert asked("noatime", "atime") == asked("norelatime") == asked("nodiratime", "diratime")
    assert asked("nodiratime", "strictatime", "norelatime") == {"nodiratime", "strictatime"}


def flags(bundle: Bundle, source: Path, host: str, wanted: str, *, user: bool = False) -> set[str]:
    """What the container sees of the mount; the error's words where there is none."""
    subprocess.run(["mount", "--bind", "-o", "remount,rw,suid,dev,exec,diratime,atime,strictatime",
                    str(source)], check=True)
    subprocess.run(["mount", "--bind", "-o", f"remount,{host}", str(source)], check=True)
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"] if m["destination"] != "/mnt"] + [
        {"source": str(source), "destination": "/mnt", "type": "bind",
         "options": wanted.split(",")}]
    linux = bundle.spec["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "user"]
    if user:
        for name in ("proc", "dev", "sys", "mnt"):
            (bundle.rootfs / name).mkdir(exist_ok=True)
        for folder in (bundle.folder, *list(bundle.folder.parents)[:-2]):   # not /tmp
            folder.chmod(0o755)
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = MAPPINGS
    bundle.args("sh", "-c", "while read a b c d e; do [ $b = /mnt ] && echo $d; done "
                            "< /proc/self/mounts; true").write()
    done = bundle.cli("run", bundle.id)
    return set(done.stdout.strip().split(",")) if done.returncode == 0 else {done.stderr}


@pytest.mark.parametrize(("host", "wanted", "there", "not_there"), [
    ("ro,noexec,nodiratime", "bind", "ro noexec nodiratime", "rw"),
    ("ro,noexec,nodiratime", "bind,dev", "rw nodiratime", "ro noexec"),
    ("noatime", "bind,atime", "rw noatime", "relatime"),
    ("noatime", "bind,norelatime", "noatime", "relatime"),
    ("noatime", "bind,relatime", "relatime", "noatime"),
    ("noatime", "bind,nodiratime", "nodiratime relatime", "noatime"),
    ("noatime", "bind,nodiratime,strictatime", "nodiratime", "noatime relatime"),
    ("nodiratime", "bind,strictatime", "rw", "nodiratime relatime noatime"),
    ("nodev,nosuid,noatime", "bind,ro,exec", "ro noatime", "nodev nosuid"),
])
def test_as_remount(bundle: Bundle, source: Path, host: str, wanted: str, there: str,
                    not_there: str) -> None:
    found = flags(bundle, source, host, wanted)
    assert set(there.split()) <= found and not set(not_there.split()) & found, found


@pytest.mark.parametrize(("host", "wanted", "there", "not_there"), [
    ("ro,noexec,nosymfollow,nodiratime", "bind,dev", "ro noexec nodiratime", "rw nosymfollow"),
    ("nodev,nosuid,noatime", "bind,ro,exec", "ro nodev nosuid noatime", "noexec"),
    ("nodev,nosymfollow", "bind,ro,symfollow", "ro nodev", "nosymfollow"),
    ("noatime", "bind,atime", "noatime", "relatime"),
])
def test_what_is_locked_stays(bundle: Bundle, source: Path, host: str, wanted: str, there: str,
                              not_there: str) -> None:
    found = flags(bundle, source, host, wanted, user=True)
    assert set(there.split()) <= found and not set(not_there.split()) & found, found


@pytest.mark.parametrize(("host", "wanted"), [
    ("ro", "bind,rw,nosuid"), ("nodev,nosuid", "bind,dev,suid"), ("nodiratime", "bind,strictatime"),
    ("noatime", "bind,relatime"), ("strictatime", "bind,noatime")])
def test_what_is_locked_is_not_taken_off(bundle: Bundle, source: Path, host: str, wanted: str
                                         ) -> None:
    found = flags(bundle, source, host, wanted, user=True)
    assert any("error mounting" in text and "operation not permitted" in text
               for text in found), found
