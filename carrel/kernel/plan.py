"""Kernel operations as data.

A start is *planned* as a list of typed operations, which is pure, and then
*executed*, which is dumb.  An operation says what it will do
(:meth:`Operation.describe`), does it against a ``kernel`` object
(:meth:`Operation.execute`) and can take it back (:meth:`Operation.undo`).

The ``kernel`` passed in is the real one (modules of ``carrel.kernel``) or the
recording fake of the tests, which needs no root and can fail the N-th call.

>>> class Echo(Operation):
...     step = "example"
...     def describe(self): return "echo"
...     def execute(self, kernel): kernel.append("did")
...     def undo(self, kernel): kernel.append("undid")
>>> log = []
>>> run([Echo()], log).rollback(); log
['did', 'undid']
"""

from __future__ import annotations

from carrel.kernel import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Operation:
    """One thing done to the kernel. Subclasses are immutable once made."""

    __slots__ = ()

    #: which step of the story this serves, shown by ``--explain``
    step: str = ""

    def describe(self) -> str:
        """One line, lower case, as a person would say it."""
        raise NotImplementedError

    def execute(self, kernel: Any) -> None:
        """Do it. Raises OSError; must leave nothing behind when it raises."""
        raise NotImplementedError

    def undo(self, kernel: Any) -> None:
        """Take it back. Idempotent; "already gone" is success."""

    def shell(self) -> str | None:
        """The same as a line of POSIX shell, or None if there is none."""
        return None


class Done:
    """The operations that were executed, in order; owns their undo."""

    __slots__ = ("_kernel", "operations")

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.operations: list[Operation] = []

    def rollback(self) -> list[BaseException]:
        """Undo in reverse order; never raises; returns what went wrong."""
        errors: list[BaseException] = []
        while self.operations:
            operation = self.operations.pop()
            try:
                with record.step(f"undo {operation.step}"):
                    operation.undo(self._kernel)
            except Exception as error:
                error.add_note(f"while undoing: {operation.describe()}")
                errors.append(error)
        return errors


def run(operations: Iterable[Operation], kernel: Any, done: Done | None = None) -> Done:
    """Execute in order. On failure everything done is undone in reverse and
    the first error is raised, with the failures of the undo as its notes.

    ``done``: what went before, in another call; it is undone with the rest."""
    if done is None:
        done = Done(kernel)
    for operation in operations:
        try:
            with record.step(operation.step):
                operation.execute(kernel)
        except BaseException as error:
            error.add_note(f"while trying to: {operation.describe()}")
            for second in done.rollback():
                error.add_note(f"undo failed too: {second}")
            raise
        done.operations.append(operation)
    return done
