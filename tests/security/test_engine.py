"""Exploits through the whole engine: docker's command line, or the API where it would refuse."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from carrel import errdefs
from carrel.engine import top, viewcopy
from carrel.engine.spec import user
from carrel.oci import seccomp_default
from tests import images
from tests.engine.stack import IMAGE, Stack
from tests.security.conftest import Canary

root = pytest.mark.root
DEFAULT_CAPS = "00000000a80425fb"
RUN = ("run", "--rm", "--network", "none")


def request(stack: Stack, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """(status, text) of one call; the docker CLI refuses some of these itself."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(stack.sock)
    data = None if body is None else json.dumps(body)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", "localhost")
    if data is not None:
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data.encode() if data is not None else None)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def load(stack: Stack, tmp_path: Path, name: str, files: dict[str, images.Entry],
         config: dict[str, Any] | None = None) -> str:
    """An image: busybox and one more layer."""
    base = images.busybox()
    made = images.Image([*base.layers, images.layer(files)], {**base.config, **(config or {})})
    images.docker_archive(tmp_path / "image.tar", {name: made})
    stack.docker("load", "-q", "-i", str(tmp_path / "image.tar"))
    return name


# --- E13, E14: capabilities and groups ---------------------------------------------------


@root
def test_rights_in_run_exec_and_health(stack: Stack, tmp_path: Path) -> None:
    image = load(stack, tmp_path, "groups:1", {
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n",
        "etc/group": b"root:x:0:\napp:x:1000:\nextra:x:2000:other,app\nnone:x:3000:apple\n",
        "denied": images.entry("denied", b"secret", mode=0o604, gid=2000)})
    look = "grep Cap /proc/self/status; id -G; cat /denied"
    stack.docker("run", "-d", "--network", "none", "--name", "health", "--health-interval", "1s",
                 "--health-cmd", f"({look}) > /health-says 2>&1", image, "sleep", "60")
    stack.docker("run", "-d", "--network", "none", "--name", "app", "-u", "app", image,
                 "sleep", "60")

    def check(text: str, *, is_root: bool) -> None:
        caps = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
        assert caps["CapInh"] == caps["CapAmb"] == "0" * 16
        assert caps["CapBnd"] == DEFAULT_CAPS
        assert caps["CapEff"] == (DEFAULT_CAPS if is_root else "0" * 16)
        if is_root:
            assert "secret" in text
        else:
            assert "\n1000 2000\n" in text and "secret" not in text

    check(stack.out(*RUN, image, "sh", "-c", look), is_root=True)
    check(stack.docker(*RUN, "-u", "app", image, "sh", "-c", look, check=False).stdout,
          is_root=False)
    check(stack.out("exec", "health", "sh", "-c", look), is_root=True)
    check(stack.docker("exec", "app", "sh", "-c", look, check=False).stdout, is_root=False)
    deadline = time.monotonic() + 30
    while "secret" not in (found := stack.docker("exec", "health", "cat", "/health-says",
                                                 check=False)).stdout:  # still at it
        assert time.monotonic() < deadline
        time.sleep(0.2)
    check(found.stdout, is_root=True)


# --- E15, E16: user texts and hostile user files -----------------------------------------

BAD_USERS = ("4294967296", "2147483648", "-1", "0x0", "1_0", "+1", "1:", "\u0661", " 1", "1 ",
             "0:4294967296", "1:-1", "99999999999999999999", "0\n", "root:nosuch", ":::", "0:0:0")


@pytest.mark.parametrize("text", BAD_USERS)
def test_user_texts_are_never_root(text: str) -> None:
    passwd = b"root:x:0:0::/root:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n" \
             b"1:x:0:0::/:/bin/sh\n0x0:x:4294967296:0::/:/bin/sh\n"
    try:
        found = user.resolve(text, passwd, b"root:x:0:\n")
    except errdefs.InvalidParameter:
        return
    assert text == "-1" and found.uid == 0, "an entry of that very name is what it says"


def test_hostile_user_files_are_bounded() -> None:
    begin = time.process_time()
    line = b"big:x:5:" + b",".join(b"u%d" % n for n in range(1_000_000)) + b"\n"
    assert user.resolve("app", b"app:x:7:7::/:\n", line + b"ok:x:9:app\n").groups == (7, 9)
    passwd = b"\n".join((b"a:x:-1:0::/:", b"a:x:4294967296:0::/:", b"a:x:1_0:0::/:",
                         "a:x:\u0661:0::/:".encode(), b"a:x::::", b"\xff:x:0", b"a:x: 1:0::/:"))
    with pytest.raises(errdefs.InvalidParameter):
        user.resolve("a", passwd, b"")
    assert user.resolve("b", b"b:x:3:3::/x\0y:\n", b"").home == "/"
    assert time.process_time() - begin < 10


@root
def test_user_files_that_block_or_never_end(stack: Stack) -> None:
    stack.docker("run", "-d", "--network", "none", "--name", "hostile", IMAGE, "sleep", "90")
    for command in ("rm -f /etc/passwd; mkfifo /etc/passwd",
                    "rm -f /etc/passwd; ln -s /dev/zero /etc/passwd",
                    "rm -f /etc/passwd; ln -s /dev/tty /etc/passwd",
                    "rm -f /etc/passwd; truncate -s 10G /etc/passwd"):
        stack.docker("exec", "-u", "0", "hostile", "sh", "-c", command)
        begin = time.monotonic()
        found = stack.docker("exec", "-u", "nobody", "hostile", "id", check=False)
        assert found.returncode != 0, command
        # of a device: it was looked at, not opened (a watchdog would have started)
        assert "no such device" not in found.stderr.lower()
        assert time.monotonic() - begin < 20, command


@root
@pytest.mark.parametrize("change", [
    {"Env": ["A=1\0B=2"]}, {"Hostname": "a\nb"}, {"Domainname": "x\ny"},
    {"HostConfig": {"ExtraHosts": ["a\n127.0.0.1 b:1.2.3.4"]}},
    {"HostConfig": {"ExtraHosts": ["a:1.2.3.4\n6.6.6.6 bank"]}},
    {"HostConfig": {"Dns": ["1.1.1.1\nsearch evil"]}},
    {"HostConfig": {"DnsSearch": ["a\nnameserver 6.6.6.6"]}},
    {"HostConfig": {"DnsOptions": ["a\nnameserver 6.6.6.6"]}}])
def test_newlines_reach_no_file_of_the_engine(stack: Stack, change: dict[str, Any]) -> None:
    status, text = request(stack, "POST", "/containers/create", {"Image": IMAGE, **change})
    assert status == 400, text


# --- E18: sysctls ---------------------------------------------------------------------


@root
@pytest.mark.parametrize(("key", "value"), [
    ("kernel.core_pattern", "|/x"), ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/x"),
    ("kernel.shm_rmid_forced+kernel.core_pattern", "1"), ("net/../kernel/core_pattern", "|/x"),
    ("net.ipv4/../../kernel/core_pattern", "|/x"), ("fs.mqueue.../../kernel/core_pattern", "x"),
    ("net.ipv4.ip_forward\n", "1"), ("kernel/core_pattern", "|/x"), ("fs/suid_dumpable", "2"),
    ("vm.overcommit_memory", "1"), ("kernel.domainname", "x")])
def test_no_sysctl_of_the_host(stack: Stack, key: str, value: str) -> None:
    body = {"Image": IMAGE, "HostConfig": {"Sysctls": {key: value}}}
    assert request(stack, "POST", "/containers/create", body)[0] == 400


@root
def test_no_network_sysctl_in_the_hosts_network(stack: Stack) -> None:
    body = {"Image": IMAGE, "HostConfig": {"NetworkMode": "host",
                                           "Sysctls": {"net.ipv4.ip_forward": "0"}}}
    assert request(stack, "POST", "/containers/create", body)[0] == 400


# --- E23: names and ids that would be paths -------------------------------------------

NAMES = ("../x", ".", "..", "a/b", "x" * 300, "a\nb", "a\n", "\uff0e\uff0e/x", "-x", "a b",
         "\u0430b", "a%00b", "/etc")


@root
@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_a_path(stack: Stack, name: str) -> None:
    before = sorted(os.listdir(stack.data_root.parent))
    answers = {
        "container": request(stack, "POST", f"/containers/create?name={quote(name, safe='')}",
                             {"Image": IMAGE}),
        "volume": request(stack, "POST", "/volumes/create", {"Name": name}),
        "network": request(stack, "POST", "/networks/create", {"Name": name}),
        "tag": request(stack, "POST", f"/images/{IMAGE}/tag?repo={quote(name, safe='')}"),
        "bind": request(stack, "POST", "/containers/create", {
            "Image": IMAGE, "HostConfig": {"Binds": [f"{name}:/x"]}}),
    }
    if name == "a/b":
        assert answers.pop("tag")[0] == 201  # the name of a repository
        assert request(stack, "DELETE", "/images/a/b")[0] == 200
    for kind, (status, text) in answers.items():
        if name == "/etc" and kind in ("bind", "container"):
            continue  # a folder of the host; a container's name may begin with a slash
        if kind == "network" and status == 201:
            # a network's name is only a name: no file and no device has it
            assert request(stack, "DELETE", f"/networks/{json.loads(text)['Id']}")[0] == 204
            continue
        assert status == 400, (kind, status, text)
    for kind in ("containers", "volumes", "networks", "images", "exec"):
        path = f"/{kind}/{quote(name, safe='')}" + ("" if kind in ("volumes", "networks")
                                                    else "/json")
        assert request(stack, "GET", path)[0] in (400, 404, 501), kind
    assert sorted(os.listdir(stack.data_root.parent)) == before


# --- E10, E31, E32: what an image or a volume says of paths -------------------------------


@root
def test_volumes_of_an_image_stay_inside(stack: Stack, tmp_path: Path, canary: Canary) -> None:
    image = load(stack, tmp_path, "volumes:1", {
        "link": f"->{canary.folder}", "up": "->../../../../../../../../",
        "real": None, "real/f": b"of the image\n"},
        {"Volumes": {"/../../etc/x": {}, "/link": {}, "/link/etc": {}, "/up/tmp": {},
                     "/real": {}, f"/up/{canary.folder}": {}}})
    found = stack.docker(*RUN, image, "sh", "-c", "cat /real/f; cat /link/secret; ls -R /link",
                         check=False)
    assert "of the host" not in found.stdout
    if not found.stderr.startswith("docker:"):
        assert "of the image" in found.stdout
    status, _ = request(stack, "POST", "/containers/create", {
        "Image": IMAGE, "HostConfig": {"Mounts": [{
            "Type": "volume", "Source": "vol", "Target": "/x",
            "VolumeOptions": {"Subpath": "../.."}}]}})
    assert status == 400
    canary.check()


@root
def test_engine_files_do_not_follow_the_image(stack: Stack, tmp_path: Path, canary: Canary
                                              ) -> None:
    secret = f"{canary.folder}/secret"
    layouts: tuple[dict[str, images.Entry], ...] = (
            {"etc/hosts": f"->{secret}", "etc/hostname": "->../../../../.." + secret,
             "etc/resolv.conf": f"->/proc/1/root{secret}", "etc/mtab": "->../../../../x"},
            {"etc/hosts": images.entry("etc/hosts", b"", kind=tarfile.FIFOTYPE),
             "etc/resolv.conf": images.entry("etc/resolv.conf", b"", kind=tarfile.CHRTYPE,
                                             device=(1, 5))})
    for number, files in enumerate(layouts):
        image = load(stack, tmp_path, f"files:{number}", files)
        begin = time.monotonic()
        found = stack.docker(*RUN, image, "sh", "-c", "echo x >> /etc/hosts; cat /etc/hosts",
                             check=False)
        assert "of the host" not in found.stdout
        assert time.monotonic() - begin < 30
    canary.check()


def test_copy_up_never_goes_through_a_link(tmp_path: Path, canary: Canary) -> None:
    """A volume that an earlier container left links in."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    (image / "dir").mkdir(parents=True)
    (image / "dir/secret").write_text("overwritten")
    (image / "secret").write_text("overwritten")
    (image / "new").write_text("fine")
    volume.mkdir()
    (volume / "dir").symlink_to(canary.folder)
    (volume / "secret").symlink_to(canary.folder / "secret")
    fds = [os.open(p, os.O_RDONLY | os.O_DIRECTORY) for p in (image, volume)]
    viewcopy.copy(*fds)
    for fd in fds:
        os.close(fd)
    canary.check()
    assert (volume / "new").read_text() == "fine"


@root
def test_cp_into_a_volume_with_links(stack: Stack, tmp_path: Path, canary: Canary) -> None:
    target = f"{canary.folder}/secret"
    stack.docker("run", "--network", "none", "--name", "linked", "-v", "leftover:/v", IMAGE, "sh",
                 "-c", f"ln -s {target} /v/foo; ln -s {canary.folder} /v/dir")
    (tmp_path / "file").write_text("overwritten")
    for place in ("/v/foo", "/v/dir/secret", "/v/dir/new"):
        stack.docker("cp", str(tmp_path / "file"), f"linked:{place}", check=False)
        out = tmp_path / "out"
        found = stack.docker("cp", f"linked:{place}", str(out), check=False)
        # a link is copied as one
        assert found.returncode or out.is_symlink() or "of the host" not in out.read_text()
        out.unlink(missing_ok=True)
    canary.check()
    stack.docker("rm", "-f", "linked")
    stack.docker("volume", "rm", "leftover")


# --- E11, E22, E27, E60: what a default container may not do --------------------------------


@root
def test_cgroups_devices_and_mounts_are_out_of_reach(stack: Stack) -> None:
    with open("/proc/partitions", encoding="ascii") as file:
        major, minor = file.read().splitlines()[2].split()[:2]
    masked = " ".join(p for p in MASKED if os.path.exists(p))
    script = f"""
    unshare -UrC true && echo 'user namespace'
    mkdir /cg; mount -t cgroup -o memory cgroup /cg && echo 'mounted cgroup'
    for f in $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release \
        -o -name devices.allow -o -name cgroup.procs | head -40); do
        echo 1 > $f && echo "wrote $f"; done
    mknod /disk b {major} {minor}; head -c 1 /disk > /read && echo 'read the disk'
    mknod /mem c 1 1; true < /mem && echo 'opened memory'
    mknod /port c 1 4; true < /port && echo 'opened ports'
    mknod /fuse c 10 229; true < /fuse && echo 'opened fuse'
    mknod /kmsg c 1 11; true < /kmsg && echo 'opened kmsg'
    for p in {masked}; do
        umount $p && echo "took off $p"
        if [ -d $p ]; then ls $p; else cat $p; fi; done
    for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity; do
        [ -e $p ] && echo x > $p && echo "wrote $p"; done
    mount -o remount,rw /sys && echo 'remounted'
    mount -o remount,rw /proc/sys && echo 'remounted'
    mount --bind / /mnt && echo 'bound'
    chroot / true || echo 'no chroot'
    """
    found = stack.docker(*RUN, IMAGE, "sh", "-c", f"({script}) 2>/dev/null; true")
    assert found.stdout == ""
    stack.docker("run", "-d", "--network", "none", "--name", "inside", IMAGE, "sleep", "60")
    assert stack.docker("exec", "inside", "sh", "-c", f"({script}) 2>/dev/null; true").stdout == ""
    # the same in a container that may: the test can see it
    lines = [line for line in script.splitlines() if "mknod" in line or "mount -t" in line]
    found = stack.docker(*RUN, "--privileged", IMAGE, "sh", "-c",
                         "({}); true".format("\n".join(lines)))
    assert "mounted cgroup" in found.stdout and "opened kmsg" in found.stdout, found.stderr


MASKED = ("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
          "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
          "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap")


@root
def test_descriptors_and_directories_by_docker(stack: Stack) -> None:
    """E03, E04 through the daemon, the zygote and the shim."""
    look = "ls -l /proc/1/fd; true"  # no pipe: the shell itself would hold an end of it
    assert stack.out(*RUN, IMAGE, "sh", "-c", look).count(" -> ") == 3
    stack.docker("run", "-d", "--network", "none", "--name", "fds", IMAGE, "sleep", "60")
    assert stack.out("exec", "fds", "sh", "-c", look.replace("/1/", "/$$/")).count(" -> ") == 3
    for number in (3, 5, 7, 8, 9, 12, 20):
        cwd = f"/proc/self/fd/{number}"
        assert stack.docker("exec", "-w", cwd, "fds", "pwd", check=False).returncode
    assert stack.docker(*RUN, "-w", "/proc/self/fd/7", IMAGE, "pwd", check=False).returncode


# --- E19: socket families, all widths ------------------------------------------------------

FAMILIES = """
import ctypes, sys
sys.path[:0] = [%r]
from carrel.kernel import seccomp, syscalls
from carrel.oci import json
filter_ = json.loads(open(sys.argv[1], "rb").read(), "")
seccomp.check(filter_)
program = seccomp.Filter(seccomp.compile(filter_, None), seccomp.flags(filter_))
call = ctypes.CDLL(None, use_errno=True).syscall
wide = [ctypes.c_long(n) for n in (38, 40, 38 | 1 << 32, 40 | 1 << 32, 38 | 1 << 63, 1, 2)]
numbers = dict(clone3=435, keyctl=250, add_key=248, bpf=321, userfaultfd=323, fsopen=430,
               io_uring_setup=425, perf_event_open=298, unshare=272, mount=165, x32=0x40000000 + 39)
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
program.install()
def answer(*words):
    ctypes.set_errno(0)
    return "open" if call(*words) >= 0 else str(ctypes.get_errno())
for family in wide:
    print("socket", family.value, answer(41, family, 5, 0) if family.value > 2 or family.value < 0
          else answer(41, family, 1, 0))
for name, number in numbers.items():
    print(name, answer(number, 0x10000000, 0, 0, 0, 0))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
def test_the_filter_by_the_real_kernel(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.conftest import ROOT

    profile = seccomp_default.profile({"CAP_CHOWN"}, "x86_64", os.uname().release)
    (tmp_path / "profile").write_text(json.dumps(profile))
    done = subprocess.run([sys.executable, "-ISB", "-c", FAMILIES % str(ROOT),
                           str(tmp_path / "profile")], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    sockets = {int(row[1]): row[2] for row in rows if row[0] == "socket"}
    assert sockets.pop(1) == sockets.pop(2) == "open"
    assert set(sockets.values()) == {"1"} and len(sockets) == 5, sockets
    others = {row[0]: row[1] for row in rows if row[0] != "socket"}
    assert others.pop("clone3") == "38"
    assert set(others.values()) <= {"1", "38"}, others


# --- P14, P18, P21, E26, E36 ------------------------------------------------------------


@root
def test_owners_go_by_number(stack: Stack, tmp_path: Path) -> None:
    info, data = images.entry("owned", b"x", uid=1234, gid=4321)
    info.uname, info.gname = "root", "root"
    image = load(stack, tmp_path, "owned:1", {"owned": (info, data)})
    assert stack.out(*RUN, image, "stat", "-c", "%u:%g", "/owned") == "1234:4321"


@root
def test_nothing_of_ours_is_for_others(stack: Stack) -> None:
    """As anybody but root: no folder of the data can be entered, nothing can be written,
    whatever umask the daemon was started with."""
    stack.docker("run", "-d", "--network", "none", "--name", "perms", "-v", "vol:/v", IMAGE,
                 "sleep", "60")
    assert stat.S_IMODE(os.stat(stack.data_root).st_mode) & 0o007 == 0
    found = []
    for base, folders, files in os.walk(stack.exec_root):
        if not os.stat(base).st_mode & 0o001:
            folders.clear()  # nobody gets below
            continue
        for name in (*folders, *files):
            info = os.lstat(os.path.join(base, name))
            if info.st_mode & 0o002 and not stat.S_ISLNK(info.st_mode):
                found.append(os.path.join(base, name))
        if os.path.ismount(base) or base.endswith("rootfs"):
            folders.clear()
    assert found == []
    assert stat.S_IMODE(os.stat(stack.sock).st_mode) == 0o660
    for path in (Path(__file__).parents[2] / "carrel").rglob("*"):
        assert not path.stat().st_mode & 0o022, f"{path} is writable for others"


@root
def test_a_mount_below_a_container_keeps_its_data(stack: Stack, tmp_path: Path) -> None:
    """rm -f of a container whose upper folder somebody mounted host data in."""
    import subprocess

    host = tmp_path / "host"
    host.mkdir()
    (host / "precious").write_text("data")
    stack.docker("run", "-d", "--network", "none", "--name", "busy", IMAGE, "sh", "-c",
                 "mkdir -p /deep/mnt; sleep 60")
    deadline = time.monotonic() + 30
    while not (places := list(stack.data_root.glob("containerd/snapshots/*/fs/deep/mnt"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # in the daemons' own mount namespace, which is this one
    subprocess.run(["mount", "--bind", str(host), str(places[0])], check=True)
    try:
        stack.docker("rm", "-f", "busy", check=False)
        time.sleep(0.3)
        assert (host / "precious").read_text() == "data"
    finally:
        subprocess.run(["umount", str(places[0])], check=False)
    assert (host / "precious").read_text() == "data"


@root
def test_labels_of_an_image_control_nothing(stack: Stack, tmp_path: Path) -> None:
    labels = {"io.carrel.explain": "1", "io.carrel.beneath:/x": "/", "containerd.io/x": "y",
              "org.systemd.property.ExecStart": "x", "com.docker.runtime": "/evil",
              "run.oci.handler": "evil", "io.kubernetes.cri-o.Devices": "/dev/vda"}
    image = load(stack, tmp_path, "labels:1", {}, {"Labels": labels, "StopSignal": "SIGTERM"})
    stack.docker("run", "-d", "--network", "none", "--name", "labels", image, "sleep", "60")
    ident = stack.out("inspect", "-f", "{{.Id}}", "labels")
    bundle = next(Path(stack.exec_root).rglob(f"{ident}/config.json"))
    assert json.loads(bundle.read_text()).get("annotations", {}) == {}


@pytest.mark.parametrize("words", ["--help", "; id", "-eo x", "-o pid,$(id)", "-C /etc/passwd",
                                   "aux; reboot", "-o args=$(id)", "--pid 1", "-N"])
def test_top_takes_known_columns_only(words: str) -> None:
    if words == "-o args=$(id)":  # a heading, shown as text
        assert top.columns(words)[0][0] == "$(id)"
        return
    with pytest.raises(errdefs.InvalidParameter):
        top.columns(words)


@root
def test_programs_of_the_image_serve_nobody_but_itself(stack: Stack, tmp_path: Path) -> None:
    """E35: ps, tar, xz, gzip and a whole Python of the image, during every look into it."""
    evil = images.entry("x", b"#!/bin/sh\necho ran >> /tampered\n", mode=0o755)[1]
    names = ("bin/ps", "bin/tar", "bin/xz", "bin/gzip", "bin/unpigz", "sbin/ldconfig",
             "usr/bin/python3", "usr/bin/nsenter", "usr/bin/ps", "usr/bin/git")
    files: dict[str, images.Entry] = {n: images.entry(n, evil, mode=0o755) for n in names}
    for module in ("os", "json", "tarfile", "encodings/__init__", "sitecustomize"):
        name = f"usr/lib/python3.11/{module}.py"
        files[name] = b"open('/tampered', 'w')\n"
    image = load(stack, tmp_path, "evil:1", files)
    stack.docker("run", "-d", "--network", "none", "--name", "evil", image, "sleep", "60")
    stack.docker("top", "evil")
    stack.docker("cp", "evil:/etc", str(tmp_path / "copied"))
    (tmp_path / "f").write_text("x")
    stack.docker("cp", str(tmp_path / "f"), "evil:/f")
    stack.docker("export", "-o", str(tmp_path / "export.tar"), "evil")
    stack.docker("commit", "evil", "committed:1")
    stack.docker("exec", "-u", "nobody", "evil", "true")
    assert "tampered" not in stack.out("diff", "evil")
    stack.docker("kill", "evil")
    stack.docker("cp", "evil:/etc", str(tmp_path / "again"))
    assert "tampered" not in stack.out("diff", "evil")
    assert not os.path.exists("/tampered")
