"""What the child of a new container will do, in order."""

from __future__ import annotations

import os

from carrel.kernel import syscalls
from carrel.kernel.plan import Operation
from carrel.oci import json
from carrel.runtime import identity, inside, planner
from carrel.runtime.cgroupfs import MountCgroups
from carrel.runtime.child import place_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.child import Child
    from carrel.runtime.create import Maker
    from carrel.runtime.view import View

    Spec = dict[str, Any]


class AwaitHostHooks(Operation):
    """Stop while the parent runs prestart and createRuntime on the host."""

    __slots__ = ("view",)
    step = "hooks"

    def __init__(self, view: View) -> None:
        self.view = view

    def describe(self) -> str:
        return "run prestart and createRuntime hooks on the host"

    def execute(self, kernel: Any) -> None:
        self.view.report.ask(b"H")


class RunHooks(Operation):
    """Hooks of the container's own namespaces. Those before the change of root
    (``view`` is given) run with the root file system as their directory."""

    __slots__ = ("env", "hooks", "point", "run_all", "state", "view")
    step = "hooks"

    def __init__(self, hooks_: list[Spec], point: str, state: Spec,
                 env: list[bytes] | None = None, view: View | None = None) -> None:
        self.hooks, self.point, self.state = hooks_, point, state
        self.view = view
        from carrel.runtime import hooks
        self.run_all = hooks.run_all  # loaded now: the child can import nothing
        self.env = env  # for those that name none: startContainer gets the process's

    def describe(self) -> str:
        return f"run {self.point} hooks"

    def execute(self, kernel: Any) -> None:
        document = json.dumps({**self.state, "pid": os.getpid()}).encode()
        if self.view is not None:
            kernel.fchdir(self.view.root_fd)
        self.run_all(self.hooks, self.point, document, self.env)


class AwaitRequest(Operation):
    """The child was made before the request for it: wait for its streams and its root.
    Stands in the plan where the root is mounted."""

    __slots__ = ("_current", "child", "rootfs")
    step = "rootfs"

    def __init__(self, child: Child, rootfs: str) -> None:
        self.child, self.rootfs = child, rootfs
        self._current: Operation | None = None

    def describe(self) -> str:
        return self._current.describe() if self._current is not None else "await the request"

    def execute(self, kernel: Any) -> None:
        child = self.child
        packet, fds = child.view.report.wait_for_request()
        if fds:
            child.stdio = (fds[0], fds[1], fds[2])
        place_stdio(child)
        for fd in fds:
            os.close(fd)
        for entry in json.loads(packet):
            self._current = planner.rootfs_mount(entry, self.rootfs)
            self._current.execute(kernel)


class JoinCgroups(Operation):
    """Move into the cgroups that the parent makes meanwhile, before anything that shows or
    limits them, and before anything of the container runs."""

    __slots__ = ("child", "path")
    step = "cgroup"

    def __init__(self, child: Child, path: str) -> None:
        self.child, self.path = child, path

    def describe(self) -> str:
        return f"join the cgroup {self.path}"

    def execute(self, kernel: Any) -> None:
        child = self.child
        child.fifo_fd, files, child.view.cgroup_trees = child.view.report.wait_for_cgroups()
        for fd in files:
            kernel.write(fd, b"0")
            os.close(fd)
        if child.unshare_flags:
            kernel.unshare(child.unshare_flags)


def joins_late(maker: Maker) -> bool:
    """Only where clone itself makes the child what it stays: no user namespace, whose child
    could not open or join by itself, and no second clone."""
    return bool(maker.launch.cgroup.late and not maker.spaces.has("user")
                and not maker.spaces.after_join
                and not maker.child.unshare_flags & ~syscalls.CLONE_NEWCGROUP)


def fill(maker: Maker, process: Spec, rootfs_mounts: list[Spec] | None) -> None:
    """Put the plan into ``maker.child``."""
    spec, view, child = maker.spec, maker.view, maker.child
    all_hooks = spec.get("hooks") or {}
    first, second = planner.plan_mounts(spec, view, maker.rootfs, rootfs_mounts,
                                        maker.bundle,
                                        maker.launch.cgroup.mounts,
                                        no_pivot=maker.settings.no_pivot,
                                        map_fds=maker.map_fds, stock=maker.stock)
    maker.keep_ready(first, second)
    plan = child.before
    if not maker.settings.no_new_keyring:
        plan.append(identity.JoinKeyring(f"_ses.{maker.launch.id}"))
    plan.append(inside.OpenProcfs(view))
    if maker.spaces.has("mount"):
        plan.append(inside.OpenNull(view))
    linux = spec.get("linux") or {}
    if maker.spaces.made & syscalls.CLONE_NEWTIME:
        rows = "".join(f"{clock} {o.get('secs') or 0} {o.get('nanosecs') or 0}\n"
                       for clock, o in (linux.get("timeOffsets") or {}).items())
        plan.append(inside.MakeTimeNamespace(view, rows, by_parent=bool(
            maker.spaces.made & syscalls.CLONE_NEWUSER)))
    plan.extend(planner.plan_schedule(process, linux, all_cpus()))
    if joins_late(maker):
        child.joins_late = True
        place = next((n for n, one in enumerate(first) if isinstance(one, MountCgroups)),
                     len(first))
        if place < len(first):
            maker.launch.cgroup_mount = first[place]
        first.insert(place, JoinCgroups(child, maker.launch.cgroup.path))
    plan.extend(first)
    if all_hooks.get("prestart") or all_hooks.get("createRuntime"):
        plan.append(AwaitHostHooks(view))
    if all_hooks.get("createContainer"):
        plan.append(RunHooks(all_hooks["createContainer"], "createContainer",
                             maker.oci_state("creating", 0), view=view))
    plan.extend(second)
    if process.get("oomScoreAdj") is not None and not child.wait_for_maps:
        plan.append(inside.WriteProc(view, "self/oom_score_adj", str(process["oomScoreAdj"]),
                                     "oom_score_adj"))
    before, after, rights = planner.plan_identity(process, view, child.env)
    plan.extend(before)
    plan.extend(planner.plan_labels(process, linux, view))
    if all_hooks.get("startContainer"):
        point = RunHooks(all_hooks["startContainer"], "startContainer",
                         maker.oci_state("created", 0), child.env)
        child.filtered.append(point)
    child.after_go.extend(after)
    finish_rights(child, rights, process, linux.get("seccomp"), maker.seccomp_cache)


_cpus: list[int] = []


def all_cpus() -> list[int]:
    """What the kernel may let a process run on; its cgroup narrows it."""
    if not _cpus:
        _cpus.extend(range(os.sysconf("SC_NPROCESSORS_CONF")))
    return _cpus


#: what the child, CPython and the C library call from the wait for start to execve
AFTER_EARLY_FILTER = frozenset((
    "brk", "capget", "capset", "chdir", "close", "close_range", "execve", "exit_group", "fchdir",
    "fcntl", "fstat", "futex", "getcwd", "getpid", "ioctl", "lseek", "madvise", "mmap", "mprotect",
    "mremap", "munmap", "newfstatat", "openat", "prctl", "read", "readlink", "readlinkat",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "setgroups", "setresgid", "setresuid",
    "umask", "write"))


def finish_rights(child: Child, rights: planner.Rights, process: Spec, filter_spec: Spec | None,
                  cache: str | None) -> None:
    """Capabilities and filter: the last two things before execve.

    Without no_new_privs a filter may only be installed with CAP_SYS_ADMIN, so
    that one is kept until the filter is there; the filter then has to allow
    capset and prctl, which is so with every other runtime, too.

    One that allows all that is done between the wait for start and execve is installed
    before the wait: the kernel compiles it while the word that start is there travels.
    """
    if not filter_spec or not filter_spec.get("defaultAction"):
        child.after_go.append(rights.final)
        return
    from carrel.kernel import seccomp
    seccomp.check(filter_spec)
    if seccomp.needs_listener(filter_spec):
        from carrel.runtime import agent
        agent.check(filter_spec)
        child.listener = seccomp.Filter(seccomp.compile(filter_spec, cache),
                                        seccomp.flags(filter_spec), listener=True)
        child.after_go.append(rights.final)
        return
    child.filter = seccomp.Filter(seccomp.compile(filter_spec, cache), seccomp.flags(filter_spec))
    child.filters_early = seccomp.allows(filter_spec, AFTER_EARLY_FILTER)
    if process.get("noNewPrivileges"):
        child.after_go.append(rights.final)
    else:
        child.after_go.append(rights.final.with_admin())
        child.final_rights = rights.final


