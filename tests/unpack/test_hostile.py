"""Archives that try to get out, through the extractor; a canary tree beside the root."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import stat
import struct
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carrel.containerd import unpack, whiteout
from carrel.containerd.removal import remove_tree
from carrel.containerd.tarstream import BadArchive, TarReader, number
from carrel.containerd.unpack import Extractor
from tests.images import entry, layer

pytestmark = pytest.mark.root
Member = tuple[tarfile.TarInfo, bytes]


def apply(data: bytes, root: Path, lowers: Iterable[Path] = (), piece: int = 4096) -> int:
    """Extract in small pieces, so that every refill path runs."""
    source = io.BytesIO(data)
    fd = unpack.open_root(str(root))
    try:
        reader = TarReader(lambda: source.read(piece))
        return Extractor(fd, [str(x) for x in lowers]).apply(reader).entries
    finally:
        os.close(fd)


class Canary:
    """Files beside the root; what a successful attack would change."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.root.mkdir()
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_text("untouched")
        (self.outside / "dir").mkdir()
        self._before = self.look()

    def look(self) -> list[tuple[str, ...]]:
        found = []
        for folder, names, files in os.walk(self.base):
            if Path(folder) == self.base:
                names.remove("root")
            for name in (*names, *files):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if (
                    stat.S_ISREG(status.st_mode)) else ""
                found.append((path, str(status.st_mode), str(status.st_uid),
                              str(status.st_nlink), str(status.st_mtime_ns),
                              str(os.listxattr(path, follow_symlinks=False)), content))
        return sorted(found)

    def check(self) -> None:
        assert self.look() == self._before


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    found = Canary(tmp_path)
    yield found
    found.check()


UP = "../" * 12


def escapes(outside: str) -> dict[str, list[Member]]:
    """Each tries to create, change or remove something below ``outside``."""
    victim = f"{outside}/file"
    relative = "../outside"
    return {
        "dot dot": [entry(f"{UP}{victim}", b"x")],
        "dot dot inside": [entry("a/../../outside/file", b"x")],
        "dot slash dot dot": [entry("./../outside/file", b"x")],
        "absolute": [entry(victim, b"x")],
        "symlink then file": [entry("l", f"->{outside}"), entry("l/file", b"x")],
        "relative symlink then file": [entry("l", f"->{relative}"), entry("l/file", b"x")],
        "symlink then new file": [entry("l", f"->{outside}"), entry("l/new", b"x")],
        "symlink then directory": [entry("l", f"->{outside}"), entry("l/newdir", None)],
        "symlink then directory of its name": [entry("l", f"->{outside}/dir"),
                                               entry("l", None, mode=0o777, uid=7)],
        "symlink then symlink": [entry("l", f"->{outside}"), entry("l/s", "->x")],
        "symlink chain": [entry("a", "->b"), entry("b", "->c"), entry("c", f"->{outside}"),
                          entry("a/file", b"x")],
        "symlink to root": [entry("l", "->/"), entry(f"l/{victim}", b"x")],
        "symlink to parent": [entry("l", "->.."), entry("l/outside/file", b"x")],
        "file symlink then write": [entry("f", f"->{victim}"), entry("f", b"x")],
        "file symlink then chmod by directory": [entry("f", f"->{victim}"),
                                                 entry("f", None, mode=0o777)],
        "hard link out": [entry("h", f"=>{victim}"), entry("h", b"x")],
        "hard link up": [entry("h", f"=>{UP}{victim}")],
        "hard link to symlink": [entry("s", f"->{victim}"), entry("h", "=>s"),
                                 entry("h", b"x")],
        "hard link that stays to symlink": [entry("s", f"->{victim}"), entry("h", "=>s")],
        "hard link through symlink": [entry("l", f"->{outside}"), entry("h", "=>l/file"),
                                      entry("h", b"x")],
        "hard link into symlink": [entry("f", b"x"), entry("l", f"->{outside}"),
                                   entry("l/new", "=>f")],
        "whiteout through symlink": [entry("l", f"->{outside}"), entry("l/.wh.file", b"")],
        "opaque through symlink": [entry("l", f"->{outside}"), entry("l/.wh..wh..opq", b"")],
        "whiteout of parent": [entry(".wh...", b"")],
        "whiteout of self": [entry("d", None), entry("d/.wh..", b"")],
        "whiteout of nothing": [entry("d", None), entry("d/.wh.", b"")],
        "device through symlink": [entry("l", f"->{outside}"),
                                   entry("l/dev", kind=tarfile.CHRTYPE, device=(1, 3))],
        "fifo through symlink": [entry("l", f"->{outside}"), entry("l/p",
                                                                   kind=tarfile.FIFOTYPE)],
        "directory replaced by link mid archive": [
            entry("d", None), entry("d/a", b"x"), entry("d", f"->{outside}"),
            entry("d/file", b"x"), entry("d/new", b"x")],
        "cached directory replaced twice": [
            entry("d", None), entry("d/e", None), entry("d/e/a", b"x"),
            entry("d", f"->{outside}"), entry("d/dir/a", b"x"), entry("d", None),
            entry("d/dir/b", b"x")],
        "xattr through symlink": [entry("l", f"->{victim}", xattrs={"user.x": "y"})],
        "magic link": [entry("l", "->/proc/self/cwd"), entry("l/x", b"x")],
        "proc root": [entry("l", "->/proc/self/root"), entry(f"l/{victim}", b"x")],
    }


@pytest.mark.parametrize("name", sorted(escapes("/x")))
def test_nothing_gets_out(canary: Canary, name: str) -> None:
    try:
        apply(layer(escapes(str(canary.outside))[name]), canary.root)
    except (BadArchive, OSError):
        pass
    canary.check()


@pytest.mark.parametrize("name", ["symlink then file", "symlink to root", "symlink chain"])
def test_symlinked_parents_resolve_inside(canary: Canary, name: str) -> None:
    """Confined, as in a chroot: the data lands below the root, at the link's target."""
    apply(layer(escapes(str(canary.outside))[name]), canary.root)
    assert (canary.root / str(canary.outside)[1:] / "file").read_bytes() == b"x"


@pytest.mark.parametrize("members", [
    [entry("..", None)], [entry("a/../../b", b"")], [entry("../x", b"")],
    [entry("h", "=>../x")], [entry(".", b"x")], [entry("d/.wh.", b"")],
    [entry("a", b"x"), entry("a/b", b"y")],
    [entry("z", kind=tarfile.CHRTYPE, device=(0, 0))], [entry("h", "=>missing")],
    [entry("f", b"", kind=b"S")], [entry("f", b"", kind=b"M")], [entry("f", b"", kind=b"Z")],
    [entry("l", "->")],
], ids=str)
def test_refused_with_a_reason(tmp_path: Path, members: list[Member]) -> None:
    with pytest.raises(BadArchive):
        apply(layer(members), tmp_path)


def raw(name: bytes = b"f", *, size: bytes = b"00000000000\0", mtime: bytes = b"00000000000\0",
        uid: bytes = b"0000000\0", kind: bytes = b"0", data: bytes = b"") -> bytes:
    """A header that tarfile would not write."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + uid + b"0000000\0" + size + mtime
                      + b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247))
    block = block.ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("data", [
    raw(size=b"\xff" * 12), raw(size=b"-0000000001\0"), raw(size=b"0x100000000\0"),
    raw(size=b"1_0\0".ljust(12, b"\0")), raw(size=b"\x80" + b"\xff" * 11),
    raw(size=b"99999999999\0"), raw(uid=b"\xff" * 8), raw(uid=b"\x80\x01" + bytes(6)),
    raw(kind=b"x", size=b"%011o\0" % (1 << 21), data=b"9 " * (1 << 20)),
    raw(kind=b"L", size=b"77777777777\0", data=b"a" * 1024),
    raw(kind=b"x", size=b"%011o\0" % 6, data=b"6 a=\n\n"),
    raw(kind=b"x", size=b"%011o\0" % 9, data=b"99 ab=c\n\n"),
    raw(kind=b"x", size=b"%011o\0" % 9, data=b"9 size=-1") + raw(),
    raw(kind=b"x", size=b"%011o\0" % 18, data=b"18 path=a\0b/../../\n"[:18]) + raw(),
    raw(size=b"00000001000\0", data=b"short")[:600], raw()[:300], b"\1" * 512,
], ids=range(17))
def test_broken_headers(tmp_path: Path, data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(BadArchive):
        apply(data, tmp_path)
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert os.listdir(tmp_path) in ([], ["f"])


def test_truncated_at_every_block(tmp_path: Path) -> None:
    data = layer([entry("d", None), entry("d/" + "n" * 150, b"x" * 1500),
                  entry("d/s", "->" + "t" * 200)])
    for size in range(512, len(data), 512):
        root = tmp_path / str(size)
        root.mkdir()
        try:
            apply(data[:size], root)
        except BadArchive:
            pass


def test_numbers() -> None:
    assert number(b"0000644\0") == 0o644
    assert number(b"   644 \0") == 0o644
    assert number(b"\0" * 8) == 0
    assert number(b"\x80" + bytes(6) + b"\x05") == 5
    assert number(b"\xff" * 12) == -1
    for bad in (b"+0000644", b"0o644\0\0\0", b"6_4\0\0\0\0\0", b"0000648\0", b"\xd9\xa1\0"):
        if not bad[0] & 0x80:
            with pytest.raises(BadArchive):
                number(bad)


@settings(max_examples=200, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4095), st.binary(min_size=1, max_size=16), st.integers(1, 700))
def test_flipped_bytes_never_get_out(tmp_path_factory: pytest.TempPathFactory, where: int,
                                     what: bytes, piece: int) -> None:
    canary = Canary(tmp_path_factory.mktemp("flip"))
    data = bytearray(layer([entry("a", None), entry("a/l", f"->{canary.outside}"),
                            entry("a/l/file", b"x" * 600), entry("b", "=>a/l"),
                            entry("a/.wh.q", b"")]))
    data[where:where + len(what)] = what
    try:
        apply(bytes(data), canary.root, piece=piece)
    except (BadArchive, OSError):
        pass
    canary.check()


def test_attributes(tmp_path: Path) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
    info, data = entry("bin/ping", b"x", mode=0o755, uid=3, gid=4)
    info.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("latin-1"),
                        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
                        "SCHILY.xattr.user.overlay.opaque": "y"}
    apply(layer([
        entry("su", b"x", mode=0o4755, uid=1000, gid=1001, mtime=1.5),
        entry("tmp", None, mode=0o1777, mtime=7), entry("tmp/x", b"", gid=5),
        entry("sgid", None, mode=0o2755, gid=9), entry("sgid/f", b"", gid=0),
        entry("null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        entry("pipe", kind=tarfile.FIFOTYPE, mode=0o622), entry("link", "->nowhere", uid=8),
        entry("same", "=>su"), (info, data)]), tmp_path)
    status = os.stat(tmp_path / "su")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 1000, 1001)
    assert status.st_mtime == 1.5 and status.st_nlink == 2
    assert os.stat(tmp_path / "tmp").st_mtime == 7
    assert stat.S_IMODE(os.stat(tmp_path / "tmp").st_mode) == 0o1777
    assert stat.S_IMODE(os.stat(tmp_path / "sgid").st_mode) == 0o2755
    assert os.stat(tmp_path / "sgid/f").st_gid == 0
    null = os.stat(tmp_path / "null")
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(null.st_mode) == 0o666
    assert stat.S_IMODE(os.stat(tmp_path / "pipe").st_mode) == 0o622
    assert os.lstat(tmp_path / "link").st_uid == 8
    names = os.listxattr(tmp_path / "bin/ping")
    assert names == ["security.capability"], names


def test_last_of_equal_names_wins(tmp_path: Path) -> None:
    apply(layer([entry("a", b"1"), entry("a", b"2"), entry("d", None), entry("d/x", b""),
                 entry("d", b"now a file"), entry("s", "->a"), entry("s", b"now a file"),
                 entry("f", b""), entry("f", None), entry("f/y", b"3"),
                 entry("g", None), entry("g/h", None), entry("g/h/1", b""), entry("g", b""),
                 entry("g", None), entry("g/h", None), entry("g/h/2", b"")]), tmp_path)
    assert os.listdir(tmp_path / "g/h") == ["2"]
    assert (tmp_path / "a").read_bytes() == b"2"
    assert (tmp_path / "d").read_bytes() == b"now a file"
    assert not (tmp_path / "s").is_symlink()
    assert (tmp_path / "f/y").read_bytes() == b"3"


def test_implied_parents_look_like_those_below(tmp_path: Path) -> None:
    lower, root = tmp_path / "lower", tmp_path / "root"
    for folder in (lower, root):
        folder.mkdir()
    (lower / "home").mkdir()
    os.chown(lower / "home", 12, 13)
    os.chmod(lower / "home", 0o2750)
    apply(layer({"home/new/file": b"x"}), root, [lower])
    status = os.stat(root / "home")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 13, 0o2750)
    assert stat.S_IMODE(os.stat(root / "home/new").st_mode) == 0o755


def test_whiteouts_in_a_real_overlay(tmp_path: Path) -> None:
    """What the kernel shows of two layers is what the image means."""
    from carrel.kernel import syscalls

    lower, upper, merged = (tmp_path / n for n in ("lower", "upper", "merged"))
    for folder in (lower, upper, merged):
        folder.mkdir()
    apply(layer({"gone": b"1", "kept": b"1", "opaque": None, "opaque/old": b"1", "dir": None,
                 "dir/a": b"1", "dir/b": b"1", "file": b"1", "re": None, "re/old": b"1",
                 "typed": None, "typed/old": b"1"}), lower)
    apply(layer([entry(".wh.gone", b""), entry("opaque", None), entry("opaque/new", b"2"),
                 entry("opaque/.wh..wh..opq", b""), entry("dir", None),
                 entry("dir/.wh.a", b""), entry("dir/c", b"2"),
                 # a whiteout after a new file of the same layer speaks of below only
                 entry("file", b"2"), entry(".wh.file", b""),
                 # removed below, then made anew here: nothing shines through
                 entry(".wh.re", b""), entry("re", None), entry("re/new", b"2"),
                 entry("typed", b"2"), entry(".wh..wh.plnk", b"")]), upper, [lower])
    syscalls.mount("overlay", str(merged), "overlay", 1, f"lowerdir={upper}:{lower}")
    try:
        found = sorted(str(p.relative_to(merged)) for p in merged.rglob("*"))
        assert found == ["dir", "dir/b", "dir/c", "file", "kept", "opaque", "opaque/new",
                         "re", "re/new", "typed"]
        assert (merged / "file").read_bytes() == b"2"
    finally:
        syscalls.umount2(str(merged))
    fd = os.open(upper / "opaque", os.O_RDONLY)
    assert whiteout.is_opaque(fd)
    os.close(fd)


def test_deep_and_long_names(tmp_path: Path) -> None:
    deep = "/".join(f"d{n}" for n in range(255))
    apply(layer({deep + "/file": b"x"}), tmp_path)
    assert sum(1 for _ in os.walk(tmp_path)) == 256
    (tmp_path / "deeper").mkdir()
    too_deep = "/".join(["d"] * 3000)
    try:
        with pytest.raises((BadArchive, OSError)):
            apply(layer({too_deep: b"x"}), tmp_path / "deeper")
    finally:
        fd = unpack.open_root(str(tmp_path))
        for name in ("d0", "deeper"):   # pytest's own cleaning recurses
            remove_tree(fd, name)
        os.close(fd)
    with pytest.raises((BadArchive, OSError)):
        apply(layer({"n" * 300: b"x"}), tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    data = info.tobuf(tarfile.USTAR_FORMAT).replace(b"x", b"\xff", 1)
    block = bytearray(data)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    apply(bytes(block), tmp_path)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]
