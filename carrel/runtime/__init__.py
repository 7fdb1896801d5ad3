"""The OCI runtime: from a bundle to a process.

``api`` is for callers in the same process (the shim), ``main`` is the command
line.  ``create`` plans and starts, ``child`` is the life of the new process up to
execve, ``enter`` is exec.
"""

from __future__ import annotations


def warm() -> None:
    """Import all that a start or an exec can need, and ask the kernel ahead what
    does not change.  The zygote calls this before it freezes its heap: nothing
    can be imported after the change of root, and nothing need be before it."""
    import resource  # noqa: F401

    from carrel.kernel import capability, cgroup, seccomp  # noqa: F401
    from carrel.runtime import (  # noqa: F401
        agent,
        api,
        cgroupfs,
        child,
        copyup,
        enter,
        hooks,
        inside,
        sources,
    )

    capability.last()
    child.interpreter()
    inside.kcore_exists()
    cgroup.layout()
