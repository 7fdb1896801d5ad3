"""What ``ps`` shows of a process that was forked and not executed."""

from __future__ import annotations

import ctypes
import os

from carrel.kernel import syscalls

_PR_SET_NAME = 15
#: fields of /proc/<pid>/stat, counted from the one after the name
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 45, 46, 47, 48


def set_command_line(words: list[str]) -> None:
    """``/proc/self/cmdline`` and ``comm``.

    The kernel reads the command line where it was put when the program began, with the
    environment behind it; no privilege is needed to write there. What the environment held
    must not be in use any more (``os.environ`` was cleared). What does not fit is cut off.
    """
    name = ctypes.create_string_buffer(os.fsencode(os.path.basename(words[0]))[:15])
    syscalls.prctl(_PR_SET_NAME, ctypes.addressof(name))
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end, env_begin, env_end = (int(fields[n]) for n in (
        _ARG_START, _ARG_END, _ENV_START, _ENV_END))
    size, room = end - begin, (env_end if env_begin == end else end) - begin
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    if len(text) > size:
        # a last byte that is not NUL tells the kernel to read on into the environment,
        # to the first NUL
        text = text[:-1].replace(b"\0", b" ")[:room - 1]
    ctypes.memset(begin, 0, room)
    ctypes.memmove(begin, text, len(text))
