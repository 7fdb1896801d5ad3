"""The parts of the command line by themselves."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.cli import auth, index, jsonc, progress, reference, tables, units
from carrel.cli import main as program
from carrel.cli.client import Engine, encode_query, negotiate
from carrel.cli.config import Config
from carrel.cli.endpoint import Endpoint
from carrel.cli.errors import CliError, ConnectError, Detached, EngineError, UsageError
from carrel.cli.flags import Flag, csv_fields, go_quote, parse
from carrel.cli.gotemplate import ExecError, Template
from carrel.cli.streams import Session, parse_detach_keys
from carrel.cli.tarmake import TarMaker
from carrel.cli.tarsafe import Extractor, Stream
from carrel.cli.terminal import clean
from carrel.explain.tree import render

ROOT = Path(__file__).resolve().parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


# ---- JSON -------------------------------------------------------------------

@given(JSON)
def test_json_is_what_the_standard_library_makes_of_it(value: Any) -> None:
    assert jsonc.loads(json.dumps(value)) == value
    assert json.loads(jsonc.dumps(value)) == value
    assert json.loads(jsonc.pretty(value)) == value


@pytest.mark.parametrize("text", ["", "{", "[1,", "nul", '{"a":1} x', "NaN", "[1 2]", '"'])
def test_bad_json_is_a_value_error(text: str) -> None:
    """Also in a process that never imported the json package."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from carrel.cli import jsonc\n"
            "try: jsonc.loads(sys.argv[2])\nexcept ValueError: sys.exit(3)")
    result = subprocess.run([sys.executable, "-ISB", "-c", code, str(ROOT), text], check=False)
    assert result.returncode == 3


def test_json_has_no_control_character() -> None:
    text = jsonc.dumps(["\x1b[2J\x07\x7f\x9b\u0085é"])
    assert json.loads(text) == ["\x1b[2J\x07\x7f\x9b\u0085é"]
    assert text.isprintable() and "é" in text


# ---- start-up ---------------------------------------------------------------

HEAVY = ("argparse", "asyncio", "dataclasses", "enum", "http", "json", "logging", "msgspec", "re",
         "selectors", "signal", "socket", "ssl", "subprocess", "threading", "typing", "urllib")


@pytest.mark.parametrize("argv", [["ps"], ["run", "-d", "busybox", "true"], ["images"],
                                  ["exec", "-d", "web", "true"], ["rm", "web"]])
def test_common_commands_import_little(argv: list[str], tmp_path: Path) -> None:
    from .canned import answer
    from .fakeengine import FakeEngine
    fake = FakeEngine(str(tmp_path / "s"), answer)
    code = ("import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
            "from carrel.cli.main import run\n"
            "code = run(sys.argv[2:])\n"
            "sys.stderr.write(' '.join(sorted(set(sys.modules) - before)))\nsys.exit(code)")
    result = subprocess.run(
        [sys.executable, "-ISB", "-c", code, str(ROOT), *argv], capture_output=True, text=True,
        env={"DOCKER_HOST": fake.host, "HOME": str(tmp_path)}, check=False)
    fake.close()
    assert result.returncode == 0, result.stderr
    assert not set(HEAVY) & set(result.stderr.split())


def test_every_command_loads_and_has_help(capfd: pytest.CaptureFixture[str]) -> None:
    for key, (_, summary, paths) in index.COMMANDS.items():
        for path in paths:
            assert program.run([*path.split(), "--help"]) == 0, path
            out = capfd.readouterr().out
            assert out.startswith("Usage:  carrel ") and summary in out, key
    for group in index.GROUPS:
        assert program.run([group, "--help"]) == 0
        assert f"carrel {group} COMMAND" in capfd.readouterr().out
    assert program.run(["--help"]) == 0
    assert "Common Commands:" in capfd.readouterr().out


def test_completion_is_a_bash_script(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.run(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capfd.readouterr().out)
    test = (f"source {script}; COMP_WORDS=(carrel network cr); COMP_CWORD=2; _carrel; "
            'echo "${COMPREPLY[@]}"; COMP_WORDS=(carrel run --cpus); COMP_CWORD=2; _carrel; '
            'echo "${COMPREPLY[@]}"')
    out = subprocess.run(["bash", "-c", test], capture_output=True, text=True, check=True).stdout
    assert out == "create\n--cpus --cpuset-cpus --cpuset-mems\n"


# ---- flags ------------------------------------------------------------------

FLAGS = (Flag("all", "a", "bool", ""), Flag("yes", "y", "bool", "", True),
         Flag("name", "n", "string", "", "x"), Flag("env", "e", "list", ""),
         Flag("old", "", "list", "", target="env"), Flag("count", "c", "int", ""))


@pytest.mark.parametrize(("line", "values", "args"), [
    ("", {"all": False, "yes": True, "name": "x", "env": [], "count": 0}, ""),
    ("-a", {"all": True}, ""), ("--all", {"all": True}, ""), ("--yes=false", {"yes": False}, ""),
    ("-y=0", {"yes": False}, ""), ("-ay", {"all": True, "yes": True}, ""),
    ("-anfoo", {"all": True, "name": "foo"}, ""), ("-n foo b", {"name": "foo"}, "b"),
    ("-n=foo", {"name": "foo"}, ""), ("--name= b", {"name": ""}, "b"),
    ("-e1 -e 2 --env=3 --old 4", {"env": ["1", "2", "3", "4"]}, ""),
    ("b -a c", {"all": True}, "b c"), ("b -- -a", {"all": False}, "b -a"), ("-", {}, "-"),
    ("-c 0x10", {"count": 16}, ""), ("-c -5", {"count": -5}, ""), ("-c 010", {"count": 8}, ""),
])
def test_flags(line: str, values: dict[str, Any], args: str) -> None:
    options, rest = parse(FLAGS, line.split())
    assert {k: options[k] for k in values} == values
    assert rest == args.split()


def test_flags_of_another_program_are_its_own() -> None:
    options, rest = parse(FLAGS, ["-a", "image", "-n", "--help"], interspersed=False)
    assert options["all"] and rest == ["image", "-n", "--help"] and not options.help


@pytest.mark.parametrize("line", ["--foo", "-z", "-az", "--name", "-n", "--=x", "--all=2",
                                  "-c x", "-c 99999999999999999999"])
def test_wrong_flags(line: str) -> None:
    with pytest.raises(UsageError):
        parse(FLAGS, line.split())


@pytest.mark.parametrize(("text", "fields"), [
    ("a,b", ["a", "b"]), ("", [""]), ('"a,b",c', ["a,b", "c"]), ('"a""b"', ['a"b']),
    ("a,", ["a", ""]),
])
def test_csv(text: str, fields: list[str]) -> None:
    assert csv_fields(text) == fields


@pytest.mark.parametrize("text", ['a"b', '"a', '"a"b'])
def test_wrong_csv(text: str) -> None:
    with pytest.raises(ValueError, match="parse error"):
        csv_fields(text)


def test_quoted_as_go_does() -> None:
    assert go_quote('a"\\\n\t\x01\x7fé\udcff') == '"a\\"\\\\\\n\\t\\x01\\x7fé\\xff"'


# ---- sizes and times --------------------------------------------------------

@pytest.mark.parametrize(("text", "value"), [
    ("0", 0), ("64m", 64 << 20), ("1.5g", 3 << 29), ("32 kb", 32 << 10), ("1KiB", 1024),
    ("5b", 5), ("2T", 2 << 40)])
def test_memory_sizes(text: str, value: int) -> None:
    assert units.ram_in_bytes(text) == value


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1 2", "1.2.3", "1_0", "٣", "1mm"])
def test_wrong_memory_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        units.ram_in_bytes(text)


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
    (150, "2 minutes"), (3600, "About an hour"), (7300, "2 hours"), (47 * 3600, "47 hours"),
    (49 * 3600, "2 days"), (15 * 86400, "2 weeks"), (70 * 86400, "2 months"),
    (800 * 86400, "2 years")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.human_duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [
    (0, "0B"), (999, "999B"), (1000, "1kB"), (1_984_000, "1.98MB"), (187_654_321, "188MB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert units.human_size(size, 3) == text


def test_moments() -> None:
    assert units.epoch_of("1970-01-01T00:00:00Z") == (0, 0)
    assert units.epoch_of("2026-11-24T07:24:58.5+01:00") == (1795501498, 500_000_000)
    assert units.epoch_of("2000-02-29T00:00:00Z") == (951782400, 0)
    assert units.timestamp("1m30s", 1000.0) == "910.000000000"
    assert units.timestamp("12.5", 0) == "12.5"
    with pytest.raises(ValueError):
        units.timestamp("yesterday", 0)


# ---- templates --------------------------------------------------------------

VALUE: dict[str, Any] = {"A": "x", "L": ["a", "b"], "M": {"k": "v", "n": {"deep": 1}}, "N": 3,
                         "T": True, "Z": None, "F": 1.5, "E": []}


@pytest.mark.parametrize(("template", "text"), [
    ("{{.A}}-{{.N}}", "x-3"), ("{{ .M.n.deep }}", "1"),
    ("{{.L}} {{.M}}", "[a b] map[k:v n:map[deep:1]]"),
    ("{{range .L}}<{{.}}>{{end}}", "<a><b>"), ("{{range .E}}x{{else}}none{{end}}", "none"),
    ("{{range $i, $v := .L}}{{$i}}{{$v}}{{end}}", "0a1b"),
    ("{{range $k, $v := .M}}{{$k}},{{end}}", "k,n,"),
    ("{{if .T}}y{{else}}n{{end}}{{if .E}}y{{else}}n{{end}}", "yn"),
    ("{{if eq .A \"y\"}}1{{else if eq .N 3}}2{{else}}3{{end}}", "2"),
    ("{{with .M}}{{.k}}{{$.A}}{{end}}", "vx"), ("{{json .L}}", '["a","b"]'),
    ("{{.L | json | len}}", "9"), ("{{join .L \"+\"}}", "a+b"), ("{{index .L 1}}", "b"),
    ("{{index .M \"k\"}}", "v"), ("{{(index .L 0) | upper}}", "A"),
    ("{{- .A -}} \n y", "xy"), ("{{/* no */}}z", "z"), ("{{\"q\\n\" | printf \"%q\"}}", '"q\\n"'),
    ("{{printf \"%05d|%-4s|%v\" .N .A .T}}", "00003|x   |true"),
    ("{{.Z}} {{.F}}", "<no value> 1.5"),
    ("{{and .T .A}} {{or .E .A}} {{not .T}}", "x x false"), ("{{`raw`}}", "raw"),
    ("{{$v := .N}}{{$v}}", "3"), ("{{split \"a,b\" \",\"}}", "[a b]"), ("{{println .A}}", "x\n"),
    ("{{len .A}}{{lt 1 2}}{{ge 2 3}}{{ne 1 2}}", "1truefalsetrue"), ("no action", "no action"),
])
def test_templates(template: str, text: str) -> None:
    assert Template(template).execute(VALUE) == text


@pytest.mark.parametrize("template", [
    "{{", "{{.A", "{{end}}", "{{if .A}}", "{{foo .A}}", "{{.A | }}", "{{(.A}}", "{{\"x}}",
    "{{range}}{{end}}", "{{define \"x\"}}{{end}}", "{{else}}", "{{@}}", "{{/* x}}",
    "{{if .A}}" * 100])
def test_templates_that_cannot_be_read(template: str) -> None:
    with pytest.raises(CliError):
        Template(template)


@pytest.mark.parametrize("template", [
    "{{.B}}", "{{.A.b}}", "{{index .L 5}}", "{{index .L -1}}", "{{.Z.x}}", "{{$x}}",
    "{{len .N}}", "{{eq .A 1}}", "{{range .A}}{{end}}", "{{join .A \",\"}}", "{{.A 1}}",
    "{{.__class__}}", "{{.L.append}}", "{{.M.keys}}", "{{upper .N}}", "{{printf \"%99999d\" 1}}"])
def test_templates_that_do_not_fit(template: str) -> None:
    with pytest.raises((ExecError, CliError)):
        Template(template).execute(VALUE)


@given(st.text(alphabet="{}.|()$\"`-/*:= abAL0irangeifendelsewith"))
def test_any_template_ends_in_text_or_a_clear_error(template: str) -> None:
    try:
        Template("{{" + template).execute(VALUE)
    except (CliError, ExecError):
        pass


# ---- tables -----------------------------------------------------------------

def test_columns() -> None:
    assert tables.join([["A", "B"], ["a-long-one", "x"]]) == "A            B\na-long-one   x\n"
    assert tables.join([["a", "b", "c"], ["long-single-line"], ["d", "e"]]) == (
        "a         b         c\nlong-single-line\nd         e\n")


def test_cells_are_harmless() -> None:
    listing = tables.Listing("x", {"A": lambda item, trunc: item}, {"A": "A"}, ("A",))
    assert "\x1b" not in tables.render(listing, ["\x1b]0;title\x07\x9b"], "")
    assert "\x1b" not in tables.render(listing, ["\x1b]0;title\x07\x9b"], "{{.A}}")
    assert clean("a\tb\né\x1b") == "a\tb\né\\x1b"


# ---- image names ------------------------------------------------------------

@pytest.mark.parametrize(("text", "familiar", "domain"), [
    ("busybox", "busybox:latest", "docker.io"), ("a/b:c", "a/b:c", "docker.io"),
    ("docker.io/library/x", "x:latest", "docker.io"),
    ("localhost/x", "localhost/x:latest", "localhost"),
    ("host:5000/x/y:1", "host:5000/x/y:1", "host:5000"),
    ("ghcr.io/a__b/c--d.e_f", "ghcr.io/a__b/c--d.e_f:latest", "ghcr.io"),
    ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000")])
def test_references(text: str, familiar: str, domain: str) -> None:
    found = reference.parse(text).tagged()
    assert (found.familiar(), found.domain) == (familiar, domain)


@pytest.mark.parametrize("text", [
    "", "A", "a:", "a:b:c", "a//b", "/a", "a/", "-a", "a-", "a..b", "a___b", "a@sha256:x", "a b",
    "a\nb", "é", "a@", ":b", "a/B", "x" * 256, "f" * 64, "a:" + "t" * 129])
def test_wrong_references(text: str) -> None:
    with pytest.raises(CliError, match="invalid re"):
        reference.parse(text)


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
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += connection.recv(65536)
                    for i in range(0, len(answer), 7):
                        connection.sendall(answer[i:i + 7])
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


# ---- explain ----------------------------------------------------------------

def test_the_record_as_a_tree() -> None:
    record = {"steps": [
        {"step": "1 request", "calls": []},
        {"step": "5 process", "calls": [
            {"call": "clone3", "args": ["NEWPID|NEWNS"], "result": 42, "errno": 0,
             "start_ns": 1000, "ns": 427_000},
            {"call": "mount", "args": ["proc", "\x1b[2J"], "result": None, "errno": 1,
             "start_ns": 500_000, "ns": 2_500_000}]}]}
    text = render(record)
    assert text.splitlines() == [
        "2 calls in 2 steps, 3.0 ms",
        "├─ 1 request  (0 calls, 0 ns)",
        "└─ 5 process  (2 calls, 3.0 ms)",
        "   ├─ clone3(NEWPID|NEWNS) = 42  427 µs",
        "   └─ mount(proc, \\x1b[2J) = -1 EPERM (Operation not permitted)  2.5 ms"]
    assert max(len(line) for line in render(record, columns=40).splitlines()) == 40


def test_explain_needs_an_engine_of_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    from .fakeengine import Answer, FakeEngine, Request

    def answer(request: Request) -> Answer:
        if request.path == "/carrel/containers/mine/explain":
            return Answer({"steps": [{"step": "1 request", "calls": []}]})
        if request.path == "/carrel/containers/gone/explain":
            return Answer({"message": "No such container: gone"}, 404)
        return Answer({"message": "page not found"}, 404)
    fake = FakeEngine(str(tmp_path / "s"), answer)
    monkeypatch.setenv("DOCKER_HOST", fake.host)
    assert program.run(["explain", "mine"]) == 0
    assert "1 request" in capfd.readouterr().out
    assert program.run(["explain", "gone"]) == 1
    assert "No such container: gone" in capfd.readouterr().err
    assert program.run(["run", "--explain", "busybox"]) == 1
    assert "keeps no record" in capfd.readouterr().err
    fake.close()


def test_engine_errors_are_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    program.report(EngineError(500, "bad \x1b]0;x\x07 name"))
    assert capfd.readouterr().err == "Error response from daemon: bad \\x1b]0;x\\x07 name\n"
