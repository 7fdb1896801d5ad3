"""The runtime, in process: what the shim and the command line call.

    c = create(id, bundle, root, ...)      the process exists and waits
    c.start()                              it executes
    c.exec(...)  c.kill(...)  c.delete()

The caller must be single-threaded, and is the parent of the container's
process: it has to reap it.
"""

from __future__ import annotations

from carrel.runtime.container import Container, Process, load, state
from carrel.runtime.create import create
from carrel.runtime.errors import message

__all__ = ["Container", "Process", "create", "load", "message", "state"]
