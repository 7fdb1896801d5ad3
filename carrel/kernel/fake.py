"""Kernels for tests.

``FakeKernel`` has every name of ``syscalls``, touches nothing, records what was
called and can fail the N-th call: the same plans run on it without root.

``FailingKernel`` is the real one until its N-th call, which fails: what a start
leaves behind when any one step of it goes wrong.
"""

from __future__ import annotations

import os
from stat import S_IFDIR

from carrel.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: calls whose result is a new descriptor
_DESCRIPTORS = frozenset(("open_tree", "fsopen", "fsmount", "openat", "openat2", "find2",
                          "pidfd_open", "pidfd_getfd"))
#: calls that only give back or look
_PLAIN = frozenset(("close", "fstat", "lstatat", "fstatfs_type", "getcwd"))


class FakeKernel:
    """Records ``(name, args)``; ``missing`` are paths that openat2 does not find;
    ``stats`` answers fstat by the path that the descriptor was opened with."""

    def __init__(self, fail_at: int = 0, error: int = 5, missing: tuple[str, ...] = (),
                 stats: dict[str, tuple[int, int]] | None = None) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.fail_at = fail_at
        self.error = error
        self.missing = missing
        #: path -> (mode, device number)
        self.stats = {"/dev/null": (0o020666, os.makedev(1, 3)),
                      "ptmx": (0o020666, os.makedev(5, 2)), **(stats or {})}
        self.open: dict[int, str] = {}
        self._next = 1000

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not callable(getattr(syscalls, name, None)):
            raise AttributeError(f"there is no system call {name}")

        def call(*args: Any, **named: Any) -> Any:
            return self._call(name, (*args, *named.values()))
        return call

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        self.calls.append((name, args))
        if name not in _PLAIN and self.fail_at:
            self.fail_at -= 1
            if not self.fail_at:
                raise OSError(self.error, os.strerror(self.error))
        if name in _DESCRIPTORS:
            return self._opened(name, args)
        if name == "close":
            if self.open.pop(args[0], None) is None:
                raise OSError(9, f"descriptor {args[0]} is not open")
            return None
        if name in ("fstat", "lstatat"):
            return self._stat(str(args[1]) if name == "lstatat" else self.open[args[0]])
        if name == "fstatfs_type":  # what has no name was made by fsmount
            return 0 if self.open.get(args[0]) else syscalls.PROC_SUPER_MAGIC
        answers = {"getcwd": "/", "clone": (4242, 4243),
                   "ioctl": 0, "write": len(args[1]) if len(args) > 1 and isinstance(
                       args[1], bytes) else 0}
        return answers.get(name)

    def _opened(self, name: str, args: tuple[Any, ...]) -> int:
        path = next((a for a in args if isinstance(a, str)), "")
        missing = any(path.strip("/") == m.strip("/") for m in self.missing)
        if name == "find2" and missing:
            return -1
        if name == "openat2" and missing:
            raise FileNotFoundError(2, "No such file or directory", path)
        self._next += 1
        self.open[self._next] = path
        return self._next

    def _stat(self, path: str) -> os.stat_result:
        mode, device = self.stats.get(path, (S_IFDIR | 0o755, 0))
        # the seventh and later fields of stat_result by name are not settable from a
        # plain tuple; st_rdev is the thirteenth of the full form
        fields = [mode, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 4096, 0, device]
        return os.stat_result(fields)


class FailingKernel:
    """The real kernel; its ``fail_at``-th call fails. Counts on in the child,
    which gets a copy. 0 only counts."""

    def __init__(self, fail_at: int, error: int = 5) -> None:
        self.fail_at = fail_at
        self.error = error
        self.count = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real: Callable[..., Any] = getattr(syscalls, name)

        def call(*args: Any, **named: Any) -> Any:
            if name not in _PLAIN:
                self.count += 1
                if self.count == self.fail_at:
                    raise OSError(self.error, os.strerror(self.error))
            return real(*args, **named)
        return call
