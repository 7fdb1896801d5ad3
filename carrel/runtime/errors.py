"""Errors of a start, as a person reads them."""

from __future__ import annotations

import os

from carrel.errdefs import CarrelError
from carrel.runtime import report

TYPE_CHECKING = False
#: the step of the mounts of a configuration (carrel.runtime.mounts is not imported for it)
MOUNTS = "mounts"


def from_packet(packet: bytes, during: str = "error during container init: ") -> OSError:
    """The child's report as an exception with its errno and step."""
    number, step, text, name = report.unpack_error(packet)
    if not text:
        text = os.strerror(number).lower()
    if name and name not in text:
        text = f"{name}: {text}"
    if step == MOUNTS and text.startswith(("bind ", "mount ")):
        text = f"error mounting: {text}"  # in runc's words, which people search for
    if step == "exec" and text.startswith("exec /"):
        return failure(number, text, step)  # execve itself: the caller's program is at fault
    return failure(number, f"unable to start container process: {during}{text}", step)


def failure(number: int, text: str, step: str) -> OSError:
    error = OSError(number, text)
    error.carrel_step = step  # type: ignore[attr-defined]
    return error


def message(error: BaseException) -> str:
    """One line, without Python's decoration."""
    if isinstance(error, CarrelError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if text == os.strerror(error.errno or 0):
            text = text.lower()
        names = [os.fsdecode(n) for n in (error.filename, error.filename2)
                 if isinstance(n, (str, bytes))]
        return ": ".join([*[n for n in names if n not in text], text])
    return str(error) or type(error).__name__
