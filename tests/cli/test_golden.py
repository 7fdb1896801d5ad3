"""carrel asks of an engine what docker asks, and prints what docker prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.cli import main as program

from . import argv_create, argv_other
from .canned import answer
from .fakeengine import FakeEngine

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(
        (GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    for name, text in {**argv_create.FILES, **argv_other.FILES}.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[FakeEngine]:
    fake = FakeEngine(str(folder / "engine.sock"), answer)
    yield fake
    fake.close()


class Outcome:
    """One run of carrel, in the form of the golden data."""

    def __init__(self, engine: FakeEngine, folder: Path, line: str,
                 monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(folder)
        shutil.rmtree(folder / "config", ignore_errors=True)
        for name in ("DOCKER_CONTEXT", "CARREL_HOST", "CARREL_CONTEXT", "DOCKER_API_VERSION",
                     "DOCKER_DEFAULT_PLATFORM", "UNSET_OF_TEST"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("DOCKER_CONFIG", str(folder / "config"))
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        for name, value in argv_create.ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        self.code = program.run(shlex.split(line))
        self.out, self.err = capfd.readouterr()
        self.out = self.out.replace(str(folder), "FOLDER")
        self.err = self.err.replace(str(folder), "FOLDER").replace(engine.host, "HOST")
        self.requests = engine.take()


def as_carrel(text: str) -> str:
    """Docker's words with our program's name."""
    text = re.sub(r"'docker( [a-z]+)*( --help)?'", lambda m: m[0].replace("docker", "carrel"),
                  text)
    text = re.sub(r"^(Usage: +)docker", r"\1carrel", text, flags=re.MULTILINE)
    text = re.sub(r"(unknown command: )docker", r"\1carrel", text)
    return re.sub(r"^docker: ", "carrel: ", text, flags=re.MULTILINE)


CREATE = load("create")
WRONG = load("wrong")


@pytest.mark.parametrize("line", sorted(CREATE))
def test_create_body_is_dockers(line: str, engine: FakeEngine, folder: Path,
                                monkeypatch: pytest.MonkeyPatch,
                                capfd: pytest.CaptureFixture[str]) -> None:
    wanted = CREATE[line]
    got = Outcome(engine, folder, line, monkeypatch, capfd)
    for requests in (got.requests, wanted["requests"]):
        for request in requests:
            host = request.get("body", {}).get("HostConfig", {})
            if host.get("Binds"):
                host["Binds"].sort()  # docker's order is that of a Go map: none
    assert got.requests == wanted["requests"], got.err
    assert (got.code, got.out) == (wanted["code"], wanted["out"])
    if wanted["code"]:
        assert got.err == as_carrel(wanted["err"])


@pytest.mark.parametrize("line", sorted(WRONG))
def test_refused_as_docker_refuses(line: str, engine: FakeEngine, folder: Path,
                                   monkeypatch: pytest.MonkeyPatch,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    wanted = WRONG[line]
    got = Outcome(engine, folder, line, monkeypatch, capfd)
    assert not [r for r in got.requests if r["path"] != "/containers/create"]
    assert got.code == wanted["code"], got.err
    assert got.err == as_carrel(wanted["err"])


OTHER = load("other")
#: where carrel asks less of the engine (or later) than docker, with the same result
LEAN = re.compile(
    r"exec .*"                       # docker looks whether the container exists first
    r"|attach gone"                  # docker asks for the end before it looks at the answer
    r"|inspect (web )?gone"          # docker looks for plug-ins and swarm objects too
    r"|network rm .*"                # docker looks at the network first
    r"|ps --format .*(Label|Nope|index).*")  # docker tries the template on an empty row first
#: where carrel says it in other words
OWN_WORDS = re.compile(r"login .*|network rm gone")
AGES = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


def _in_order(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Requests for several containers are sent at once, in no order."""
    return sorted(requests, key=lambda r: json.dumps(r, sort_keys=True))


def _settled(line: str, text: str) -> str:
    """Without the time of day in what ages, and the order that docker leaves to chance."""
    if line.startswith(("ps", "history")):
        text = AGES.sub("TIME", text)
    if line.startswith("images"):
        text = "".join(sorted(text.splitlines(keepends=True)))
    return as_carrel(text)


@pytest.mark.parametrize("line", sorted(OTHER))
def test_other_commands_do_as_docker_does(line: str, engine: FakeEngine, folder: Path,
                                          monkeypatch: pytest.MonkeyPatch,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    wanted = OTHER[line]
    got = Outcome(engine, folder, line, monkeypatch, capfd)
    if LEAN.fullmatch(line):
        sent = [r for r in got.requests if r["method"] != "GET"]
        assert all(r in wanted["requests"] for r in sent) or wanted["code"]
    else:
        assert _in_order(got.requests) == _in_order(wanted["requests"]), got.err
    assert (got.code, _settled(line, got.out)) == (wanted["code"], _settled(line, wanted["out"]))
    if not OWN_WORDS.fullmatch(line):
        assert got.err == as_carrel(wanted["err"])


#: no files of the test's folder, which the peers' root does not have
PORTABLE = [line for line in argv_create.CREATE
            if CREATE[f"create {line}"]["code"] == 0 and not any(
                name in line for name in ("env", "labels", "seccomp=s", "-e", "-l", "'"))]


@pytest.mark.root
@pytest.mark.peers
def test_the_newest_docker_asks_the_same(engine: FakeEngine, folder: Path,
                                         monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    """The golden data are of one docker; the peers' may be newer."""
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    path = subprocess.run([str(scripts / "peers"), "--path"], capture_output=True, text=True,
                          check=True).stdout.strip()
    if not (Path(path) / ".complete").exists():
        pytest.skip("the peers' root is not built (scripts/peers)")
    lines = PORTABLE[::9]
    script = "\n".join(f"docker -H {engine.host} create {line} >/dev/null" for line in lines)
    subprocess.run([str(scripts / "in-peers"), "sh", "-c", script], check=True, timeout=60,
                   capture_output=True)
    wanted = engine.take()
    assert len(wanted) == len(lines) > 10
    for line, request in zip(lines, wanted, strict=True):
        got = Outcome(engine, folder, f"create {line}", monkeypatch, capfd)
        assert got.requests == [request], line
