"""The json-file writer: what comes out decodes to what went in, whatever it was."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from carrel.shim.jsonlog import LINE_MAX, JsonLog

WARNINGS: list[str] = []


def make(path: Path, **options: Any) -> JsonLog:
    return JsonLog(str(path), WARNINGS.append, **options)


def entries(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file.read().split("\n")[:-1]]


def text(path: Path, stream: str = "stdout") -> str:
    return "".join(e["log"] for e in entries(path) if e["stream"] == stream)


def test_a_line(tmp_path: Path) -> None:
    log = make(tmp_path / "l")
    log.write(1, b"hello\nwor")
    assert [e["log"] for e in entries(tmp_path / "l")] == ["hello\n"]
    log.write(1, b"ld\n")
    log.write(2, b"no newline")
    log.close()
    found = entries(tmp_path / "l")
    assert [(e["log"], e["stream"]) for e in found] == [
        ("hello\n", "stdout"), ("world\n", "stdout"), ("no newline", "stderr")]
    assert list(found[0]) == ["log", "stream", "time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z", found[0]["time"])


def test_escapes_as_go_does(tmp_path: Path) -> None:
    log = make(tmp_path / "l")
    raw = 'a"b\\n\\\\ <b>&amp;</b> \u2028\u2029 \t\r\x00\x1f\x7f é 😀\n'
    log.write(1, raw.encode())
    log.close()
    written = (tmp_path / "l").read_bytes()
    for forbidden in (b"<", b">", b"&", "\u2028".encode(), "\u2029".encode(), b"\x00", b"\t"):
        assert forbidden not in written
    assert rb"\u003cb\u003e\u0026" in written
    assert text(tmp_path / "l") == raw


def test_invalid_utf8_is_replaced_byte_by_byte(tmp_path: Path) -> None:
    log = make(tmp_path / "l")
    log.write(1, b"a\xffb\xc3(\xe2\x82z\xf0\x9f\x92\xed\xa0\x80\n")
    log.close()
    assert text(tmp_path / "l") == ("a\ufffdb\ufffd(\ufffd\ufffdz\ufffd\ufffd\ufffd"
                                    "\ufffd\ufffd\ufffd\n")


@pytest.mark.parametrize("size", [LINE_MAX - 1, LINE_MAX, LINE_MAX + 1, 3 * LINE_MAX + 5])
def test_long_lines_are_cut(tmp_path: Path, size: int) -> None:
    log = make(tmp_path / "l")
    line = bytes(97 + i % 26 for i in range(size))
    log.write(1, b"before\n" + line[:1000])
    log.write(1, line[1000:] + b"\nafter\n")
    log.close()
    logs = [e["log"] for e in entries(tmp_path / "l")]
    assert logs[0] == "before\n"
    assert logs[-1] == "after\n"
    assert all(len(part) == LINE_MAX for part in logs[1:-2])
    assert "".join(logs[1:-1]) == line.decode() + "\n"


def test_a_character_is_not_cut(tmp_path: Path) -> None:
    log = make(tmp_path / "l")
    line = ("x" + "é😀€" * 10000 + "\n").encode()
    log.write(1, line)
    log.close()
    assert "\ufffd" not in text(tmp_path / "l")
    assert text(tmp_path / "l").encode() == line


def test_any_chunking_gives_the_same_text(tmp_path: Path) -> None:
    chance = random.Random(3)
    alphabet = [b"\n", b"a", b"\\", b'"', b"<", "é".encode(), "\u2028".encode(), b"x" * 5000]
    raw = b"".join(chance.choice(alphabet) for _ in range(3000))
    log = make(tmp_path / "l")
    at = 0
    while at < len(raw):
        size = chance.choice([1, 7, 100, 5000, 65536])
        log.write(1, raw[at:at + size])
        at += size
    log.close()
    assert text(tmp_path / "l").encode() == raw
    assert all(len(e["log"].encode()) <= LINE_MAX for e in entries(tmp_path / "l"))


def test_rotation_keeps_the_size_and_every_line(tmp_path: Path) -> None:
    path = tmp_path / "l"
    log = make(path, max_size=4096, max_files=100)
    raw = b"".join(b"line %d\n" % i for i in range(2000))
    for at in range(0, len(raw), 700):
        log.write(1, raw[at:at + 700])
    log.close()
    files = sorted(tmp_path.iterdir(), key=lambda p: -int(p.suffix[1:] or 0))
    assert len(files) > 10
    assert all(f.stat().st_size <= 4096 for f in files)
    assert "".join(text(f) for f in files).encode() == raw


def test_rotation_drops_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "l"
    log = make(path, max_size=1000, max_files=3)
    for i in range(200):
        log.write(1, b"line %d\n" % i)
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "l.1", "l.2"]
    assert text(path).endswith("line 199\n")
    kept = text(tmp_path / "l.2") + text(tmp_path / "l.1") + text(path)
    assert "".join(f"line {i}\n" for i in range(200)).endswith(kept)


def test_one_file_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "l"
    log = make(path, max_size=1000, max_files=1)
    for i in range(200):
        log.write(1, b"line %d\n" % i)
    log.close()
    assert [p.name for p in tmp_path.iterdir()] == ["l"]
    assert path.stat().st_size <= 1000
    assert text(path).endswith("line 199\n")


def test_an_entry_larger_than_a_file(tmp_path: Path) -> None:
    path = tmp_path / "l"
    log = make(path, max_size=100, max_files=5)
    log.write(1, b"y" * 500 + b"\nz\n")
    log.close()
    assert text(tmp_path / "l.1") + text(path) == "y" * 500 + "\nz\n"


def test_attributes(tmp_path: Path) -> None:
    log = make(tmp_path / "l", attrs='{"tag": "x", "n": "1"}')
    log.write(1, b"a\nb\n")
    log.close()
    assert [e["attrs"] for e in entries(tmp_path / "l")] == [{"tag": "x", "n": "1"}] * 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "l").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        make(tmp_path / "l")


def test_a_full_disk_is_counted_and_told() -> None:
    WARNINGS.clear()
    log = JsonLog("/dev/full", WARNINGS.append)
    log.write(1, b"one\n")
    log.write(1, b"two\n")
    assert log.lost > 60
    assert len(WARNINGS) == 1
    assert "No space left" in WARNINGS[0]
