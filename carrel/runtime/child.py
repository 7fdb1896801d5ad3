"""The life of a container's process between clone and execve.

The order is that of docs/ARCHITECTURE.md: descriptors closed, not dumpable,
cgroup, namespaces, private procfs, mounts by descriptor, pivot_root, then the
process's own rights, the wait for ``start``, the filter, execve.  A filter that
allows all that follows is installed before the wait.

Nothing here may import, open a file of the container by a library, or let an
exception out: this process has the heap of its parent and must end in
``execve`` or ``_exit``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py needs enum: 3 ms of import
import gc
import os
import sys
from errno import EACCES, EISDIR, ENOENT, ENOEXEC, ENOTDIR

from carrel.kernel import record, syscalls
from carrel.kernel.plan import Operation
from carrel.runtime.childrecord import ChildRecord, write_to
from carrel.runtime.report import Report, pack_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from carrel.kernel.seccomp import Filter
    from carrel.runtime.view import View

#: what an execve may answer -> what a shell would
EXIT_FAILED = 1


class Child:
    """Everything the child needs, made by the parent before the clone."""

    __slots__ = ("after_go", "argv", "awaits_request", "before", "born_in_cgroup", "cgroup",
                 "clone_again", "early", "env", "fifo_fd", "filter", "filtered", "filters_early",
                 "final_rights", "joins", "joins_late", "keep_fds", "kernel", "listener",
                 "preserve_fds", "signals", "stdio", "terminal", "unshare_flags", "view",
                 "wait_for_maps")

    def __init__(self, view: View, kernel: Any) -> None:
        self.view = view
        self.kernel = kernel
        self.early: list[Operation] = []       # before namespaces are joined
        self.before: list[Operation] = []      # up to the wait for start
        self.after_go: list[Operation] = []    # between start and execve
        self.filtered: list[Operation] = []    # under the seccomp filter: startContainer hooks
        self.argv: list[bytes] = []
        self.env: list[bytes] = []
        self.stdio: tuple[int, int, int] | None = None
        self.terminal = False
        self.cgroup: Any = None
        self.born_in_cgroup = False            # the v2 one, by clone3
        self.awaits_request = False            # by an operation of ``before``: AwaitRequest
        self.joins_late = False                # by an operation of ``before``: JoinCgroups
        self.joins: list[tuple[int, int, str]] = []
        self.unshare_flags = 0
        self.clone_again = 0
        self.fifo_fd = -1
        self.keep_fds: list[int] = []
        self.preserve_fds = 0
        self.wait_for_maps = False
        self.signals = handled_signals()
        self.filter: Filter | None = None
        self.filters_early = False             # while start is on its way, and not after it
        self.final_rights: Any = None          # an operation under the filter
        self.listener: Filter | None = None    # instead, where the filter asks an agent


    @property
    def clone_fd(self) -> int:
        """The cgroup that it can be born into, or -1."""
        return getattr(self.cgroup, "clone_fd", -1)


def run(child: Child, report: Report) -> NoReturn:
    """Become the container's process. Never returns, never raises."""
    fifo = -1
    told = False
    current: Operation | None = None
    record.current_step = "child"
    rows = ChildRecord()
    try:
        gc.disable()
        child.view.report = report
        _prepare(child, report)
        for operation in child.before:
            current = operation
            record.current_step = operation.step
            operation.execute(child.kernel)
        current = None
        record.current_step = "exec"
        path = find_program(child)
        if child.listener is not None:
            record.current_step = "seccomp"
            _install_listener(child.listener, report)
        if child.fifo_fd >= 0:
            close_all_but(child.kernel, [report.fd, child.fifo_fd, child.view.proc_fd],
                          child.preserve_fds)
            _die_of_signals()
            for packet in rows.packets():
                report.send(packet)
            report.send(b"R")
            told = True
            if child.filters_early:
                _install_filter(child)
            fifo = _wait_for_start(child)
        for operation in child.after_go:
            current = operation
            record.current_step = operation.step
            operation.execute(child.kernel)
        current = None
        _last_steps(child)
        for operation in child.filtered:
            current = operation
            record.current_step = operation.step
            operation.execute(child.kernel)
        record.current_step = "exec"
        _send_rows(rows, fifo, report)
        current = Execute(path)
        current.execute_with(child)
    except BaseException as error:
        try:
            packet = pack_error(error, record.current_step, current)
            if told and fifo < 0:
                fifo = _wait_for_start(child)  # nobody listens to the report any more
            if fifo >= 0:
                os.write(fifo, packet)
            else:
                report.socket.send(packet)
        except BaseException:
            pass  # nobody listens any more: the exit status is all there is
    os._exit(EXIT_FAILED)


class Execute(Operation):
    """The last step."""

    __slots__ = ("path",)
    step = "exec"

    def __init__(self, path: bytes) -> None:
        self.path = path

    def describe(self) -> str:
        return f"exec {os.fsdecode(self.path)}"

    def execute_with(self, child: Child) -> None:
        try:
            child.kernel.execve(self.path, child.argv, child.env)
        except OSError as error:
            error.filename = None
            raise


def _prepare(child: Child, report: Report) -> None:
    kernel, view = child.kernel, child.view
    reset_signals(child.signals)
    if not child.awaits_request:
        place_stdio(child)
    record.current_step = "descriptors"
    close_all_but(kernel, [report.fd, view.null_fd, child.fifo_fd, *child.keep_fds,
                           *(fd for fd, _, _ in child.joins)],
                  child.preserve_fds)
    kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)
    sys.path.clear()
    sys.meta_path.clear()  # an import from here on is an error, not a file of the container
    if child.wait_for_maps:
        record.current_step = "user namespace"
        report.ask(b"M")
        become_root(kernel)
    if child.cgroup is not None and not child.joins_late:
        record.current_step = "cgroup"
        child.cgroup.join_self(child.born_in_cgroup)
    for operation in child.early:
        record.current_step = operation.step
        operation.execute(kernel)
    record.current_step = "namespaces"
    for fd, kinds, _ in child.joins:
        kernel.setns(fd, kinds)
        if kinds & syscalls.CLONE_NEWUSER:
            become_root(kernel)
    if child.unshare_flags and not child.joins_late:
        kernel.unshare(child.unshare_flags)
    if child.clone_again:
        pid, _ = kernel.clone(syscalls.CLONE_PARENT | child.clone_again)
        if pid:
            report.send(b"P%d" % pid)
            os._exit(0)


def become_root(kernel: Any) -> None:
    """In a user namespace that was just entered; the change of ids makes the
    process dumpable again, so that is taken back at once."""
    kernel.setresgid(0)
    kernel.setresuid(0)
    kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)


def handled_signals() -> list[int]:
    """Those that are not as a new program expects them."""
    return [number for number in range(1, 65) if number not in (9, 19)
            and _signal.getsignal(number) not in (_signal.SIG_DFL, None)]


def reset_signals(handled: list[int]) -> None:
    """Python ignores SIGPIPE and SIGXFSZ and handles SIGINT; posix_spawn(3) leaves the two
    signals that glibc uses itself ignored.  A payload must not inherit any of it."""
    for number in handled:
        _signal.signal(number, _signal.SIG_DFL)
    for number in (32, 33):
        syscalls.rt_sigaction_default(number)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def _send_rows(rows: ChildRecord, fifo: int, report: Report) -> None:
    if record.active is None:
        return
    if fifo >= 0:
        write_to(fifo, rows.packets())
        return
    for packet in rows.packets():
        report.send(packet)


def _die_of_signals() -> None:
    """Process 1 of a pid namespace does not die of a signal that it has no handler
    for, and a container that was created can be told to end. execve resets them."""
    for number in (1, 2, 3, 10, 12, 14, 15):
        _signal.signal(number, _exit_by_signal)


def _exit_by_signal(number: int, frame: object) -> None:
    os._exit(128 + number)


def place_stdio(child: Child) -> None:
    """The three streams on 0, 1, 2. With a terminal, /dev/null until it is there."""
    null = child.view.null_fd
    if child.terminal:
        wanted = [null, null, null]
    elif child.stdio is None:
        wanted = [0, 1, 2]
    else:
        wanted = [null if fd < 0 else fd for fd in child.stdio]
    if wanted == [0, 1, 2]:
        for fd in (0, 1, 2):
            try:
                os.set_inheritable(fd, True)
            except OSError:
                os.dup2(null, fd)
        return
    # through copies above 2, so that none is overwritten before it is used
    copies = [_duplicate(fd) if fd < 3 else fd for fd in wanted]
    for number, fd in enumerate(copies):
        os.dup2(fd, number)


def _duplicate(fd: int) -> int:
    from fcntl import F_DUPFD_CLOEXEC, fcntl
    return fcntl(fd, F_DUPFD_CLOEXEC, 3)


def close_all_but(kernel: Any, keep: list[int], preserve: int) -> None:
    """One close_range per gap: nothing of the parent stays open."""
    first = 3 + preserve
    for fd in sorted({fd for fd in keep if fd >= first}):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = fd + 1
    kernel.close_range(first, 0xFFFFFFFF)


def _install_listener(listener: Filter, report: Report) -> None:
    """A filter that asks an agent is installed while the parent is still there to
    hand the agent its descriptor: it takes it from us by number, because from here
    on any call but write may hang until the agent answers."""
    fd = listener.install()
    os.write(report.fd, b"N%d" % fd)
    if os.read(report.fd, 16)[:1] != b"G":
        os._exit(EXIT_FAILED)
    os.close(fd)


def _wait_for_start(child: Child) -> int:
    """Open the fifo for writing, which waits for the reader that ``start`` is."""
    fifo = os.open(f"{os.getpid()}/fd/{child.fifo_fd}", os.O_WRONLY | os.O_CLOEXEC,
                   dir_fd=child.view.proc_fd)
    os.write(fifo, b"0")
    return fifo


def _last_steps(child: Child) -> None:
    # Whatever an operation left open is gone with execve; 0, 1, 2 and what the
    # caller wants preserved stay.
    child.kernel.close_range(3 + child.preserve_fds, 0xFFFFFFFF, syscalls.CLOSE_RANGE_CLOEXEC)
    for fd in range(3, 3 + child.preserve_fds):
        os.set_inheritable(fd, True)
    _install_filter(child)
    if child.final_rights is not None:
        child.final_rights.execute(child.kernel)


def _install_filter(child: Child) -> None:
    """If there is one; once, since then there is none any more."""
    if child.filter is not None:
        record.current_step = "seccomp"
        child.filter.install()
        child.filter = None


def find_program(child: Child) -> bytes:
    """The file to execute, as execvp finds it in the container's PATH.

    Never the interpreter that runs us: an image that names ``/proc/self/exe``
    would get a handle on the host's binary (CVE-2019-5736).
    """
    name = child.argv[0]
    if b"/" in name:
        _check_program(name, name)
        return name
    denied = False
    for directory in _search_path(child.env):
        candidate = (directory or b".") + b"/" + name
        try:
            _check_program(candidate, name)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, EISDIR):
                continue
            if error.errno == EACCES:
                denied = True
                continue
            raise
        return candidate
    if denied:
        raise OSError(EACCES, f'exec: "{os.fsdecode(name)}": permission denied')
    raise OSError(ENOENT, f'exec: "{os.fsdecode(name)}": executable file not found in $PATH')


def _search_path(env: list[bytes]) -> list[bytes]:
    for entry in env:
        if entry.startswith(b"PATH="):
            return entry[5:].split(b":")
    return []


def _check_program(path: bytes, name: bytes) -> None:
    shown = os.fsdecode(name)
    try:
        found = os.stat(path)
    except OSError as error:
        number = error.errno or ENOENT
        raise OSError(number, f'exec: "{shown}": stat {shown}: '
                              f"{os.strerror(number).lower()}") from None
    if found.st_mode & 0o170000 == 0o040000:
        raise OSError(EISDIR, f'exec: "{shown}": is a directory')
    if not found.st_mode & 0o111:
        raise OSError(EACCES, f'exec: "{shown}": permission denied')
    if (found.st_dev, found.st_ino) == interpreter():
        raise OSError(ENOEXEC, f'exec: "{shown}": refused: it is the runtime itself')


_interpreter: tuple[int, int] | None = None


def interpreter() -> tuple[int, int]:
    """(device, inode) of our own executable; asked ahead, on the host."""
    global _interpreter
    if _interpreter is None:
        found = os.stat("/proc/self/exe")
        _interpreter = (found.st_dev, found.st_ino)
    return _interpreter
