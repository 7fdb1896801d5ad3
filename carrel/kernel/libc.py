"""One gate to libc: prototypes, errno, EINTR, range checks, the record.

Rules (they hold for every module in ``carrel.kernel``):

* a prototype is declared once, at import, by :func:`function`; ``argtypes``
  are never changed afterwards;
* every integer argument is range-checked before the call, because ctypes
  masks silently (``setuid(2**32)`` would be ``setuid(0)``);
* an error is a plain :class:`OSError` with the errno, the file name(s) where
  there are any, and a note that holds the call with its arguments;
* EINTR is retried here: PEP 475 does not cover ctypes;
* every symbol is resolved at import (``RTLD_NOW``), so nothing is looked up
  after a change of root.
"""

from __future__ import annotations

import os
from errno import EINTR
from time import monotonic_ns

from carrel.kernel import record
from carrel.kernel.cdata import Library, c_int, c_long, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_libc = Library(os.RTLD_NOW | os.RTLD_GLOBAL)

#: by the type's code: int, unsigned, long, unsigned long; a pointer has none
_RANGES: dict[str, tuple[int, int]] = {
    "i": (-(1 << 31), (1 << 31) - 1),
    "I": (0, (1 << 32) - 1),
    "l": (-(1 << 63), (1 << 63) - 1),
    "L": (0, (1 << 64) - 1),
}


class Function:
    """A bound libc function (or a raw syscall) with its declared prototype."""

    __slots__ = ("_checks", "_prefix", "c", "name")

    def __init__(self, name: str, c: Any, types: tuple[Any, ...],
                 prefix: tuple[int, ...] = ()) -> None:
        self.name = name
        self.c = c
        self._prefix = prefix
        self._checks = tuple(_RANGES.get(t._type_) for t in types)

    def __call__(self, *args: Any, paths: tuple[object, ...] = ()) -> int:
        """Call; return the non-negative result; raise OSError otherwise.

        ``paths``: the file names (at most two) that an error should carry.
        """
        if len(args) != len(self._checks):
            raise TypeError(f"{self.name}: {len(self._checks)} arguments, not {len(args)}")
        for value, limits in zip(args, self._checks):
            if limits is not None and not limits[0] <= value <= limits[1]:
                raise OverflowError(f"{self.name}: {value} is out of range")
        recorder = record.active
        begin = monotonic_ns() if recorder is not None else 0
        while True:
            result: int = self.c(*self._prefix, *args)
            if result >= 0:
                if recorder is not None:
                    recorder.add((record.current_step, self.name, args, result, 0, begin,
                                  monotonic_ns() - begin))
                return result
            number = get_errno()
            if number != EINTR:
                break
        if recorder is not None:
            recorder.add((record.current_step, self.name, args, None, number, begin,
                          monotonic_ns() - begin))
        fail(number, self.name, args, paths)

    def attempt(self, expected: tuple[int, ...], *args: Any, paths: tuple[object, ...] = ()
                ) -> int:
        """Like a call, but -1 for the errnos that are ``expected``: an exception takes
        longer to make than most system calls."""
        for value, limits in zip(args, self._checks):
            if limits is not None and not limits[0] <= value <= limits[1]:
                raise OverflowError(f"{self.name}: {value} is out of range")
        recorder = record.active
        begin = monotonic_ns() if recorder is not None else 0
        result: int = self.c(*self._prefix, *args)
        number = 0 if result >= 0 else get_errno()
        if number and number not in expected:
            return self(*args, paths=paths)  # again, for its error
        if recorder is not None:
            recorder.add((record.current_step, self.name, args, None if number else result,
                          number, begin, monotonic_ns() - begin))
        return result


def fail(number: int, call: str, args: tuple[object, ...] = (),
         paths: tuple[object, ...] = ()) -> NoReturn:
    """Raise the one shape of kernel error that Carrel uses."""
    text = os.strerror(number)
    names = [os.fsdecode(p) if isinstance(p, bytes) else p for p in paths]
    if len(names) > 1:
        error = OSError(number, text, names[0], None, names[1])
    elif names:
        error = OSError(number, text, names[0])
    else:
        error = OSError(number, text)
    error.add_note(f"{call}({', '.join(_printable(a) for a in args)})")
    raise error


def _printable(value: object) -> str:
    if isinstance(value, bytes):
        return repr(os.fsdecode(value))
    return repr(value) if isinstance(value, (str, int)) or value is None else "&..."


def function(name: str, *types: Any) -> Function:
    """Declare the prototype of a libc function returning int or long."""
    result = c_long if any(t._type_ in "lL" for t in types) else c_int
    return Function(name, _libc.function(name, result, *types), types)


def syscall(name: str, number: int, *types: Any) -> Function:
    """Declare a raw syscall that libc may not export (openat2, clone3...).

    Arguments are widened to ``long`` before the variadic ``syscall(2)``.
    """
    wide = tuple(c_long if t._type_ in _RANGES else t for t in types)
    return Function(name, _libc.function("syscall", c_long, c_long, *wide), types, (number,))


def optional(name: str, *types: Any) -> Function | None:
    """Like :func:`function`, but None where this libc lacks the symbol."""
    try:
        return function(name, *types)
    except AttributeError:
        return None


def encode(path: str | bytes | os.PathLike[str]) -> bytes:
    """File-system bytes of a path; a NUL byte is refused by name."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"path contains a NUL byte: {path!r}")
    return raw


def quietly(operation: Callable[..., object], *args: object, ignore: tuple[int, ...]) -> bool:
    """Run an undo; tolerate exactly the errnos in ``ignore``; True if it ran clean."""
    try:
        operation(*args)
    except OSError as error:
        if error.errno not in ignore:
            raise
        return False
    return True
