"""What ``--version`` says."""

from __future__ import annotations

from carrel.oci import runtime_spec

VERSION = "0.1.0"


def text(program: str) -> str:
    return (f"{program} version {VERSION}\ncommit: carrel-{VERSION}\n"
            f"spec: {runtime_spec.VERSION}\n")
