"""A start by a process of its own, so that the shim stays small.

Creating a container runs so much Python that it writes to two megabytes of the
pages that a shim shares with the zygote (each reference count is a write).  So
a shim that was born warm clones itself at once, and this worker creates and
starts the container, with CLONE_PARENT: init is the child of the shim.  Then
the worker is gone, and its pages with it.  An exec has a worker of its own.

    shim -> worker   NUL and the zygote's request: that bundle will be asked for
                     {"op": "create", ...} + the process's descriptors, {"op": "start"},
                     {"op": "plan exec", ...} + the process's descriptors, {"op": "exec"}
    worker -> shim   {"pid": ..., "cgroup": {...}, "shares_pids": ...} (+ the terminal's master)
                     {"error": {"kind": ..., "text": ...}}, {"unsuitable": true}, {}
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal.py needs enum
import gc
import os
import select

from carrel import errdefs
from carrel.kernel import record
from carrel.kernel import syscalls as k
from carrel.oci import json
from carrel.runtime import api, create, enter
from carrel.runtime.create import Settings
from carrel.runtime.draft import Draft
from carrel.runtime.stock import Stock
from carrel.shim import explain
from carrel.shim import loop as poll
from carrel.shim.sockets import Socket, pair, receive_descriptors, send_descriptors

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


class Worker:
    """The shim's end."""

    __slots__ = ("_loop", "_socket", "pid")

    def __init__(self, *, ahead: bool = False) -> None:
        """``ahead``: nothing is asked yet, so there is time to get ready for it."""
        ours, theirs = pair()
        pid, pidfd = k.clone(0)
        if pid == 0:
            _work(theirs, ahead)
        os.close(pidfd)
        theirs.close()
        self.pid = pid
        self._socket = ours

    def tell(self, request: Answer, fds: tuple[int, ...] = ()) -> None:
        """What has no answer."""
        send_descriptors(self._socket, json.dumps(request).encode(), list(fds))

    def ask(self, loop: poll.Loop, request: Answer, fds: tuple[int, ...] = ()) -> poll.Work:
        """Gives the answer and the descriptors that came with it; its error is raised."""
        answered = poll.Later()
        self.tell(request, fds)
        loop.add(self._socket.fileno(), poll.IN, answered.resolve)
        try:
            yield answered
        finally:
            loop.remove(self._socket.fileno())
        packet, got = receive_descriptors(self._socket, ANSWER_MAX, 1)
        if not packet:
            raise errdefs.SystemFailure("the shim's worker died")
        answer: Answer = json.loads(packet)
        if "error" in answer:
            kind = getattr(errdefs, answer["error"]["kind"], errdefs.SystemFailure)
            raise kind(answer["error"]["text"])
        return answer, got

    def foresee(self, request: bytes) -> None:
        """The bundle of this request is going to be created: time to read it."""
        try:
            self._socket.send(b"\0" + request)
        except OSError:
            pass  # it is an offer; who needs the worker will be told that it died

    def dismiss(self) -> None:
        self._socket.close()


class Sibling:
    """The kernel as the worker sees it: what it clones is the shim's child."""

    def __init__(self) -> None:
        self.__dict__.update(vars(k))
        self.__dict__["clone"] = clone_sibling


def clone_sibling(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    return k.clone(flags | k.CLONE_PARENT, cgroup_fd)


#: a config.json to rehearse with, where that went well in the zygote
rehearsal = b""


def _work(control: Socket, ahead: bool) -> NoReturn:
    code = 1
    try:
        number = control.fileno()
        if number > 3:
            k.close_range(3, number - 1)
        k.close_range(number + 1, 0xFFFFFFFF)
        signal.set_wakeup_fd(-1)  # the shim's, and closed just now
        gc.disable()  # this process ends before it would pay
        kernel = Sibling()
        if ahead and rehearsal:
            from carrel.runtime.rehearse import once
            once(rehearsal)
            serve(control, kernel, make_stock(kernel))
        else:
            serve(control, kernel)
        code = 0
    finally:
        os._exit(code)


def make_stock(kernel: Sibling) -> Stock | None:
    """What is not to be had now shows when it is really needed."""
    goods = Stock()
    try:
        goods.fill(kernel)
    except OSError:
        goods.close()
        return None
    return goods


def serve(control: Socket, kernel: Sibling, stock: Stock | None = None) -> None:
    """Do what is asked until the shim needs nothing more."""
    made: api.Container | None = None
    draft: Draft | None = None
    planned: PlannedExec | None = None
    while True:
        packet, fds = receive_descriptors(control, PACKET_MAX, 3)
        if not packet:
            if draft is not None:
                draft.close()
            return
        if packet[:1] == b"\0":
            draft = foresee(packet[1:], kernel, stock)
            if draft is not None and idle(control):
                # Since its clone init shares our pages: now, and not when Create is here,
                # is the time to copy those that reading it will write to.
                json.loads(_SAMPLE)
                draft.same_config()
            continue
        try:
            request = json.loads(packet)
            if request["op"] == "create":
                plan, draft = draft, None
                made = _create(control, request, fds, kernel, plan)
                if made is not None and idle(control):
                    json.loads(_SAMPLE)
                    made.status  # noqa: B018  (as above: this is what start asks first)
            elif request["op"] == "plan exec":
                planned = PlannedExec(request, fds, kernel)
                continue
            elif request["op"] == "exec":
                assert planned is not None
                planned.execute(control)
            else:
                assert made is not None
                made.start()
                explain.save(made.bundle)
                answer(control, {})
        except Exception as error:
            kind = type(error).__name__ if isinstance(error, errdefs.CarrelError) \
                else "SystemFailure"
            answer(control, {"error": {"kind": kind, "text": api.message(error)}})
        for fd in fds:
            os.close(fd)


#: as long and as deep as a request to create
_SAMPLE = (b'{"op": "create", "id": "i", "bundle": "/b", "root": "/r", "terminal": false, '
           b'"mounts": [{"type": "overlay", "source": "overlay", "target": "", "options": '
           b'["a", "b", "c"]}], "settings": {"systemd_cgroup": false, "no_pivot": false, '
           b'"no_new_keyring": false}}')


def idle(control: Socket) -> bool:
    """Has nobody asked for anything yet?"""
    watch = select.poll()
    watch.register(control, select.POLLIN)
    return not watch.poll(0)


def answer(control: Socket, found: Answer, console: int = -1) -> None:
    send_descriptors(control, json.dumps(found).encode(), [console] if console >= 0 else [])


def state_root(root: str, namespace: str, bundle: str) -> str:
    """The runtime's state directory: as the options say, or beside the bundles."""
    if not root:
        before, found, _ = bundle.rpartition(_TASKS)
        root = f"{before}/runtime" if found else DEFAULT_ROOT
    return os.path.join(root, namespace)


def foresee(packet: bytes, kernel: Sibling, stock: Stock | None) -> Draft | None:
    """Plan what the request for a shim lets expect. What is wrong with it, or
    different in the end, the creation itself will find."""
    try:
        request = json.loads(packet)
        bundle = request["bundle"]
        config = create.read_config(bundle)
        if needs_parent(config):
            return None
        explain.begin(config)
        root = state_root("", request["namespace"], bundle)
        if record.active is not None:  # an explanation shows all that a start takes, in order
            return Draft(request["id"], bundle, root, Settings(), kernel, config)
        found = Draft(request["id"], bundle, root, Settings(), kernel, config, stock)
        found.advance()
        return found
    except Exception:
        return None


def make_settings(values: dict[str, bool]) -> Settings:
    return Settings(no_pivot=values["no_pivot"], no_new_keyring=values["no_new_keyring"],
                    systemd_cgroup=values["systemd_cgroup"])


def _create(control: Socket, request: Answer, fds: list[int], kernel: Sibling,
            draft: Draft | None) -> api.Container | None:
    bundle, settings = request["bundle"], make_settings(request["settings"])
    config = create.read_config(bundle)
    stdio = (fds[0], fds[1], fds[2]) if fds else None
    planned = draft is not None and draft.fits(
        config, request["id"], bundle, request["root"], request["terminal"], request["mounts"],
        settings)
    if not planned:
        if needs_parent(config):
            answer(control, {"unsuitable": True})
            return None
        explain.begin(config)
    try:
        if draft is not None and planned:
            pending = draft.begin(stdio, request["mounts"])
        else:
            pending = create.begin(request["id"], bundle, request["root"], stdio=stdio,
                                   terminal=request["terminal"],
                                   rootfs_mounts=request["mounts"] or None, settings=settings,
                                   kernel=kernel)
        try:
            # made ready while init works
            expected = pending.container.pid
            ready = json.dumps(describe(pending.container)).encode()
            made = pending.wait()
            if made.pid != expected:
                ready = json.dumps(describe(made)).encode()
            send_descriptors(control, ready, [made.console] if made.console >= 0 else [])
        finally:
            pending.close()
    except ChildProcessError:
        raise errdefs.SystemFailure(
            "unable to start container process: init vanished") from None
    return made


def describe(made: api.Container) -> Answer:
    return {"pid": made.pid, "cgroup": dict(made.cgroup.paths),
            "shares_pids": shares_pids(made.spec)}


def needs_parent(text: bytes) -> bool:
    """User namespaces and mapped mounts are made with helper processes, which only
    the container's parent can have. (Looked up in the text: parsing is the
    runtime's, and takes a tenth of a start.)"""
    if b"uidMappings" in text:
        return True
    for blank in (b" ", b"\n", b"\t", b"\r"):
        text = text.replace(blank, b"")
    return b'"type":"user"' in text


def shares_pids(spec: dict[str, Any]) -> bool:
    """Has the container no pid namespace of its own?"""
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return not any(n.get("type") == "pid" and not n.get("path") for n in namespaces)


class PlannedExec:
    """Another process in the container, planned when it was announced. What was wrong with
    it is told when it is asked for."""

    def __init__(self, request: Answer, fds: list[int], kernel: Sibling) -> None:
        self._fds = fds
        self._error: Exception | None = None
        try:
            self._container = api.load(request["id"], request["root"])
            self._entry = self._container.plan_exec(
                request["process"], (fds[0], fds[1], fds[2]) if fds else None,
                request["terminal"], kernel=kernel)
        except Exception as error:
            self._error = error

    def execute(self, control: Socket) -> None:
        if self._error is not None:
            raise self._error
        enter.check(self._container)
        process = self._entry.execute()
        answer(control, {"pid": process.pid}, process.console)
        for fd in self._fds:
            os.close(fd)
