"""The shim's part of ``--explain``: the runtime's record, written beside the bundle.

A spec that carries the annotation ``io.carrel.explain`` asks for it. The engine
reads the file after the start; it goes with the bundle.
"""

from __future__ import annotations

import os

from carrel.kernel import record
from carrel.oci import json
from carrel.runtime.childrecord import printable

ANNOTATION = b'"io.carrel.explain"'
FILE = "explain.jsonl"


def begin(config: bytes) -> None:
    """Record from here on, if this config.json asks for it, and only what follows."""
    if ANNOTATION in config:
        record.start()
    else:
        record.stop()


def save(bundle: str) -> None:
    """Write what was recorded, an array a line, and stop. Without a record: nothing.

    A record that cannot be written is no reason to fail a start.
    """
    recorder = record.active
    if recorder is None:
        return
    record.stop()
    lines = [json.dumps([step or "shim", call, [printable(a) for a in args],
                         result if isinstance(result, (int, str)) else None, errno, start, ns])
             for step, call, args, result, errno, start, ns in recorder.records]
    try:
        fd = os.open(os.path.join(bundle, FILE), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                     | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, "\n".join(lines).encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)
    except OSError:
        pass

