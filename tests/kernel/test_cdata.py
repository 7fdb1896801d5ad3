"""The small ctypes: the same types as ctypes has, prototypes that do not leak into another."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from carrel.kernel import cdata
from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["c_char", "c_char_p", "c_int", "c_int32", "c_long", "c_uint",
                                  "c_uint32", "c_uint64", "c_ulong", "c_ushort", "c_void_p"])
def test_types_are_those_of_ctypes(name: str) -> None:
    ours, theirs = getattr(cdata, name), getattr(ctypes, name)
    assert (cdata.sizeof(ours), ours._type_) == (ctypes.sizeof(theirs), theirs._type_)


def test_a_symbol_that_is_missing_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_function"):
        cdata.Library(os.RTLD_NOW).function("no_such_function", cdata.c_int)


def test_each_function_has_its_own_prototype_and_errno() -> None:
    library = cdata.Library(os.RTLD_NOW)
    one = library.function("syscall", cdata.c_long, cdata.c_long)
    two = library.function("syscall", cdata.c_long, cdata.c_long, cdata.c_int, cdata.c_char_p)
    with pytest.raises(ctypes.ArgumentError):
        one("not a number")
    assert two(-1, 0, b"") == -1
    assert cdata.get_errno() == 38  # ENOSYS, of this thread's last call


def test_a_structure_is_laid_out_as_in_ctypes() -> None:
    fields = [("a", "c_uint32"), ("b", "c_uint64"), ("c", "c_ushort"), ("d", "c_void_p")]

    class Ours(cdata.Structure):
        _fields_ = [(n, getattr(cdata, t)) for n, t in fields]

    class Theirs(ctypes.Structure):
        _fields_ = [(n, getattr(ctypes, t)) for n, t in fields]

    assert bytes(Ours(1, 2, 3, 4)) == bytes(Theirs(1, 2, 3, 4))


def test_the_runtime_does_without_ctypes() -> None:
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
         "from carrel import runtime; runtime.warm(); print('ctypes' in sys.modules)"],
        capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
