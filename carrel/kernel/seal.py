"""Run the interpreter from a read-only mount that nobody else can reach.

A process that joins a container is for a moment visible to the container's
processes; one with CAP_SYS_PTRACE could keep a handle on ``/proc/<pid>/exe`` and
write to the host's Python once it no longer runs (CVE-2019-5736).  Started from a
detached, read-only clone of its own mount, the executable behind that link answers
EROFS for ever.  It costs one execve, so the zygote pays it once for all of its
children, and the command line only where a container has that capability.
"""

from __future__ import annotations

import os
import sys

from carrel.kernel import syscalls as k

ST_RDONLY = 1


def sealed() -> bool:
    """Does this process's executable lie on a read-only mount?"""
    return bool(os.statvfs("/proc/self/exe").f_flag & ST_RDONLY)


def ensure() -> None:
    """Return in a process that is sealed: this one, or after an execve the same again.

    Descriptors that are inheritable are there again; state in memory is not, so this
    comes first of all. Raises OSError where the kernel refuses (not root).
    """
    if sealed():
        return
    fd = k.open_tree(k.AT_FDCWD, os.readlink("/proc/self/exe"), k.OPEN_TREE_CLONE)
    k.mount_setattr(fd, 0, k.MOUNT_ATTR_RDONLY)
    environment = [os.fsencode(f"{name}={value}") for name, value in os.environ.items()]
    k.execveat(fd, "", [os.fsencode(word) for word in sys.orig_argv], environment,
               k.AT_EMPTY_PATH)
