"""Containers through the docker CLI: what a person sees, and what is left afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.rawhttp import call
from tests.engine.stack import IMAGE, Stack

pytestmark = pytest.mark.root
NONE = ("--network", "none")


def test_output_and_exit_codes(stack: Stack) -> None:
    assert stack.out("run", "--rm", *NONE, IMAGE, "echo", "hello") == "hello"
    for code in (0, 1, 3, 42, 255):
        done = stack.docker("run", "--rm", *NONE, IMAGE, "sh", "-c", f"exit {code}", check=False)
        assert done.returncode == code
    assert stack.out("ps", "-aq") == ""


@pytest.mark.parametrize(("command", "code", "text"), [
    ("nosuch", 127, "executable file not found in $PATH"),
    ("/nosuch", 127, "no such file or directory"), ("/etc", 126, "is a directory"),
    ("/etc/passwd", 126, "permission denied")])
def test_start_errors(stack: Stack, command: str, code: int, text: str) -> None:
    done = stack.docker("run", *NONE, "--name", "broken", IMAGE, command, check=False)
    assert done.returncode == code
    assert text in done.stderr
    state = json.loads(stack.out("inspect", "broken"))[0]["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", code, False)
    assert text in state["Error"]


def test_stdin_stdout_stderr(stack: Stack) -> None:
    text = "".join(f"line {n}\n" for n in range(3000))
    done = stack.docker("run", "--rm", "-i", *NONE, IMAGE, "sh", "-c", "cat; echo err >&2",
                        stdin=text)
    assert done.stdout == text
    assert done.stderr == "err\n"


def test_large_output_is_whole(stack: Stack) -> None:
    done = stack.docker("run", "--rm", *NONE, IMAGE, "sh", "-c",
                        "dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x")
    assert len(done.stdout) == 20 << 20


def test_terminal(stack: Stack) -> None:
    done = subprocess.run(
        ["script", "-qec", f"docker -H {stack.host} run --rm -it --network none {IMAGE} "
         "sh -c 'test -t 0 && test -t 1 && echo terminal $TERM'", "/dev/null"],
        capture_output=True, text=True, timeout=30, check=False)
    assert "terminal xterm" in done.stdout


def test_names_and_prefixes(stack: Stack) -> None:
    ident = stack.out("create", "--name", "web", IMAGE, "true")
    done = stack.docker("create", "--name", "web", IMAGE, "true", check=False)
    assert f'Conflict. The container name "/web" is already in use by container "{ident}"' in (
        done.stderr)
    assert stack.out("inspect", "-f", "{{.Id}}", ident[:6]) == ident
    stack.docker("rename", "web", "other")
    assert stack.out("ps", "-a", "--format", "{{.Names}}") == "other"
    stack.docker("create", "--name", "web", IMAGE, "true")
    for name in ("../x", "a", "a b", "x" * 300):
        done = stack.docker("create", "--name", name, IMAGE, "true", check=False)
        assert "Invalid container name" in done.stderr


def test_logs(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "log", *NONE, IMAGE, "sh", "-c",
                 "for i in 1 2 3; do echo out $i; echo err $i >&2; done; sleep 0.4; echo last")
    followed = stack.docker("logs", "-f", "log")
    assert followed.stdout == "out 1\nout 2\nout 3\nlast\n"
    assert followed.stderr == "err 1\nerr 2\nerr 3\n"
    assert stack.docker("logs", "--tail", "1", "log").stdout == "last\n"
    stamped = stack.out("logs", "-t", "--tail", "1", "log")
    assert len(stamped.split(" ")[0]) == len("2026-11-24T07:56:39.684792110Z")
    assert stack.out("logs", "--until", "1h", "log") == ""
    assert "last" in stack.out("logs", "--since", "1h", "log")


def test_log_options(stack: Stack) -> None:
    stack.docker("run", "--name", "rot", *NONE, "--log-opt", "max-size=2k", "--log-opt",
                 "max-file=2", IMAGE, "sh", "-c", "for i in $(seq 200); do echo line $i; done")
    lines = stack.out("logs", "rot").splitlines()
    assert lines[-1] == "line 200" and len(lines) < 100
    stack.docker("run", "--name", "quiet", *NONE, "--log-driver", "none", IMAGE, "echo", "x")
    done = stack.docker("logs", "quiet", check=False)
    assert "configured logging driver does not support reading" in done.stderr
    done = stack.docker("run", "--log-driver", "syslog", IMAGE, "true", check=False)
    assert "no log driver named 'syslog' is registered" in done.stderr


def test_exec(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "box", "-e", "A=1", *NONE, IMAGE, "sleep", "1000")
    done = stack.docker("exec", "-e", "B=2", "-w", "/tmp", "-u", "99:98", "box", "sh", "-c",
                        "echo $A$B; pwd; id -u; id -g; exit 7", check=False)
    assert (done.stdout, done.returncode) == ("12\n/tmp\n99\n98\n", 7)
    assert stack.docker("exec", "-i", "box", "cat", stdin="abc").stdout == "abc"
    for _ in range(5):  # the exit status is there when the stream ends
        assert stack.docker("exec", "box", "sh", "-c", "exit 9", check=False).returncode == 9
    done = stack.docker("exec", "box", "nosuch", check=False)
    assert done.returncode == 127 and "executable file not found" in done.stdout + done.stderr
    stack.docker("exec", "-d", "box", "touch", "/made")
    stack.docker("exec", "box", "sh", "-c", "while ! test -e /made; do sleep 0.05; done")
    stack.docker("pause", "box")
    done = stack.docker("exec", "box", "true", check=False)
    assert "is paused, unpause the container before exec" in done.stderr
    stack.docker("unpause", "box")


def test_an_exec_is_started_as_the_start_says(stack: Stack) -> None:
    """What was asked of the shim at its creation is taken only where the start fits."""
    stack.docker("run", "-d", "--name", "box", *NONE, IMAGE, "sleep", "1000")

    def make(*command: str, **config: object) -> str:
        return str(call(stack.sock, "POST", "/containers/box/exec", {
            "Cmd": list(command), "AttachStdout": True, **config}).json["Id"])

    def start(ident: str, **body: object) -> bytes:
        return call(stack.sock, "POST", f"/exec/{ident}/start", body).body

    late, first, second = (make("echo", name) for name in ("late", "first", "second"))
    assert b"second" in start(second) and b"first" in start(first)
    detached = make("sh", "-c", "cat > /made; echo done >> /made", AttachStdin=True)
    assert start(detached, Detach=True) == b""
    stack.docker("exec", "box", "sh", "-c", "while ! grep done /made; do sleep 0.05; done")
    sized = make("stty", "size", Tty=True, ConsoleSize=[11, 22])
    assert b"33 44" in start(sized, Tty=True, ConsoleSize=[33, 44])
    assert b"unable to find user nobody-here" in start(make("true", User="nobody-here"))
    time.sleep(2.5)     # the shim has forgotten it
    assert b"late" in start(late)
    paused = make("echo", "again")
    stack.docker("pause", "box")
    answer = call(stack.sock, "POST", f"/exec/{paused}/start", {})
    assert answer.status == 409
    stack.docker("unpause", "box")
    assert b"again" in start(paused)


def test_stop_kill_wait(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "trap", *NONE, IMAGE, "sh", "-c",
                 "trap 'exit 5' TERM; while :; do sleep 0.05; done")
    began = time.monotonic()
    stack.docker("stop", "-t", "60", "trap")
    assert time.monotonic() - began < 30
    assert stack.out("wait", "trap") == "5"
    stack.docker("start", "trap")
    stack.docker("kill", "trap")
    assert stack.out("inspect", "-f", "{{.State.ExitCode}}", "trap") == "137"
    done = stack.docker("kill", "trap", check=False)
    assert "is not running" in done.stderr
    stack.docker("restart", "-t", "0", "trap")
    done = stack.docker("rm", "trap", check=False)
    assert "container is running: stop the container before removing or force remove" in (
        done.stderr)


def test_restart_policy(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "again", *NONE, "--restart", "on-failure:2", IMAGE,
                 "sh", "-c", "exit 3")
    assert stack.out("wait", "again") == "3"
    deadline = time.monotonic() + 30
    while stack.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again") != (
            "2 exited"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_health(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "well", *NONE, "--health-cmd", "test -e /ok || "
                 "{ echo missing; exit 1; }", "--health-interval", "100ms", "--health-retries",
                 "2", IMAGE, "sleep", "1000")

    def status(wanted: str) -> dict[str, object]:
        deadline = time.monotonic() + 30
        while True:
            health = json.loads(stack.out("inspect", "-f", "{{json .State.Health}}", "well"))
            if health["Status"] == wanted:
                return dict(health)
            assert time.monotonic() < deadline, health
            time.sleep(0.05)

    log = status("unhealthy")["Log"]
    assert isinstance(log, list) and log[-1]["ExitCode"] == 1
    assert log[-1]["Output"] == "missing\n"
    stack.docker("exec", "well", "touch", "/ok")
    status("healthy")


def test_limits_and_security(stack: Stack) -> None:
    out = stack.out("run", "--rm", *NONE, "--cap-drop", "ALL", "--cap-add", "NET_ADMIN",
                    "--security-opt", "no-new-privileges", IMAGE, "grep", "-E",
                    "CapBnd|CapInh|NoNewPrivs|Seccomp:", "/proc/self/status")
    assert out.split() == ["CapInh:", "0000000000000000", "CapBnd:", "0000000000001000",
                           "NoNewPrivs:", "1", "Seccomp:", "2"]
    done = stack.docker("run", "--name", "oom", *NONE, "-m", "16m", "--memory-swap", "16m", IMAGE,
                        "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40", check=False)
    assert done.returncode == 137
    assert stack.out("inspect", "-f", "{{.State.OOMKilled}}", "oom") == "true"
    done = stack.docker("run", "--rm", *NONE, "--read-only", "--tmpfs", "/t", IMAGE, "sh", "-c",
                        "touch /t/a && touch /a", check=False)
    assert "Read-only file system" in done.stderr
    assert stack.out("run", "--rm", *NONE, "-u", "nobody", IMAGE, "id", "-u") == "65534"
    done = stack.docker("run", "--rm", "-u", "4294967296", IMAGE, "id", check=False)
    assert done.returncode != 0 and "range" in done.stderr


def test_bind_and_volume(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("from the host")
    assert stack.out("run", "--rm", *NONE, "-v", f"{tmp_path}:/m:ro", IMAGE, "cat", "/m/x") == (
        "from the host")
    stack.docker("run", "--rm", *NONE, "-v", "data:/bin2", IMAGE, "sh", "-c", "echo 1 > /bin2/f")
    assert stack.out("run", "--rm", *NONE, "-v", "data:/d", IMAGE, "cat", "/d/f") == "1"
    # an empty named volume gets the image's content
    assert "busybox" in stack.out("run", "--rm", *NONE, "-v", "copy:/bin", "--entrypoint",
                                  "/bin/ls", IMAGE, "/bin")
    stack.docker("volume", "rm", "data", "copy")
    done = stack.docker("run", "--rm", "--mount", "type=bind,source=/nosuch,target=/x", IMAGE,
                        "true", check=False)
    assert "bind source path does not exist" in done.stderr


def test_copy_export_diff(stack: Stack, tmp_path: Path) -> None:
    stack.docker("run", "-d", "--name", "files", *NONE, IMAGE, "sleep", "1000")
    (tmp_path / "f").write_text("data")
    stack.docker("cp", str(tmp_path / "f"), "files:/tmp/")
    assert stack.out("exec", "files", "cat", "/tmp/f") == "data"
    stack.docker("exec", "files", "sh", "-c", "ln -s /etc/shadow /evil; rm /bin/vi; mkdir /new")
    assert stack.out("diff", "files").splitlines() == [
        "C /bin", "D /bin/vi", "A /evil", "A /new", "C /tmp", "A /tmp/f"]
    stack.docker("stop", "-t", "0", "files")
    stack.docker("cp", "files:/tmp/f", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "data"
    done = stack.docker("cp", "files:/nosuch", str(tmp_path), check=False)
    assert "Could not find the file /nosuch in container files" in done.stderr
    names = subprocess.run(f"docker -H {stack.host} export files | tar t", shell=True, text=True,
                           capture_output=True, check=True).stdout.split()
    assert "bin/busybox" in names and "tmp/f" in names and "bin/vi" not in names


def test_cp_stays_inside(stack: Stack, tmp_path: Path) -> None:
    """A link in the container leads to the container's files, never to the host's."""
    canary = tmp_path / "canary"
    canary.write_text("host")
    stack.docker("run", "--name", "links", *NONE, IMAGE, "sh", "-c",
                 f"ln -s {tmp_path} /out; ln -s / /root2; mkdir -p /etc; echo inside > /etc/motd")
    stack.docker("cp", str(canary), "links:/out/planted", check=False)
    assert sorted(os.listdir(tmp_path)) == ["canary"]
    done = stack.docker("cp", "links:/out/canary", str(tmp_path / "got"), check=False)
    assert done.returncode != 0 and not (tmp_path / "got").exists()
    stack.docker("cp", "links:/root2/etc/motd", str(tmp_path / "motd"))
    assert (tmp_path / "motd").read_text() == "inside\n"


def test_top_stats_events_df(stack: Stack) -> None:
    began = str(time.time())
    stack.docker("run", "-d", "--name", "seen", IMAGE, "sleep", "1000")
    assert "sleep 1000" in stack.out("top", "seen")
    done = stack.docker("top", "seen", "--help", check=False)
    assert "unsupported ps arguments" in done.stderr
    row = stack.out("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "seen")
    assert row == "seen 1"
    stack.docker("rm", "-f", "seen")
    actions = stack.out("events", "--since", began, "--until", str(time.time()), "--filter",
                        "type=container", "--format", "{{.Action}}").splitlines()
    assert actions == ["create", "start", "top", "kill", "die", "destroy"]
    assert "Containers" in stack.out("system", "df")


def test_namespaces_are_shared(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "base", "--ipc", "shareable", IMAGE, "sleep", "1000")
    stack.docker("exec", "base", "touch", "/dev/shm/mark")
    out = stack.out("run", "--rm", "--network", "container:base", "--pid", "container:base",
                    "--ipc", "container:base", IMAGE, "sh", "-c",
                    "ls /dev/shm; ps | grep -c 'sleep 1000'; ls /sys/class/net")
    assert "mark" in out and "eth0" in out
    stack.docker("stop", "-t", "0", "base")
    done = stack.docker("run", "--rm", "--network", "container:base", IMAGE, "true", check=False)
    assert "non running container" in done.stderr
    host = os.uname().nodename
    assert stack.out("run", "--rm", "--uts", "host", "--network", "host", IMAGE, "hostname") == host


def test_update_and_inspect(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "lim", *NONE, "-m", "64m", IMAGE, "sleep", "1000")
    stack.docker("update", "-m", "32m", "--memory-swap", "64m", "--restart", "always", "lim")
    found = json.loads(stack.out("inspect", "lim"))[0]
    assert found["HostConfig"]["Memory"] == 32 << 20
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "always"
    pid = found["State"]["Pid"]
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as f:
        path = next(line.strip().split(":", 2)[2] for line in f if ":memory:" in line
                    or line.startswith("0::"))
    for file in (f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes",
                 f"/sys/fs/cgroup{path}/memory.max"):
        if os.path.exists(file):
            assert Path(file).read_text().strip() == str(32 << 20)
    done = stack.docker("update", "-m", "1k", "lim", check=False)
    assert "Minimum memory limit allowed is 6MB" in done.stderr


def test_unknown_things(stack: Stack) -> None:
    done = stack.docker("inspect", "nosuch", check=False)
    assert "No such object: nosuch" in done.stderr
    done = stack.docker("swarm", "init", check=False)
    assert "SwarmInit (POST /swarm/init) is not implemented in Carrel" in done.stderr
    curl = ["curl", "-s", "--unix-socket", stack.sock]
    assert json.loads(subprocess.check_output([*curl, "http://d/v1.51/nonsense"])) == {
        "message": "page not found"}
    assert "client version 1.99 is too new. Maximum supported API version is 1.51" in (
        subprocess.check_output([*curl, "http://d/v1.99/info"], text=True))
    head = subprocess.check_output([*curl, "-I", "http://d/_ping"], text=True)
    for name in ("Api-Version: 1.51", "Ostype: linux", "Builder-Version:", "Swarm: inactive"):
        assert name in head
