"""Containers on the real kernel, in process and by the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from carrel.errdefs import AlreadyExists, Conflict, InvalidParameter, NotFound
from carrel.kernel import record
from carrel.runtime import api
from tests.conftest import BIN
from tests.runtime.conftest import Bundle

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


def test_in_process_from_create_to_delete(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "echo out; echo err >&2; exit 3")
    reader, writer = os.pipe()
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, writer, writer))
    os.close(writer)
    assert made.status == "created"
    assert made.pids() == [made.pid]
    with pytest.raises(AlreadyExists):
        api.create(bundle.id, bundle.write(), bundle.root)
    made.start()
    with open(reader, "rb") as f:
        assert f.read() == b"out\nerr\n"
    _, status = os.waitpid(made.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert made.status == "stopped"
    with pytest.raises(Conflict):
        made.start()
    made.delete()
    with pytest.raises(NotFound):
        api.load(bundle.id, bundle.root)


def test_a_program_that_is_not_there_keeps_its_errno(bundle: Bundle) -> None:
    bundle.args("no-such-program").write()
    with pytest.raises(OSError, match=r'program": executable file not found in \$PATH') as caught:
        api.create(bundle.id, str(bundle.folder), bundle.root)
    assert caught.value.errno == 2
    assert getattr(caught.value, "carrel_step", "") == "exec"
    assert not os.path.exists(f"{bundle.root}/{bundle.id}")


def test_a_bad_format_is_told_by_start(bundle: Bundle) -> None:
    (bundle.rootfs / "bad").write_text("no program")
    (bundle.rootfs / "bad").chmod(0o755)
    bundle.args("/bad").write()
    made = api.create(bundle.id, str(bundle.folder), bundle.root)
    with pytest.raises(OSError, match="exec format error") as caught:
        made.start()
    assert caught.value.errno == 8
    os.waitpid(made.pid, 0)
    made.delete(force=True)


def test_exec_is_a_child_in_the_same_namespaces(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    made.start()
    reader, writer = os.pipe()
    process = made.exec({"args": ["sh", "-c", "readlink /proc/1/ns/net;"
                                 "readlink /proc/self/ns/net; exit 9"],
                         "cwd": "/", "env": ["PATH=/bin"]}, stdio=(-1, writer, writer))
    os.close(writer)
    with open(reader, encoding="ascii") as f:
        first, second = f.read().split()
    assert first == second
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 9
    with pytest.raises(OSError, match="executable file not found"):
        made.exec({"args": ["nope"], "cwd": "/", "env": ["PATH=/bin"]})
    os.close(process.pidfd)
    made.kill(signal.SIGKILL)
    os.waitpid(made.pid, 0)
    made.delete()


def test_terminal(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "tty; stty size; ls -l /dev/console")
    bundle.spec["process"]["terminal"] = True
    made = api.create(bundle.id, bundle.write(), bundle.root, console_size=(33, 77))
    assert made.console >= 0
    made.start()
    text = ""
    try:
        while chunk := os.read(made.console, 4096).decode():
            text += chunk
    except OSError as error:
        assert error.errno == 5  # how a terminal says that nobody has it any more
    os.waitpid(made.pid, 0)
    assert text.startswith("/dev/pts/0\r\n33 77\r\n")
    made.delete()


def test_what_the_process_gets(bundle: Bundle) -> None:
    """No capability too many, nothing open, nothing ignored, the environment as given."""
    bundle.spec["process"]["env"] = ["PATH=/bin", "A=1", "A=2"]
    script = ("grep -E 'Cap|NoNew|SigIgn|SigBlk|SigCgt' /proc/self/status;"
              "ls /proc/self/fd; env; cat /proc/self/cgroup | wc -l; readlink /proc/self/fd/0")
    out = bundle.run("sh", "-c", script)
    fields = dict(line.split(":\t") for line in out.splitlines() if ":\t" in line)
    assert fields["CapInh"] == fields["CapAmb"] == "0" * 16
    assert fields["CapBnd"] == fields["CapEff"] == fields["CapPrm"] == f"{0x20000420:016x}"
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["SigIgn"], 16) == 0 and int(fields["SigBlk"], 16) == 0
    lines = out.splitlines()
    assert "A=2" in lines and "A=1" not in lines and "HOME=/" in lines
    assert not any(line.startswith(("LC_", "PYTHON", "LANG")) for line in lines)
    assert [line for line in lines if line.isdigit() and len(line) == 1][:4] == ["0", "1", "2", "3"]


def test_masked_and_read_only_paths(bundle: Bundle) -> None:
    script = ("cat /proc/keys | wc -c; ls /sys/firmware | wc -l; touch /x 2>&1; "
              "echo 1 2>&1 > /proc/sys/kernel/domainname; umount /proc/keys 2>&1; :")
    out = bundle.run("sh", "-c", script)
    assert out.splitlines()[:2] == ["0", "0"]
    assert "touch: /x: Read-only file system" in out
    assert "umount: can't unmount /proc/keys" in out


def test_a_user_by_number_with_groups(bundle: Bundle) -> None:
    bundle.spec["process"]["user"] = {"uid": 1000, "gid": 100, "additionalGids": [5, 33],
                                      "umask": 0o27}
    out = bundle.run("sh", "-c", "id -u; id -g; id -G; umask; grep CapEff /proc/self/status")
    assert out.split()[:2] == ["1000", "100"]
    assert set(out.splitlines()[2].split()) == {"100", "5", "33"}
    assert out.splitlines()[3] == "0027"
    assert out.splitlines()[4].endswith("\t0000000000000000")  # not root: none effective


def test_mounts_follow_links_of_the_image_inside_only(bundle: Bundle, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (bundle.rootfs / "link").symlink_to(f"/../../..{host}")
    source = tmp_path / "source"
    source.write_text("bound\n")
    bundle.spec["mounts"].append({"destination": "/link/file", "type": "bind",
                                  "source": str(source), "options": ["bind", "ro"]})
    assert bundle.run("cat", f"{host}/file") == "bound\n"
    assert os.listdir(host) == []


@pytest.mark.parametrize("where", ["proc", "sys"])
def test_proc_over_a_link_is_refused(bundle: Bundle, where: str) -> None:
    (bundle.rootfs / where).symlink_to("/bin")
    bundle.args("true").write()
    done = bundle.cli("run", bundle.id)
    assert done.returncode == 1
    assert "must be mounted on ordinary directory" in done.stderr


def test_a_fake_null_device_of_the_image_is_not_used(bundle: Bundle) -> None:
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"] if not
                             m["destination"].startswith("/dev")]
    (bundle.rootfs / "dev").mkdir()
    (bundle.rootfs / "dev/null").symlink_to("/bin/sh")
    bundle.args("true").write()
    done = bundle.cli("run", bundle.id)
    assert done.returncode == 1 and "different file where a device belongs" in done.stderr


def test_a_working_directory_outside_is_refused(bundle: Bundle) -> None:
    bundle.args("true")
    for fd in range(3, 12):
        bundle.spec["process"]["cwd"] = f"/proc/self/fd/{fd}"
        bundle.write()
        assert bundle.cli("run", bundle.id).returncode == 1


def test_the_runtime_itself_is_no_program_for_a_container(bundle: Bundle) -> None:
    (bundle.rootfs / "entry").symlink_to("/proc/self/exe")
    bundle.args("/entry").write()
    done = bundle.cli("run", bundle.id)
    assert done.returncode == 1 and "it is the runtime itself" in done.stderr


def test_hooks_at_all_six_points(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\nread state; echo "$1 $state" >> {log}\n')
    hook.chmod(0o755)
    points = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    bundle.spec["hooks"] = {p: [{"path": str(hook), "args": ["hook", p]}] for p in points}
    bundle.spec["hooks"]["startContainer"] = [{"path": "/bin/touch", "args": ["touch", "/tmp/s"]}]
    bundle.spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    assert bundle.run("ls", "/tmp") == "s\n"
    lines = log.read_text().splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == points
    states = [json.loads(line.split(" ", 1)[1]) for line in lines]
    assert {s["id"] for s in states} == {bundle.id}
    assert states[0]["status"] == "creating" and states[0]["pid"] > 1
    assert states[-1]["status"] == "stopped"


def test_a_hook_that_fails_or_hangs_undoes_the_container(bundle: Bundle) -> None:
    for hook in ({"path": "/bin/false"}, {"path": "/bin/sleep", "args": ["sleep", "60"],
                                          "timeout": 1}):
        bundle.spec["hooks"] = {"createRuntime": [hook]}
        bundle.args("true").write()
        begin = time.monotonic()
        done = bundle.cli("run", bundle.id)
        assert done.returncode == 1 and "error running createRuntime hook #0" in done.stderr
        assert time.monotonic() - begin < 40
        assert not os.path.exists(f"{bundle.root}/{bundle.id}")


def test_command_line_from_create_to_delete(bundle: Bundle) -> None:
    bundle.args("sleep", "60").write()
    quiet = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert bundle.cli("create", "--pid-file", "pid", bundle.id, **quiet).returncode == 0
    state = json.loads(bundle.cli("state", bundle.id).stdout)
    assert state["status"] == "created"
    assert state["pid"] == int((bundle.folder / "pid").read_text())
    assert bundle.cli("start", bundle.id).returncode == 0
    assert "already running" in bundle.cli("start", bundle.id).stderr
    assert bundle.cli("list", "-q").stdout == f"{bundle.id}\n"
    assert json.loads(bundle.cli("list", "-f", "json").stdout)[0]["status"] == "running"
    assert json.loads(bundle.cli("ps", "-f", "json", bundle.id).stdout) == [state["pid"]]
    done = bundle.cli("exec", "--user", "7:8", "-e", "X=y", bundle.id, "sh", "-c",
                      "id -u; id -g; echo $X; exit 5")
    assert (done.returncode, done.stdout) == (5, "7\n8\ny\n")
    assert bundle.cli("pause", bundle.id).returncode == 0
    assert json.loads(bundle.cli("state", bundle.id).stdout)["status"] == "paused"
    assert "paused" in bundle.cli("exec", bundle.id, "true").stderr
    assert bundle.cli("resume", bundle.id).returncode == 0
    assert "not stopped: running" in bundle.cli("delete", bundle.id).stderr
    assert bundle.cli("kill", bundle.id, "KILL").returncode == 0
    _wait_for(bundle, "stopped")
    assert "container not running" in bundle.cli("kill", bundle.id, "TERM").stderr
    assert bundle.cli("delete", bundle.id).returncode == 0
    assert bundle.cli("state", bundle.id).returncode == 1
    assert bundle.cli("delete", "--force", bundle.id).returncode == 0


def _wait_for(bundle: Bundle, status: str) -> None:
    for _ in range(200):
        if json.loads(bundle.cli("state", bundle.id).stdout)["status"] == status:
            return
        time.sleep(0.02)
    raise AssertionError(f"never {status}")


def test_signals_are_forwarded_and_become_the_status(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "trap 'echo got; exit 4' USR1; echo ready; while :; do sleep 0.1; done")
    bundle.write()
    with subprocess.Popen([str(BIN / "carrel-runtime"), "--root", bundle.root, "run", bundle.id],
                          cwd=bundle.folder, stdout=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == "got\n"
        assert process.wait(10) == 4


def test_preserved_descriptors_and_no_others(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept\n")
    bundle.args("sh", "-c", "cat <&3; ls /proc/self/fd | wc -l").write()
    fd = os.open(tmp_path / "note", os.O_RDONLY)
    process = subprocess.run(
        ["/bin/sh", "-c", f'exec 3</proc/self/fd/{fd}; exec "$@"', "sh",
         str(BIN / "carrel-runtime"), "--root", bundle.root, "run", "--preserve-fds", "1",
         bundle.id],
        cwd=bundle.folder, pass_fds=[fd], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL)
    os.close(fd)
    assert process.stdout.split() == ["kept", "5"], process.stderr  # 0-3 and the folder itself


def test_log_file_gets_the_last_error_as_json(bundle: Bundle, tmp_path: Path) -> None:
    bundle.args("nope").write()
    log = tmp_path / "log.json"
    done = bundle.cli("--log", str(log), "--log-format", "json", "run", bundle.id)
    assert done.returncode == 1
    entry = json.loads(log.read_text().splitlines()[-1])
    assert entry["level"] == "error"
    assert 'exec: "nope": executable file not found in $PATH' in entry["msg"]
    assert entry["msg"] in done.stderr


def test_a_pid_that_was_reused_is_not_ours(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    made.start()
    path = Path(bundle.root, bundle.id, "state.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "startTime": state["startTime"] + 1}))
    stranger = api.load(bundle.id, bundle.root)
    assert stranger.status == "stopped"
    with pytest.raises(Conflict):
        stranger.kill(signal.SIGKILL)
    path.write_text(json.dumps(state))
    made.kill(signal.SIGKILL)
    os.waitpid(made.pid, 0)
    made.delete()


def test_what_is_not_there_is_an_error_not_a_silence(bundle: Bundle) -> None:
    for key, value, text in (("apparmorProfile", "docker-default", "apparmor"),
                             ("selinuxLabel", "system_u:x", "SELinux")):
        bundle.args("true")
        spec = bundle.copy_spec()
        spec["process"][key] = value
        # with AppArmor in the kernel, it is the kernel that knows no such profile
        with pytest.raises((InvalidParameter, FileNotFoundError), match=text):
            api.create(bundle.id, bundle.write(), bundle.root, spec=spec)


def test_the_record_holds_what_the_child_did_as_well(bundle: Bundle) -> None:
    bundle.args("true")
    recorder = record.start()
    try:
        made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
        made.start()
    finally:
        record.stop()
    os.waitpid(made.pid, 0)
    made.delete()
    calls = [(step, call) for step, call, *_ in recorder.records]
    for wanted in (("clone", "clone3"), ("mounts", "fsopen"), ("pivot_root", "pivot_root"),
                   ("hostname", "sethostname"), ("identity", "setresuid"),
                   ("capabilities", "capset")):
        assert wanted in calls or (wanted[0], wanted[1].rstrip("3")) in calls, wanted
    starts = [row[5] for row in recorder.records]
    assert all(s > 0 for s in starts)


def test_an_overlay_is_mounted_where_the_host_never_sees_it(bundle: Bundle, tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    for name in ("upper", "work"):
        (layers / name).mkdir(parents=True)
    bundle.rootfs.rename(layers / "lower")
    bundle.rootfs.mkdir()
    bundle.spec["root"]["readonly"] = False
    mounts = [{"type": "overlay", "source": "overlay", "target": "", "options": [
        "index=off", f"lowerdir={layers}/lower", f"upperdir={layers}/upper",
        f"workdir={layers}/work"]}]
    before = Path("/proc/self/mountinfo").read_text()
    bundle.args("sh", "-c", "echo new > /file; grep ' / ' /proc/mounts")
    reader, writer = os.pipe()
    made = api.create(bundle.id, bundle.write(), bundle.root, rootfs_mounts=mounts,
                      stdio=(-1, writer, writer))
    os.close(writer)
    assert Path("/proc/self/mountinfo").read_text() == before
    made.start()
    with open(reader, encoding="utf-8") as f:
        assert f.read().startswith("overlay / overlay rw")
    os.waitpid(made.pid, 0)
    made.delete()
    assert (layers / "upper/file").read_text() == "new\n"
    assert os.listdir(bundle.rootfs) == []


def test_a_user_namespace_with_a_source_it_cannot_reach(bundle: Bundle, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("seen\n")
    linux = bundle.spec["linux"]
    linux["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        linux[key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.spec["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(secret),
                                  "options": ["rbind", "ro"]})
    for name in ("proc", "dev", "sys", "mnt"):
        (bundle.rootfs / name).mkdir()
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    (secret / "file").chmod(0o644)
    out = bundle.run("sh", "-c", "cat /proc/self/uid_map; ls /mnt; cat /mnt/file; id -u")
    assert out.split()[:3] == ["0", "100000", "65536"]
    assert out.splitlines()[-1] == "0"


def test_a_paused_container_dies_of_a_kill(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    made = api.create(bundle.id, bundle.write(), bundle.root, stdio=(-1, -1, -1))
    made.start()
    made.pause()
    assert made.status == "paused"
    made.kill(signal.SIGKILL)
    _, status = os.waitpid(made.pid, 0)
    assert os.waitstatus_to_exitcode(status) == -9
    made.delete()


def test_sockets_of_activation_are_passed_on(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3").write()
    reader, writer = os.pipe()
    os.write(writer, b"activated\n")
    os.close(writer)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec 3</proc/self/fd/{reader}; exec "$@"', "sh",
         str(BIN / "carrel-runtime"), "--root", bundle.root, "run", bundle.id],
        cwd=bundle.folder, pass_fds=[reader], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "LISTEN_FDS": "1"})
    os.close(reader)
    assert done.stdout == "1 1\nactivated\n", done.stderr
