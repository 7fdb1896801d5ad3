"""Hazards that only a runtime in Python has (P01-P04, P09, P17)."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from carrel.kernel import libc, syscalls
from carrel.kernel.fake import FailingKernel
from carrel.runtime import api, create
from tests.runtime.conftest import Bundle
from tests.security.conftest import Kernel, contain

root = pytest.mark.root

# --- a watch on every folder of a root file system --------------------------------------

_OPEN = 0x20


class Watch:
    """Names of files that anybody opens below a folder (inotify; no tracing)."""

    def __init__(self, top: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders: dict[int, str] = {}
        for base, _, _ in os.walk(top):
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(base), _OPEN)
            assert number > 0, os.strerror(ctypes.get_errno())
            self._folders[number] = base.removeprefix(str(top))

    def opened(self) -> set[str]:
        found: set[str] = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                number, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16:16 + length].rstrip(b"\0").decode()
                if name and not mask & 0x40000000:  # not a folder
                    found.add(f"{self._folders.get(number, '?')}/{name}")
                data = data[16 + length:]

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def watch(top: Path) -> Iterator[Watch]:
    made = Watch(top)
    try:
        yield made
    finally:
        made.close()


CANARY = "open('/canary-ran', 'w').write(__name__)\n"
LIBRARIES = ("libc.so.6", "libnss_files.so.2", "libnss_compat.so.2", "libnss_dns.so.2",
             "libnss_systemd.so.2", "libgcc_s.so.1", "libcrypto.so.3", "libseccomp.so.2",
             "gconv/UTF-16.so", "gconv/gconv-modules.cache", "locale/locale-archive")
FILES = ("etc/nsswitch.conf", "etc/resolv.conf", "etc/host.conf", "etc/localtime",
         "etc/ld.so.cache", "etc/ld.so.preload", "etc/gai.conf", "etc/group",
         "usr/share/zoneinfo/UTC", "usr/lib/ssl/openssl.cnf")


@pytest.fixture
def mirror(bundle: Bundle) -> Bundle:
    """The image has everything where this interpreter has it on the host."""
    places = {p for p in sys.path if p} | {os.path.dirname(os.__file__), os.getcwd()}
    modules = {"sitecustomize", "usercustomize", "linecache", "traceback", "colorsys", "pwd",
               "resource", "encodings/idna", "encodings/utf_8", "encodings/ascii",
               "encodings/__init__", "_signal", "signal", "select", "socket", "fcntl"}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and path.endswith(".py"):
            _put(bundle, path, CANARY)
    for place in places:
        _put(bundle, f"{place}.zip" if not place.endswith(".zip") else place, "")
        if not place.endswith(".zip"):
            for module_name in modules:
                _put(bundle, f"{place}/{module_name}.py", CANARY)
            _put(bundle, f"{place}/evil.pth", "import canary\n")
    for folder in ("lib", "lib/x86_64-linux-gnu", "usr/lib", "usr/lib/x86_64-linux-gnu"):
        for name in LIBRARIES:
            _put(bundle, f"{folder}/{name}", "not even ELF")
    for name in FILES:
        _put(bundle, name, "hostile\n")
    bundle.spec["root"]["readonly"] = False
    bundle.spec["process"]["env"] = ["PATH=/bin", "HOME=/", "PYTHONPATH=/evil"]
    return bundle


def _put(bundle: Bundle, path: str, text: str) -> None:
    place = bundle.rootfs / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@root
def test_nothing_of_the_image_is_opened_but_the_program(mirror: Bundle, leak_check: None) -> None:
    mirror.spec["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
    with watch(mirror.rootfs) as eyes:
        assert contain(mirror, "true").status == 0
        assert eyes.opened() <= {"/bin/busybox"}
        made = api.create(mirror.id, mirror.args("sleep", "9").write(), mirror.root,
                          stdio=(-1, -1, -1))
        made.start()
        eyes.opened()
        process = made.exec({"args": ["true"], "cwd": "/", "env": ["PATH=/bin", "HOME=/"],
                             "user": {"uid": 1, "gid": 1}}, stdio=(-1, -1, -1))
        os.waitpid(process.pid, 0)
        os.close(process.pidfd)
        assert eyes.opened() <= {"/bin/busybox"}
        made.delete(force=True)
        os.waitpid(made.pid, 0)


@root
def test_an_error_at_any_step_opens_nothing_of_the_image(mirror: Bundle, leak_check: None) -> None:
    failures = 0
    with watch(mirror.rootfs) as eyes:
        for number in (*range(1, 40, 3), *range(40, 260, 7)):
            failures += bool(contain(mirror, "true", kernel=FailingKernel(number)).error)
        assert eyes.opened() <= {"/bin/busybox"}
    assert failures > 20
    assert not (mirror.rootfs / "canary-ran").exists()


@root
@pytest.mark.parametrize("call", ["setsid", "setresgid", "capset"])
def test_an_import_after_pivot_is_an_error(mirror: Bundle, call: str) -> None:
    def late(*_: object) -> None:
        import colorsys  # noqa: F401
    sys.modules.pop("colorsys", None)
    with watch(mirror.rootfs) as eyes:
        assert "ModuleNotFoundError" in contain(mirror, "true", kernel=Kernel(**{call: late})).error
        assert eyes.opened() <= {"/bin/busybox"}
    assert not (mirror.rootfs / "canary-ran").exists()


@root
def test_the_watch_sees_an_import(mirror: Bundle) -> None:
    def late(*_: object) -> None:
        from importlib.machinery import PathFinder
        sys.meta_path.append(PathFinder)  # the guard is taken back
        sys.path.append(os.path.dirname(os.__file__))
        sys.path_importer_cache.clear()
        import colorsys  # noqa: F401
        raise MemoryError
    sys.modules.pop("colorsys", None)
    with watch(mirror.rootfs) as eyes:
        assert contain(mirror, "true", kernel=Kernel(setsid=late)).error
        assert any(name.endswith("colorsys.py") for name in eyes.opened())
    assert (mirror.rootfs / "canary-ran").read_text() == "colorsys"


@root
def test_a_traceback_opens_no_source_file(mirror: Bundle) -> None:
    """P03: a fifo where the source of the failing line would be."""
    for module in (create, sys.modules[__name__], sys.modules["carrel.runtime.child"],
                   sys.modules["carrel.runtime.identity"]):
        place = mirror.rootfs / str(module.__file__).lstrip("/")
        place.unlink()
        os.mkfifo(place)

    def fail(*_: object) -> None:
        raise RecursionError("deep in the child")
    begin = time.monotonic()
    error = contain(mirror, "true", kernel=Kernel(setresgid=fail, setsid=fail)).error
    assert "RecursionError: deep in the child" in error and "hostile" not in error
    assert time.monotonic() - begin < 20


@root
def test_what_is_mapped_comes_from_the_host(mirror: Bundle) -> None:
    """P04: no library of the image in the process that waits for start."""
    made = api.create(mirror.id, mirror.args("true").write(), mirror.root, stdio=(-1, -1, -1))
    try:
        host = {(os.stat(p).st_dev, os.stat(p).st_ino) for p in _libraries("self")}
        assert {os.path.basename(p) for p in _libraries(str(made.pid))} <= {
            os.path.basename(p) for p in _libraries("self")}
        for line in Path(f"/proc/{made.pid}/maps").read_text().splitlines():
            parts = line.split()
            if len(parts) > 5 and parts[5].startswith("/"):
                major, minor = (int(n, 16) for n in parts[3].split(":"))
                assert (os.makedev(major, minor), int(parts[4])) in host, line
    finally:
        made.delete(force=True)
        os.waitpid(made.pid, 0)


def _libraries(pid: str) -> set[str]:
    rows = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {row[5] for row in rows if len(row) > 5 and row[5].startswith("/")}


# --- P09: integers that do not fit ------------------------------------------------------

_BAD: dict[str, tuple[int, ...]] = {
    "i": (1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 31) - 1),
    "I": (1 << 32, 1 << 63, 1 << 64, -1),
    "l": (1 << 63, 1 << 64, -(1 << 63) - 1),
    "L": (1 << 64, -1)}
_LIMITS = {libc._RANGES[t]: t for t in _BAD}


def _functions() -> list[libc.Function]:
    modules = [m for n, m in sys.modules.items() if n.startswith("carrel.")]
    found = {id(v): v for m in modules for v in vars(m).values() if isinstance(v, libc.Function)}
    return list(found.values())


def test_no_wrapper_masks_an_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for function in _functions():
        called: list[object] = []
        monkeypatch.setattr(function, "c", lambda *args, called=called: called.append(args) or 0)
        for index, limits in enumerate(function._checks):
            if limits is None:
                continue
            for bad in _BAD[_LIMITS[limits]]:
                args: list[object] = [b"" if c is None else 0 for c in function._checks]
                args[index] = bad
                with pytest.raises(OverflowError):
                    function(*args)
                checked += 1
        assert not called, function.name
    assert checked > 150


def test_ids_and_structures_are_checked_too() -> None:
    for number in (-1, (1 << 32) - 1, 1 << 32, 1 << 63, 1 << 64):
        for call in (syscalls.setresuid, syscalls.setresgid, lambda n: syscalls.setgroups([n])):
            with pytest.raises(OverflowError):
                call(number)
    for nice in (1 << 31, 1 << 32, -(1 << 31) - 1):
        with pytest.raises(OverflowError):
            syscalls.sched_setattr(0, 0, nice, 0, 0, 0, 0)


# --- P17: an exception at any line ------------------------------------------------------

class Stop(BaseException):
    """Like KeyboardInterrupt and MemoryError: not an Exception."""


class Sweep:
    """Raises at the N-th line that this process runs in the runtime's modules."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""
        self.pid = os.getpid()

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/carrel/runtime/" not in name and "/carrel/kernel/cgroup" not in name:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0 and os.getpid() == self.pid:
                self.where = f"{os.path.basename(name)}:{frame.f_code.co_name}:{frame.f_lineno}"
                raise Stop
        return self.trace


def _children() -> set[int]:
    with open("/proc/thread-self/children", encoding="ascii") as file:
        return set(map(int, file.read().split()))


def _left(bundle: Bundle, fds: set[str], others: set[int]) -> list[str]:
    found = [f"fd {f}" for f in set(os.listdir("/proc/self/fd")) - fds
             if os.path.lexists(f"/proc/self/fd/{f}")]  # the listing's own is closed
    if os.path.exists(f"{bundle.root}/{bundle.id}"):
        found.append("state folder")
    if _children() - others:
        found.append("child")
    for top in Path("/sys/fs/cgroup").glob("*"):
        if (top / bundle.spec["linux"]["cgroupsPath"].strip("/")).exists():
            found.append("cgroup")
            break
    return found


#: Where one line makes a thing and the next one owns it, or gives it back: an exception
#: exactly there leaks it, in any language with exceptions between two statements.
#: name -> the worst that stays
WINDOWS = {
    "write_aside": "fd", "read_file": "fd", "write_lines": "fd", "stat_fields": "fd",
    "fill_cpuset": "fd", "close": "child", "_close_helper": "child", "create": "child",
    "clone_single_threaded": "child", "clone_here": "child", "clone_into": "child",
    "__exit__": "child", "_clone": "child", "_bound": "fd", "_make": "child", "_or_undo": "child",
    "wait": "child",
}


def _clear(bundle: Bundle, fds: set[str], others: set[int]) -> None:
    """What a window left, so that the next line is tried on clean ground."""
    for pid in _children() - others:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    for fd in set(os.listdir("/proc/self/fd")) - fds:
        with suppress(OSError):
            os.close(int(fd))
    shutil.rmtree(f"{bundle.root}/{bundle.id}", ignore_errors=True)
    for top in Path("/sys/fs/cgroup").glob("*"):
        with suppress(OSError):
            (top / bundle.spec["linux"]["cgroupsPath"].strip("/")).rmdir()


@root
def test_an_exception_at_any_line_leaves_nothing(bundle: Bundle, leak_check: None) -> None:
    """Every 11th line of the parent's part; all of them take half a minute."""
    bundle.args("true").write()
    fds = set(os.listdir("/proc/self/fd"))
    others = _children()  # an engine of other tests, perhaps
    at, windows = 1, 0
    while True:
        sweep = Sweep(at)
        sys.settrace(sweep.trace)
        try:
            made = api.create(bundle.id, str(bundle.folder), bundle.root, spec=bundle.spec,
                              stdio=(-1, -1, -1))
        except BaseException as error:
            sys.settrace(None)
            assert isinstance(error, Stop), (sweep.where, error)
            error.__traceback__ = None  # it holds what the frames held
            left = _left(bundle, fds, others)
            allowed = WINDOWS.get(sweep.where.split(":")[1], "")
            worst = [x for x in left if not x.startswith("fd")]
            assert not left or allowed == "child" or (allowed and not worst), (sweep.where, left)
            windows += bool(left)
            _clear(bundle, fds, others)
            at += 11
            continue
        finally:
            sys.settrace(None)
        made.delete(force=True)
        os.waitpid(made.pid, 0)
        break
    assert at > 1500 and windows < at / 11 / 20
