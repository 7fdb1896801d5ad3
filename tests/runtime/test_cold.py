"""The command line as a cold program: what it imports, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BIN, ROOT
from tests.runtime.conftest import Bundle


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-ISB", "-c",
                           f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\n{code}"],
                          capture_output=True, text=True, check=False)


@pytest.mark.root
@pytest.mark.usefixtures("leak_check")
def test_a_run_finds_all_its_modules_in_the_archive(bundle: Bundle, tmp_path: Path) -> None:
    """One that is missed costs every run 0.1 ms: name it in ``carrel.coldbuild``."""
    archive = tmp_path / "runtime.code"
    made = python("from carrel import coldbuild\n"
                  f"coldbuild.save({str(archive)!r}, coldbuild.PROGRAMS['carrel-runtime'])")
    assert made.returncode == 0, made.stderr
    bundle.args("true").write()
    done = python(
        f"from carrel import cold\ncold.use({str(archive)!r})\n"
        "from carrel.runtime import main\n"
        f"status = main.main(['--root', {bundle.root!r}, 'run', '--bundle',"
        f" {str(bundle.folder)!r}, {bundle.id!r}])\n"
        "print(status, *(n for n, m in sys.modules.items() if n.startswith('carrel')\n"
        "                and not isinstance(m.__spec__.loader, cold.Archive)))")
    assert done.stdout.split() == ["0", "carrel", "carrel.cold"], done.stderr


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["features"]])
def test_output_that_cannot_be_written_is_an_error_told_once(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(BIN / "carrel-runtime"), *words], stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("no space left on device") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_left_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([str(BIN / "carrel-runtime"), "--version"], stdout=writer,
                          stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr.count("broken pipe")) == (1, 1), done.stderr
