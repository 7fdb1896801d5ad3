"""What a process in a container gets, and what it must not: rights, signals, environment,
terminal, memory of the runtime."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest

from carrel.kernel import syscalls
from carrel.runtime import api, child
from tests.conftest import BIN, ROOT
from tests.runtime.conftest import Bundle
from tests.security.conftest import Kernel, contain, enter

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]

STATUS = "grep -E 'Cap|SigIgn|SigBlk|NoNewPrivs|Seccomp:|Groups' /proc/self/status"


def fields(text: str) -> dict[str, str]:
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


# --- P07: signals --------------------------------------------------------------------


@pytest.fixture
def odd_signals() -> Any:
    """A caller that ignores and blocks what it can."""
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGUSR1,
                                                            signal.SIGQUIT, signal.SIGXFSZ)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGWINCH})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


def _check_signals(text: str) -> None:
    found = fields(text)
    ignored = int(found["SigIgn"], 16) & ~4  # busybox's shell itself ignores SIGQUIT
    assert ignored == 0 and int(found["SigBlk"], 16) == 0


def test_signals_are_as_the_kernel_made_them(bundle: Bundle, odd_signals: None) -> None:
    report = bundle.folder / "hook"
    bundle.spec["hooks"] = {"createRuntime": [{
        "path": "/bin/busybox", "args": ["sh", "-c", f"{STATUS} > {report}"]}]}
    for text in (contain(bundle, "sh", "-c", STATUS).text, report.read_text()):
        _check_signals(text)
    assert contain(bundle, "sh", "-c", "yes | head -1; true").text == "y\n"


def test_signals_of_an_exec(running: api.Container, odd_signals: None) -> None:
    _check_signals(enter(running, {"args": ["sh", "-c", STATUS]}).text)


def test_signals_without_the_reset_would_stay(bundle: Bundle, odd_signals: None,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "reset_signals", lambda _handled: None)
    found = fields(contain(bundle, "sh", "-c", STATUS).text)
    assert int(found["SigIgn"], 16) & ~4 and int(found["SigBlk"], 16)


# --- P08, P10: environment and arguments, byte for byte -------------------------------


def test_environment_and_arguments_byte_for_byte(bundle: Bundle,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "HTTPS_PROXY", "LD_PRELOAD_X"):
        monkeypatch.setenv(name, "of the caller")
    everything = bytes(range(1, 256))
    text = everything.decode("utf-8", "surrogateescape")
    bundle.spec["process"]["env"] = ["PATH=/bin", "HOME=/", f"ALL={text}", "EMPTY="]
    found = contain(bundle, "sh", "-c", "cat /proc/1/environ /proc/1/cmdline; true", text)
    raw = found.text.encode("utf-8", "surrogateescape")
    assert raw.startswith(b"PATH=/bin\0HOME=/\0ALL=" + everything + b"\0EMPTY=\0sh\0-c\0")
    assert raw.endswith(b"\0" + everything + b"\0")


def test_a_nul_byte_is_refused(bundle: Bundle) -> None:
    for key in ("env", "args"):
        before = bundle.spec["process"][key]
        bundle.spec["process"][key] = ["true", "A=x\0y"]
        assert "NUL" in contain(bundle).error
        bundle.spec["process"][key] = before


def test_hooks_get_no_environment_of_ours(bundle: Bundle, monkeypatch: pytest.MonkeyPatch
                                          ) -> None:
    """E24: nothing of the image and nothing of the daemon reaches a program of the host."""
    monkeypatch.setenv("LD_PRELOAD_X", "1")
    report = bundle.folder / "hook"
    bundle.spec["process"]["env"] = ["PATH=/bin", "LD_PRELOAD=/evil.so", "PYTHONPATH=/evil"]
    bundle.spec["hooks"] = {"createRuntime": [{
        "path": "/bin/busybox", "args": ["sh", "-c", f"/bin/busybox env > {report}"]}]}
    assert not contain(bundle, "true").error
    names = {line.split("=")[0] for line in report.read_text().splitlines()}
    assert names <= {"PWD", "SHLVL", "OLDPWD", "_", "PATH"}, names  # a shell's own


@pytest.mark.parametrize("program", ["carrel", "carreld", "carrel-containerd", "carrel-runtime",
                                     "containerd-shim-carrel-v1"])
def test_programs_import_nothing_from_here(program: str, tmp_path: Path) -> None:
    for name in ("signal", "ssl", "json", "carrel", "site", "sitecustomize", "usercustomize",
                 "asyncio", "os", "re"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(99)\n")
    done = subprocess.run([str(BIN / program), "--help"], cwd=tmp_path, capture_output=True,
                          check=False, timeout=60,
                          env={"PATH": "/usr/bin", "PYTHONPATH": str(tmp_path), "HOME": "/root",
                               "PYTHONSTARTUP": str(tmp_path / "os.py"),
                               "PYTHONUSERBASE": str(tmp_path)})
    assert done.returncode != 99 and not (tmp_path / "ran").exists()
    plain = subprocess.run([sys.executable, "-c", "import ssl"], cwd=tmp_path, check=False)
    assert plain.returncode == 99, "the test would not see it"


# --- E13, E14: rights ----------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, 1000])
def test_capability_sets(bundle: Bundle, uid: int) -> None:
    bundle.spec["process"]["user"] = {"uid": uid, "gid": uid, "additionalGids": [5, 77]}
    found = fields(contain(bundle, "sh", "-c", STATUS).text)
    bounding = f"{0x20000420:016x}"
    assert found["CapInh"] == found["CapAmb"] == f"{0:016x}"
    assert found["CapBnd"] == bounding
    assert found["CapEff"] == (bounding if uid == 0 else f"{0:016x}")
    assert found["Groups"].split() == ["5", "77"]


def test_groups_are_those_asked_for_or_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch
                                            ) -> None:
    """Groups of the caller (docker, sudo) never come along."""
    before = os.getgroups()
    try:
        os.setgroups([4, 27])
        assert fields(contain(bundle, "sh", "-c", STATUS).text)["Groups"] == ""
        kept = contain(bundle, "sh", "-c", STATUS, kernel=Kernel(setgroups=lambda _: None))
        assert fields(kept.text)["Groups"] == "4 27", "the test would not see it"
    finally:
        os.setgroups(before)


# --- E17: the caller's terminal -------------------------------------------------------

PUSH = """
import fcntl, sys
try:
    fcntl.ioctl(0, 0x5412, b"x")
    print("pushed")
except OSError as error:
    print("refused", error.errno)
"""
ON_A_TERMINAL = f"""
import fcntl, os, sys, termios
sys.path[:0] = [{str(ROOT)!r}]
master, slave = os.openpty()
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
from carrel.oci import json
from carrel.runtime import api, identity
if sys.argv[1] == "off":
    identity.NewSession.execute = lambda *_: None
spec = json.loads(open(sys.argv[2] + "/config.json", "rb").read(), "")
reader, writer = os.pipe()
made = api.create(sys.argv[3], sys.argv[2], sys.argv[4], spec=spec, stdio=(slave, writer, 2))
os.close(writer)
made.start()
print(os.read(reader, 100).decode().strip())
os.waitpid(made.pid, 0)
made.delete(force=True)
"""


@pytest.mark.parametrize(("session", "answer"), [("on", "refused"), ("off", "pushed")])
def test_tiocsti_reaches_no_terminal_of_the_host(bundle: Bundle, session: str, answer: str
                                                 ) -> None:
    for folder in ("/usr", "/lib", "/lib64"):
        bundle.spec["mounts"].append({"destination": folder, "type": "bind",
                                      "source": os.path.realpath(folder),
                                      "options": ["rbind", "ro"]})
    bundle.spec["root"]["readonly"] = False
    bundle.args(os.path.realpath(sys.executable), "-ISc", PUSH)
    if os.path.realpath(sys.executable).startswith("/usr/bin"):
        # a link beside it: the runtime refuses its own interpreter by inode
        bundle.spec["process"]["args"][0] = "/py"
        (bundle.rootfs / "py").write_bytes(Path(sys.executable).resolve().read_bytes())
        (bundle.rootfs / "py").chmod(0o755)
        bundle.spec["process"]["env"].append(f"PYTHONHOME={sys.base_prefix}")
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", ON_A_TERMINAL, session, bundle.write(), bundle.id,
         bundle.root], capture_output=True, text=True, check=False, timeout=30)
    if answer == "pushed" and "refused 5" in done.stdout:
        pytest.skip("this kernel has no TIOCSTI (legacy_tiocsti=0)")
    assert answer in done.stdout, done.stderr


# --- E27: masked and read-only paths ---------------------------------------------------


def test_masked_and_read_only_paths_in_an_exec(bundle: Bundle) -> None:
    linux = bundle.spec["linux"]
    bundle.args("sleep", "60")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    made.start()
    script = "".join(f"[ -d {p} ] && ls {p} || cat {p}; umount {p} && echo taken off;"
                     for p in linux["maskedPaths"] if os.path.exists(p))
    script += "".join(f"[ -d {p} ] && touch {p}/x; echo b > {p};" for p in
                      linux["readonlyPaths"] if os.path.exists(p))
    try:
        found = enter(made, {"args": ["sh", "-c", f"({script}) 2>/dev/null; true"]})
        assert found.text == "" and not found.error
        seen = Path(f"/proc/{made.pid}/mountinfo").read_text()
        for path in (p for p in linux["readonlyPaths"] if os.path.exists(p)):
            line = next(row for row in seen.splitlines() if row.split()[4] == path)
            assert line.split()[5].startswith("ro"), line
    finally:
        made.delete(force=True)
        os.waitpid(made.pid, 0)


# --- P20, E02: no dump, no look into the runtime's memory ------------------------------


class Watched:
    """Every call of the child after the first prctl is made by a process that is not
    dumpable; it fails otherwise."""

    def __init__(self, *, off: bool = False) -> None:
        self.armed = False
        self.off = off

    def __getattr__(self, name: str) -> Any:
        real = getattr(syscalls, name)

        def call(*args: Any, **more: Any) -> Any:
            if name == "prctl" and args == (syscalls.PR_SET_DUMPABLE, 0):
                self.armed = True
                if self.off:
                    return 0
            elif self.armed and syscalls.prctl(3):
                raise RuntimeError(f"dumpable before {name}")
            return real(*args, **more)
        return call


@pytest.mark.parametrize("uid", [0, 1000])
def test_not_dumpable_until_execve(bundle: Bundle, uid: int) -> None:
    bundle.spec["process"]["user"] = {"uid": uid, "gid": uid}
    found = contain(bundle, "true", kernel=Watched())
    assert not found.error and found.status == 0
    assert "dumpable before" in contain(bundle, "true", kernel=Watched(off=True)).error


def test_a_crash_before_execve_leaves_no_core(bundle: Bundle) -> None:
    bundle.spec["root"]["readonly"] = False

    def crash(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)  # process 1 of its namespace: ignored
        os.abort()
    for call in ("pivot_root", "setsid", "setresgid", "capset"):
        found = contain(bundle, "true", kernel=Kernel(**{call: crash}))
        assert found.error or found.status < 0, call
    assert not list(bundle.rootfs.rglob("core*"))


# --- P06: nothing of the parent runs in the child ---------------------------------------


def test_a_childs_end_runs_no_finalizer(bundle: Bundle, tmp_path: Path) -> None:
    import atexit

    marker = tmp_path / "ran"
    kept = tempfile.TemporaryDirectory(dir=tmp_path)
    owner = Path
    watched = type("Owned", (), {})()
    weakref.finalize(watched, marker.write_text, "finalizer")
    note = marker.touch
    atexit.register(note)

    def fail(*_: object) -> None:
        raise MemoryError("in the child")
    try:
        for call in ("setsid", "prctl", "pivot_root"):
            assert contain(bundle, "true", kernel=Kernel(**{call: fail})).error
        assert contain(bundle, "true").status == 0
        assert owner(kept.name).is_dir() and not marker.exists()
    finally:
        atexit.unregister(note)
        weakref.finalize(watched, int).detach()
        kept.cleanup()


# --- E01: the runtime's own program ------------------------------------------------------


def test_the_interpreter_is_no_entrypoint(bundle: Bundle) -> None:
    exe = os.stat("/proc/self/exe")
    (bundle.rootfs / "bin/self").symlink_to("/proc/self/exe")
    (bundle.rootfs / "bin/script").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "bin/script").chmod(0o755)
    for program in ("/proc/self/exe", "self", "/proc/1/exe"):
        assert "it is the runtime itself" in contain(bundle, program).error, program
    contain(bundle, "script")  # the kernel resolves it: by then we are no longer ourselves
    after = os.stat("/proc/self/exe")
    assert (exe.st_ino, exe.st_mtime_ns, exe.st_ctime_ns) == (
        after.st_ino, after.st_mtime_ns, after.st_ctime_ns)
