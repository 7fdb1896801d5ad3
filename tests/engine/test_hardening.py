"""The API against those who mean no good: half a request, too much of one, two in one; web
pages; certificates; other users of the machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.engine import web
from carrel.engine.web import connection
from tests.engine.rawhttp import call, connect, raw
from tests.engine.stack import CARRELD, IMAGE, Stack, clean
from tests.leakcheck import cgroup_parent

root = pytest.mark.root
PING = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _listener(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    return sock


def _alive(stack: Stack) -> None:
    assert raw(stack.sock, PING).status == 200


# --- heads --------------------------------------------------------------------------------------


def test_a_head_that_does_not_come_ends_the_connection(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    path = str(tmp_path / "s")

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"OK")

    async def ended(data: bytes, *, more: float = 0.0) -> tuple[bytes, float]:
        reader, writer = await asyncio.open_unix_connection(path)
        began = time.monotonic()
        writer.write(data)
        if more:
            await asyncio.sleep(more)
            writer.write(PING)
        got = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        return got, time.monotonic() - began

    async def run() -> None:
        server = web.Server(answer)
        await server.listen(_listener(path))
        for part in (b"", b"GET /_ping HTTP/1.1\r\nHost: a\r\n", b"G"):
            got, seconds = await ended(part)
            assert got == b"" and 0.15 < seconds < 20, part
        # a connection that has spoken is kept for the next request
        got, seconds = await ended(PING.replace(b"close", b"keep-alive"), more=0.4)
        assert got.count(b"200 OK") == 2
        await server.close()

    asyncio.run(run())


@root
def test_half_open_connections_hold_nobody_up(stack: Stack) -> None:
    held = []
    try:
        for number in range(500):
            sock = connect(stack.sock)
            sock.sendall((b"", b"GET /_ping HTTP/1.1\r\nX: ")[number % 2])
            held.append(sock)
        slowest = 0.0
        for _ in range(10):
            began = time.monotonic()
            _alive(stack)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2
    finally:
        for sock in held:
            sock.close()


@root
@pytest.mark.parametrize("request_", [
    b"GET /_ping HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"BOGUS\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100,
    b"GET /_ping HTTP/1.1\r\nHost: a\r\nX\xff\x00: y\r\n\r\n",
    # two lengths; a length and chunks; chunks by another name; no number; folded lines
    b"POST /containers/create HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
    b"Content-Length: 30\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    b"POST /containers/create HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx",
    b"GET /_ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
], ids=range(14))
def test_no_request_at_all(stack: Stack, request_: bytes) -> None:
    sock = connect(stack.sock)
    with sock:
        try:
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = bytearray()
        try:
            while block := sock.recv(1 << 16):
                got += block
        except ConnectionResetError:
            pass
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    if head:
        assert head.split(b" ")[1] == b"400", head
        assert json.loads(body)["message"]
    assert bytes(got).count(b"HTTP/1.1") <= 1  # one request, however it is read
    _alive(stack)


# --- bodies -------------------------------------------------------------------------------------


@root
@pytest.mark.parametrize("body", [
    b"[" * 100_000, b"{\"a\":" * 100_000, b"{\"Image\": \"\xff\xfe\"}", b"{\"Image\": \"\\ud800\"}",
    b"{\"Image\": 1e999}", b"{\"Image\": NaN}", b"{\"Image\": \"a\", \"Image\": \"b\"}",
    b"{\"a\": " + b"9" * 5000 + b"}", b"\0", b"null", b"[]", b"\"x\"", b"{\"Image\": \"x\"} {}",
    b"\xef\xbb\xbf{}", b"{\"HostConfig\": []}", b"{\"Env\": [\"A=\\u0000\"]}", b"{",
    b"{\"Labels\": {\"a\\u0000\": \"b\"}}", b" " * ((4 << 20) + 1),
], ids=range(19))
def test_bodies_that_are_refused(stack: Stack, body: bytes) -> None:
    for path in ("/containers/create", "/containers/nobody/update", "/networks/create"):
        answer = call(stack.sock, "POST", path, body)
        assert 400 <= answer.status < 500, (path, answer.raw[:200])
        assert answer.json["message"]
    _alive(stack)


@root
@pytest.mark.parametrize("fields", [
    {"Hostname": "a\nb"}, {"User": "a\nb"}, {"WorkingDir": "/a\0b"}, {"Env": ["A\0B=1"]},
    {"Cmd": ["a\0"]}, {"Labels": {"": "x"}}, {"HostConfig": {"Binds": ["/a\0:/b"]}},
    {"HostConfig": {"ExtraHosts": ["a\n127.0.0.1:1.2.3.4"]}}, {"Domainname": "x y"},
    {"HostConfig": {"GroupAdd": ["a\nb"]}}, {"HostConfig": {"CgroupParent": "a\nb"}},
    {"HostConfig": {"DnsSearch": ["a\nnameserver 6.6.6.6"]}},
    {"HostConfig": {"DnsOptions": ["a\nnameserver 6.6.6.6"]}},
    {"HostConfig": {"Tmpfs": {"/x\0": ""}}}, {"HostConfig": {"Links": ["a\nb:c"]}},
    {"NetworkingConfig": {"EndpointsConfig": {"bridge": {"Aliases": ["a\nb"]}}}},
])
def test_control_characters(stack: Stack, fields: dict[str, Any]) -> None:
    answer = call(stack.sock, "POST", "/containers/create", {"Image": IMAGE, **fields})
    assert answer.status == 400, answer.raw
    for name in ("a%0ab", "a%00", "..", "%2e%2e%2fx", "a%20b", "%ff"):
        answer = call(stack.sock, "POST", f"/containers/create?name={name}", {"Image": IMAGE})
        assert answer.status == 400, name


@root
def test_long_lists(stack: Stack) -> None:
    lists: tuple[dict[str, Any], ...] = (
        {"Env": [f"A{n}=1" for n in range(100_000)]}, {"Cmd": ["x"] * 200_000},
        {"Labels": {str(n): "" for n in range(100_000)}},
        {"HostConfig": {"Binds": [f"/tmp:/y{n}" for n in range(20_000)]}},
        {"HostConfig": {"CapAdd": ["NET_ADMIN"] * 100_000}},
        {"ExposedPorts": {f"{n}/tcp": {} for n in range(1, 60_000)}})
    for fields in lists:
        began = time.monotonic()
        answer = call(stack.sock, "POST", "/containers/create?name=long",
                      {"Image": IMAGE, **fields})
        assert answer.status in (201, 400), answer.raw[:300]
        assert time.monotonic() - began < 20
        if answer.status == 201:
            assert call(stack.sock, "DELETE", "/containers/long").status == 204
    _alive(stack)


# --- TCP ----------------------------------------------------------------------------------------


def _start(tmp_path: Path, *flags: str) -> Stack:
    """A daemon that also listens where the flags say."""
    exec_root = Path(tempfile.mkdtemp(prefix="ct-", dir="/run"))
    data_root = tmp_path / "data"
    data_root.mkdir()
    stack = Stack(data_root, exec_root, [
        "-H", f"unix://{exec_root}/carrel.sock", "--cgroup-parent",
        cgroup_parent(exec_root.name), *flags])
    stack.start()
    _alive(stack)  # it answers when all of its sockets are there
    return stack


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    port = _free_port()
    stack = _start(tmp_path_factory.mktemp("plain"), "-H", f"tcp://127.0.0.1:{port}",
                   "--allow-insecure-tcp")
    yield "127.0.0.1", port
    clean(stack)


@root
@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": "127.0.0.1:2375"}, 200), ({"Host": "[::1]:2375"}, 200),
    ({"Host": "docker:2375"}, 200), ({"Host": "host.docker.internal"}, 200),
    ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example:2375"}, 403),
    ({"Host": ""}, 403), ({"Host": "[::1"}, 403), ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403), ({"Origin": "http://[x"}, 403),
    ({"Origin": "http://localhost"}, 200), ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "none"}, 200),
])
def test_web_pages_are_refused(plain: tuple[str, int], headers: dict[str, str],
                               status: int) -> None:
    answer = call(plain, "GET", "/info", headers=headers)
    assert answer.status == status, answer.raw[:300]
    if status == 403:
        assert answer.json["message"]
    assert "access-control" not in answer.head.lower()


@root
def test_simple_requests_of_pages_do_nothing(plain: tuple[str, int]) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = call(plain, "POST", "/volumes/create", b'{"Name": "evil"}',
                      headers={"Content-Type": kind})
        assert answer.status == 400 and "Content-Type" in answer.json["message"]
    assert call(plain, "OPTIONS", "/containers/create").status == 404
    assert "evil" not in call(plain, "GET", "/volumes").body.decode()


def _certificates(folder: Path) -> None:
    """A CA of our own, a server's certificate and a client's."""
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other"):
        openssl("req", "-x509", *new, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "2",
                "-subj", f"/CN={ca}")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "san")


@root
def test_tls_admits_those_with_a_certificate_only(tmp_path: Path) -> None:
    _certificates(tmp_path)
    port = _free_port()
    stack = _start(tmp_path, "-H", f"tcp://127.0.0.1:{port}", "--tlsverify",
                   "--tlscacert", f"{tmp_path}/ca.pem", "--tlscert", f"{tmp_path}/server.pem",
                   "--tlskey", f"{tmp_path}/server.key")
    try:
        def context(name: str = "") -> ssl.SSLContext:
            made = ssl.create_default_context(cafile=f"{tmp_path}/ca.pem")
            if name:
                made.load_cert_chain(f"{tmp_path}/{name}.pem", f"{tmp_path}/{name}.key")
            return made

        where = ("127.0.0.1", port)
        assert raw(where, PING, context=context("client")).status == 200
        # the name in a certificate was checked by the client: any Host will do
        assert call(where, "GET", "/_ping", headers={"Host": "build.example"},
                    context=context("client")).status == 200
        assert call(where, "GET", "/_ping", headers={"Origin": "https://evil.example"},
                    context=context("client")).status == 403
        for stranger in ("", "stranger"):
            with pytest.raises((ssl.SSLError, OSError, AssertionError)):
                assert raw(where, PING, context=context(stranger)).status == 200
        assert raw(where, PING).status in (0, 400)  # no TLS at all
        done = subprocess.run(
            ["docker", "-H", f"tcp://127.0.0.1:{port}", "--tlsverify", "--tlscacert",
             f"{tmp_path}/ca.pem", "--tlscert", f"{tmp_path}/client.pem", "--tlskey",
             f"{tmp_path}/client.key", "version", "-f", "{{.Server.Version}}"],
            capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        # the end of the input is no end of the output
        stack.load()
        done = subprocess.run(
            [*done.args[:-3], "run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo end"],
            input="in" * 300_000, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 and done.stdout == "in" * 300_000 + "end\n", done.stderr
    finally:
        clean(stack)


@root
def test_sockets_of_systemd(tmp_path: Path) -> None:
    """``fd://``: the socket's file stays; TCP without TLS is refused there too."""
    exec_root = Path(tempfile.mkdtemp(prefix="ct-", dir="/run"))
    path = f"{exec_root}/activated.sock"
    folders = ["--data-root", str(tmp_path / "data"), "--exec-root", str(exec_root)]

    def launch(sock: socket.socket) -> subprocess.Popen[str]:
        sock.listen(16)
        script = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        return subprocess.Popen(["bash", "-c", script, "sh", str(CARRELD), *folders, "-H", "fd://"],
                                pass_fds=[sock.fileno()], stderr=subprocess.PIPE, text=True)

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        process = launch(sock)
        try:
            assert raw(path, PING, seconds=20).status == 200
        finally:
            process.terminate()
            process.communicate(timeout=30)
        assert os.path.exists(path)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        process = launch(sock)
        _, text = process.communicate(timeout=30)
        assert process.returncode == 1 and "without TLS" in text
    none = subprocess.run([str(CARRELD), *folders, "-H", "fd://"], capture_output=True, text=True,
                          timeout=30, check=False)
    assert none.returncode == 1 and "no sockets were passed" in none.stderr


# --- other users --------------------------------------------------------------------------------

_WALK = """
import os, sys
os.setgroups([]); os.setgid(1000); os.setuid(1000)
for path in sys.stdin.read().splitlines():
    try:
        if os.path.isdir(path):
            os.listdir(path)
        elif os.path.islink(path):
            os.readlink(path)
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        continue
    print(path)
"""


@root
def test_other_users_read_nothing(tmp_path: Path) -> None:
    """With the careless umask that a service manager may hand on."""
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:-2]:
        os.chmod(parent, 0o755)
    old = os.umask(0)
    try:
        stack = _start(tmp_path)
    finally:
        os.umask(old)
    try:
        stack.load()
        stack.docker("run", "-d", "--name", "box", "-v", "vol:/v", "-p", "127.0.0.1::80",
                     "--ipc", "shareable", IMAGE, "sh", "-c", "echo secret; sleep 100")
        stack.docker("run", "--rm", IMAGE, "true")
        found = []
        for top in (stack.data_root, stack.exec_root):
            for base, folders, files in os.walk(top):
                # what is mounted there belongs to the container, behind folders of ours
                found += [os.path.join(base, n) for n in (*folders, *files)]
        assert len(found) > 50
        done = subprocess.run(["/usr/bin/python3", "-I", "-c", _WALK], input="\n".join(found),
                              capture_output=True, text=True, check=True)
        # pids, ids and handles that need rights to be entered; no content
        harmless = (f"{stack.exec_root}/carreld.pid", f"{stack.exec_root}/netns/",
                    f"{stack.exec_root}/containerd/runtime",
                    f"{stack.exec_root}/containerd/io.containerd.runtime.v2.task")
        shown = [p for p in done.stdout.splitlines() if not p.startswith(harmless)]
        assert "\n".join(shown) == ""
        assert os.stat(stack.sock).st_mode & 0o777 == 0o660
    finally:
        clean(stack)
