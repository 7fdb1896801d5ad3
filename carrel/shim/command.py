"""Another OCI runtime by its command line: runc, crun, runsc, carrel-runtime."""

from __future__ import annotations

import errno
import os

from carrel.errdefs import InvalidParameter, NotFound, NotImplementedYet, SystemFailure
from carrel.oci import json
from carrel.shim import metrics, rootfs
from carrel.shim.driver import Driver, Made
from carrel.shim.sockets import receive_descriptors, unix
from carrel.shim.stdio import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.shim.loop import Work
    from carrel.shim.reaper import Reaper
    from carrel.shim.wire import Message

#: where containerd's runc shim keeps its containers, so that its tools find ours
DEFAULT_ROOT = "/run/containerd/runc"
_FINISHED = ("process already finished", "container not running", "no such process",
             "process not running", "not running")


class Command(Driver):
    """Runs ``BINARY --root ROOT --log LOG --log-format json COMMAND ...``."""

    def __init__(self, reaper: Reaper, binary: str, root: str, container: str, bundle: str,
                 systemd_cgroup: bool = False, no_pivot: bool = False) -> None:
        self._reaper = reaper
        self._binary = find_program(binary)
        self._root = root
        self._id = container
        self._bundle = bundle
        self._systemd_cgroup = systemd_cgroup
        self._no_pivot = no_pivot
        self._log = os.path.join(bundle, "log.json")
        self._mounted = False
        self._counter = 0
        self._init = 0
        self._shares_pids = _shares_pids(bundle)

    # -- the driver's methods ---------------------------------------------

    def create(self, mounts: list[Message], terminal: bool,
               child: tuple[int, int, int] | None) -> Work:
        target = os.path.join(self._bundle, "rootfs")
        self._mounted = rootfs.mount_all(mounts, target) > 0
        pid_file = os.path.join(self._bundle, "init.pid")
        arguments = ["create", "--bundle", self._bundle, "--pid-file", pid_file]
        if self._no_pivot:
            arguments.append("--no-pivot")
        try:
            made = yield from self._make("create", arguments, [self._id], pid_file, terminal, child)
        except BaseException:
            if self._mounted:
                rootfs.unmount_all(target)
            raise
        self._init = made.pid
        return made

    def start(self) -> Work:
        yield from self._run("start", ["start", self._id])

    def exec(self, exec_id: str, process: dict[str, Any], terminal: bool,
             child: tuple[int, int, int] | None) -> Work:
        pid_file = os.path.join(self._bundle, f"{exec_id}.pid")
        spec = os.path.join(self._bundle, f"{exec_id}.process.json")
        with open(spec, "x", encoding="utf-8", opener=_private) as file:
            file.write(json.dumps(process))
        arguments = ["exec", "--process", spec, "--pid-file", pid_file, "--detach"]
        try:
            return (yield from self._make("exec", arguments, [self._id], pid_file, terminal,
                                          child))
        finally:
            _unlink(spec)
            _unlink(pid_file)

    def kill(self, signal: int, all_processes: bool) -> Work:
        arguments = ["kill", *(["--all"] if all_processes else []), self._id, str(signal)]
        try:
            yield from self._run("kill", arguments)
        except SystemFailure as error:
            text = error.message.lower()
            if any(sign in text for sign in _FINISHED):
                raise NotFound("process already finished") from error
            if "does not exist" in text:
                raise NotFound("no such container") from error
            raise

    def pause(self) -> Work:
        yield from self._run("pause", ["pause", self._id])

    def resume(self) -> Work:
        yield from self._run("resume", ["resume", self._id])

    def update(self, resources: dict[str, Any]) -> Work:
        fd = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(resources).encode())
            os.lseek(fd, 0, os.SEEK_SET)
            yield from self._run("update", ["update", "--resources", "-", self._id], stdin=fd)
        finally:
            os.close(fd)

    def pids(self) -> Work:
        text = yield from self._run("ps", ["ps", "--format", "json", self._id])
        try:
            found = [int(pid) for pid in json.loads(text) or []]
        except (InvalidParameter, ValueError, TypeError) as error:
            raise SystemFailure(f"{self._binary} ps: not a list of pids: {text[:200]!r}"
                                ) from error
        # runsc's are those of its own kernel: taken for the machine's, they would be those of
        # strangers. What the machine sees of such a container is the one process.
        return found if self._init in found else [self._init]

    def delete(self, force: bool = False) -> Work:
        try:
            arguments = ["delete", *(["--force"] if force else []), self._id]
            yield from self._run("delete", arguments)
        except SystemFailure as error:
            if "does not exist" not in error.message:
                raise
        finally:
            if self._mounted or force:
                rootfs.unmount_all(os.path.join(self._bundle, "rootfs"))
                self._mounted = False

    def cgroup(self, pid: int) -> dict[str, str]:
        return metrics.directories_of(pid)

    def shares_pids(self) -> bool:
        return self._shares_pids

    # -- running it -------------------------------------------------------

    def _make(self, what: str, arguments: list[str], last: list[str], pid_file: str,
              terminal: bool, child: tuple[int, int, int] | None) -> Work:
        """create and exec: the process's streams or its terminal, and its pid."""
        console: ConsoleSocket | None = None
        self._reaper.hold()
        try:
            if terminal:
                self._counter += 1
                console = ConsoleSocket(self._counter)
                arguments = [*arguments, "--console-socket", console.path]
            yield from self._run(what, [*arguments, *last], child=child)
            try:
                with open(pid_file, encoding="ascii") as file:
                    pid = int(file.read())
            except (OSError, ValueError) as error:
                raise SystemFailure(
                    f"failed to retrieve OCI runtime container pid: {error}") from error
            master = console.receive() if console is not None else -1
            # now, while early exits are still remembered
            return Made(pid, master, self._reaper.expect(pid))
        finally:
            self._reaper.unhold()
            if console is not None:
                console.close()

    def _run(self, what: str, arguments: list[str], *, stdin: int = -1,
             child: tuple[int, int, int] | None = None) -> Work:
        """Run to the end; gives what it printed; raises what it logged."""
        argv = [self._binary, "--root", self._root, "--log", self._log, "--log-format", "json"]
        if self._systemd_cgroup:
            argv.append("--systemd-cgroup")
        argv += arguments
        try:
            log_start = os.stat(self._log).st_size
        except FileNotFoundError:
            log_start = 0
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            if child is not None:
                fds = {0: child[0], 1: child[1], 2: child[2]}
            else:
                fds = {1: output, 2: output}
                if stdin >= 0:
                    fds[0] = stdin
            try:
                pid = spawn(self._binary, argv, dict(os.environ), fds)
            except OSError as error:
                raise SystemFailure(self.failure.format(
                    what, f"{error.strerror}: {self._binary}")) from error
            code = yield self._reaper.expect(pid)
            text = _read_all(output)
            if code:
                if text.startswith(b"Usage: "):  # runsc has no update
                    raise NotImplementedYet(f"the runtime {self._binary} has no command {what!r}")
                reason = self._last_error(log_start) or text.decode("utf-8", "replace").strip()
                reason = reason or f"{self._binary} did not terminate successfully: " \
                                   f"exit status {code}"
                raise SystemFailure(self.failure.format(what, reason)
                                    if what in ("create", "exec", "start") else reason)
            return text
        finally:
            os.close(output)

    def _last_error(self, start: int) -> str:
        """The last error in the runtime's log since ``start``."""
        try:
            with open(self._log, "rb") as file:
                file.seek(start)
                lines = file.read(1 << 20).splitlines()
        except FileNotFoundError:
            return ""
        # runc writes an entry a line; crun spreads one over several
        text = b"\n".join(lines)
        last = text[max(text.rfind(b"{\n"), 0):text.rfind(b"}") + 1]
        for found in (*reversed(lines), last):
            try:
                entry = json.loads(found)
            except InvalidParameter:
                continue
            if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", "")).strip()
        return ""


class ConsoleSocket:
    """Where the runtime sends the terminal's master. A short path: sun_path has 108 bytes."""

    def __init__(self, number: int) -> None:
        base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
        self._directory = os.path.join(base, f"carrel-pty-{os.getpid()}-{number}")
        os.mkdir(self._directory, 0o700)  # fails if somebody else made it
        self.path = os.path.join(self._directory, "s")
        self._socket = unix()
        try:
            self._socket.bind(self.path)
            self._socket.listen(1)
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def receive(self) -> int:
        """The master; the runtime has sent it before it ended."""
        try:
            connection = self._socket.accept()
        except BlockingIOError:
            raise SystemFailure("failed to retrieve console master: "
                                "the runtime did not send it") from None
        with connection:
            connection.settimeout(5)
            _, fds = receive_descriptors(connection, 4096)
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise SystemFailure(f"failed to retrieve console master: got {len(fds)} descriptors")
        return fds[0]

    def close(self) -> None:
        self._socket.close()
        _unlink(self.path)
        os.rmdir(self._directory)


def find_program(name: str) -> str:
    """The path of a runtime; found once, so that a later PATH changes nothing."""
    if "/" in name:
        if not os.path.isabs(name):
            raise InvalidParameter(f"runtime binary {name!r} is not an absolute path")
        return name
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory or ".", name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    raise NotFound(f"exec: {name!r}: executable file not found in $PATH")


def _read_all(fd: int) -> bytes:
    return os.pread(fd, 16 << 20, 0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _shares_pids(bundle: str) -> bool:
    """Has the container no pid namespace of its own?"""
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            spec = json.loads(file.read())
        namespaces = (spec.get("linux") or {}).get("namespaces") or []
        return not any(n.get("type") == "pid" and not n.get("path") for n in namespaces)
    except (OSError, InvalidParameter, AttributeError):
        return False  # the runtime will say what is wrong with it
