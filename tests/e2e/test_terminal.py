"""``run -it``, ``exec -it``, ``attach``: what a person sees and types."""

from __future__ import annotations

import signal
import subprocess
import time

from tests.e2e.engine import Cli
from tests.e2e.terminal import DETACH, Terminal


def test_a_shell(cli: Cli) -> None:
    with Terminal(cli, "run", "-it", "--rm", "--name", "sh1", "busybox", "sh",
                  rows=33, columns=111) as t:
        t.expect("/ #")
        t.type("stty size; tty; echo $TERM\n")
        t.expect("33 111")
        t.expect("/dev/pts/0")
        t.expect("xterm")
        t.expect("/ #")
        t.resize(40, 120)
        t.process.send_signal(signal.SIGWINCH)
        t.type("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; stty size\n")
        t.expect("\n40 120")
        t.expect("/ #")
        t.type("echo $((40+2)); sleep 100\n")
        t.expect("42\r\n")
        t.interrupt("/ #")
        t.type("exit 3\n")
        assert t.ends() == 3


def test_detach_and_attach_again(cli: Cli) -> None:
    with Terminal(cli, "run", "-it", "--name", "sh2", "busybox", "sh") as t:
        t.expect("/ #")
        t.type("X=remembered\n")
        t.expect("/ #")
        t.type(DETACH)
        assert t.ends() == 0
    assert cli.inspect("sh2")["State"]["Running"] is True
    with Terminal(cli, "attach", "sh2") as t:
        t.type("echo $X\n")
        t.expect("remembered")
        t.type("exit 5\n")
        assert t.ends() == 5
    assert cli.inspect("sh2")["State"]["ExitCode"] == 5


def test_detach_keys_of_ones_own(cli: Cli) -> None:
    with Terminal(cli, "run", "-it", "--detach-keys", "ctrl-x,x", "--name", "sh3", "busybox",
                  "cat") as t:
        t.type(DETACH + b"kept\n")
        t.expect("kept")
        t.type(b"\x18x")
        assert t.ends() == 0
    assert cli.inspect("sh3")["State"]["Running"] is True


def test_exec_with_a_terminal(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "sh4", "busybox", "sleep", "1000")
    with Terminal(cli, "exec", "-it", "sh4", "sh", rows=31, columns=99) as t:
        t.expect("/ #")
        # 20.10 tells the size after the start
        t.type("until [ \"$(stty size)\" = '31 99' ]; do sleep 0.1; done; stty size\n")
        t.expect("\n31 99")
        t.type("exit 4\n")
        assert t.ends() == 4
    with Terminal(cli, "exec", "-it", "sh4", "sh") as t:
        t.expect("/ #")
        t.type(DETACH)
        t.ends()
    assert cli.inspect("sh4")["State"]["Running"] is True


def test_stdin_without_a_terminal(cli: Cli) -> None:
    """The end of the client's input is that of the process; a second client only listens."""
    cli.ok("create", "-i", "--name", "cat1", "busybox", "sh", "-c",
           "while read x; do echo got $x; done; echo end")
    client = cli.popen("start", "-a", "-i", "cat1", stdin=subprocess.PIPE,
                       stdout=subprocess.PIPE)
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(b"one\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"got one\n"
    other = cli.popen("attach", "--no-stdin", "cat1", stdin=subprocess.DEVNULL,
                      stdout=subprocess.PIPE)
    # both clients are attached: the first when it started, the second now
    deadline = time.monotonic() + 30
    while cli.ok("events", "--since", "0", "--until", f"{time.time():.9f}", "--filter",
                 "container=cat1", "--filter", "event=attach").count("attach") < 2:
        assert time.monotonic() < deadline
    time.sleep(0.3)     # from the event to the stream
    out, _ = client.communicate(b"two\n", timeout=60)
    assert out == b"got two\nend\n"
    assert other.communicate(timeout=60)[0] == b"got two\nend\n"
    assert (client.returncode, other.returncode) == (0, 0)
    assert cli.ok("logs", "cat1") == "got one\ngot two\nend\n"


def test_attach_with_stdin(cli: Cli) -> None:
    cli.ok("run", "-d", "-i", "--name", "cat2", "busybox", "sh", "-c", "read x; echo got $x")
    client = cli.popen("attach", "cat2", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.communicate(b"one\n", timeout=60)[0] == b"got one\n"
    assert client.returncode == 0


def test_signals_reach_the_container(cli: Cli) -> None:
    """sig-proxy: a signal to the client of a container without a terminal."""
    client = cli.popen("run", "--rm", "--name", "sig1", "busybox", "sh", "-c",
                       "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done",
                       stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    client.send_signal(signal.SIGTERM)
    assert client.stdout.read() == b"got\n"
    assert client.wait(20) == 9


def test_a_terminal_is_needed(cli: Cli) -> None:
    done = cli.fails("run", "--rm", "-it", "busybox", "true")
    assert "not a T" in done.err    # "the input device is not a TTY"
