"""The parts of the command line that talk: to the engine, to a terminal, to files."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.cli import auth, progress
from carrel.cli import main as program
from carrel.cli.client import Engine, encode_query, negotiate
from carrel.cli.config import Config
from carrel.cli.endpoint import Endpoint
from carrel.cli.errors import CliError, ConnectError, Detached
from carrel.cli.streams import Session, parse_detach_keys
from carrel.cli.tarmake import TarMaker
from carrel.cli.tarsafe import Extractor, Stream

from .canned import answer
from .fakeengine import FakeEngine

# ---- the client -------------------------------------------------------------

@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[bytes], Engine]]:
    """Answer the next connections with fixed bytes after each request."""
    listeners: list[socket.socket] = []

    def start(*answers: bytes) -> Engine:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / f"s{len(listeners)}"))
        listener.listen()
        listeners.append(listener)

        def run() -> None:
            for data_out in answers:
                connection, _ = listener.accept()
                with connection:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += connection.recv(65536)
                    for i in range(0, len(data_out), 7):
                        connection.sendall(data_out[i:i + 7])
        threading.Thread(target=run, daemon=True).start()
        return Engine(Endpoint(f"unix://{tmp_path / f's{len(listeners) - 1}'}"), {}, "1.51")
    yield start
    for listener in listeners:
        listener.close()


def test_client_reads_chunks(serve: Callable[..., Engine]) -> None:
    engine = serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                   b"5;x=y\r\nhello\r\nA\r\n, brave ne\r\n1\r\nw\r\n0\r\nTrailer: x\r\n\r\n")
    assert engine.open("GET", "/x").read() == b"hello, brave new"


def test_client_reads_until_the_end(serve: Callable[..., Engine]) -> None:
    engine = serve(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
    assert engine.open("GET", "/x").read() == b"all of it"


def test_client_splits_a_stream_of_values(serve: Callable[..., Engine]) -> None:
    engine = serve(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n'
                   b'{"a":"\xc3\xa9"}\r\n{"b":2}{"c":\n3}')
    assert list(engine.open("GET", "/x").values()) == [{"a": "é"}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize(("answer", "error"), [
    (b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
     b'{"message":"x"}', "Error response from daemon: x"),
    (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", "Error response from daemon: oops"),
    (b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", "request returned status 503"),
    (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
    (b"", "Cannot connect to the Carrel daemon"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "unexpected EOF"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "unexpected EOF"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}", "not JSON"),
])
def test_client_errors(serve: Callable[..., Engine], answer: bytes, error: str) -> None:
    with pytest.raises(CliError, match=error):
        serve(answer).call("GET", "/x")


def test_client_starts_anew_when_a_kept_connection_is_gone(serve: Callable[..., Engine]) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    engine = serve(ok, ok)
    assert engine.call("GET", "/x") == {}
    assert engine.call("GET", "/x") == {}


def test_nobody_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                        monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "CARREL_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert program.run(["-H", f"unix://{tmp_path}/none", "ps"]) == 1
    assert capfd.readouterr().err == (
        f"Cannot connect to the Carrel daemon at unix://{tmp_path}/none. Is carreld running?\n")
    if not os.path.exists("/run/carrel/carrel.sock"):
        assert program.run(["ps"]) == 1
        err = capfd.readouterr().err
        assert "unix:///run/carrel/carrel.sock. Is carreld running?\nhint: " in err


def test_versions() -> None:
    assert negotiate("1.51") == "1.51" and negotiate("1.60") == "1.51"
    assert negotiate("1.41") == "1.41" and negotiate("1.100") == "1.51" and negotiate("") == "1.24"
    with pytest.raises(ConnectError):
        negotiate("1.12")


def test_queries() -> None:
    assert encode_query({"b": True, "a": "x y/é", "c": None, "d": False, "e": ["1", "2"]}) == \
        "?a=x%20y%2F%C3%A9&b=1&e=1&e=2"


@pytest.mark.parametrize("host", ["foo://x", "ssh://x", "npipe:////./x"])
def test_hosts_that_are_not_spoken(host: str) -> None:
    with pytest.raises(CliError):
        Endpoint(host)


@pytest.mark.parametrize(("host", "where"), [
    ("tcp://h:1", ("h", 1)), ("tcp://h", ("h", 2375)), ("tcp://[::1]:5", ("::1", 5)),
    ("tcp://:7", ("localhost", 7)), ("h:9", ("h", 9))])
def test_tcp_hosts(host: str, where: tuple[str, int]) -> None:
    assert Endpoint(host).host_and_port() == where


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                    "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
                   check=True, capture_output=True)
    return tmp_path


def test_tls(certificate: Path, capfd: pytest.CaptureFixture[str],
             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(certificate / "config"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    fake = FakeEngine("", answer, context)
    trust = ["--tlsverify", "--tlscacert", str(certificate / "cert.pem")]
    assert program.run(["-H", fake.host, *trust, "ps", "-q"]) == 0
    assert capfd.readouterr().out.startswith("0123456789ab\n")
    assert program.run(["-H", fake.host, *trust, "exec", "web", "true"]) == 6
    assert capfd.readouterr() == ("out\n", "err\n")
    assert program.run(["-H", fake.host, "--tlsverify", "ps"]) == 1
    assert "certificate verify failed" in capfd.readouterr().err
    assert program.run(["-H", fake.host, "--tls", "ps", "-q"]) == 0
    assert program.run(["-H", fake.host, "ps"]) == 1
    fake.close()


# ---- the configuration ------------------------------------------------------

def test_the_configuration_is_heeded(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    _config(tmp_path, {
        "psFormat": "{{.Names}}!", "HttpHeaders": {"X-Mine": "yes", "X-Bad": "a\r\nX-Evil: b"},
        "proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "x"}},
        "detachKeys": "ctrl-e,e"})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    fake = FakeEngine(str(tmp_path / "s"), answer)
    monkeypatch.setenv("DOCKER_HOST", fake.host)
    assert program.run(["ps"]) == 0
    assert capfd.readouterr().out == "web!\nquick!\n"
    seen = fake.requests[-1].headers
    assert seen["x-mine"] == "yes" and "x-evil" not in seen and "x-bad" not in seen
    fake.take()
    assert program.run(["create", "-e", "http_proxy=mine", "busybox"]) == 0
    assert fake.take()[0]["body"]["Env"] == [
        "HTTP_PROXY=http://p:1", "NO_PROXY=x", "no_proxy=x", "http_proxy=mine"]
    assert program.run(["exec", "web", "true"]) == 6
    assert fake.take()[0]["body"]["DetachKeys"] == "ctrl-e,e"
    (tmp_path / "config.json").write_text("{broken")
    assert program.run(["ps", "-q"]) == 0
    assert "WARNING: Error loading config file" in capfd.readouterr().err
    fake.close()


# ---- contexts ---------------------------------------------------------------

def test_contexts(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                  monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "CARREL_HOST", "DOCKER_CONTEXT", "CARREL_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    fake = FakeEngine(str(tmp_path / "s"), answer)
    assert program.run(["context", "create", "mine", "--docker", f"host={fake.host}"]) == 0
    assert program.run(["-c", "mine", "ps", "-q"]) == 0
    assert program.run(["ps"]) == 1
    assert program.run(["context", "use", "mine"]) == 0
    assert program.run(["ps", "-q"]) == 0
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    assert program.run(["ps", "-q"]) == 1
    monkeypatch.setenv("CARREL_HOST", fake.host)
    assert program.run(["ps", "-q"]) == 0
    monkeypatch.delenv("CARREL_HOST")
    assert program.run(["-c", "mine", "ps", "-q"]) == 0
    assert program.run(["-c", "mine", "-H", fake.host, "ps"]) == 1
    monkeypatch.delenv("DOCKER_HOST")
    capfd.readouterr()
    assert program.run(["context", "show"]) == 0
    assert capfd.readouterr().out == "mine\n"
    assert program.run(["context", "rm", "mine"]) == 1
    assert program.run(["context", "rm", "-f", "mine"]) == 0
    assert program.run(["context", "create", "../x"]) == 1
    assert program.run(["context", "create", "default"]) == 1
    assert os.listdir(tmp_path / "config" / "contexts" / "meta") == []
    fake.close()


# ---- streams ----------------------------------------------------------------

def test_detach_keys() -> None:
    assert parse_detach_keys("") == b"\x10\x11"
    assert parse_detach_keys("a,ctrl-a,ctrl-@,ctrl-\\,DEL") == b"a\x01\x00\x1c\x7f"
    for wrong in ("ctrl-1", "ab", "ctrl-", "é"):
        with pytest.raises(CliError):
            parse_detach_keys(wrong)


class _Nowhere:
    def try_send(self, data: bytes) -> int:
        return len(data)


def test_detach_keys_in_pieces() -> None:
    session = Session(_Nowhere(), tty=True, detach_keys=b"\x10\x11")  # type: ignore[arg-type]
    assert session.filter_keys(b"ab\x10") == b"ab"
    assert session.filter_keys(b"c") == b"\x10c"
    assert session.filter_keys(b"\x10\x10") == b"\x10"
    with pytest.raises(Detached):
        session.filter_keys(b"\x11x")


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=20))), st.integers(1, 9))
def test_frames_in_any_pieces(items: list[tuple[int, bytes]], step: int) -> None:
    from .canned import frames
    read_out, write_out = os.pipe()
    read_err, write_err = os.pipe()
    session = Session(_Nowhere(), tty=False, stdout=write_out,  # type: ignore[arg-type]
                      stderr=write_err)
    data = frames(*items)
    for i in range(0, len(data), step):
        session.demultiplex(data[i:i + step])
    os.close(write_out)
    os.close(write_err)
    with open(read_out, "rb") as out, open(read_err, "rb") as err:
        assert out.read() == b"".join(d for s, d in items if s == 1)
        assert err.read() == b"".join(d for s, d in items if s == 2)


# ---- progress ---------------------------------------------------------------

def test_progress_on_a_terminal_and_elsewhere() -> None:
    messages: list[dict[str, Any]] = [
        {"status": "Pulling", "id": "a"}, {"status": "Waiting", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 500, "total": 1000}},
        {"status": "Done", "id": "b"}, {"status": "Finished \x1b[2J"}]
    plain, screen = io.StringIO(), io.StringIO()
    for message in messages:
        progress.Display(plain, terminal=False).show(message)
    display = progress.Display(screen, terminal=True, columns=120)
    for message in messages:
        display.show(message)
    assert plain.getvalue() == "a: Pulling\nb: Waiting\nb: Done\nFinished \\x1b[2J\n"
    text = screen.getvalue()
    assert "a: Downloading [=========================>                         ]" in text
    assert "500B/1kB" in text and "\x1b[2A" in text and "\x1b[2J" not in text
    narrow = progress.progress_text(messages[2], 80)
    assert narrow == "    500B/1kB"


def test_an_error_in_the_stream_is_an_error() -> None:
    with pytest.raises(CliError, match="denied"):
        progress.drain([{"status": "x"}, {"errorDetail": {"message": "denied"}}])


# ---- credentials ------------------------------------------------------------

def _config(tmp_path: Path, values: dict[str, Any]) -> Config:
    (tmp_path / "config.json").write_text(json.dumps(values))
    return Config(str(tmp_path))


def _helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program_path = tmp_path / "docker-credential-test"
    program_path.write_text("#!/bin/sh\n" + body)
    program_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_credentials_of_the_file(tmp_path: Path) -> None:
    config = _config(tmp_path, {"auths": {"https://host:5000": {"auth": "bWU6c2VjcmV0OjE="}}})
    assert auth.lookup(config, "host:5000") == {
        "serveraddress": "host:5000", "username": "me", "password": "secret:1"}
    assert auth.lookup(config, "other") == {}
    assert auth.header(config, "other") == "e30="


def test_credentials_of_a_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _helper(tmp_path, monkeypatch, 'cat >/dev/null; echo \'{"Username":"u","Secret":"s"}\'')
    config = _config(tmp_path, {"credHelpers": {"host": "test"}})
    assert auth.lookup(config, "host")["password"] == "s"


@pytest.mark.parametrize(("body", "error"), [
    ("echo 'credentials not found in native keychain'; exit 1", ""),
    ("echo oops; exit 1", "exit status 1"),
    ("echo no-json", "not understood"),
    ("yes", "more than 1 MiB"),
    ("exec sleep 100", "did not answer"),
])
def test_helpers_that_misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str,
                                error: str) -> None:
    monkeypatch.setattr(auth, "_HELPER_SECONDS", 1)
    _helper(tmp_path, monkeypatch, body)
    config = _config(tmp_path, {"credsStore": "test"})
    if not error:
        assert auth.lookup(config, "host") == {}
        return
    with pytest.raises(CliError, match=error):
        auth.lookup(config, "host")


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "-x", "a b", "x;y"])
def test_helper_names_are_checked(name: str) -> None:
    with pytest.raises(CliError, match="invalid credential helper name"):
        auth.call_helper(name, "get", b"x")


def test_config_is_saved_for_its_owner_only(tmp_path: Path) -> None:
    config = Config(str(tmp_path / "new"))
    config.values["a"] = 1
    config.save()
    assert os.stat(config.path).st_mode & 0o777 == 0o600
    assert Config(str(tmp_path / "new")).values == {"a": 1}


# ---- cp ---------------------------------------------------------------------

def _tar(*members: tuple[str, str, str]) -> bytes:
    """name, type, content or link target"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE,
                           "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE}[kind]
            member.mode = 0o4755
            if kind == "f":
                member.size = len(text)
            else:
                member.linkname = text
            tar.addfile(member, io.BytesIO(text.encode()) if kind == "f" else None)
    return out.getvalue()


def _unpack(data: bytes, where: Path) -> None:
    root = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with tarfile.open(fileobj=Stream([data]), mode="r|") as archive:  # type: ignore[call-overload]
            Extractor(root).extract(archive, lambda parts: parts)
    finally:
        os.close(root)


@pytest.mark.parametrize("members", [
    [("../evil", "f", "x")],
    [("a/../../evil", "f", "x")],
    [("link", "l", "OUT"), ("link/evil", "f", "x")],
    [("link", "l", ".."), ("link/evil", "f", "x")],
    [("a", "d", ""), ("a/link", "l", "../../outside"), ("a/link/evil", "f", "x")],
    [("hard", "h", "../outside/canary")],
    [("link", "l", "OUT"), ("hard", "h", "link/canary")],
])
def test_an_archive_cannot_leave_its_destination(members: list[tuple[str, str, str]],
                                                 tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "canary").write_text("safe")
    data = _tar(*[(n, k, t.replace("OUT", str(outside))) for n, k, t in members])
    with pytest.raises(CliError):
        _unpack(data, inside)
    assert sorted(os.listdir(tmp_path)) == ["inside", "outside"]
    assert os.listdir(outside) == ["canary"]
    assert (outside / "canary").read_text() == "safe"
    assert os.stat(outside / "canary").st_nlink == 1


def test_links_in_the_destination_are_replaced_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "canary").write_text("safe")
    (inside / "file").symlink_to(outside / "canary")
    (inside / "dir").symlink_to(outside)
    _unpack(_tar(("file", "f", "new"), ("dir", "d", ""), ("dir/canary", "f", "new"),
                 ("/abs", "f", "below the destination"), ("dev", "c", "")), inside)
    assert (outside / "canary").read_text() == "safe"
    assert (inside / "file").read_text() == "new" and not (inside / "file").is_symlink()
    assert (inside / "dir" / "canary").read_text() == "new"
    assert (inside / "abs").exists() and not (inside / "dev").exists()
    assert os.stat(inside / "file").st_mode & 0o7777 == 0o755


def test_a_packed_tree_comes_out_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    target.mkdir()
    (source / "file").write_bytes(b"x" * 1000)
    os.link(source / "file", source / "deep" / "hard")
    (source / "link").symlink_to("nowhere")
    (source / ("n" * 120)).write_text("a long name")
    _unpack(b"".join(TarMaker(str(source), "top").pieces()), target)
    assert sorted(os.listdir(target / "top")) == sorted(os.listdir(source))
    assert os.stat(target / "top" / "deep" / "hard").st_nlink == 2
    assert os.readlink(target / "top" / "link") == "nowhere"
