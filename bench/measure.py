"""Paired timings of whole commands: A B A B ..., medians and their ratio."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

IDLE = 0.05  # seconds between two commands: what a person's command meets


def spawn(argv: list[str], environment: dict[str, str]) -> float:
    """Run a command with its output thrown away; wall seconds; it must succeed."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    begin = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=[
        (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)])
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - begin
    os.close(null)
    if status:
        raise RuntimeError(f"{' '.join(argv)}: exit {os.waitstatus_to_exitcode(status)}")
    return seconds


@dataclass
class Row:
    """One line of the table; values in the unit named, lower is better."""

    work: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("nan")

    def markdown(self) -> str:
        goal = f"{self.goal:g}x" if self.goal is not None else ""
        return (f"| {self.work} | {self.ours:.1f} {self.unit} | {self.peer:.1f} {self.unit} "
                f"({self.peer_name}) | **{self.ratio:.2f}x** | {goal} |")


def paired(work: str, ours: Callable[[], float], peer: Callable[[], float], peer_name: str,
           runs: int, goal: float | None = None, warmup: int = 2) -> Row:
    """Time both in turn (each callable returns its own seconds); medians in ms."""
    for _ in range(warmup):
        ours()
        peer()
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(runs):
        for sample, into in ((ours, mine), (peer, theirs)):
            time.sleep(IDLE)
            into.append(sample() * 1000)
    return Row(work, "ms", statistics.median(mine), statistics.median(theirs), peer_name, goal)
