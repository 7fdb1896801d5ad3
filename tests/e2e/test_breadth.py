"""What users do every day beyond ``run``: files, volumes, images, namespaces, many at once."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engine import Cli


def test_cp_of_tar_streams(cli: Cli) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("folder/file")
        member.size, member.mode, member.uid, member.gid = 5, 0o640, 7, 8
        tar.addfile(member, io.BytesIO(b"bytes"))
    cli.ok("create", "--name", "t1", "busybox", "stat", "-c", "%a %u %g %s", "/tmp/folder/file")
    done = subprocess.run([cli.program, "cp", "-a", "-", "t1:/tmp"], input=out.getvalue(),
                          env=cli.env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert cli.ok("start", "-a", "t1") == "640 7 8 5\n"
    done = subprocess.run([cli.program, "cp", "t1:/tmp/folder", "-"], env=cli.env,
                          capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert sorted(tar.getnames()) == ["folder", "folder/file"]
        found = tar.extractfile("folder/file")
        assert found is not None and found.read() == b"bytes"


def test_commit_export_import(cli: Cli, tmp_path: Path) -> None:
    cli.ok("run", "--name", "c1", "-e", "A=1", "busybox", "sh", "-c", "echo made > /made")
    cli.ok("commit", "-m", "a message", "-a", "me", "-c", "ENV B=2", "-c", "WORKDIR /tmp", "c1",
           "committed:1")
    try:
        assert cli.ok("run", "--rm", "committed:1", "sh", "-c", "cat /made; echo $A $B; pwd"
                      ) == "made\n1 2\n/tmp\n"
        image = json.loads(cli.ok("image", "inspect", "committed:1"))[0]
        assert (image["Comment"], image["Author"]) == ("a message", "me")
        assert "a message" in cli.ok("history", "committed:1")
        cli.ok("export", "-o", str(tmp_path / "c1.tar"), "c1")
        cli.ok("import", "-c", "CMD cat /made", str(tmp_path / "c1.tar"), "imported:1")
        assert cli.ok("run", "--rm", "imported:1") == "made\n"
    finally:
        cli.ok("rm", "c1")
        cli.run("rmi", "-f", "committed:1", "imported:1")
    assert "committed" not in cli.ok("images")


def test_volume_gets_what_the_image_has(docker: Cli) -> None:
    docker.ok("volume", "create", "--label", "a=b", "copied")
    assert "sh" in docker.ok("run", "--rm", "-v", "copied:/bin:rw", "--entrypoint", "/bin/ls",
                             "busybox", "/bin").split()
    assert docker.ok("run", "--rm", "--mount", "type=volume,src=empty,dst=/bin/x,volume-nocopy",
                     "busybox", "ls", "/bin/x") == ""
    assert docker.ok("volume", "ls", "-q", "--filter", "label=a=b") == "copied\n"
    refused = docker.run("volume", "rm", "absent")
    assert "get absent: no such volume" in refused.err
    docker.ok("create", "--name", "user", "-v", "copied:/x", "busybox")
    assert "volume is in use" in docker.fails("volume", "rm", "copied").err
    docker.ok("rm", "user")
    docker.ok("volume", "rm", "copied", "empty")


@pytest.mark.parametrize(("mount", "command", "expected"), [
    ("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700", "df -k /t | tail -1 | awk '{print $2}';"
     " stat -c %a /t", "1024\n700"),
    ("type=bind,src=/tmp,dst=/b,readonly", "touch /b/x 2>&1 | grep -c Read-only", "1"),
    ("type=bind,src=/etc/hostname,dst=/f", "test -f /f && echo file", "file"),
])
def test_mounts(docker: Cli, mount: str, command: str, expected: str) -> None:
    assert docker.run("run", "--rm", "--mount", mount, "busybox", "sh", "-c", command
                      ).out.strip() == expected


def test_namespaces_of_other_containers(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "donor", "--ipc", "shareable", "busybox", "sh", "-c",
              "echo shared > /dev/shm/f; sleep 1000")
    deadline = time.monotonic() + 30
    while docker.run("exec", "donor", "test", "-s", "/dev/shm/f").code:
        assert time.monotonic() < deadline
    assert docker.ok("run", "--rm", "--ipc", "container:donor", "busybox", "cat", "/dev/shm/f"
                     ) == "shared\n"
    assert "sleep 1000" in docker.ok("run", "--rm", "--pid", "container:donor", "busybox", "ps")
    docker.ok("run", "-d", "--name", "private", "busybox", "sleep", "1000")
    assert "non-shareable IPC" in docker.fails(
        "run", "--rm", "--ipc", "container:private", "busybox", "true").err
    host = os.readlink("/proc/self/ns/pid")
    assert docker.ok("run", "--rm", "--pid", "host", "busybox", "readlink", "/proc/self/ns/pid"
                     ).strip() == host


def test_devices_and_privileges(docker: Cli) -> None:
    assert docker.ok("run", "--rm", "--device", "/dev/null:/dev/mine", "busybox", "sh", "-c",
                     "test -c /dev/mine && echo x > /dev/mine && echo ok") == "ok\n"
    assert docker.run("run", "--rm", "busybox", "sh", "-c", "mknod /m b 7 0 && cat /m").code != 0
    assert docker.ok("run", "--rm", "--privileged", "busybox", "sh", "-c",
                     "mount -t tmpfs t /mnt && grep -c ' /mnt ' /proc/mounts; true"
                     ).strip() in ("1", "")
    missing = docker.fails("run", "--rm", "--device", "/dev/no-such", "busybox", "true")
    assert "/dev/no-such" in missing.err and missing.code == 127     # as in Docker


def test_users_and_groups_of_the_image(docker: Cli) -> None:
    docker.ok("run", "--name", "u1", "busybox", "sh", "-c",
              "echo 'ann:x:1234:1235::/home/ann:/bin/sh' >> /etc/passwd;"
              "echo 'own:x:1235:' >> /etc/group; echo 'extra:x:77:ann' >> /etc/group")
    docker.ok("commit", "u1", "users:1")
    docker.ok("rm", "u1")
    run = ("run", "--rm", "-u")
    assert docker.ok(*run, "ann", "users:1", "sh", "-c", "id -u; id -g; id -G; echo $HOME"
                     ).split("\n")[:4] == ["1234", "1235", "1235 77", "/home/ann"]
    assert docker.ok(*run, "ann:extra", "users:1", "id", "-g") == "77\n"
    assert docker.ok(*run, "ann", "--group-add", "99", "users:1", "id", "-G") == "1235 77 99\n"
    refused = docker.fails(*run, "nobody-here", "users:1", "id")
    assert "unable to find user nobody-here: no matching entries in passwd file" in refused.err
    docker.ok("rmi", "users:1")


def test_id_file_env_file_and_labels(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\nFROM_FILE=yes\nHOME_OF_CLIENT\n")
    cidfile = tmp_path / "cid"
    out = cli.ok("run", "--cidfile", str(cidfile), "--env-file", str(tmp_path / "env"), "--label",
                 "a=b", "busybox", "sh", "-c", "echo $FROM_FILE")
    assert out == "yes\n"
    found = cli.inspect(cidfile.read_text())
    assert found["Config"]["Labels"] == {"a": "b"}
    again = cli.fails("run", "--cidfile", str(cidfile), "busybox", "true")
    # carrel and Docker agree on the text
    assert "ontainer ID file found" in again.err and again.code == 125


def test_logs_across_rotation(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "rotated", "--log-opt", "max-size=10k", "--log-opt",
              "max-file=3", "busybox", "sh", "-c",
              "for i in $(seq 1 100); do echo line $i; done; sleep 1;"
              " for i in $(seq 101 200); do echo line $i; sleep 0.005; done")
    followed = docker.ok("logs", "-f", "rotated").split("\n")
    assert followed[:-1] == [f"line {n}" for n in range(1, 201)]
    assert docker.ok("logs", "rotated").split("\n")[-2] == "line 200"


def test_stats_are_sane(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "busy", "-m", "64m", "busybox", "sh", "-c",
              "while :; do :; done")
    row = json.loads(docker.ok("stats", "--no-stream", "--format", "{{json .}}", "busy"))
    assert 5 < float(row["CPUPerc"].rstrip("%")) < 250
    assert row["MemUsage"].endswith("/ 64MiB") and row["PIDs"] == "1"
    assert "/" in row["NetIO"] and "/" in row["BlockIO"]
    docker.ok("update", "--cpus", "0.5", "--memory", "96m", "--memory-swap", "96m", "busy")
    host = docker.inspect("busy")["HostConfig"]
    assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 96 << 20)
    assert "64" not in docker.ok("exec", "busy", "sh", "-c", "cat /sys/fs/cgroup/memory/"
                                 "memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
                                 " || true")


def test_events_have_dockers_shape(docker: Cli) -> None:
    since = f"{time.time() - 0.01:.9f}"
    docker.ok("run", "--rm", "--name", "ev", "--label", "k=v", "busybox", "true")
    events: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while not {"destroy", "disconnect"} <= {e["Action"] for e in events}:
        assert time.monotonic() < deadline, events
        lines = docker.ok("events", "--since", since, "--until", f"{time.time():.9f}", "--format",
                          "{{json .}}").splitlines()
        events = [json.loads(line) for line in lines]
    own = [e for e in events if e["Type"] == "container"]
    assert [e["Action"] for e in own] == ["create", "attach", "start", "die", "destroy"]
    assert all({"Type", "Action", "Actor", "scope", "time", "timeNano"} <= set(e) for e in own)
    assert all(e["Actor"]["Attributes"]["k"] == "v" for e in own)
    died = own[3]["Actor"]["Attributes"]
    assert (died["exitCode"], died["image"], died["name"]) == ("0", "busybox", "ev")
    network = [e["Action"] for e in events if e["Type"] == "network"]
    assert network == ["connect", "disconnect"]


def test_system_df(docker: Cli) -> None:
    docker.ok("run", "--name", "df1", "-v", "dfv:/v", "busybox", "sh", "-c",
              "head -c 300000 /dev/zero > /v/f; head -c 200000 /dev/zero > /f")
    out = docker.ok("system", "df", "-v")
    for words in ("Images space usage:", "Containers space usage:", "Local Volumes space usage:"):
        assert words in out
    volume = next(line for line in out.splitlines() if line.startswith("dfv"))
    assert volume.split()[1] == "1" and "kB" in volume
    docker.ok("rm", "-v", "df1")
    docker.ok("volume", "rm", "dfv")


BAD = [
    (["run", "--network", "none-such", "busybox"], "network none-such not found"),
    (["run", "--name", "a b", "busybox"], "Invalid container name (a b), only "
     "[a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    (["run", "-m", "1m", "busybox"], "Minimum memory limit allowed is 6MB"),
    (["run", "--cpus", "1000", "busybox"], "range of CPUs is from 0.01 to"),
    (["run", "-v", "/a:b", "busybox"], "invalid mount path: 'b' mount path must be absolute"),
    (["run", "-v", "bad name:/b", "busybox"], "includes invalid characters for a local volume"),
    (["run", "--mount", "type=bind,src=/no/such/source,dst=/b", "busybox"],
     "bind source path does not exist: /no/such/source"),
    (["run", "--cap-add", "NOTHING", "busybox"], "NOTHING"),
    (["run", "-w", "relative", "busybox"], "the working directory 'relative' is invalid, it needs"
     " to be an absolute path"),
    (["run", "--restart", "sometimes", "busybox"], "restart policy"),
    (["run", "--rm", "--restart", "always", "busybox"], "onflicting options"),
    (["run", "--sysctl", "kernel.domainname=x", "busybox"], "kernel.domainname"),
    (["run", "--runtime", "absent", "busybox"], "unknown or invalid runtime name: absent"),
    (["run", "--pid", "container:absent", "busybox"], "No such container: absent"),
    (["run", "--security-opt", "bogus=1", "busybox"], "bogus"),
    (["run", "--log-driver", "bogus", "busybox"], "bogus"),
    (["run", "--memory", "x", "busybox"], "invalid argument \"x\" for \"-m, --memory\" flag"),
    (["run", "--no-such-flag", "busybox"], "unknown flag: --no-such-flag"),
    (["run", "-p", "99999:80", "busybox"], "99999"),
    (["run", "-e", "=x", "busybox"], "invalid environment variable: =x"),
    (["exec", "absent", "true"], "No such container: absent"),
    (["rm", "absent"], "No such container: absent"),
    (["inspect", "absent"], "o such object: absent"),
    (["logs", "absent"], "No such container: absent"),
    (["network", "rm", "absent"], "network"),
    (["network", "create", "--subnet", "300.0.0.0/8", "n"], "300.0.0.0/8"),
    (["network", "create", "bridge"], "bridge"),
    (["volume", "inspect", "absent"], "no such volume"),
    (["rmi", "absent"], "No such image: absent"),
    (["tag", "busybox", "UPPER"], "UPPER"),
    (["cp", "absent:/x", "/tmp/x"], "No such container"),
    (["kill", "-s", "NOTHING", "absent"], "absent"),
]


@pytest.mark.parametrize(("argv", "text"), BAD, ids=[" ".join(a)[:48] for a, _ in BAD])
def test_bad_input(cli: Cli, argv: list[str], text: str) -> None:
    done = cli.fails(*argv)
    # "one clear line": no traceback, no second error
    assert text.lower() in done.err.lower() or text.lower() in done.out.lower()
    assert "Traceback" not in done.err
    assert done.code == (125 if argv[0] == "run" else 1)


def test_forty_at_once(docker: Cli) -> None:
    names = [f"many-{n}" for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: docker.ok("run", "-d", "--name", n, "busybox", "sleep",
                                                "1000").strip(), names))
        assert len(set(ids)) == 40
        addresses = {docker.inspect(n)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
                     for n in names}
        assert len(addresses) == 40
        list(pool.map(lambda n: docker.ok("rm", "-f", n), names))
    assert docker.ok("ps", "-aq") == ""
