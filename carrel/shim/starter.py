"""Creation and start by a process that lives on, so that the shim stays small.

Creating a container runs much Python, and each reference count is a write: a shim that did
it itself, or a clone made for it, would copy two megabytes of the pages that it shares
with the zygote.  A starter copies them once.  It is a child of the zygote, which hands it one
shim's request after the other; it plans and makes everything but the process itself.  That
has to be the shim's child: so the shim clones it, and it gets its plan by ``runtime/parcel.py``.

    zygote  -> starter  the request for a shim, and a socket to that shim
    starter -> zygote   "i": idle again; "e": ends
    shim    -> starter  {"op": "create", ...} + the process's descriptors, {"op": "start"}
    starter -> shim     {"pid": ..., "cgroup": {...}, "shares_pids": ..., "console": ...,
                         "kills": ...} + init's mount namespace (+ the terminal's master)
                         (+ what tells of kills for want of memory)
                        {"error": {"kind": ..., "text": ...}}, {"unsuitable": true}, {}
                        NUL flags, 0 or 1, 0 or 1: clone; with the process's report socket, its
                        cgroup and its pid namespace, if 1
    shim    -> starter  NUL pid + its pidfd, or NUL -errno

Between shim and starter values travel as ``marshal`` writes them: plain ones, between processes
of ours, over a socket that nobody else has.  Where something went wrong the starter ends after
its answer: what it may have left open goes with it, and the next request gets another.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import gc
import marshal
import os

from carrel import errdefs
from carrel.kernel import syscalls as k
from carrel.oci import json
from carrel.runtime import api, child, create, launch, parcel, report
from carrel.runtime.create import Settings
from carrel.runtime.draft import Draft
from carrel.runtime.stock import Stock
from carrel.shim import explain
from carrel.shim import loop as poll
from carrel.shim.birth import Config, open_listener, write_file
from carrel.shim.driver import write_record
from carrel.shim.oom import open_watch
from carrel.shim.sockets import Socket, receive_descriptors, send_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Answer = dict[str, Any]

#: where the state goes when the bundle stands alone
DEFAULT_ROOT = "/run/carrel/runtime"
_TASKS = "/io.containerd.runtime.v2.task/"

PACKET_MAX = 1 << 20
#: small enough for the allocator to take it from what it has
ANSWER_MAX = 1 << 16
#: begins what is about the clone
BIRTH = b"\0"
IDLE, ENDS = b"i", b"e"


class Died(errdefs.SystemFailure):
    """The starter, while it was asked."""


class Starter:
    """The shim's end."""

    __slots__ = ("_answered", "_loop", "_socket")

    def __init__(self, loop: poll.Loop, socket: Socket) -> None:
        self._loop = loop
        self._socket = socket
        self._answered: poll.Later | None = None
        loop.add(socket.fileno(), poll.IN, self._said)

    def ask(self, request: Answer, fds: tuple[int, ...] = ()) -> poll.Work:
        """Gives the answer and the descriptors that came with it; its error is raised.
        ConnectionError: it is gone, and was not asked."""
        send_descriptors(self._socket, marshal.dumps(request), list(fds))
        answered = self._answered = poll.Later()
        packet, got = yield answered
        return read_answer(packet), got

    def _said(self, _events: int) -> None:
        try:
            packet, fds = receive_descriptors(self._socket, ANSWER_MAX, 3)
        except ConnectionResetError:
            packet, fds = b"", []
        if packet[:1] == BIRTH:
            self._bear(packet[1:], fds)
            return
        if not packet:
            self._loop.remove(self._socket.fileno())
        if self._answered is not None:
            self._answered.resolve((packet, fds))

    def _bear(self, packet: bytes, fds: list[int]) -> None:
        flags, in_cgroup, in_pids = map(int, packet.split())
        cgroup_fd = fds[1] if in_cgroup else -1
        try:
            if in_pids:
                pid, pidfd, inside = launch.clone_into(k, flags, cgroup_fd, fds[-1])
            else:
                pid, pidfd, inside = launch.clone_here(k, flags, cgroup_fd)
            if pid == 0:
                arrive(fds[0], inside)
            fds.append(pidfd)
            send_descriptors(self._socket, b"%b%d" % (BIRTH, pid), [pidfd])
        except OSError as error:
            self._socket.send(b"%b%d" % (BIRTH, -(error.errno or 0)))
        finally:
            for fd in fds:
                os.close(fd)

    def dismiss(self) -> None:
        self._loop.remove(self._socket.fileno())
        self._socket.close()


def read_answer(packet: bytes) -> Answer:
    if not packet:
        raise Died("the process that makes containers for the shim died")
    answer: Answer = marshal.loads(packet)
    if "error" in answer:
        kind = getattr(errdefs, answer["error"]["kind"], errdefs.SystemFailure)
        raise kind(answer["error"]["text"])
    return answer


def failure(error: Exception) -> Answer:
    """What :func:`read_answer` raises again."""
    kind = type(error).__name__ if isinstance(error, errdefs.CarrelError) else "SystemFailure"
    return {"error": {"kind": kind, "text": api.message(error)}}


def arrive(control: int, in_cgroup: bool) -> NoReturn:
    """The new process, a clone of the shim: from here on it is the starter's."""
    try:
        k.prctl(k.PR_SET_DUMPABLE, 0)
        signal.set_wakeup_fd(-1)  # the shim's
        gc.disable()
        child.close_all_but(k, [control], 0)
        socket = Socket(fileno=control)
        packet, fds = report.receive(socket)
        if packet:
            found = parcel.unpack(packet, fds)
            found.born_in_cgroup = in_cgroup
            child.run(found, report.Report(socket))
    finally:
        os._exit(child.EXIT_FAILED)


#: a config.json to rehearse with, where that went well in the zygote
rehearsal = b""


def live(zygote: Socket, daemon: Socket, ahead: bool) -> NoReturn:
    """The life of a starter. ``daemon``: the zygote's socket to it; ``ahead``: there is
    time to get ready."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if ahead and rehearsal:
            from carrel.runtime.rehearse import once
            once(rehearsal)
        work(zygote, daemon)
        code = 0
    finally:
        os._exit(code)


def work(zygote: Socket, daemon: Socket) -> None:
    """One request after the other, until the zygote is gone or something went wrong."""
    stock = Stock()
    while True:
        try:
            stock.fill(k)
        except OSError:
            pass  # what is not to be had now shows when it is really needed
        packet, fds = receive_descriptors(zygote, PACKET_MAX, 1)
        if not packet:
            return
        with Socket(fileno=fds[0]) as control:
            config = introduce(packet, control, daemon)
            well = config is None or Task(control, stock).serve(config)
        zygote.send(IDLE if well else ENDS)
        if not well:
            return


def introduce(packet: bytes, shim: Socket, daemon: Socket) -> Config | None:
    """Make what the shim needs to be reached, and tell it who it is. None when that failed; then
    nothing is left, and the daemon knows why."""
    pid, _, text = packet.partition(b"\0")
    seq: object = None
    config: Config | None = None
    listener: Socket | None = None
    try:
        request = json.loads(text)
        seq = request["seq"]
        config = parse(request)
        listener = open_listener(config)
        write_file(f"{config.bundle}/shim.pid", pid.decode())
        answer = {"seq": seq, "pid": int(pid), "address": config.address}
        send_descriptors(shim, os.fsencode("\0".join([json.dumps(answer), *config.fields()])),
                         [listener.fileno()])
        return config
    except Exception as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        if config is not None and listener is not None:
            os.unlink(config.socket)
        daemon.send(json.dumps({"seq": seq, "error": reason or type(error).__name__}).encode())
        return None
    finally:
        if listener is not None:
            listener.close()


class Task(launch.Cradle):
    """All for one shim."""

    def __init__(self, control: Socket, stock: Stock) -> None:
        self._control = control
        self._stock = stock
        #: what came while something else was waited for
        self._before: list[tuple[bytes, list[int]]] = []
        self._draft: Draft | None = None
        self._made: api.Container | None = None

    def serve(self, config: Config) -> bool:
        """Did all go well?"""
        well = True
        try:
            self._foresee(config)
            while True:
                packet, fds = self._next()
                if not packet:
                    return well
                try:
                    self._do(marshal.loads(packet), fds)
                except Exception as error:
                    well = False
                    self._answer(failure(error))
                for fd in fds:
                    os.close(fd)
        finally:
            if self._draft is not None:
                self._draft.close()
            if self._made is not None:
                self._made.close()

    def _next(self) -> tuple[bytes, list[int]]:
        return self._before.pop(0) if self._before else self._receive()

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            return receive_descriptors(self._control, PACKET_MAX, 3)
        except ConnectionResetError:
            return b"", []

    def _answer(self, found: Answer) -> None:
        self._control.send(marshal.dumps(found))

    def _do(self, request: Answer, fds: list[int]) -> None:
        if request["op"] == "create":
            self._create(request, fds)
        else:
            assert self._made is not None
            self._made.start()
            self._answer({})

    # --- before it is asked ---------------------------------------------------
    def _foresee(self, config: Config) -> None:
        """Plan what the request for a shim lets expect. What is wrong with it, or
        different in the end, the creation itself will find."""
        draft: Draft | None = None
        try:
            text = create.read_config(config.bundle)
            if stays_with_parent(text):
                return
            draft = Draft(config.id, config.bundle,
                          state_root("", config.namespace, config.bundle), Settings(), k, text,
                          self._stock, self)
            draft.advance()
            self._draft = draft
        except Exception:
            if draft is not None:
                draft.close()

    # --- what it is asked -------------------------------------------------------
    def _create(self, request: Answer, fds: list[int]) -> None:
        bundle, mounts = request["bundle"], request["mounts"]
        write_record(bundle, request["record"])
        settings = make_settings(request["record"])
        stdio = (fds[0], fds[1], fds[2]) if fds else None
        draft, self._draft = self._draft, None
        config = create.read_config(bundle)
        try:
            if draft is not None and draft.fits(config, request["id"], bundle, request["root"],
                                                request["terminal"], mounts, settings):
                pending = draft.begin(stdio, mounts)
            elif stays_with_parent(config):
                self._answer({"unsuitable": True})
                return
            else:
                pending = create.begin(request["id"], bundle, request["root"], stdio=stdio,
                                       terminal=request["terminal"], rootfs_mounts=mounts or None,
                                       settings=settings, cradle=self)
            try:
                self._finish(pending)
            finally:
                pending.close()
        except parcel.TooMuch:
            self._answer({"unsuitable": True})
        except ChildProcessError:
            raise errdefs.SystemFailure(
                "unable to start container process: init vanished") from None

    def _finish(self, pending: create.Pending) -> None:
        # made ready while init works
        expected = pending.container.pid
        groups = groups_with_controllers(pending.container)
        watch = open_watch(groups)
        try:
            ready = describe(pending.container, groups, watch >= 0)
            made = self._made = pending.wait()
            if made.pid != expected or made.console >= 0:
                ready = describe(made, groups, watch >= 0)
            space = open_mount_namespace(made.pid)
            try:
                send_descriptors(self._control, ready, [
                    space, *(fd for fd in (made.console, watch) if fd >= 0)])
            finally:
                os.close(space)
        finally:
            if watch >= 0:
                os.close(watch)

    # --- the process ------------------------------------------------------------
    def bear(self, start: launch.Launch, flags: int, told: Any) -> tuple[int, int]:
        planned = start.child
        assert planned is not None and start.socket is not None
        send_descriptors(start.socket, *parcel.pack(planned))
        wanted = planned.clone_fd, start.pid_namespace
        send_descriptors(
            self._control, b"%b%d %d %d" % (BIRTH, flags, wanted[0] >= 0, wanted[1] >= 0),
            [told.fileno(), *(fd for fd in wanted if fd >= 0)])
        while True:
            packet, fds = self._receive()
            if packet[:1] == BIRTH:
                break
            self._before.append((packet, fds))
            if not packet:
                raise errdefs.SystemFailure("the shim is gone")
        pid = int(packet[1:])
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid, fds[0]


def state_root(root: str, namespace: str, bundle: str) -> str:
    """The runtime's state directory: as the options say, or beside the bundles."""
    if not root:
        before, found, _ = bundle.rpartition(_TASKS)
        root = f"{before}/runtime" if found else DEFAULT_ROOT
    return os.path.join(root, namespace)


def parse(request: dict[str, Any]) -> Config:
    if request["op"] != "start":
        raise ValueError(f"unknown operation {request['op']!r}")
    return Config(
        _text(request, "namespace"), _text(request, "id"), _text(request, "bundle"),
        _text(request, "socket"), str(request.get("publish", "")),
        bool(request.get("debug", False)))


def _text(request: dict[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"bad {name}: {value!r}")
    if name in ("bundle", "socket") and not value.startswith("/"):
        raise ValueError(f"{name} is not an absolute path: {value!r}")
    return value


def make_settings(values: dict[str, Any]) -> Settings:
    """From a record."""
    return Settings(no_pivot=values["no_pivot_root"], no_new_keyring=values["no_new_keyring"],
                    systemd_cgroup=values["systemd_cgroup"])


def describe(made: api.Container, groups: dict[str, str], kills: bool) -> bytes:
    return marshal.dumps({
        "pid": made.pid, "cgroup": groups, "shares_pids": shares_pids(made.spec),
        "console": made.console >= 0, "kills": kills})


def groups_with_controllers(made: api.Container) -> dict[str, str]:
    """Directories by controller; v2's under "", but beside v1 it holds none."""
    groups = dict(made.cgroup.paths)
    for name in ("", "unified") if len(groups) > 1 else ():
        groups.pop(name, None)
    return groups


def open_mount_namespace(pid: int) -> int:
    """While somebody holds it, the end of init does not wait for the unmount
    of its root, which can mean writing back megabytes."""
    return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def stays_with_parent(text: bytes) -> bool:
    """User namespaces and mapped mounts are made with helper processes, which only
    the container's parent can have; and an explained start is done by one process. (Looked up
    in the text: parsing is the runtime's, and takes a tenth of a start.)"""
    if b"uidMappings" in text or explain.ANNOTATION in text:
        return True
    for blank in (b" ", b"\n", b"\t", b"\r"):
        text = text.replace(blank, b"")
    return b'"type":"user"' in text


def shares_pids(spec: dict[str, Any]) -> bool:
    """Has the container no pid namespace of its own?"""
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return not any(n.get("type") == "pid" and not n.get("path") for n in namespaces)
