"""Parsing, validation and spec building: no root, no daemon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import errdefs
from carrel.engine import (
    flags,
    jsonio,
    jsonlog,
    logopts,
    mountspec,
    names,
    refused,
    routes_streams,
    schema,
    server,
    signals,
    streams,
    timefmt,
    top,
    validate,
)
from carrel.engine.filters import Filters
from carrel.engine.filters import parse as parse_filters
from carrel.engine.spec import capabilities, linux, process, user
from carrel.engine.store import Store

BAD = errdefs.InvalidParameter


# --- JSON ---------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    '{"a":1,"a":2}', '{"a":NaN}', '{"a":Infinity}', "[" * 100_000, '{"a":' * 80 + "1" + "}" * 80,
    '{"a":"\\ud800"}', '{"a":' + "9" * 5000 + "}", "{", "", '{"a":1}x'])
def test_strict_json_refuses(text: str) -> None:
    began = time.process_time()
    with pytest.raises(BAD):
        jsonio.decode(text)
    assert time.process_time() - began < 2


def test_strict_json_takes_what_is_plain() -> None:
    assert jsonio.decode('{"a":[1,{"b":"\\u00e9 {[[["}],"c":null}') == {
        "a": [1, {"b": "é {[[["}], "c": None}


@given(st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | st.text(),
                    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
                    max_leaves=20))
def test_json_round_trip(value: object) -> None:
    assert jsonio.decode(jsonio.encode(value)) == value


# --- times --------------------------------------------------------------------

def test_times() -> None:
    assert timefmt.rfc3339(1_700_000_000_123_000_000) == "2023-11-14T22:13:20.123Z"
    assert timefmt.rfc3339(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
    assert timefmt.parse_rfc3339("2023-11-14T22:13:20.123Z") == 1_700_000_000_123_000_000
    assert timefmt.parse_rfc3339("2023-11-15T00:13:20+02:00") == 1_700_000_000_000_000_000
    assert timefmt.parse_point("1700000000.5") == 1_700_000_000_500_000_000
    assert timefmt.parse_point("") is None
    ago = timefmt.parse_point("1h30m")
    assert ago is not None and abs(time.time_ns() - ago - 5400 * 10**9) < 10**9


@pytest.mark.parametrize("text", ["x", "10x", "h", "2023-13-01T00:00:00Z", "1h2", "--1"])
def test_bad_times(text: str) -> None:
    with pytest.raises(BAD):
        timefmt.parse_point(text)


@pytest.mark.parametrize(("seconds", "text"), [
    (0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
    (119, "About a minute"), (120, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"),
    (3600 * 48, "2 days"), (3600 * 24 * 14, "2 weeks"), (3600 * 24 * 60, "2 months"),
    (3600 * 24 * 365 * 2, "2 years")])
def test_human_durations(seconds: float, text: str) -> None:
    assert timefmt.human(seconds) == text


# --- names, ids ---------------------------------------------------------------

@pytest.mark.parametrize("name", ["../x", ".", "a/b", "a\0b", "x" * 300, "a", "", "é1", "ab\n",
                                  "-ab", "_ab", "ﬁle"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BAD):
        names.check_name(name)


def test_random_names_and_ids() -> None:
    for _ in range(50):
        assert names.check_name(names.random_name())
        assert names.FULL_ID.fullmatch(names.new_id())


# --- users --------------------------------------------------------------------

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n7:x:9:9::/seven:/x\n"
GROUP = b"root:x:0:\nwheel:x:10:root,web\nwww:x:34:\nextra:x:50:web\n"


def test_users() -> None:
    assert user.resolve("", PASSWD, GROUP) == user.User(0, 0, (0, 10), "/root")
    assert user.resolve("web", PASSWD, GROUP) == user.User(33, 34, (34, 10, 50), "/var/www")
    assert user.resolve("33", PASSWD, GROUP).gid == 34
    assert user.resolve("web:wheel", PASSWD, GROUP) == user.User(33, 10, (), "/var/www")
    assert user.resolve("1000:7", PASSWD, GROUP) == user.User(1000, 7, (), "/")
    assert user.resolve("1000", b"", b"") == user.User(1000, 0, (), "/")
    assert user.resolve("", b"", b"").uid == 0
    # a number is a uid, also where somebody has that number as a name
    assert user.resolve("7", PASSWD, GROUP).uid == 7
    assert user.resolve("web", PASSWD, GROUP, ["extra", "99"]).groups[-1] == 99


@pytest.mark.parametrize("text", ["4294967296", "2147483648", "-1", "0x0", " 1", "1:", "\u0661",
                                  "1_0",
                                  "nosuch", "root:nosuch", "a:b:c", "9" * 5000, "+1", "1\n"])
def test_bad_users(text: str) -> None:
    with pytest.raises(BAD):
        user.resolve(text, PASSWD, GROUP)


def test_hostile_passwd_is_bounded() -> None:
    line = b"x" * 100 + b":x:1:1::/" + b"a" * 100 + b"\n"
    began = time.process_time()
    with pytest.raises(BAD):
        user.resolve("nosuch", line * 20_000 + b"y" * (2 << 20), b"")
    assert time.process_time() - began < 5
    assert user.resolve("evil", b"evil:x:1:1::/a\rb\n", b"").uid == 1
    assert user.resolve("evil", b"evil:x:4294967296:1::/\n" b"evil:x:5:1::/\n", b"").uid == 5


# --- capabilities, environment, security options --------------------------------

def test_capabilities() -> None:
    assert capabilities.effective((), (), False) == list(capabilities.DEFAULT)
    assert capabilities.effective(["net_admin"], ["all"], False) == ["CAP_NET_ADMIN"]
    assert "CAP_CHOWN" not in capabilities.effective((), ["CHOWN"], False)
    with pytest.raises(BAD):
        capabilities.normalize(["CAP_NONSENSE"])


def test_environment() -> None:
    assert process.merge_environment(["A=1", "B=2"], ["B=3", "C=4"]) == ["A=1", "B=3", "C=4"]
    env = process.environment(["A=1", "PATH=/x", "TERM"], tty=True, hostname="h", home="/root")
    assert env == ["PATH=/x", "HOSTNAME=h", "A=1", "HOME=/root"]


def test_resources() -> None:
    host = schema.complete({"Memory": 64 << 20, "NanoCpus": 1_500_000_000, "PidsLimit": 10,
                            "CpuShares": 5, "BlkioWeight": 300}, schema.HOST_CONFIG)
    assert linux.resources(host) == {
        "memory": {"limit": 64 << 20, "swap": 128 << 20},
        "cpu": {"shares": 5, "period": 100_000, "quota": 150_000},
        "blockIO": {"weight": 300}, "pids": {"limit": 10}}
    assert linux.resources(schema.complete({}, schema.HOST_CONFIG)) == {}


# --- mounts -------------------------------------------------------------------

def test_binds() -> None:
    point = mountspec.parse_bind("/a/../b:/c/:ro,rslave")
    assert (point.type, point.source, point.destination, point.rw, point.propagation) == (
        "bind", "/b", "/c", False, "rslave")
    point = mountspec.parse_bind("data:/x:nocopy")
    assert (point.type, point.name, point.nocopy) == ("volume", "data", True)


@pytest.mark.parametrize("text", ["a:b", "/a", "/a:/", "/a:/b:zz", ":/b", "/a:/b:ro,rw", "x/y:/b",
                                  "../x:/b", "/a:/b:c:d", "/a:/b:nocopy", "vol:/b:shared"])
def test_bad_binds(text: str) -> None:
    if text == "/a":
        assert mountspec.parse_bind(text).type == "volume"
        return
    with pytest.raises(BAD):
        mountspec.parse_bind(text)


def test_mount_order_and_duplicates() -> None:
    host = schema.complete({"Binds": ["/x:/a/b", "/y:/a"], "Tmpfs": {"/t": "size=1m"}},
                           schema.HOST_CONFIG)
    points = [p for p, _ in mountspec.collect(host, ["/img", "/a"], (), ())]
    assert [p.destination for p in points] == ["/a", "/img", "/t", "/a/b"]
    assert points[0].type == "bind"  # the explicit one wins over the image's volume
    host["Binds"].append("/z:/a")
    with pytest.raises(BAD, match="Duplicate mount point: /a"):
        mountspec.collect(host, (), (), ())


# --- HostConfig ---------------------------------------------------------------

def _host(**fields: object) -> dict[str, Any]:
    return schema.complete(schema.check(fields, schema.HOST_CONFIG, "HostConfig"),
                           schema.HOST_CONFIG)


@pytest.mark.parametrize(("fields", "text"), [
    ({"Memory": 1000}, "Minimum memory limit"),
    ({"MemorySwap": 1 << 30}, "always set the Memory limit"),
    ({"Memory": 64 << 20, "MemorySwap": 32 << 20}, "larger than memory limit"),
    ({"NanoCpus": 10**15}, "range of CPUs"),
    ({"CpusetCpus": "0-1000000000"}, "cpuset cpus"),
    ({"CpusetCpus": "a"}, "cpuset cpus"),
    ({"CpusetCpus": "8000"}, "not available"),
    ({"RestartPolicy": {"Name": "sometimes"}}, "unknown policy"),
    ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}}, "maximum retry count"),
    ({"RestartPolicy": {"Name": "always"}, "AutoRemove": True}, "AutoRemove"),
    ({"Sysctls": {"kernel.core_pattern": "x"}}, "not allowed"),
    ({"Sysctls": {"kernel.shm_rmid_forced": "1\nkernel.core_pattern=x"}}, "invalid sysctl"),
    ({"Sysctls": {"net.ipv4.ip_forward": "1"}, "NetworkMode": "host"}, "not allowed"),
    ({"OomScoreAdj": 2000}, "oom score adj"), ({"CapAdd": ["BOGUS"]}, "invalid capability"),
    ({"LogConfig": {"Type": "syslog"}}, "no log driver named 'syslog'"),
    ({"LogConfig": {"Type": "json-file", "Config": {"bogus": "1"}}}, "unknown log opt"),
    ({"PortBindings": {"99999/tcp": None}}, "invalid port"),
    ({"PortBindings": {"80/tcp": [{"HostPort": "9-1"}]}}, "invalid port"),
    ({"ExtraHosts": ["a\nb:1.2.3.4"]}, "add-host"), ({"PidMode": "bogus"}, "PID mode"),
    ({"Dns": ["x"]}, "not an ip address"), ({"CgroupParent": "a/../b"}, "cgroup parent"),
    ({"Ulimits": [{"Name": "bogus", "Soft": 1, "Hard": 1}]}, "ulimit"),
    ({"Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": 1}]}, "ulimit"),
    ({"SecurityOpt": ["bogus=1"]}, "security-opt"), ({"DeviceCgroupRules": ["x"]}, "cgroup rule"),
])
def test_bad_host_config(fields: dict[str, object], text: str) -> None:
    began = time.process_time()
    with pytest.raises(BAD, match=text):
        host = _host(**fields)
        refused.host_config(host)
        logopts.check(host["LogConfig"])
        validate.host_config(host, {})
    assert time.process_time() - began < 1


def test_wrong_types_are_named() -> None:
    for fields in ({"Memory": "1"}, {"Memory": 1 << 70}, {"Binds": "x"}, {"Binds": [1]},
                   {"Sysctls": {"a": 1}}, {"Privileged": 1}):
        with pytest.raises(BAD, match=rf"HostConfig\.{next(iter(fields))}"):
            _host(**fields)


def test_signals() -> None:
    assert signals.parse("9") == signals.parse("KILL") == signals.parse("SIGKILL") == 9
    assert signals.parse("SIGRTMIN+3") == 37
    for text in ("0", "65", "SIGBOGUS", "", "9 ", "-9"):
        with pytest.raises(BAD):
            signals.parse(text)


# --- streams ------------------------------------------------------------------

def test_detach_keys() -> None:
    assert streams.parse_keys("") == b"\x10\x11"
    assert streams.parse_keys("ctrl-a,x,ctrl-[") == b"\x01x\x1b"
    with pytest.raises(BAD):
        streams.parse_keys("ctrl-p,ctrl-")
    find = streams._Detacher(b"\x10\x11")
    assert find.feed(b"ab\x10") == (b"ab", False)
    assert find.feed(b"c") == (b"\x10c", False)
    assert find.feed(b"\x10\x10\x11rest") == (b"\x10", True)


def test_frames() -> None:
    assert streams.frame(2, b"abc") == b"\x02\0\0\0\0\0\0\x03abc"


# --- logs ---------------------------------------------------------------------

async def _all(reader: jsonlog.Reader) -> list[str]:
    return [e.log async for batch in reader.entries() for e in batch]


async def test_log_write_read_rotate(tmp_path: Path) -> None:
    path = str(tmp_path / "x-json.log")
    writer = jsonlog.Writer(path, max_size=400, max_files=3)
    for number in range(12):
        writer.write("stdout", f"line {number}\npart".encode(), 1_700_000_000_000_000_000 + number)
    writer.close()
    assert len(jsonlog.files(path)) == 3
    entries = await _all(jsonlog.Reader(path))
    assert entries[-2:] == ["partline 11\n", "part"]
    assert await _all(jsonlog.Reader(path, tail=2)) == entries[-2:]
    assert await _all(jsonlog.Reader(path, tail=7)) == entries[-7:]
    assert await _all(jsonlog.Reader(path, tail=0)) == []
    assert await _all(jsonlog.Reader(path, tail=1000)) == entries
    since = 1_700_000_000_000_000_009
    assert (await _all(jsonlog.Reader(path, since_ns=since)))[0] == "partline 9\n"


async def test_log_splits_long_lines_and_survives_damage(tmp_path: Path) -> None:
    path = str(tmp_path / "x-json.log")
    writer = jsonlog.Writer(path)
    writer.write("stderr", b"a" * 40_000 + b"\n\xff\xfe\n", 1)
    writer.close()
    with open(path, "ab") as f:
        f.write(b'{"log": broken\n{"log":"after\\n","stream":"stdout",'
                b'"time":"2023-01-01T00:00:00Z"}\n')
    entries = await _all(jsonlog.Reader(path))
    assert [len(e) for e in entries[:3]] == [16384, 16384, 40_001 - 2 * 16384]
    assert entries[-1] == "after\n"


async def test_log_follow_sees_rotation(tmp_path: Path) -> None:
    path = str(tmp_path / "x-json.log")
    writer = jsonlog.Writer(path, max_size=300, max_files=5)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def follow() -> None:
        async for batch in jsonlog.Reader(path).follow(ended):
            seen.extend(e.log for e in batch)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    for number in range(10):
        writer.write("stdout", f"{number}\n".encode(), time.time_ns())
        await asyncio.sleep(0.01)
    ended.set_result(None)
    await asyncio.wait_for(task, 20)
    assert seen == [f"{n}\n" for n in range(10)]
    writer.close()


# --- filters, routing, top, flags, store ----------------------------------------

def test_filters() -> None:
    found = parse_filters('{"label":["a=b"],"status":{"running":true,"x":false}}',
                          frozenset({"label", "status"}))
    assert found.get("status") == ["running"]
    assert found.match_labels({"a": "b"}) and not found.match_labels({"a": "c"})
    with pytest.raises(BAD, match="invalid filter 'bogus'"):
        parse_filters('{"bogus":["1"]}', frozenset({"label"}))
    assert Filters({"dangling": ["1"]}).flag("dangling", False) is True


def test_router_takes_every_operation() -> None:
    from carrel.engine import endpoints

    api = server.Api([])
    assert len(endpoints.OPERATIONS) >= 105
    for method, path, _ in endpoints.OPERATIONS:
        concrete = path.replace("{id}", "abc").replace("{name}", "host:5000/a/b:tag")
        assert api.router.find(method, concrete), (method, path)
    assert api.router.find("GET", "/nonsense") is None


@pytest.mark.parametrize(("version", "text"), [((1, 99), "too new"), ((2, 0), "too new"),
                                               ((1, 12), "too old")])
def test_versions(version: tuple[int, int], text: str) -> None:
    with pytest.raises(BAD, match=text):
        server.check_version(version)
    server.check_version((1, 24))


def test_ps_arguments() -> None:
    assert [t for t, _ in top.columns("-ef")][:3] == ["UID", "PID", "PPID"]
    assert [t for t, _ in top.columns("-o pid,comm=NAME")] == ["PID", "NAME"]
    for text in ("--help", ";", "-eo x", "-o", "`id`"):
        with pytest.raises(BAD):
            top.columns(text)


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = flags.load(["-H", "unix:///tmp/x.sock", "-H", "tcp://127.0.0.1:1", "--debug",
                         "--add-runtime", "crun=/usr/bin/crun", "--log-opt", "max-size=10m",
                         "--default-ulimit", "nofile=64:128", "--no-iptables"])
    assert config.hosts == ["unix:///tmp/x.sock", "tcp://127.0.0.1:1"]
    assert config.runtimes["crun"].path == "/usr/bin/crun"
    assert config.default_ulimits == {"nofile": (64, 128)}
    assert config.debug and not config.iptables
    with pytest.raises(SystemExit):
        flags.load(["--bogus"])
    assert "--bogus" in capsys.readouterr().err
    file = tmp_path / "daemon.json"
    file.write_text('{"debug": true, "log-opts": {"max-size": "1m"}}')
    assert flags.load(["--config-file", str(file)]).log_opts == {"max-size": "1m"}
    with pytest.raises(BAD, match="both as a flag and in the configuration"):
        flags.load(["--config-file", str(file), "--debug"])
    file.write_text('{"bogus-key": true}')
    with pytest.raises(BAD, match="bogus-key"):
        flags.load(["--config-file", str(file)])


def test_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "x.db"))
    with store.transaction():
        store.claim("container", "web", "1")
        store.put("container", "1", {"a": 1})
    with pytest.raises(errdefs.AlreadyExists):
        store.claim("container", "web", "2")
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.put("container", "2", {})
        raise ZeroDivisionError
    store.close()
    again = Store(str(tmp_path / "x.db"))
    assert again.all("container") == [("1", {"a": 1})]
    assert again.delete("container", "1") and again.owner("container", "web") is None
    again.close()


async def test_log_with_damaged_lines(tmp_path: Path) -> None:
    """What is no entry is left out, wherever it is, and the lines around it are not."""
    path = tmp_path / "d-json.log"
    good = [f'{{"log":"line {n} \\u00e9\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}}\n'
            for n in range(5000)]
    damaged = ["\n", '{"log":"half', '{"log":1}\n', "\0\0\0\n"]
    text = [*good[:2000], damaged[0], damaged[1] + "\n", *good[2000:4000], *damaged[2:],
            *good[4000:], '{"log":"not ended']
    path.write_text("".join(text))
    entries = await _all(jsonlog.Reader(str(path)))
    assert entries == [f"line {n} \u00e9\n" for n in range(5000)]


def test_renderer_frames_and_stamps() -> None:
    entries = jsonlog.parse_lines(
        b'{"log":"a\\n","stream":"stderr","time":"2026-01-01T00:00:00.5Z","attrs":{"k":"v"}}\n'
        b'{"log":"\xc3\xa9","stream":"stdout","time":"2026-01-01T00:00:00.123456789Z"}\n')
    both = {"stdout", "stderr"}
    plain = routes_streams._Renderer(both, framed=True, timestamps=False, details=False)
    assert plain(entries) == b"\2\0\0\0\0\0\0\2a\n" + b"\1\0\0\0\0\0\0\2\xc3\xa9"
    full = routes_streams._Renderer({"stderr"}, framed=False, timestamps=True, details=True)
    assert full(entries) == b"2026-01-01T00:00:00.500000000Z k=v a\n"
