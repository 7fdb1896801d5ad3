"""ps, logs, exec, stop, kill, pause, restart, cp, top, stats, events: through the real clients."""

from __future__ import annotations

import json
import time

from tests.e2e.engine import Cli


def test_ps_rm_and_prune(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "a1", "--label", "k=v", "busybox", "sleep", "1000")
    cli.ok("create", "--name", "b1", "busybox")
    assert cli.ok("ps", "--format", "{{.Names}}").split() == ["a1"]
    assert sorted(cli.ok("ps", "-a", "--format", "{{.Names}}").split()) == ["a1", "b1"]
    found = cli.ok("ps", "-q", "--filter", "label=k=v", "--no-trunc").strip()
    assert found == cli.inspect("a1")["Id"]
    refused = cli.fails("rm", "a1")
    assert "container is running" in refused.err
    cli.ok("rm", "-f", "a1")
    cli.ok("container", "prune", "-f")
    assert cli.ok("ps", "-aq") == ""
    assert "No such container: a1" in cli.fails("stop", "a1").err


def test_exec(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "x1", "-e", "FROM=run", "busybox", "sleep", "1000")
    assert cli.ok("exec", "x1", "echo", "in").strip() == "in"
    assert cli.ok("exec", "-i", "x1", "cat", stdin="typed\n") == "typed\n"
    assert cli.ok("exec", "-e", "A=1", "-w", "/tmp", "-u", "7", "x1", "sh", "-c",
                  "echo $FROM $A $(pwd) $(id -u)").strip() == "run 1 /tmp 7"
    assert cli.run("exec", "x1", "sh", "-c", "exit 9").code == 9
    missing = cli.fails("exec", "x1", "no-such")
    assert missing.code == 127
    cli.ok("exec", "-d", "x1", "touch", "/tmp/done")
    deadline = time.monotonic() + 30
    while cli.run("exec", "x1", "test", "-e", "/tmp/done").code:
        assert time.monotonic() < deadline
    cli.ok("stop", "-t", "0", "x1")
    assert "is not running" in cli.fails("exec", "x1", "true").err


def test_stop_kill_restart_pause(cli: Cli) -> None:
    trap = "trap 'exit 5' TERM; while :; do sleep 0.1; done"
    cli.ok("run", "-d", "--name", "s1", "busybox", "sh", "-c", trap)
    cli.ok("stop", "s1")
    assert cli.inspect("s1")["State"]["ExitCode"] == 5
    cli.ok("start", "s1")
    first = cli.inspect("s1")["State"]["Pid"]
    cli.ok("restart", "-t", "1", "s1")
    assert cli.inspect("s1")["State"]["Pid"] not in (0, first)
    cli.ok("pause", "s1")
    assert cli.inspect("s1")["State"]["Status"] == "paused"
    cli.ok("unpause", "s1")
    cli.ok("kill", "s1")
    assert cli.ok("wait", "s1").strip() == "137"
    cli.ok("start", "s1")
    cli.ok("pause", "s1")
    cli.ok("kill", "s1")
    assert cli.ok("wait", "s1").strip() == "137"


def test_logs_follow_tail_since(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "l1", "busybox", "sh", "-c",
           "for i in 1 2 3; do echo line $i; done; sleep 0.5; echo last")
    assert cli.ok("logs", "-f", "l1").splitlines()[-1] == "last"
    assert cli.ok("logs", "--tail", "1", "l1") == "last\n"
    stamped = cli.ok("logs", "-t", "--tail", "1", "l1")
    assert stamped[:2] == "20" and stamped.endswith(" last\n")
    assert cli.ok("logs", "--since", "2100-01-01T00:00:00Z", "l1") == ""


def test_restart_policy(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "r1", "--restart", "on-failure:2", "busybox",
              "sh", "-c", "exit 1")
    deadline = time.monotonic() + 30
    while True:
        found = docker.inspect("r1")
        if found["RestartCount"] == 2 and found["State"]["Status"] == "exited":
            break
        assert time.monotonic() < deadline, found["State"]
        time.sleep(0.1)


def test_copy_both_ways(cli: Cli, tmp_path_factory: object) -> None:
    import pathlib
    import tempfile

    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "in").write_text("content\n")
    cli.ok("run", "-d", "--name", "c1", "busybox", "sleep", "1000")
    cli.ok("cp", str(folder / "in"), "c1:/tmp/there")
    assert cli.ok("exec", "c1", "cat", "/tmp/there") == "content\n"
    cli.ok("cp", "c1:/etc/passwd", str(folder / "out"))
    assert "root" in (folder / "out").read_text()
    cli.ok("stop", "-t", "0", "c1")
    cli.ok("cp", "c1:/tmp/there", str(folder / "stopped"))
    assert (folder / "stopped").read_text() == "content\n"
    missing = cli.fails("cp", "c1:/no/such", str(folder))
    # 20.10 has a text of its own for every 404 here
    assert ("Could not find the file /no/such in container c1" in missing.err
            or "No such container:path: c1:/no/such" in missing.err)


def test_top_stats_diff_port_rename(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "t1", "-p", "127.0.0.1::80", "busybox", "sleep", "1000")
    assert "sleep 1000" in docker.ok("top", "t1")
    stats = json.loads(docker.ok("stats", "--no-stream", "--format", "{{json .}}", "t1"))
    assert stats["Name"] == "t1" and stats["PIDs"] == "1"
    docker.ok("exec", "t1", "touch", "/new-file")
    assert "A /new-file" in docker.ok("diff", "t1")
    assert docker.ok("port", "t1", "80").startswith("127.0.0.1:")
    docker.ok("rename", "t1", "t2")
    assert docker.inspect("t2")["Name"] == "/t2"
    docker.ok("update", "--memory", "64m", "--memory-swap", "128m", "t2")
    assert docker.inspect("t2")["HostConfig"]["Memory"] == 64 << 20


def test_events(docker: Cli) -> None:
    since = str(int(time.time()) - 1)
    docker.ok("run", "--rm", "--name", "e1", "busybox", "true")
    deadline = time.monotonic() + 30
    lines: list[str] = []
    while "destroy" not in lines:
        assert time.monotonic() < deadline, lines
        lines = docker.ok("events", "--since", since, "--until", f"{time.time():.9f}",
                          "--filter", "container=e1", "--format", "{{.Action}}").split()
    assert [a for a in lines if a in ("create", "start", "die", "destroy")] == [
        "create", "start", "die", "destroy"]


def test_unlimited_paths_answer_what_is_missing(docker: Cli) -> None:
    done = docker.fails("swarm", "init")
    assert "swarm" in done.err.lower()


def test_health(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "h1", "--health-cmd", "test -e /ok",
              "--health-interval", "200ms",
              "--health-retries", "1", "busybox", "sleep", "1000")
    deadline = time.monotonic() + 30
    while docker.inspect("h1")["State"]["Health"]["Status"] != "unhealthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    docker.ok("exec", "h1", "touch", "/ok")
    while docker.inspect("h1")["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_info_version_df(cli: Cli) -> None:
    assert "Server" in cli.ok("version")
    assert "Containers:" in cli.ok("info")
    assert "Images" in cli.ok("system", "df")
