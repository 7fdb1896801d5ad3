"""``docker run`` and its flags, through each client."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.engine import Cli


def test_output_and_exit_code(cli: Cli) -> None:
    assert cli.ok("run", "--rm", "busybox", "echo", "hello") == "hello\n"
    assert cli.run("run", "--rm", "busybox", "sh", "-c", "exit 42").code == 42


def test_stdout_and_stderr_stay_apart(cli: Cli) -> None:
    done = cli.run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.code, done.out, done.err) == (0, "out\n", "err\n")


def test_stdin(cli: Cli) -> None:
    text = "".join(f"line {n}\n" for n in range(5000))
    assert cli.ok("run", "--rm", "-i", "busybox", "cat", stdin=text) == text


def test_missing_program_is_127(cli: Cli) -> None:
    done = cli.fails("run", "--rm", "busybox", "no-such-program")
    assert done.code == 127
    assert "executable file not found in $PATH" in done.err


def test_not_executable_is_126(cli: Cli) -> None:
    done = cli.fails("run", "--rm", "busybox", "/etc/passwd")
    assert done.code == 126
    assert "permission denied" in done.err


def test_unknown_image_is_125(cli: Cli) -> None:
    done = cli.fails("run", "--rm", "--pull", "never", "no/such-image:here")
    assert done.code == 125
    assert "No such image: no/such-image:here" in done.err


def test_bad_reference(cli: Cli) -> None:
    done = cli.fails("run", "--rm", "Busybox")
    assert done.code == 125
    assert "invalid reference format" in done.err


def test_name_in_use(cli: Cli) -> None:
    cli.ok("create", "--name", "taken", "busybox")
    done = cli.fails("run", "--name", "taken", "busybox", "true")
    assert done.code == 125
    assert 'The container name "/taken" is already in use' in done.err


@pytest.mark.parametrize(("flags", "command", "expected"), [
    (["-e", "A=b c"], "echo $A", "b c"),
    (["-w", "/tmp"], "pwd", "/tmp"),
    (["-u", "1000:1001"], "id -u; id -g", "1000\n1001"),
    (["--hostname", "host-x"], "hostname", "host-x"),
    (["--read-only"], "touch /x 2>&1 | grep -c Read-only", "1"),
    (["--tmpfs", "/t:size=1m"], "df -k /t | tail -1 | awk '{print $2}'", "1024"),
    (["-m", "64m"], "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
                    " 2>/dev/null || true", "67108864"),
    (["--cap-drop", "ALL"], "grep CapEff /proc/self/status | cut -f2", "0000000000000000"),
    (["--cap-add", "SYS_ADMIN"], "grep CapEff /proc/self/status | cut -f2", "00000000a82425fb"),
    ([], "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb"),
    ([], "grep Seccomp: /proc/self/status | cut -f2", "2"),
    (["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status | cut -f2", "0"),
    (["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status | cut -f2", "1"),
    (["--shm-size", "8m"], "df -k /dev/shm | tail -1 | awk '{print $2}'", "8192"),
    (["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1"),
    (["--ulimit", "nofile=100:200"], "ulimit -n", "100"),
    (["--init"], "cat /proc/1/comm | grep -cv sh", "1"),
    (["--entrypoint", "/bin/echo"], "x y", "-c x y"),
    (["--network", "none"], "ls /sys/class/net", "lo"),
    (["--pids-limit", "50"], "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max"
                             " 2>/dev/null || true", "50"),
    (["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj", "500"),
    (["--add-host", "other:10.9.8.7"], "grep other /etc/hosts | cut -f1", "10.9.8.7"),
    (["--dns", "9.9.9.9"], "grep ^nameserver /etc/resolv.conf", "nameserver 9.9.9.9"),
    (["--privileged"], "grep CapEff /proc/self/status | cut -f2 | cut -c5-8", "01ff"),
])
def test_flag(docker: Cli, flags: list[str], command: str, expected: str) -> None:
    tail = ["-c", command] if "--entrypoint" in flags else ["sh", "-c", command]
    assert docker.ok("run", "--rm", *flags, "busybox", *tail).strip() == expected


def test_only_the_three_standard_descriptors(docker: Cli) -> None:
    found = docker.ok("run", "--rm", "busybox", "sh", "-c",
                      "ls /proc/$$/fd; true").split()
    assert set(found) <= {"0", "1", "2", "10"}  # 10: the shell's own


def test_signals_are_as_the_kernel_made_them(docker: Cli) -> None:
    out = docker.ok("run", "--rm", "busybox", "grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
    assert [line.split()[1] for line in out.splitlines()] == ["0" * 16, "0" * 16]


def test_masked_and_read_only_paths(docker: Cli) -> None:
    out = docker.ok("run", "--rm", "busybox", "sh", "-c",
                    "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l;"
                    " echo b > /proc/sysrq-trigger 2>&1 || echo refused")
    assert out.split("\n")[:2] == ["0", "0"]
    assert "refused" in out


def test_bind_mount_and_volume(docker: Cli, tmp_path_factory: pytest.TempPathFactory) -> None:
    host = tmp_path_factory.mktemp("bind")
    (host / "file").write_text("from the host\n")
    assert docker.ok("run", "--rm", "-v", f"{host}:/data", "busybox", "cat", "/data/file"
                     ) == "from the host\n"
    assert "Read-only" in docker.run("run", "--rm", "-v", f"{host}:/data:ro", "busybox",
                                     "touch", "/data/x").err
    docker.ok("run", "--rm", "-v", "keep:/data", "busybox", "sh", "-c", "echo kept > /data/f")
    assert docker.ok("run", "--rm", "-v", "keep:/data", "busybox", "cat", "/data/f") == "kept\n"
    docker.ok("volume", "rm", "keep")


def test_terminal(cli: Cli) -> None:
    name = "terminal"
    cli.ok("run", "-d", "-t", "--name", name, "busybox", "sh", "-c", "tty; stty size; sleep 100")
    deadline = time.monotonic() + 30
    while "/dev/pts/0" not in cli.ok("logs", name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cli.ok("rm", "-f", name)


def test_memory_limit_kills(docker: Cli) -> None:
    done = docker.run("run", "--name", "eater", "-m", "16m", "busybox", "sh", "-c",
                      "x=$(head -c 64000000 /dev/zero | tr '\\0' a)")
    assert done.code == 137
    assert docker.inspect("eater")["State"]["OOMKilled"] is True


def test_detached_then_logs_then_wait(cli: Cli) -> None:
    name = cli.ok("run", "-d", "busybox", "sh", "-c", "echo one; echo two >&2; exit 3").strip()
    assert len(name) == 64
    assert cli.ok("wait", name).strip() == "3"
    done = cli.run("logs", name)
    assert (done.out, done.err) == ("one\n", "two\n")
    state = json.loads(cli.ok("inspect", "--format", "{{json .State}}", name))
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
