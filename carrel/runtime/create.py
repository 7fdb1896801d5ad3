"""From a bundle to a process that waits for ``start``."""

from __future__ import annotations

import os
import time

from carrel.errdefs import InvalidParameter
from carrel.kernel import cgroup, syscalls, terminal
from carrel.kernel.plan import Done, Operation
from carrel.kernel.plan import run as run_plan
from carrel.oci import json, runtime_spec
from carrel.runtime import childrecord, errors, inside, launch, options, planner, report, state
from carrel.runtime.child import Child, interpreter
from carrel.runtime.container import Container
from carrel.runtime.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from carrel.runtime.sources import Helper
    from carrel.runtime.stock import Stock

    Spec = dict[str, Any]


class Settings:
    """What the command line of a runtime can say about a start."""

    __slots__ = ("no_new_keyring", "no_pivot", "preserve_fds", "seccomp_cache", "systemd_cgroup")

    def __init__(self, *, no_pivot: bool = False, no_new_keyring: bool = False,
                 preserve_fds: int = 0, systemd_cgroup: bool = False,
                 seccomp_cache: str | None = None) -> None:
        self.no_pivot = no_pivot
        self.no_new_keyring = no_new_keyring
        self.preserve_fds = preserve_fds
        self.systemd_cgroup = systemd_cgroup
        self.seccomp_cache = seccomp_cache


def load_spec(bundle: str) -> tuple[Spec, bytes]:
    """(config.json, its bytes)"""
    raw = read_config(bundle)
    return parse_config(raw, bundle), raw


def read_config(bundle: str) -> bytes:
    path = f"{bundle}/config.json"
    try:
        return state.read(path, follow=True)
    except FileNotFoundError:
        raise InvalidParameter(f"JSON specification file {path} not found") from None


def parse_config(raw: bytes, bundle: str) -> Spec:
    path = f"{bundle}/config.json"
    found = json.loads(raw, path)
    if not isinstance(found, dict):
        raise InvalidParameter(f"{path} is not an object")
    return found


def create(id: str, bundle: str, root: str, *, spec: Spec | None = None,
           stdio: tuple[int, int, int] | None = None, terminal: bool | None = None,
           rootfs_mounts: list[Spec] | None = None, console_size: tuple[int, int] | None = None,
           settings: Settings | None = None, kernel: Any = syscalls) -> Container:
    """Make the container; its process waits for :meth:`Container.start`."""
    pending = begin(id, bundle, root, spec=spec, stdio=stdio, terminal=terminal,
                    rootfs_mounts=rootfs_mounts, console_size=console_size, settings=settings,
                    kernel=kernel)
    try:
        return pending.wait()
    finally:
        pending.close()


def begin(id: str, bundle: str, root: str, *, spec: Spec | None = None,
          stdio: tuple[int, int, int] | None = None, terminal: bool | None = None,
          rootfs_mounts: list[Spec] | None = None, console_size: tuple[int, int] | None = None,
          settings: Settings | None = None, kernel: Any = syscalls,
          cradle: launch.Cradle | None = None) -> Pending:
    """The first half of :func:`create`: the process exists, and works for itself."""
    settings = settings or Settings()
    state.check_id(id)
    if spec is None:
        spec, raw = load_spec(bundle)
    else:
        raw = json.dumps(spec).encode()
    runtime_spec.check(spec)
    process = spec.get("process") or {}
    wants_terminal = bool(process.get("terminal")) if terminal is None else terminal
    if wants_terminal != bool(process.get("terminal")):
        spec = {**spec, "process": {**process, "terminal": wants_terminal}}
    maker = Maker(spec, bundle, launch.Launch(id, root, cradle), settings, kernel)
    try:
        return Pending(maker, maker.plan(raw, stdio, rootfs_mounts, console_size))
    except BaseException:
        maker.close()
        raise


class Pending:
    """A container whose process was made and is at work on its mounts. Closed by its owner."""

    __slots__ = ("_done", "_maker", "container")

    def __init__(self, maker: Maker, operations: list[Operation], done: Done | None = None
                 ) -> None:
        self._maker = maker
        try:
            self._done = run_plan(operations, maker.kernel, done)
            #: what it will be, if all goes well
            self.container = self._or_undo(maker.record)
        except BaseException:
            maker.close()
            raise

    def wait(self) -> Container:
        """Until the process waits for its start, or has failed: then nothing is left of it."""
        return self._or_undo(self._finish)

    def _finish(self) -> Container:
        self.container = self._maker.finish()
        return self.container

    def _or_undo(self, part: Callable[[], Container]) -> Container:
        try:
            return part()
        except BaseException as error:
            for second in self._done.rollback():
                error.add_note(f"undo failed too: {second}")
            raise

    def close(self) -> None:
        self._maker.close()


class Maker:
    """One creation: planning, and the conversation with the child."""

    __slots__ = ("_aside", "_container", "bundle", "child", "console", "descriptors", "helper",
                 "joined", "kernel", "launch", "map_fds", "rootfs", "rootfs_path", "settings",
                 "spaces", "spec", "stock", "view")

    def __init__(self, spec: Spec, bundle: str, start: launch.Launch, settings: Settings,
                 kernel: Any, stock: Stock | None = None) -> None:
        self.spec = spec
        self.stock = stock
        self.bundle = os.path.abspath(bundle)
        self.launch = start
        self.settings = settings
        self.kernel = kernel
        self.spaces = planner.Namespaces(spec)
        self.view = View()
        self.child = Child(self.view, kernel)
        self.console = -1
        self.descriptors: list[int] = []
        self.helper: Helper | None = None
        #: index in ``mounts`` -> user namespace with the id maps of that mount
        self.map_fds: dict[int, int] = {}
        #: (path, descriptor) of the namespaces that are joined
        self.joined: list[tuple[str, int]] = []
        root = (spec.get("root") or {}).get("path") or "rootfs"
        self.rootfs_path = os.path.join(self.bundle, root)
        self.rootfs = os.path.realpath(self.rootfs_path)
        self._aside = ""
        self._container: Container | None = None

    # --- planning ------------------------------------------------------------
    def plan(self, raw: bytes, stdio: tuple[int, int, int] | None,
             rootfs_mounts: list[Spec] | None,
             console_size: tuple[int, int] | None) -> list[Operation]:
        """The operations of the parent; those of the child are put into it."""
        spec, child = self.spec, self.child
        linux = spec.get("linux") or {}
        process = spec.get("process") or {}
        if not rootfs_mounts and not os.path.isdir(self.rootfs):
            raise InvalidParameter(f"invalid rootfs: {self.rootfs} is not a directory")
        start = self.launch
        start.child = child
        start.cgroup = cgroup.open_manager(
            linux.get("cgroupsPath") or "", systemd=self.settings.systemd_cgroup,
            name=start.id, annotations=spec.get("annotations") or {})
        child.cgroup = start.cgroup
        child.stdio = stdio
        child.terminal = bool(process.get("terminal"))
        child.preserve_fds = self.settings.preserve_fds
        self.view.null_fd = self._keep(inside.open_null(self.kernel))
        size = process.get("consoleSize")
        self.view.console_size = console_size or (
            (size["height"], size["width"]) if size else None)
        fill_process(child, process)
        self._plan_namespaces(linux)
        self._plan_maps()
        self._plan_child(process, rootfs_mounts)
        interpreter()
        inside.kcore_exists()
        resources = linux.get("resources")
        start.cgroup.expect(resources)
        clone = launch.StartProcess(start, self.spaces.at_clone)
        late = (clone, launch.MakeFifo(start), launch.FinishCgroup(start, resources))
        return [
            launch.MakeStateFolder(start),
            launch.MakeCgroup(start, resources),
            *(late if child.joins_late else (launch.MakeFifo(start), clone)),
            launch.KeepConfig(start, raw),
        ]

    def _keep(self, fd: int) -> int:
        """A descriptor that the child gets, and that we close in the end."""
        self.descriptors.append(fd)
        return fd

    def keep_ready(self, *plans: list[Operation]) -> None:
        """Mounts that were made ahead: for the child, and not for longer."""
        fds = [fd for plan in plans for one in plan if (fd := getattr(one, "ready", -1)) >= 0]
        self.child.keep_fds += fds
        self.descriptors += fds

    def _plan_namespaces(self, linux: Spec) -> None:
        spaces, child = self.spaces, self.child
        # the user namespace last: those before may belong to another one, and are
        # entered with the rights of the host
        for kind in ("ipc", "uts", "network", "pid", "cgroup", "mount", "time", "user"):
            path = spaces.joined.get(kind)
            if path is None:
                continue
            fd = self._keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self.joined.append((path, fd))
            if kind == "pid":
                self.launch.pid_namespace = fd
            else:
                child.joins.append((fd, planner.NAMESPACE_FLAGS[kind], kind))
        child.unshare_flags = spaces.made & syscalls.CLONE_NEWCGROUP
        after = spaces.after_join
        if after & syscalls.CLONE_NEWPID:
            child.clone_again = after  # a pid namespace is for children only
        else:
            child.unshare_flags |= after
        child.wait_for_maps = bool(spaces.made & syscalls.CLONE_NEWUSER)

    def _plan_maps(self) -> None:
        """Bind sources are opened for a child in a user namespace; mounts with id
        maps get theirs from a namespace made for that."""
        self.view.foreign_sources = self.spaces.has("user") and self.spaces.has("mount")
        for index, entry in enumerate(self.spec.get("mounts") or ()):
            rows = entry.get("uidMappings"), entry.get("gidMappings")
            if rows[0] or rows[1]:
                from carrel.runtime import sources
                fd = sources.map_namespace(self.kernel, rows[0] or [], rows[1] or [])
                self.map_fds[index] = self._keep(fd)
        self.child.keep_fds += self.map_fds.values()

    def _open_source(self, index: int) -> int:
        """For the child: the source of one of its mounts, as a detached mount."""
        entry = self.spec["mounts"][index]
        parsed = options.parse(entry.get("options") or ())
        map_fd = self.map_fds.get(index, -1)
        if map_fd < 0 and parsed.idmap:  # the container's own map is meant
            map_fd = self._keep(os.open(f"/proc/{self.launch.pid}/ns/user",
                                        os.O_RDONLY | os.O_CLOEXEC))
            self.map_fds[index] = map_fd
            self._close_helper()  # a new one has the descriptor
        if self.helper is None:
            from carrel.runtime import sources
            self.helper = sources.Helper(self.kernel, self.launch.pidfd,
                                         list(self.map_fds.values()))
        source = os.path.join(self.bundle, entry.get("source") or "")
        return self.helper.open_tree(source, parsed.bind == "rbind", map_fd,
                                     parsed.idmap == "ridmap", planner.beneath(self.spec, entry))

    def _plan_child(self, process: Spec, rootfs_mounts: list[Spec] | None) -> None:
        from carrel.runtime import childplan
        childplan.fill(self, process, rootfs_mounts)

    # --- the conversation ----------------------------------------------------
    def record(self) -> Container:
        """Write the state while the child works: it gets its name only when the child is ready."""
        start = self.launch
        launch.close_fifo(start)
        record = self._record()
        self._aside = state.write_aside(start.folder, state.STATE, json.dumps(record).encode())
        self._container = self._made(record)
        return self._container

    def finish(self) -> Container:
        """Answer the child until it waits for start; give the state its name."""
        start, container = self.launch, self._container
        assert container is not None and start.socket is not None
        self._converse()
        if container.pid == start.pid:
            os.rename(self._aside, f"{start.folder}/{state.STATE}")
        else:  # another process took its place
            os.unlink(self._aside)
            record = self._record()
            container = self._made(record)
            state.save(start.root, start.id, record)
        container.console = self.console
        start.socket.close()
        return container

    def _converse(self) -> None:
        start = self.launch
        assert start.socket is not None
        while True:
            packet, fds = report.receive(start.socket)
            kind = packet[:1]
            if kind == b"R":
                return
            if kind == b"E":
                raise errors.from_packet(packet)
            if kind == b"M":
                self._write_maps()
                start.socket.send(b"G")
            elif kind == b"O":
                self._write_proc("timens_offsets", packet[1:].decode())
                start.socket.send(b"G")
            elif kind == b"P":
                self._replaced(int(packet[1:]))
            elif kind == b"L":
                childrecord.merge(packet)
            elif kind == b"N":
                from carrel.runtime import agent
                agent.hand_over(self.spec["linux"]["seccomp"], start.pidfd, int(packet[1:]),
                                start.pid, self.oci_state("creating"))
                start.socket.send(b"G")
            elif kind == b"S":
                self._answer_source(int(packet[1:]))
            elif kind == b"I":
                start.socket.send(b"G%d" % start.pid)
            elif kind == b"H":
                self._host_hooks()
                start.socket.send(b"G%d" % start.pid)
            elif kind == b"T":
                self.console = fds[0]
            else:
                raise self._vanished()

    def _answer_source(self, index: int) -> None:
        assert self.launch.socket is not None
        try:
            tree = self._open_source(index)
        except OSError as error:
            self.launch.socket.send(report.pack_error(error, "mounts"))
            return
        terminal.send_descriptors(self.launch.socket, b"G", [tree])
        os.close(tree)

    def _replaced(self, pid: int) -> None:
        """The child made another with CLONE_PARENT, which takes its place."""
        start = self.launch
        os.waitpid(start.pid, 0)
        os.close(start.pidfd)
        start.pid, start.pidfd = pid, syscalls.pidfd_open(pid)

    def _vanished(self) -> OSError:
        pid, status = os.waitpid(self.launch.pid, os.WNOHANG)
        self.launch.pid = 0 if pid else self.launch.pid
        how = ""
        if pid:
            code = os.waitstatus_to_exitcode(status)
            how = f": exit status {code}" if code >= 0 else f": killed by signal {-code}"
            if code == -9 and self.launch.cgroup.oom_count():
                how = ": container init was OOM-killed (memory limit too low?)"
        return errors.failure(0, f"unable to start container process{how or ': init vanished'}",
                              "child")

    def _record(self) -> Spec:
        start = self.launch
        return {
            "ociVersion": runtime_spec.VERSION, "id": start.id, "pid": start.pid,
            "startTime": state.start_time(start.pid), "bundle": self.bundle,
            "rootfs": self.rootfs, "created": _now(), "owner": os.geteuid(),
            "annotations": self.spec.get("annotations") or {},
            "cgroup": start.cgroup.to_state(), "configVersion": 1,
            "systemdCgroup": self.settings.systemd_cgroup,
            "noNewKeyring": self.settings.no_new_keyring,
        }

    def _made(self, record: Spec) -> Container:
        start = self.launch
        container = Container(start.id, start.root, record, spec=self.spec)
        container.pidfd = start.pidfd
        container.use_cgroup(start.cgroup)
        return container

    def _host_hooks(self) -> None:
        from carrel.runtime import hooks
        all_hooks = self.spec.get("hooks") or {}
        document = json.dumps(self.oci_state("creating")).encode()
        hooks.run_all(all_hooks.get("prestart") or (), "prestart", document)
        hooks.run_all(all_hooks.get("createRuntime") or (), "createRuntime", document)

    def oci_state(self, status: str, pid: int | None = None) -> Spec:
        found: Spec = {"ociVersion": runtime_spec.VERSION, "id": self.launch.id,
                       "status": status}
        found["pid"] = self.launch.pid if pid is None else pid
        found["bundle"] = self.bundle
        if self.spec.get("annotations"):
            found["annotations"] = self.spec["annotations"]
        return found

    def _write_maps(self) -> None:
        """What only somebody outside of the new user namespace may write."""
        linux = self.spec.get("linux") or {}
        for name, key in (("gid_map", "gidMappings"), ("uid_map", "uidMappings")):
            self._write_proc(name, "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n"
                                           for m in linux.get(key) or ()))
        score = (self.spec.get("process") or {}).get("oomScoreAdj")
        if score is not None:
            self._write_proc("oom_score_adj", str(score))

    def _write_proc(self, name: str, text: str) -> None:
        path = f"/proc/{self.launch.pid}/{name}"
        fd = self.kernel.openat(syscalls.AT_FDCWD, path, os.O_WRONLY)
        try:
            self.kernel.write(fd, text.encode())
        except OSError as error:
            error.filename = path
            raise
        finally:
            self.kernel.close(fd)

    def _close_helper(self) -> None:
        if self.helper is not None:
            self.helper.close()
            self.helper = None

    @property
    def seccomp_cache(self) -> str:
        """Compiling a filter takes 15 ms: kept beside the containers' state."""
        return self.settings.seccomp_cache or f"{self.launch.root}/.seccomp"

    def close(self) -> None:
        self._close_helper()
        while self.descriptors:
            os.close(self.descriptors.pop())


def fill_process(child: Child, process: Spec) -> None:
    child.argv = [os.fsencode(a) for a in process.get("args") or ()]
    # as with runc, the last of several values for one name wins
    found: dict[str, str] = {}
    for entry in process.get("env") or ():
        name, equals, _ = entry.partition("=")
        if not equals or not name:
            raise InvalidParameter(f"invalid environment variable {entry!r}: "
                                   "it must be NAME=value")
        found.pop(name, None)
        found[name] = entry
    child.env = [os.fsencode(e) for e in found.values()]


def _now() -> str:
    nanoseconds = time.time_ns()
    year, month, day, hour, minute, second = time.gmtime(nanoseconds // 10**9)[:6]
    return (f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
            f".{nanoseconds % 10**9:09}Z")
