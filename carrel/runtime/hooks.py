"""Hooks: programs of the host (or, startContainer, of the container) that run at
fixed points of a container's life with its state on their stdin."""

from __future__ import annotations

import os
from _signal import strsignal  # type: ignore[import-not-found]
from errno import ETIMEDOUT
from select import POLLIN, poll
from time import monotonic

from carrel.kernel import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_OUTPUT_LIMIT = 4096


class HookFailed(OSError):
    """A hook that did not exit with 0; ``strerror`` holds which and why."""


def run_all(hooks: Iterable[dict[str, Any]], point: str, state: bytes,
            env: list[bytes] | None = None) -> None:
    """One after the other; the first that fails ends it."""
    for index, hook in enumerate(hooks):
        with record.step(f"hook {point}"):
            run(hook, index, point, state, env)


def run(hook: dict[str, Any], index: int, point: str, state: bytes,
        env: list[bytes] | None = None) -> None:
    """Run one hook. ``env``: what it gets when it names no environment itself."""
    path = os.fsencode(hook["path"])
    argv = [os.fsencode(a) for a in hook.get("args") or [hook["path"]]]
    own = hook.get("env")
    environment = [os.fsencode(e) for e in own] if own else (env or [])
    record.note("hook", (hook["path"], point))
    stdin, feed = os.pipe2(os.O_CLOEXEC)
    output, sink = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(path, argv, environment, stdin, sink)
    os.close(stdin)
    os.close(sink)
    pidfd = os.pidfd_open(pid)
    try:
        status, text = _converse(pid, pidfd, feed, output, state, hook.get("timeout"))
    finally:
        os.close(output)
        os.close(pidfd)
    if status is None:
        raise HookFailed(ETIMEDOUT, f"error running {point} hook #{index}: hook ran past "
                                    f"specified timeout of {float(hook['timeout']):.1f}s")
    if status:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}"
        if code < 0:
            how = f"signal: {(strsignal(-code) or str(-code)).lower()}"
        raise HookFailed(0, f"error running {point} hook #{index}: {how}, "
                            f"stdout: , stderr: {text}")


def _become(path: bytes, argv: list[bytes], env: list[bytes], stdin: int, sink: int) -> None:
    try:
        from carrel.kernel import syscalls
        from carrel.runtime.child import handled_signals, reset_signals
        reset_signals(handled_signals())
        if stdin < 3 or sink < 3:
            os._exit(126)  # 0, 1 and 2 are always open in our programs
        os.dup2(stdin, 0)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        syscalls.close_range(3, 0xFFFFFFFF, syscalls.CLOSE_RANGE_CLOEXEC)
        syscalls.execve(path, argv, env)
    except OSError as error:
        os.write(2, f"exec {os.fsdecode(path)}: {(error.strerror or '').lower()}".encode())
    finally:
        os._exit(127)


def _converse(pid: int, pidfd: int, feed: int, output: int, state: bytes,
              timeout: int | None) -> tuple[int | None, str]:
    """Feed the state, collect the output, wait; (wait status or None, output)."""
    deadline = monotonic() + timeout if timeout else None
    try:
        os.write(feed, state)  # a pipe holds 64 KiB: a state is far below it
    except BrokenPipeError:
        pass  # a hook need not read
    finally:
        os.close(feed)
    collected = b""
    watch = poll()
    watch.register(pidfd, POLLIN)
    watch.register(output, POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
        events = watch.poll(left)
        if not events:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return None, ""
        ready = {fd for fd, _ in events}
        if output in ready:
            chunk = os.read(output, 4096)
            if chunk:
                collected = (collected + chunk)[:_OUTPUT_LIMIT]
                continue
            watch.unregister(output)
        if pidfd in ready:
            # what it started in the background may hold the pipe: not waited for
            _, status = os.waitpid(pid, 0)
            return status, collected.decode("utf-8", "replace").strip()
