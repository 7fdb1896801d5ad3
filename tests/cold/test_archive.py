"""The archive that short programs import from: used where it is right, ignored where not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *paths: Path) -> str:
    """A fresh interpreter, started as the launchers start theirs."""
    where = [str(p) for p in (*paths, ROOT)]
    done = subprocess.run([sys.executable, "-ISB", "-c", f"import sys\nsys.path[:0] = {where}\n"
                           + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two modules, and its archive beside it."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("")
    (tmp_path / "pack/one.py").write_text("from pack import two\nVALUE = two.VALUE + 1\n")
    (tmp_path / "pack/two.py").write_text("VALUE = 1\n")
    build(tmp_path)
    return tmp_path


def build(package: Path) -> None:
    python(f"from carrel import coldbuild\n"
           f"coldbuild.save({str(package / 'pack.code')!r}, (('pack.one',),))", package)


def look(package: Path, names: str = "pack, pack.one, pack.two") -> str:
    """``pack.one.VALUE`` and which of its modules the archive gave."""
    return python(f"from carrel import cold\ncold.use({str(package / 'pack.code')!r})\n"
                  f"import {names}\n"
                  "print(pack.one.VALUE, *(m.__name__ for m in (pack, pack.one, pack.two)\n"
                  "      if isinstance(m.__spec__.loader, cold.Archive)))", package)


def test_all_modules_come_from_the_archive(package: Path) -> None:
    assert look(package) == "2 pack pack.one pack.two"


def test_an_edited_module_is_read_from_its_source(package: Path) -> None:
    (package / "pack/two.py").write_text("VALUE = 10\n")
    assert look(package) == "11 pack pack.one"


def test_an_edit_that_keeps_the_size_is_seen_by_its_time(package: Path) -> None:
    source = package / "pack/two.py"
    before = source.stat()
    source.write_text("VALUE = 5\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert look(package) == "6 pack pack.one"


def test_a_module_that_was_removed_is_not_served(package: Path) -> None:
    (package / "pack/two.py").unlink()
    with pytest.raises(AssertionError, match="cannot import name 'two'"):
        look(package)


@pytest.mark.parametrize("spoil", ["missing", "empty", "another Python's", "cut in the index",
                                   "cut in a group", "zeros"])
def test_without_a_usable_archive_imports_are_as_usual(package: Path, spoil: str) -> None:
    archive = package / "pack.code"
    if spoil == "missing":
        archive.unlink()
    elif spoil == "empty":
        archive.write_bytes(b"")
    elif spoil.startswith("cut"):
        archive.write_bytes(archive.read_bytes()[:40 if spoil.endswith("index") else -20])
    elif spoil == "zeros":
        head = 8 + int.from_bytes(archive.read_bytes()[4:8], "little")
        archive.write_bytes(archive.read_bytes()[:head].ljust(archive.stat().st_size, b"\0"))
    else:
        archive.write_bytes(b"\0\0\r\n" + archive.read_bytes()[4:])
    assert look(package) == "2"


def test_files_are_named_in_tracebacks_and_modules(package: Path) -> None:
    found = python(f"from carrel import cold\ncold.use({str(package / 'pack.code')!r})\n"
                   "import pack.one\nprint(pack.one.__file__, pack.__path__)", package)
    assert found == f"{package}/pack/one.py ['{package}/pack']"


def test_after_leave_the_archive_gives_nothing_and_the_collector_runs(package: Path) -> None:
    found = python(f"from carrel import cold\ncold.use({str(package / 'pack.code')!r})\n"
                   "import gc, pack\nprint(gc.isenabled())\ncold.leave()\nimport pack.one\n"
                   "print(gc.isenabled(), isinstance(pack.one.__spec__.loader, cold.Archive))",
                   package)
    assert found == "False\nTrue False"


def test_asserts_are_for_the_type_checker_only() -> None:
    """Archives are compiled without them: a check that matters is a raise."""
    found = []
    for part in ("cli", "explain", "kernel", "oci", "runtime", "shim"):
        for path in sorted((ROOT / "carrel" / part).rglob("*.py")):
            found += [f"{path}:{node.lineno}: {ast.unparse(node.test)}"
                      for node in ast.walk(ast.parse(path.read_text()))
                      if isinstance(node, ast.Assert) and not narrows(node.test)]
    assert found == []


def narrows(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return all(narrows(value) for value in test.values)
    if isinstance(test, ast.Call):
        return ast.unparse(test.func) == "isinstance"
    return isinstance(test, ast.Compare) and ast.unparse(test).endswith(" is not None")
