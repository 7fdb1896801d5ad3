"""Make tests/cli/golden/*.json: what the docker command asks of an engine and prints.

    .venv/bin/python tests/cli/record_golden.py [docker]

Only facts are kept: requests, standard output, exit codes, error lines.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.cli import argv_create, argv_other  # noqa: E402
from tests.cli.canned import answer  # noqa: E402
from tests.cli.fakeengine import FakeEngine  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


def run(docker: str, engine: FakeEngine, argv: list[str], folder: str,
        stdin: str = "") -> dict[str, Any]:
    """One call of the docker command."""
    environment = {"PATH": os.environ["PATH"], "HOME": folder, "DOCKER_HOST": engine.host,
                   "DOCKER_CONFIG": f"{folder}/config", **argv_create.ENVIRONMENT}
    shutil.rmtree(f"{folder}/config", ignore_errors=True)
    result = subprocess.run([docker, *argv], cwd=folder, env=environment, input=stdin,
                            capture_output=True, text=True, timeout=60, check=False)
    return {"requests": engine.take(), "out": result.stdout.replace(folder, "FOLDER"),
            "err": result.stderr.replace(folder, "FOLDER").replace(engine.host, "HOST"),
            "code": result.returncode}


def main() -> None:
    docker = sys.argv[1] if len(sys.argv) > 1 else "docker"
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**argv_create.FILES, **argv_other.FILES}.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        engine = FakeEngine(f"{folder}/engine.sock", answer)
        tables = {
            "create": [("create", line) for line in argv_create.CREATE],
            "run": [("run", line) for line in argv_create.RUN],
            "wrong": [("run", line) for line in argv_create.WRONG],
            "other": [("", line) for line in argv_other.LINES],
        }
        for name, rows in tables.items():
            found = {}
            for command, line in rows:
                argv = ([command] if command else []) + shlex.split(line)
                found[f"{command} {line}".strip()] = run(docker, engine, argv, folder)
            text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
            (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            print(f"{name}: {len(found)} command lines")
        engine.close()


if __name__ == "__main__":
    main()
