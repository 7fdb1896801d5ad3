"""Nothing is accepted and then ignored: every setting of Docker's API is done, refused, or
known to mean nothing on Linux."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carrel import errdefs
from carrel.engine import logopts, mountspec, refused, schema, validate
from carrel.kernel import syscalls
from tests.engine.rawhttp import call
from tests.engine.stack import IMAGE, Stack

ERROR = errdefs.CarrelError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: all keys of HostConfig (with Resources) and ContainerConfig in Docker's API 1.44 to 1.51,
#: and those of older versions that this daemon speaks too
HOST_KEYS = _words("""
    Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver
    VolumesFrom Mounts ConsoleSize Annotations CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch
    ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts
    ReadonlyRootfs SecurityOpt StorageOpt Tmpfs UTSMode UsernsMode ShmSize Sysctls Runtime
    Isolation MaskedPaths ReadonlyPaths CpuShares Memory CgroupParent BlkioWeight
    BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps
    BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus
    CpusetMems Devices DeviceCgroupRules DeviceRequests KernelMemory KernelMemoryTCP
    MemoryReservation MemorySwap MemorySwappiness NanoCpus OomKillDisable Init PidsLimit Ulimits
    CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth""")
CONFIG_KEYS = _words("""
    Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin
    StdinOnce Env Cmd Healthcheck ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled
    MacAddress OnBuild Labels StopSignal StopTimeout Shell""")
#: carried out: each has code that reads it, and a test here or in tests/e2e that sees its effect
HOST_DONE = _words("""
    Binds LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom
    Mounts ConsoleSize Annotations CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts
    GroupAdd IpcMode Links OomScoreAdj PidMode Privileged PublishAllPorts ReadonlyRootfs
    SecurityOpt Tmpfs UTSMode ShmSize Sysctls Runtime MaskedPaths ReadonlyPaths CpuShares Memory
    CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps
    BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod
    CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules MemoryReservation
    MemorySwap MemorySwappiness NanoCpus OomKillDisable Init PidsLimit Ulimits""")
CONFIG_DONE = _words("""
    Hostname Domainname User ExposedPorts Tty OpenStdin StdinOnce Env Cmd Healthcheck Image
    Volumes WorkingDir Entrypoint NetworkDisabled MacAddress Labels StopSignal StopTimeout
    Shell""")


@pytest.mark.parametrize(("fields", "keys", "sets"), [
    (schema.HOST_CONFIG, HOST_KEYS, (HOST_DONE, refused.HOST, refused.HOST_INERT)),
    (schema.CONFIG, CONFIG_KEYS, (CONFIG_DONE, refused.CONFIG_INERT)),
])
def test_every_key_has_one_place(fields: Any, keys: frozenset[str], sets: tuple[Any, ...]) -> None:
    assert set(fields) == keys
    for key in keys:
        assert sum(key in one for one in sets) == 1, key
    assert set().union(*sets) == keys


def _host(**fields: Any) -> dict[str, Any]:
    return schema.complete(schema.check(fields, schema.HOST_CONFIG, "HostConfig"),
                           schema.HOST_CONFIG)


_SAMPLES: dict[str, Any] = {
    "str": "x", "int": 7, "strmap": {"size": "1G"}, "objs": [{"Count": -1}], "bool": True}


@pytest.mark.parametrize("key", sorted(refused.HOST))
def test_refused_keys_are_refused(key: str) -> None:
    kind = schema.HOST_CONFIG[key][0]
    with pytest.raises(ERROR):
        refused.host_config(_host(**{key: _SAMPLES[kind]}))
    refused.host_config(_host())
    zero = {"str": "", "int": 0, "strmap": {}, "objs": [], "bool": False}[kind]
    refused.host_config(_host(**{key: zero}))  # what clients send when nothing was asked for


@pytest.mark.parametrize(("key", "good", "bad"), [
    ("UsernsMode", "host", "private"), ("Isolation", "default", "hyperv"),
])
def test_inert_keys_take_their_one_value(key: str, good: str, bad: str) -> None:
    validate.host_config(_host(**{key: good}), {})
    with pytest.raises(ERROR):
        validate.host_config(_host(**{key: bad}), {})


def test_reserved_annotations() -> None:
    refused.host_config(_host(Annotations={"io.carrels": "x", "a": "b"}))
    with pytest.raises(ERROR, match="reserved"):
        refused.host_config(_host(Annotations={"io.carrel.explain": "1"}))


@pytest.mark.parametrize("options", [
    {}, {"max-size": "10m", "max-file": "3"}, {"max-size": "-1"}, {"compress": "false"},
    {"mode": "blocking"}, {"labels": "a,b", "env": "C", "tag": "{{.Name}}/{{ .ID }}"},
    {"cache-disabled": "true"}, {"labels-regex": ""},
])
def test_log_options_that_are_done(options: dict[str, str]) -> None:
    logopts.check({"Type": "json-file", "Config": options})


@pytest.mark.parametrize(("options", "text"), [
    ({"compress": "true"}, "compress"), ({"compress": "perhaps"}, "compress"),
    ({"mode": "non-blocking"}, "non-blocking"), ({"mode": "x"}, "logging mode not supported"),
    ({"max-buffer-size": "1m"}, "max-buffer-size"), ({"labels-regex": "^a"}, "labels-regex"),
    ({"env-regex": "a+"}, "env-regex"), ({"max-size": "0"}, "positive"),
    ({"max-size": "x"}, "invalid size"), ({"max-file": "0"}, "max-file"),
    ({"tag": "{{.Bogus}}"}, "Bogus"), ({"tag": "{{if .ID}}x{{end}}"}, "log tag"),
    ({"tag": "{{.Name"}, "log tag"), ({"bogus": "1"}, "unknown log opt"),
])
def test_log_options_that_are_refused(options: dict[str, str], text: str) -> None:
    with pytest.raises(ERROR, match=text):
        logopts.check({"Type": "json-file", "Config": options})


@pytest.mark.parametrize("option", [
    "no-new-privileges=perhaps", "writable-cgroups=x", "systempaths=x", "bogus", "bogus=1"])
def test_security_options_that_are_refused(option: str) -> None:
    with pytest.raises(ERROR, match="security-opt"):
        validate.host_config(_host(SecurityOpt=[option]), {})


@pytest.mark.parametrize("mount", [
    {"Type": "image", "Source": "busybox"}, {"Type": "npipe", "Source": "x"},
    {"Type": "tmpfs", "TmpfsOptions": {"Options": [["bogus"]]}},
    {"Type": "tmpfs", "TmpfsOptions": {"Options": [["size", "1", "2"]]}},
    {"Type": "tmpfs", "TmpfsOptions": {"SizeBytes": "1"}},
    {"Type": "tmpfs", "VolumeOptions": {"NoCopy": True}},
    {"Type": "volume", "Source": "vol", "VolumeOptions": {"DriverConfig": {"Options": {"a": 1}}}},
    {"Type": "bind", "Source": "/", "BindOptions": {"ReadOnlyForceRecursive": True}},
    {"Type": "bind", "Source": "/", "BindOptions": {"Propagation": 3}},
])
def test_mounts_that_are_refused(mount: dict[str, Any]) -> None:
    with pytest.raises(ERROR):
        mountspec.parse_mount({"Target": "/x", **mount})


def test_tmpfs_options_are_done() -> None:
    point, _ = mountspec.parse_mount({"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {
        "SizeBytes": 4096, "Mode": 0o700, "Options": [["exec"], ["nr_inodes", "5"]]}})
    assert point.tmpfs_options == "size=4096,mode=700,exec,nr_inodes=5"


def test_what_a_machine_cannot_do_is_said_and_not_shown() -> None:
    host = _host(OomKillDisable=True, MemorySwappiness=10)
    assert len(refused.discard(host, unified=True)) == 2
    assert host["OomKillDisable"] is None and host["MemorySwappiness"] is None
    with pytest.raises(ERROR, match="real-time"):
        refused.discard(_host(CpuRealtimeRuntime=1000), unified=True)


# --- with a daemon ------------------------------------------------------------------------------

root = pytest.mark.root


@root
def test_log_attributes_are_in_the_log(stack: Stack) -> None:
    stack.docker("run", "--name", "tagged", "--label", "who=me", "-e", "WHERE=here",
                 "--log-opt", "labels=who,nobody", "--log-opt", "env=WHERE", "--log-opt",
                 "tag={{.Name}}@{{.ImageName}}", IMAGE, "echo", "hello")
    path = stack.out("inspect", "-f", "{{.LogPath}}", "tagged")
    with open(path, encoding="utf-8") as file:
        entry = json.loads(file.readline())
    assert entry["attrs"] == {"who": "me", "WHERE": "here", "tag": f"tagged@{IMAGE}"}
    assert "WHERE=here" in stack.out("logs", "--details", "tagged")


@root
def test_links_tell_the_environment(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "db", "--expose", "5432", "--expose", "5433", "-e",
                 "PASS=x y", IMAGE, "sleep", "100")
    address = stack.out("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db")
    text = stack.out("run", "--name", "web", "--link", "db:my-db", IMAGE, "sh", "-c",
                     "env; grep my-db /etc/hosts")
    for line in (f"MY_DB_PORT=tcp://{address}:5432", f"MY_DB_PORT_5433_TCP_ADDR={address}",
                 f"MY_DB_PORT_5432_TCP_END=tcp://{address}:5433", "MY_DB_NAME=/web/my-db",
                 "MY_DB_ENV_PASS=x y"):
        assert line in text.splitlines()
    assert f"{address}\tmy-db" in text
    assert "MY_DB_ENV_PATH" not in text
    stack.docker("rename", "db", "base")
    assert stack.out("inspect", "-f", "{{.HostConfig.Links}}", "web") == "[/base:/web/my-db]"
    assert "MY_DB_NAME=/web/my-db" in stack.out("start", "-a", "web")
    stack.docker("kill", "base")
    gone = stack.docker("start", "web", check=False)
    assert "Cannot link to a non running container: /base AS /web/my-db" in gone.stderr
    stack.docker("start", "base")
    stack.docker("run", "-d", "--name", "other", "--link", "base:one", "--link", "base:two", IMAGE,
                 "sleep", "100")
    assert set(stack.out("ps", "--no-trunc", "--filter", "name=base", "--format", "{{.Names}}"
                         ).split(",")) == {"base", "web/my-db", "other/one", "other/two"}
    stack.docker("rm", "--link", "other/one")
    hosts = stack.out("exec", "other", "cat", "/etc/hosts")
    assert "two" in hosts and "one" not in hosts
    assert stack.out("inspect", "-f", "{{.HostConfig.Links}}", "other") == "[/base:/other/two]"
    for link, text in (("other/one", "No such container: other/one"), ("other", "default link")):
        assert text in stack.docker("rm", "--link", link, check=False).stderr
    none = stack.docker("create", "--link", "nobody", IMAGE, check=False)
    assert "could not get container for nobody" in none.stderr


@root
def test_read_only_binds_are_so_all_the_way_down(stack: Stack) -> None:
    source = stack.data_root / "tree"
    (source / "below").mkdir(parents=True)
    syscalls.mount("canary", str(source / "below"), "tmpfs", 0, None)
    try:
        done = stack.docker("run", "--rm", "-v", f"{source}:/t:ro", IMAGE, "touch", "/t/below/x",
                            check=False)
        assert "Read-only file system" in done.stderr
        stack.docker("run", "--rm", "--mount", f"type=bind,src={source},dst=/t,readonly,"
                     "bind-recursive=writable", IMAGE, "touch", "/t/below/x")
    finally:
        syscalls.umount2(str(source / "below"), 2)


@root
def test_exec_has_the_size_that_was_asked_for(stack: Stack) -> None:
    stack.docker("run", "-d", "--name", "box", IMAGE, "sleep", "100")
    made = call(stack.sock, "POST", "/containers/box/exec", {
        "Cmd": ["stty", "size"], "Tty": True, "AttachStdout": True, "ConsoleSize": [33, 99]})
    answer = call(stack.sock, "POST", f"/exec/{made.json['Id']}/start", {"Tty": True})
    assert b"33 99" in answer.body
    bad = call(stack.sock, "POST", "/containers/box/exec", {"Cmd": ["x"], "ConsoleSize": [1]})
    assert bad.status == 400 and "ConsoleSize" in bad.json["message"]


@root
@pytest.mark.parametrize("change", [
    {"Devices": [{"PathOnHost": "/dev/null"}]}, {"CpuCount": 1}, {"MemorySwappiness": 5},
    {"OomKillDisable": True}, {"Init": True}, {"Privileged": True}])
def test_update_refuses_what_it_does_not_do(stack: Stack, change: dict[str, Any]) -> None:
    stack.docker("create", "--name", "box", IMAGE)
    answer = call(stack.sock, "POST", "/containers/box/update", change)
    assert answer.status == 400 and next(iter(change)) in answer.json["message"]
    assert call(stack.sock, "POST", "/containers/box/update",
                {"Memory": 0, "Devices": None, "RestartPolicy": {"Name": ""}}).status == 200


@root
def test_writable_cgroups(stack: Stack) -> None:
    def mounted(*flags: str) -> str:
        return stack.out("run", "--rm", *flags, IMAGE, "sh", "-c",
                         "grep ' /sys/fs/cgroup/' /proc/mounts | head -1; "
                         "grep ' /sys/fs/cgroup ' /proc/mounts").splitlines()[0].split()[3]

    assert mounted().startswith("ro,")
    assert mounted("--security-opt", "writable-cgroups=true").startswith("rw,")


@root
def test_starting_from_a_checkpoint_is_refused(stack: Stack) -> None:
    stack.docker("create", "--name", "box", IMAGE)
    answer = call(stack.sock, "POST", "/containers/box/start?checkpoint=c1")
    assert answer.status == 501 and "checkpoint" in answer.json["message"]
    removed = call(stack.sock, "DELETE", "/containers/box?link=1")
    assert removed.status == 409 and "link" in removed.json["message"]  # it has none


@root
@pytest.mark.parametrize(("path", "body", "status", "text"), [
    ("/networks/create", {"Ingress": True}, 501, "ingress"),
    ("/networks/create", {"Scope": "swarm"}, 501, "swarm"),
    ("/networks/create", {"IPAM": {"Driver": "x"}}, 404, "x"),
    ("/networks/create", {"IPAM": {"Options": {"a": "b"}}}, 501, "IPAM"),
    ("/networks/create", {"Driver": "overlay"}, 501, "overlay"),
    ("/networks/create", {"EnableIPv4": False}, 501, "IPv4"),
    ("/networks/create", {"ConfigFrom": {"Network": "x"}}, 501, "configuration-only"),
    ("/volumes/create", {"Driver": "x"}, 404, "plugin"),
    ("/volumes/create", {"DriverOpts": {"size": "1g"}}, 501, "quota"),
    ("/volumes/create", {"DriverOpts": {"foo": "1"}}, 400, "foo"),
    ("/volumes/create", {"ClusterVolumeSpec": {"Group": "x"}}, 501, "cluster"),
    ("/session", {}, 501, "Session"),
    ("/swarm/init", {}, 501, "swarm"), ("/plugins/pull", [], 501, "PluginPull"),
    ("/containers/box/stop?t=abc", {}, 400, "t"),
    ("/containers/box/wait?condition=x", {}, 400, "x"),
    ("/containers/box/resize?h=-1&w=2", {}, 400, "resize"),
    ("/containers/box/kill?signal=BOGUS", {}, 400, "BOGUS"),
    ("/containers/box/attach?detachKeys=ctrl-%%", {}, 400, "detach keys"),
])
def test_other_requests(stack: Stack, path: str, body: Any, status: int, text: str) -> None:
    stack.docker("create", "--name", "box", IMAGE)
    name = {"Name": "named"} if path == "/networks/create" else {}
    answer = call(stack.sock, "POST", path, {**name, **body} if isinstance(body, dict) else body)
    assert answer.status == status and text.lower() in answer.json["message"].lower(), answer.raw


@root
@pytest.mark.parametrize("path", [
    "/containers/json?limit=abc", "/containers/json?filters=%7B%22x%22%3A%5B%22y%22%5D%7D",
    "/containers/json?filters=[]", "/events?since=abc", "/system/df?type=x",
    "/volumes?filters=%7B%22x%22%3A%5B%22y%22%5D%7D",
    "/networks?filters=%7B%22type%22%3A%5B%22x%22%5D%7D"])
def test_queries_that_mean_nothing(stack: Stack, path: str) -> None:
    answer = call(stack.sock, "GET", path)
    assert answer.status == 400 and answer.json["message"]
