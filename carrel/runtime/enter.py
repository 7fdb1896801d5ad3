"""Another process in a running container (exec).

The parent pins the container's init by a pidfd and checks its start time after
that, so that a reused pid can never be entered.  The child is born into the
container's pid namespace, and joins the other namespaces by the same pidfd.
"""

from __future__ import annotations

import os

from carrel.errdefs import Conflict, InvalidParameter
from carrel.kernel import syscalls
from carrel.kernel.plan import Operation
from carrel.kernel.plan import run as run_plan
from carrel.runtime import (
    agent,
    childplan,
    childrecord,
    errors,
    identity,
    inside,
    launch,
    planner,
    report,
)
from carrel.runtime import container as containers
from carrel.runtime.child import Child, interpreter
from carrel.runtime.create import fill_process
from carrel.runtime.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.container import Container

    Spec = dict[str, Any]


def execute(container: Container, process: Spec, stdio: tuple[int, int, int] | None = None,
            terminal: bool | None = None, *, console_size: tuple[int, int] | None = None,
            preserve_fds: int = 0, ignore_paused: bool = False,
            cgroups: list[str] | None = None,
            seccomp_cache: str | None = None, kernel: Any = syscalls) -> containers.Process:
    """Run ``process`` in ``container``; returns after its execve."""
    entry = prepare(container, process, stdio, terminal, console_size=console_size,
                    preserve_fds=preserve_fds, ignore_paused=ignore_paused, cgroups=cgroups,
                    seccomp_cache=seccomp_cache, kernel=kernel)
    return entry.execute()


def prepare(container: Container, process: Spec, stdio: tuple[int, int, int] | None = None,
            terminal: bool | None = None, *, console_size: tuple[int, int] | None = None,
            preserve_fds: int = 0, ignore_paused: bool = False,
            cgroups: list[str] | None = None,
            seccomp_cache: str | None = None, kernel: Any = syscalls) -> Entry:
    """Check and plan, which changes nothing; then :meth:`Entry.execute`, or close it."""
    check(container, ignore_paused)
    if not process.get("args"):
        raise InvalidParameter("process args cannot be empty")
    entry = Entry(container, process, kernel)
    child = entry.child
    child.stdio = stdio
    child.terminal = bool(process.get("terminal")) if terminal is None else terminal
    child.preserve_fds = preserve_fds
    size = process.get("consoleSize")
    entry.view.console_size = console_size or ((size["height"], size["width"]) if size else None)
    try:
        entry.plan(seccomp_cache or f"{container.root}/.seccomp", cgroups or [])
    except BaseException:
        entry.close()
        raise
    return entry


def check(container: Container, ignore_paused: bool = False) -> None:
    status = container.status
    if status == containers.STOPPED:
        raise Conflict("cannot exec in a stopped container")
    if status == containers.PAUSED and not ignore_paused:
        raise Conflict("cannot exec in a paused container (use --ignore-paused to override)")


class OpenRoot(Operation):
    """Hold the container's root, which is ``/`` after joining its mount namespace."""

    __slots__ = ("view",)
    step = "namespaces"

    def __init__(self, view: View) -> None:
        self.view = view

    def describe(self) -> str:
        return "open the container's root"

    def execute(self, kernel: Any) -> None:
        self.view.root_fd = kernel.openat(syscalls.AT_FDCWD, "/", os.O_PATH | os.O_DIRECTORY)


class ChangeRootTo(Operation):
    """Into the root of the init, where the container has no mount namespace of its own."""

    __slots__ = ("fd",)
    step = "namespaces"

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def describe(self) -> str:
        return "chroot to the root of the container's init"

    def execute(self, kernel: Any) -> None:
        kernel.fchdir(self.fd)
        kernel.chroot(".")


class Entry:
    """One exec: its plan and its conversation."""

    __slots__ = ("child", "console", "container", "descriptors", "kernel", "launch", "process",
                 "view")

    def __init__(self, container: Container, process: Spec, kernel: Any) -> None:
        self.container = container
        self.process = process
        self.kernel = kernel
        self.view = View()
        self.child = Child(self.view, kernel)
        self.launch = launch.Launch(container.id, container.root)
        self.launch.child = self.child
        self.console = -1
        self.descriptors: list[int] = []

    def _keep(self, fd: int) -> int:
        self.descriptors.append(fd)
        return fd

    def plan(self, seccomp_cache: str, cgroups: list[str]) -> None:
        container, child, view = self.container, self.child, self.view
        process = self._with_defaults()
        self.view.null_fd = self._keep(inside.open_null(self.kernel))
        fill_process(child, process)
        interpreter()
        pidfd = container.open_pidfd()
        flags = self._namespaces()
        child.keep_fds = [pidfd]
        child.early.append(inside.OpenProcfs(view))
        if flags:  # all in one call: each is checked with the rights we have before it
            child.joins.append((pidfd, flags, "container"))
        self._plan_cgroup(cgroups)
        plan = child.before
        if not flags & syscalls.CLONE_NEWNS:
            fd = self._keep(os.open(f"/proc/{container.pid}/root", os.O_PATH | os.O_CLOEXEC))
            child.keep_fds.append(fd)
            plan.append(ChangeRootTo(fd))
        plan.append(OpenRoot(view))
        if not container.record.get("noNewKeyring"):
            plan.append(identity.JoinKeyring(f"_ses.{container.id}"))
        plan.extend(planner.plan_schedule(process, self._shared_settings(),
                                          self._affinity(process)))
        if child.terminal:
            plan.append(inside.OpenTerminal(view))
        if process.get("oomScoreAdj") is not None:
            plan.append(inside.WriteProc(view, "self/oom_score_adj",
                                         str(process["oomScoreAdj"]), "oom_score_adj"))
        before, after, rights = planner.plan_identity(process, view, child.env)
        plan.extend(before)
        child.after_go.extend(after)
        linux = container.spec.get("linux") or {}
        plan.extend(planner.plan_labels(process, {}, view))
        childplan.finish_rights(child, rights, process, linux.get("seccomp"), seccomp_cache)

    def _shared_settings(self) -> Spec:
        """Of the container's settings what every one of its processes has."""
        linux = self.container.spec.get("linux") or {}
        return {key: linux[key] for key in ("personality", "memoryPolicy") if key in linux}

    def _affinity(self, process: Spec) -> list[int]:
        affinity = process.get("execCPUAffinity") or (
            self.container.spec.get("process") or {}).get("execCPUAffinity") or {}
        if affinity.get("initial"):
            self.child.early.insert(0, identity.SetSchedule(
                [("sched_setaffinity", (planner.parse_list(affinity["initial"]),))]))
        if affinity.get("final"):
            return planner.parse_list(affinity["final"])
        return childplan.all_cpus()

    def _with_defaults(self) -> Spec:
        """What an exec does not say is as in the container's own process."""
        own = self.container.spec.get("process") or {}
        process = dict(self.process)
        if process.get("capabilities") is None and own.get("capabilities") is not None:
            process["capabilities"] = own["capabilities"]
        if process.get("oomScoreAdj") is None and own.get("oomScoreAdj") is not None:
            process["oomScoreAdj"] = own["oomScoreAdj"]
        return process

    def _namespaces(self) -> int:
        """Those that differ from ours; the pid namespace is for the child's birth."""
        pid, flags = self.container.pid, 0
        for kind, name in planner.NAMESPACE_FILES.items():
            theirs = os.stat(f"/proc/{pid}/ns/{name}")
            ours = os.stat(f"/proc/self/ns/{name}")
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                continue
            if kind == "pid":
                self.launch.pid_namespace = self._keep(
                    os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
            else:
                flags |= planner.NAMESPACE_FLAGS[kind]
        if not self.container.alive:  # everything above was read of this very process
            raise Conflict("cannot exec in a stopped container")
        return flags

    def _plan_cgroup(self, below: list[str]) -> None:
        manager = self.container.cgroup
        if below:
            from carrel.runtime.subgroups import parse
            self.child.cgroup = parse(manager, below)
            return
        self.child.cgroup = manager
        # those that are not open yet the child opens itself, before it joins
        self.child.keep_fds.extend(fd for g in manager.groups for fd in (g.procs_fd, g.fd)
                                   if fd >= 0)

    def execute(self) -> containers.Process:
        """Once; the plan is closed with it."""
        try:
            done = run_plan([launch.StartProcess(self.launch, 0)], self.kernel)
            try:
                return self.finish()
            except BaseException as error:
                for second in done.rollback():
                    error.add_note(f"undo failed too: {second}")
                raise
        finally:
            self.close()

    def finish(self) -> containers.Process:
        start = self.launch
        assert start.socket is not None
        while True:
            packet, fds = report.receive(start.socket)
            kind = packet[:1]
            if not kind:
                break  # execve closed its end
            if kind == b"E":
                raise errors.from_packet(packet, "")
            if kind == b"T":
                self.console = fds[0]
            elif kind == b"L":
                childrecord.merge(packet)
            elif kind == b"N":
                agent.hand_over(self.container.spec["linux"]["seccomp"], start.pidfd,
                                int(packet[1:]), start.pid, self.container.oci_state())
                start.socket.send(b"G")
        start.socket.close()
        return containers.Process(start.pid, start.pidfd, self.console)

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors.clear()
