"""carrel against real engines: dockerd of the peers' root, and carreld."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import live as engines
from .live import CARREL, Live

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=[
    pytest.param("dockerd", marks=pytest.mark.peers), "carreld"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    yield from engines.engine(request.param)


@contextlib.contextmanager
def container(live: Live, *argv: str, name: str = "it") -> Iterator[str]:
    """A container in the background, removed at the end."""
    live.out("run", "-d", "--name", name, *argv)
    try:
        yield name
    finally:
        live.run("rm", "-f", "-v", name)


class Terminal:
    """A pseudo-terminal with a carrel command on it."""

    def __init__(self, live: Live, *argv: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [CARREL, *argv], env=live.environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=own_terminal)  # noqa: PLW1509
        self.text = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, wanted: bytes, seconds: float = 30) -> bytes:
        end = time.monotonic() + seconds
        while wanted not in self.text:
            left = end - time.monotonic()
            assert left > 0, (wanted, self.text)
            ready, _, _ = select.select([self.master], [], [], left)
            if ready:
                self.text += os.read(self.master, 65536)
        at = self.text.index(wanted) + len(wanted)
        found, self.text = self.text[:at], self.text[at:]
        return found

    def finish(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was not restored"
        os.close(self.master)
        os.close(self.slave)
        return code


def test_output_and_exit_code(live: Live) -> None:
    result = live.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.returncode) == (b"out\n", b"err\n", 7)


@pytest.mark.parametrize(("argv", "code"), [
    (["busybox", "nosuchprogram"], 127),
    (["busybox", "/etc"], 126),
    (["--name", "not valid", "busybox"], 125),
])
def test_a_program_that_cannot_start(live: Live, argv: list[str], code: int) -> None:
    result = live.run("run", "--rm", *argv)
    assert result.returncode == code
    assert result.stderr.startswith(b"carrel: ")
    assert result.stderr.endswith(b"\n\nRun 'carrel run --help' for more information\n")


def test_stdin_larger_than_every_buffer_comes_back(live: Live) -> None:
    data = os.urandom(1 << 20) * 8
    result = live.run("run", "--rm", "-i", "busybox", "cat", stdin=data)
    assert result.returncode == 0 and result.stdout == data


def test_a_terminal_has_our_size_and_is_restored(live: Live) -> None:
    terminal = Terminal(live, "run", "--rm", "-it", "busybox", "sh", rows=33, columns=101)
    terminal.send(b"stty size; echo rea''dy\n")
    assert b"33 101" in terminal.expect(b"ready")
    terminal.resize(40, 90)
    time.sleep(0.3)
    terminal.send(b"stty size; echo do''ne\n")
    assert b"40 90" in terminal.expect(b"done")
    terminal.send(b"exit 5\n")
    assert terminal.finish() == 5


def test_detach_keys_leave_the_container_running(live: Live) -> None:
    terminal = Terminal(live, "run", "-it", "--name", "detached", "--detach-keys", "ctrl-a,d",
                        "busybox", "sh")
    try:
        terminal.send(b"echo rea''dy\n")
        terminal.expect(b"ready")
        terminal.send(b"\x01d")
        assert terminal.finish() == 0
        assert live.out("inspect", "-f", "{{.State.Running}}", "detached") == "true\n"
        again = Terminal(live, "attach", "detached")
        again.send(b"echo aga''in\n")
        again.expect(b"again")
        again.send(b"exit 3\n")
        assert again.finish() == 3
    finally:
        live.run("rm", "-f", "detached")


def test_exec_on_a_terminal(live: Live) -> None:
    with container(live, "busybox", "sleep", "1000") as name:
        terminal = Terminal(live, "exec", "-it", name, "sh")
        terminal.expect(b"# ")
        terminal.send(b"tty; echo rea''dy\n")
        assert b"/dev/pts/" in terminal.expect(b"ready")
        terminal.send(b"exit 4\n")
        assert terminal.finish() == 4


def test_what_is_typed_before_the_command_runs_is_not_lost(live: Live) -> None:
    with container(live, "busybox", "sleep", "1000") as name:
        terminal = Terminal(live, "exec", "-it", name, "sh")
        terminal.send(b"echo rea''dy; exit 4\n")
        terminal.expect(b"ready", 5)
        assert terminal.finish() == 4


def test_a_signal_reaches_the_process(live: Live) -> None:
    process = live.start(
        "run", "--rm", "busybox", "sh", "-c",
        "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.1; done",
        stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"got\n"
    assert process.wait(15) == 9


def test_exec(live: Live) -> None:
    with container(live, "busybox", "sleep", "1000") as name:
        result = live.run("exec", "-i", "-e", "A=1", "-w", "/tmp", name, "sh", "-c",
                          "pwd; echo $A; cat; exit 6", stdin=b"typed")
        assert (result.stdout, result.returncode) == (b"/tmp\n1\ntyped", 6)
        assert live.run("exec", name, "nosuchprogram").returncode == 127
        assert live.out("exec", "-d", name, "touch", "/tmp/made") == ""


def test_logs_follow_until_the_end(live: Live) -> None:
    with container(live, "busybox", "sh", "-c", "echo one; echo two >&2; sleep 0.5; echo three",
                   ) as name:
        result = live.run("logs", "-f", name)
        assert (result.stdout, result.stderr) == (b"one\nthree\n", b"two\n")
        assert live.run("logs", "--tail", "1", name).stdout == b"three\n"
        assert live.out("wait", name) == "0\n"


def test_life_of_a_container(live: Live) -> None:
    with container(live, "-l", "kind=test", "busybox", "sleep", "1000") as name:
        listed = live.out("ps", "--filter", "label=kind=test", "--format",
                          "{{.Names}} {{.Image}} {{.Label \"kind\"}} {{.State}}")
        assert listed == "it busybox test running\n"
        assert live.out("pause", name) == "it\n"
        assert live.out("inspect", "-f", "{{.State.Status}}", name) == "paused\n"
        assert live.out("unpause", name) == "it\n"
        assert "sleep 1000" in live.out("top", name)
        assert live.out("rename", name, "other") == ""
        assert live.out("rename", "other", name) == ""
        assert live.out("restart", "-t", "0", name) == "it\n"
        assert live.out("stop", "-t", "0", name) == "it\n"
        assert live.run("kill", name).returncode == 1
        assert live.out("start", name) == "it\n"
        stats = live.out("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name)
        assert stats.startswith("it ")
        assert live.out("rm", "-f", name) == "it\n"


def test_copy_there_and_back(live: Live, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_bytes(b"x" * 100_000)
    (source / "below" / "link").symlink_to("/etc/passwd")
    os.link(source / "file", source / "below" / "hard")
    os.chmod(source / "file", 0o640)
    with container(live, "busybox", "sleep", "1000") as name:
        live.out("cp", str(source), f"{name}:/tmp/copied")
        assert live.out("exec", name, "ls", "/tmp/copied") == "below\nfile\n"
        live.out("cp", f"{source}/.", f"{name}:/tmp")
        assert live.out("exec", name, "wc", "-c", "/tmp/file").split()[0] == "100000"
        live.out("cp", f"{name}:/tmp/copied", str(tmp_path / "back"))
        assert (tmp_path / "back" / "file").read_bytes() == b"x" * 100_000
        assert os.readlink(tmp_path / "back" / "below" / "link") == "/etc/passwd"
        assert (tmp_path / "back" / "file").stat().st_mode & 0o777 == 0o640
        live.out("cp", f"{name}:/tmp/copied/.", str(tmp_path / "back"))
        live.out("cp", f"{name}:/tmp/copied", str(tmp_path / "back"))
        assert (tmp_path / "back" / "copied" / "file").exists()
        live.out("cp", f"{name}:/tmp/file", str(tmp_path / "named"))
        assert (tmp_path / "named").stat().st_size == 100_000
        tar = live.run("cp", f"{name}:/tmp/copied", "-").stdout
        (tmp_path / "tar").write_bytes(tar)
        with tarfile.open(tmp_path / "tar") as archive:
            assert "copied/file" in archive.getnames()
        live.out("cp", "-", f"{name}:/root", stdin=tar)
        assert live.out("exec", name, "ls", "/root/copied") == "below\nfile\n"
        assert live.run("cp", f"{name}:/nosuch", str(tmp_path)).returncode == 1


def test_images(live: Live, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    live.out("tag", "busybox", "again:1")
    live.out("save", "-o", str(archive), "again:1")
    assert "Untagged: again:1" in live.out("rmi", "again:1")
    assert live.out("load", "-i", str(archive)) == "Loaded image: again:1\n"
    assert "again" in live.out("images", "--format", "{{.Repository}}")
    with container(live, "busybox", "touch", "/made", name="changed") as name:
        live.out("wait", name)
        assert "A /made" in live.out("diff", name)
        assert live.out("commit", "-m", "made", "-c", "ENV A=b", name, "made:1").startswith(
            "sha256:")
    assert live.out("run", "--rm", "made:1", "sh", "-c", "ls /made; echo $A") == "/made\nb\n"
    live.out("rmi", "made:1", "again:1")
    result = live.run("rmi", "made:1")
    assert result.returncode == 1
    assert b"No such image: made:1" in result.stderr


def test_networks_and_volumes(live: Live) -> None:
    live.out("network", "create", "--label", "a=b", "testnet")
    live.out("volume", "create", "testvolume")
    try:
        assert "testnet" in live.out("network", "ls", "--format", "{{.Name}}")
        with container(live, "--network", "testnet", "-v", "testvolume:/v", "busybox", "sleep",
                       "1000") as name:
            found = live.out("inspect", "-f",
                             "{{range $n, $e := .NetworkSettings.Networks}}{{$n}}{{end}} "
                             "{{(index .Mounts 0).Name}}", name)
            assert found == "testnet testvolume\n"
            assert live.run("network", "rm", "testnet").returncode == 1
            live.out("network", "disconnect", "testnet", name)
            live.out("network", "connect", "--alias", "x", "testnet", name)
        assert live.out("volume", "inspect", "-f", "{{.Name}}", "testvolume") == "testvolume\n"
    finally:
        assert live.out("network", "rm", "testnet") == "testnet\n"
        assert live.out("volume", "rm", "testvolume") == "testvolume\n"


def test_events_and_system(live: Live) -> None:
    since = str(time.time())
    live.out("run", "--rm", "--name", "eventful", "busybox", "true")
    events = live.out("events", "--since", since, "--until", "0s", "--filter", "type=container",
                      "--format", "{{.Action}}").split()
    assert events[0] == "create" and "start" in events and "die" in events
    assert "Server:" in live.out("version")
    assert "Containers:" in live.out("info")
    assert live.out("system", "df").startswith("TYPE")
    assert "Total reclaimed space:" in live.out("container", "prune", "-f")


def test_publish(live: Live) -> None:
    with container(live, "-p", "127.0.0.1:18080:80", "busybox", "sleep", "1000") as name:
        assert live.out("port", name) == "80/tcp -> 127.0.0.1:18080\n"
        assert "127.0.0.1:18080->80/tcp" in live.out("ps", "--format", "{{.Ports}}")


def test_client_that_is_killed_leaves_the_container(live: Live) -> None:
    process = live.start("run", "--name", "left", "busybox", "sh", "-c",
                         "echo ready; sleep 1000", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(10)
        assert live.out("inspect", "-f", "{{.State.Running}}", "left") == "true\n"
    finally:
        live.run("rm", "-f", "left")
