"""A creation that is read and planned before it is asked for.

The shim knows its bundle a millisecond before ``Create`` comes.  In that time its
worker reads the configuration, checks and plans it, which changes nothing in the
kernel.  What then is asked for must be what was expected, in every respect that the
plan depends on; otherwise the draft is thrown away and the creation begins anew.
"""

from __future__ import annotations

import os

from carrel.kernel import syscalls
from carrel.kernel.plan import run as run_plan
from carrel.oci import json, runtime_spec
from carrel.runtime import childplan, create, launch, mounts, planner, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.kernel.plan import Done, Operation
    from carrel.runtime.stock import Stock

    Spec = dict[str, Any]


class Draft:
    """One plan: used by :meth:`begin` if it :meth:`fits`, else closed."""

    __slots__ = ("_asked", "_done", "_maker", "_operations", "_raw")

    def __init__(self, id: str, bundle: str, root: str, settings: create.Settings | None = None,
                 kernel: Any = syscalls, raw: bytes | None = None,
                 stock: Stock | None = None, cradle: launch.Cradle | None = None) -> None:
        """``raw``: the text of config.json, where it is there already."""
        settings = settings or create.Settings()
        state.check_id(id)
        self._raw = create.read_config(bundle) if raw is None else raw
        spec = create.parse_config(self._raw, bundle)
        runtime_spec.check(spec)
        self._asked = id, bundle, root, _values(settings)
        self._done: Done | None = None
        self._maker = create.Maker(spec, bundle, launch.Launch(id, root, cradle), settings,
                                   kernel, stock)
        try:
            # the root's mounts come with the request: one stands for them
            self._operations: list[Operation] = self._maker.plan(self._raw, None, [_LATER], None)
        except BaseException:
            self._maker.close()
            raise

    def fits(self, raw: bytes, id: str, bundle: str, root: str, terminal: bool | None,
             rootfs_mounts: list[Spec] | None, settings: create.Settings) -> bool:
        """Is the plan that of this request, with this config.json? If not, it is closed."""
        maker = self._maker
        process = maker.spec.get("process") or {}
        if (raw == self._raw and bool(rootfs_mounts)
                and (id, bundle, root, _values(settings)) == self._asked
                and terminal in (None, bool(process.get("terminal")))
                and self._same_root()
                and self._same_namespaces()):
            return True
        self.close()
        return False

    def advance(self) -> None:
        """Make the process, where it can wait for its request: it is at work on all that the
        request says nothing of. What was made is taken back if the draft is not used."""
        maker = self._maker
        child, start = maker.child, maker.launch
        if not child.joins_late or os.path.lexists(start.folder):
            return
        first = [one for one in self._operations
                 if isinstance(one, (launch.MakeCgroup, launch.StartProcess))]
        place = self._place()
        plan = child.before
        later = plan[place]
        plan[place] = childplan.AwaitRequest(child, maker.rootfs)
        child.awaits_request = True
        try:
            self._done = run_plan(first, maker.kernel)
        except OSError:
            child.awaits_request = False
            plan[place] = later
            return
        self._operations = [one for one in self._operations if one not in first]

    def _place(self) -> int:
        return next(n for n, one in enumerate(self._maker.child.before)
                    if isinstance(one, mounts.MountRootfs))

    def same_config(self) -> bool:
        """Is everything as it was that the plan was made from?"""
        return (create.read_config(self._asked[1]) == self._raw and self._same_root()
                and self._same_namespaces())

    def _same_root(self) -> bool:
        return _identity(self._maker.rootfs_path) == _identity(self._maker.rootfs)

    def _same_namespaces(self) -> bool:
        """Do the paths still lead to the namespaces that were opened?"""
        return all(_identity(path) == _identity(fd) for path, fd in self._maker.joined)

    def begin(self, stdio: tuple[int, int, int] | None,
              rootfs_mounts: list[Spec]) -> create.Pending:
        """As :func:`create.begin`, with what only the request told."""
        if self._done is None:
            return create.Pending(self.finish(stdio, rootfs_mounts), self._operations)
        told = launch.SendRequest(self._maker.launch, json.dumps(rootfs_mounts).encode(), stdio)
        return create.Pending(self._maker, [told, *self._operations], self._done)

    def finish(self, stdio: tuple[int, int, int] | None, rootfs_mounts: list[Spec]) -> create.Maker:
        maker = self._maker
        maker.child.stdio = stdio
        plan = maker.child.before
        place = self._place()
        plan[place:place + 1] = [planner.rootfs_mount(one, maker.rootfs) for one in rootfs_mounts]
        return maker

    def close(self) -> None:
        """Nothing is left of it."""
        if self._done is not None:
            self._done.rollback()
        self._maker.close()


_LATER: Spec = {"type": "none", "source": "later", "options": []}


def _identity(file: str | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _values(settings: create.Settings) -> tuple[object, ...]:
    return tuple(getattr(settings, name) for name in create.Settings.__slots__)
