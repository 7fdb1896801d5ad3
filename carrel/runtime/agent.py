"""The seccomp agent: who answers for the system calls of SCMP_ACT_NOTIFY."""

from __future__ import annotations

import os

from carrel.errdefs import InvalidParameter
from carrel.kernel import syscalls, terminal
from carrel.oci import json, runtime_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from typing import Any

    Spec = dict[str, Any]


def check(filter_spec: Spec) -> None:
    """Refuse what would hang or could never be answered."""
    if not filter_spec.get("listenerPath"):
        raise InvalidParameter("seccomp: listenerPath must be set where SCMP_ACT_NOTIFY is used")


def hand_over(filter_spec: Spec, pidfd: int, number: int, pid: int, state: Spec) -> None:
    """Take descriptor ``number`` of the process and send it to the agent, with the
    state document of the specification."""
    path = filter_spec["listenerPath"]
    listener = syscalls.pidfd_getfd(pidfd, number)
    try:
        socket = _connect(path)
        try:
            document = {"ociVersion": runtime_spec.VERSION, "fds": ["seccompFd"], "pid": pid,
                        "metadata": filter_spec.get("listenerMetadata") or "", "state": state}
            terminal.send_descriptors(socket, json.dumps(document).encode(), [listener])
        finally:
            socket.close()
    finally:
        os.close(listener)


def _connect(path: str) -> Socket:
    try:
        return terminal.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise OSError(error.errno, "failed to connect with seccomp agent specified in the "
                                   f"seccomp profile: {path}: {reason}") from None
