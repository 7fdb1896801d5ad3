"""The processes that make one shim's container after the other."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.shim import inprocess
from tests.shim.kit import Machine, RpcError, Shim, machine_in, wait_until, waiting

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def machine(leak_check: None) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="shim-") as folder, machine_in(Path(folder)) as made:
        wait_until(lambda: all(waiting(made.zygote.pid)))
        yield made


def _starters(machine: Machine) -> set[int]:
    return waiting(machine.zygote.pid)[1]


def _open(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _settled(starter: int) -> None:
    """It waits for its next request, with all that it keeps ready for that."""
    def waits() -> bool:
        with open(f"/proc/{starter}/wchan", encoding="ascii") as file:
            return "wait_for_more_packets" in file.read()
    wait_until(lambda: waits() and _zygote_s(starter))


def _zygote_s(starter: int) -> bool:
    """Is no shim's socket open? Of sockets it has that to the zygote and that to the daemon."""
    names = [os.readlink(f"/proc/{starter}/fd/{fd}") for fd in os.listdir(f"/proc/{starter}/fd")]
    return sum(name.startswith("socket") for name in names) == 2


def _life(machine: Machine, name: str, code: int = 0) -> None:
    shim = machine.start_shim(name, ["sh", "-c", f"exit {code}"])
    shim.create()
    shim.start()
    assert shim.wait() == code
    shim.delete()
    shim.shutdown()


def test_one_makes_many_and_keeps_nothing(machine: Machine) -> None:
    first = _starters(machine)
    starter, = first
    _life(machine, "warm")
    _settled(starter)
    before = _open(starter)
    for number in range(8):
        _life(machine, f"c{number}", number)
    assert _starters(machine) == first
    _settled(starter)
    assert _open(starter) == before
    with open(f"/proc/{starter}/task/{starter}/children", encoding="ascii") as file:
        assert file.read() == ""


def test_init_is_the_shim_s_child(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    pid = shim.create()
    shim.start()
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        assert int(file.read().rsplit(")", 1)[1].split()[1]) == shim.pid


def test_after_a_failure_there_is_another(machine: Machine) -> None:
    first = _starters(machine)
    shim = machine.start_shim("a", ["no-such-program"])
    with pytest.raises(RpcError, match="executable file not found"):
        shim.create()
    shim.shutdown()
    wait_until(lambda: len(_starters(machine)) == 1 and not _starters(machine) & first)
    _life(machine, "b", 3)


def test_one_that_was_killed_is_not_missed(machine: Machine) -> None:
    for pid in _starters(machine):
        os.kill(pid, signal.SIGKILL)
    _life(machine, "a", 4)


def test_as_many_as_are_at_work_and_then_one(machine: Machine) -> None:
    shims: list[Shim] = []
    for number in range(3):
        shims.append(machine.start_shim(f"s{number}", ["true"]))
        shims[-1].create()
    assert len(_starters(machine)) == 3  # each waits for a start
    for shim in shims:
        shim.start()
        assert shim.wait() == 0
    wait_until(lambda: len(_starters(machine)) == 1, seconds=10)


def test_one_is_not_held_for_a_start_that_does_not_come(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sh", "-c", "exit 6"])
    shim.create()
    _life(machine, "other")
    assert len(_starters(machine)) == 2
    wait_until(lambda: len(_starters(machine)) == 1, seconds=3 * inprocess.CREATED_SECONDS + 5)
    shim.start()  # by the shim itself
    assert shim.wait() == 6


def test_killed_between_create_and_start(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sh", "-c", "exit 7"])
    shim.create()
    for pid in _starters(machine):
        os.kill(pid, signal.SIGKILL)
    shim.start()
    assert shim.wait() == 7


def test_they_end_with_the_zygote(machine: Machine) -> None:
    shim = machine.start_shim("a", ["sleep", "100"])
    shim.create()
    shim.start()
    all_of_them = set().union(*waiting(machine.zygote.pid))
    machine.zygote.control.close()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in all_of_them))
    shim.reconnect()
    shim.kill()
    assert shim.wait() == 137
