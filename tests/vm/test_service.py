"""carreld under systemd: its start is told, its restart leaves the containers alone."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

from tests.vm.conftest import LIVE, Machine, cgroup, journal, unit_property, wait_for


def _fetch(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def test_a_restart_leaves_containers_running(machine: Machine) -> None:
    ident = machine.start("sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 1; done",
                          host={"Memory": 64 << 20})
    pid, main = machine.inspect(ident)["State"]["Pid"], unit_property("carrel", "MainPID")
    before = machine.logs(ident)
    machine.restart()
    assert unit_property("carrel", "ActiveState") == "active"
    assert unit_property("carrel", "MainPID") != main
    state = machine.inspect(ident)["State"]
    assert (state["Status"], state["Pid"]) == ("running", pid)
    assert (cgroup(ident) / "memory.max").read_text().strip() == str(64 << 20)
    wait_for(lambda: len(machine.logs(ident)) > len(before) + 20)
    assert machine.logs(ident).startswith("line 0\nline 1\n")
    assert machine.exec(ident, "cat", "/proc/1/comm") == (0, "sh\n")
    machine.call("POST", f"/containers/{ident}/stop?t=0")
    assert machine.inspect(ident)["State"]["ExitCode"] == 137


def test_a_killed_daemon_comes_back_to_its_containers(machine: Machine) -> None:
    ident = machine.start("sleep", "1000")
    main = unit_property("carrel", "MainPID")
    subprocess.run(["systemctl", "kill", "--kill-who=main", "-s", "KILL", "carrel"], check=True)
    wait_for(lambda: unit_property("carrel", "MainPID") not in ("0", main) and
             unit_property("carrel", "ActiveState") == "active")
    assert machine.inspect(ident)["State"]["Status"] == "running"
    assert machine.exec(ident, "echo", "here") == (0, "here\n")


def test_without_live_restore_they_end_with_the_daemon(machine: Machine) -> None:
    try:
        machine.restart({})
        ident = machine.start("sleep", "1000", host={"RestartPolicy": {"Name": "always"}})
        pid = machine.inspect(ident)["State"]["Pid"]
        machine.restart()
        # the policy starts it anew
        wait_for(lambda: machine.inspect(ident)["State"]["Pid"] not in (0, pid))
    finally:
        machine.restart(LIVE)


def test_reload(machine: Machine) -> None:
    subprocess.run(["systemctl", "reload", "carrel"], check=True)
    assert unit_property("carrel", "ActiveState") == "active"
    assert machine.call("GET", "/_ping") == b"OK"


def test_what_the_unit_says_is_not_passed_on(machine: Machine) -> None:
    """The daemon is spared when memory runs out; what it starts is not."""
    main = unit_property("carrel", "MainPID")
    assert Path(f"/proc/{main}/oom_score_adj").read_text() == "-500\n"
    ident = machine.start("sleep", "1000")
    assert machine.exec(ident, "cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj") == (
        0, "0\n0\n")
    assert unit_property("carrel", "TasksMax") == "infinity"


def test_published_port_bridge_and_names(machine: Machine) -> None:
    """nftables of this kernel, the bridge, the embedded DNS; and all of it after a restart."""
    machine.carrel("network", "create", "inner")
    try:
        web = machine.carrel(
            "run", "-d", "--name", "web", "--network", "inner", "-p", "18080:80", "busybox", "sh",
            "-c", "mkdir /www; echo hello > /www/index.html; httpd -f -h /www").stdout.strip()
        machine.made.append(web)
        assert wait_for(lambda: _fetch("http://127.0.0.1:18080/")) == "hello\n"
        client = ("run", "--rm", "--network", "inner", "busybox", "wget", "-qO-", "http://web/")
        assert machine.carrel(*client).stdout == "hello\n"
        gateway = machine.carrel("run", "--rm", "busybox", "sh", "-c",
                                 "wget -qO- http://$(ip route | sed -n 's/default via "
                                 "\\([^ ]*\\).*/\\1/p'):18080/").stdout
        assert gateway == "hello\n"
        machine.restart()
        assert wait_for(lambda: _fetch("http://127.0.0.1:18080/")) == "hello\n"
        assert machine.carrel(*client).stdout == "hello\n"
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True,
                               check=True).stdout
        assert "18080" in rules
        machine.remove(web)
        assert _fetch("http://127.0.0.1:18080/") is None
    finally:
        machine.remove_all()
        machine.carrel("network", "rm", "inner", check=False)


def test_the_journal_is_quiet(machine: Machine) -> None:
    assert not [line for line in journal().splitlines() if "internal error" in line
                or "Traceback" in line]


def test_the_command_line(machine: Machine) -> None:
    """As a user works: run, exec, logs, ps, stats, rm; exit codes and streams."""
    done = machine.carrel("run", "--name", "one", "busybox", "sh", "-c", "echo out; exit 3",
                          check=False)
    assert (done.returncode, done.stdout) == (3, "out\n"), done.stderr
    assert machine.carrel("logs", "one").stdout == "out\n"
    assert "Exited (3)" in machine.carrel("ps", "-a").stdout
    machine.carrel("rm", "one")
    machine.carrel("run", "-d", "--name", "two", "busybox", "sleep", "1000")
    assert machine.carrel("exec", "two", "id", "-u").stdout == "0\n"
    machine.carrel("rm", "-f", "two")
    done = machine.carrel("run", "--rm", "busybox", "nothing-here", check=False)
    assert done.returncode == 127
    assert "executable file not found" in done.stderr
