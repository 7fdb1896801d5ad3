"""What libraries import and no daemon of ours uses, left out of memory.

:func:`protobuf` and :func:`msgspec` come before the first import of the library.
"""

from __future__ import annotations

import importlib.util
import sys


def later(name: str) -> None:
    """``name`` can be imported, and is loaded when one of its attributes is asked for."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None or name in sys.modules:
        return
    spec.loader = loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    # "from package import name" asks the package first, and a look into the module would load it
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)


def without(name: str, library: str) -> None:
    """Import a library as if ``name``, which it can do without, were not installed."""
    if name in sys.modules or library in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        importlib.import_module(library)
    finally:
        del sys.modules[name]


def protobuf() -> None:
    """It imports the message classes of its pure Python implementation beside those in C: a
    megabyte, which is loaded when something touches it, so never."""
    later("google.protobuf.internal.python_message")


def msgspec() -> None:
    """It takes from ``typing_extensions``, where that is installed, what ``typing`` has too."""
    without("typing_extensions", "msgspec._utils")
