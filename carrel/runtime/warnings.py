"""What went on although something was not right; the edge (command line, shim)
writes these to its log."""

from __future__ import annotations

pending: list[str] = []
_LIMIT = 100


def warn(text: str) -> None:
    if len(pending) < _LIMIT:
        pending.append(text)


def take() -> list[str]:
    """All so far, once."""
    taken = pending[:]
    pending.clear()
    return taken
