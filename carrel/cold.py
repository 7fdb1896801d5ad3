"""How a short program imports: from one file, where Python reads fifty.

To find and read a module costs Python's import system ten system calls and 100 us, which is
a fifth of a whole ``carrel-runtime run``.  ``carrel.coldbuild`` (called by scripts/programs)
puts the compiled modules of each short program into one archive.  A module is taken from
there only while its source has the time and size that it had then, as with a .pyc; without
an archive, or with one of another Python, everything is imported as usual.

    4 bytes   the interpreter's magic number
    4 bytes   length of the index
    index     marshal: {module: (source, mtime_ns, size, package folder, begin, end)}; begin
              and end of the group of modules it is in, -1 for an extension module
    groups    marshal: {module: code}

This module itself is looked for, so it does without ``__future__``, which would be, too.
"""

import gc
import io
import marshal
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader
from posix import _exit, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

    Entry = tuple[str, int, int, str, int, int]

HEAD = 8
#: a file that a power failure left without its contents
_DAMAGED = (EOFError, TypeError, ValueError)


class Archive:
    """A finder and loader for ``sys.meta_path``."""

    __slots__ = ("_codes", "_data", "_index")

    def __init__(self, index: "dict[str, Entry]", data: memoryview) -> None:
        self._index = index
        self._data = data
        self._codes: dict[str, CodeType] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        entry = self._index.get(name)
        if entry is None:
            return None
        source, mtime_ns, size, folder, begin, end = entry
        try:
            found = stat(source)
        except OSError:
            return None
        if found.st_mtime_ns != mtime_ns or found.st_size != size:
            return None
        if begin < 0:
            return ModuleSpec(name, ExtensionFileLoader(name, source), origin=source)
        if name not in self._codes:
            try:
                self._codes.update(marshal.loads(self._data[begin:end]))
            except _DAMAGED:
                self.empty()
                return None
        spec = ModuleSpec(name, self, origin=source)  # type: ignore[arg-type]
        if folder:
            spec.submodule_search_locations = [folder]
        return spec

    def empty(self) -> None:
        self._index, self._data, self._codes = {}, memoryview(b""), {}

    def create_module(self, spec: "Any") -> None:
        """The default kind of module."""

    def exec_module(self, module: "ModuleType") -> None:
        module.__file__ = module.__spec__.origin  # type: ignore[union-attr]
        exec(self._codes.pop(module.__name__), module.__dict__)  # noqa: S102


def use(path: str) -> None:
    """Import from the archive ``path`` where it can serve.

    The garbage collector is off from here on: importing makes much that stays.  A program
    that does not end soon turns it on again, and lets go of the archive (:func:`leave`).
    """
    gc.disable()
    try:
        data = memoryview(io.FileIO(path).readall() or b"")
        if data[:4] != MAGIC_NUMBER:
            return
        groups = HEAD + int.from_bytes(data[4:HEAD], "little")
        index = marshal.loads(data[HEAD:groups])
    except (OSError, *_DAMAGED):
        return
    sys.meta_path.insert(0, Archive(index, data[groups:]))


def leave() -> None:
    """What is imported from here on is looked for as usual; the archive's memory is free."""
    for finder in list(sys.meta_path):
        if isinstance(finder, Archive):  # its modules name it as their loader
            sys.meta_path.remove(finder)
            finder.empty()
    gc.enable()


def end(status: int, tell: "Callable[[OSError], None]") -> "NoReturn":
    """The end of a short program: to leave the interpreter in order takes 4 ms, a sixth of a
    whole ``carrel-runtime run``.  ``tell``: output that could not be written, where nothing
    else failed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        if status == 0:  # or it has been told
            tell(error)
            status = 1
    _exit(status)
