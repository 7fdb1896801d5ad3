"""A start that fails in the middle, with everything below it made of air."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from carrel import errdefs
from carrel.cli.cmd_run import start_code
from carrel.engine import start


@pytest.mark.parametrize("cause", ["the disk", "a cancel"])
async def test_what_was_asked_for_is_there_before_it_is_taken_back(
        monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    """The request for the task has left when the record cannot be written, or the client goes."""
    order: list[str] = []

    async def create(*_: object) -> int:
        await asyncio.sleep(0.05)
        order.append("made")
        return 1

    async def drop(*_: object) -> None:
        order.append("taken back")

    def commit(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(start, "_drop_task", drop)
    monkeypatch.setattr(start, "_commit_intent", commit)
    manager: Any = SimpleNamespace(tasks=SimpleNamespace(create=create))
    container: Any = SimpleNamespace(id="c", tty=False)
    stdio: Any = SimpleNamespace()

    async def run() -> None:
        async with contextlib.AsyncExitStack() as undo:
            await start._run(manager, container, stdio, [], undo)

    running = asyncio.ensure_future(run())
    if cause == "a cancel":
        await asyncio.sleep(0)
        running.cancel()
    with pytest.raises((OSError, asyncio.CancelledError)):
        await running
    assert order == ["made", "taken back"]


@pytest.mark.parametrize(("words", "code"), [
    ('exec: "x": executable file not found in $PATH', 127),
    ("executable file `x` not found in $PATH: No such file or directory", 127),
    ("open `/etc/passwd`: Permission denied", 126), ("exec /x: exec format error", 126),
    ("the runtime is on fire", 128)])
def test_exit_codes_by_the_words_of_runtimes(words: str, code: int) -> None:
    assert start.exit_code_of(words) == code
    # and the client, which has only the error's text, comes to the same
    if "format" not in words:
        told = start.runtime_error(errdefs.SystemFailure(words), "x").message
        assert start_code(told) == (code if code < 128 else 125), told
