"""What of ctypes is needed here, on the C module that ctypes itself stands on.

To import ctypes takes a millisecond, a twentieth of ``carrel-runtime run``: it brings
``types`` and ``struct``, byte orders, prototypes and Windows.  Its own classes may be given to
:mod:`carrel.kernel.libc` as well: a type is known by its code, not by its class.
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    Structure,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    get_errno,
    sizeof,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import c_char, c_char_p, c_int, c_long, c_uint, c_ulong, c_ushort, c_void_p
    from typing import Any
else:
    def _simple(name: str, code: str) -> type:
        return type(_SimpleCData)(name, (_SimpleCData,), {"_type_": code})

    c_char = _simple("c_char", "c")
    c_char_p = _simple("c_char_p", "z")
    c_int = _simple("c_int", "i")
    c_long = _simple("c_long", "l")
    c_uint = _simple("c_uint", "I")
    c_ulong = _simple("c_ulong", "L")
    c_ushort = _simple("c_ushort", "H")
    c_void_p = _simple("c_void_p", "P")

#: as on every 64-bit Linux
c_int32, c_uint32, c_uint64 = c_int, c_uint, c_ulong

__all__ = ["Library", "Structure", "addressof", "byref", "c_char", "c_char_p", "c_int", "c_int32",
           "c_long", "c_uint", "c_uint32", "c_uint64", "c_ulong", "c_ushort", "c_void_p",
           "get_errno", "sizeof"]


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = c_int


class Library:
    """What the program itself is linked with."""

    __slots__ = ("_handle",)

    def __init__(self, mode: int) -> None:
        self._handle = dlopen(None, mode)  # type: ignore[arg-type]

    def function(self, name: str, result: Any, *types: Any) -> Any:
        """A symbol with a prototype of its own; AttributeError where there is none."""
        found: Any = _Function((name, self))  # type: ignore[arg-type]
        found.argtypes = types
        found.restype = result
        return found
