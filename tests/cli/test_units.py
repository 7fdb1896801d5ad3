"""The parts of the command line by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.cli import index, jsonc, reference, tables, units
from carrel.cli import main as program
from carrel.cli.errors import CliError, EngineError, UsageError
from carrel.cli.flags import Flag, csv_fields, go_quote, parse
from carrel.cli.gotemplate import ExecError, Template
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
    assert units.timestamp("0", 1000.0) == "0"
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
