"""Make the archives of ``carrel.cold``: which program wants which modules together.

A group is read as a whole when one of its modules is imported, so it holds what one command
needs.  It is found by importing: what the named modules bring with them belongs to
the group, unless an earlier one has it.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from carrel.cold import Entry

_CGROUPS = (("carrel.kernel.cgroup_v1",), ("carrel.kernel.cgroup_v2", "carrel.kernel.ebpf"),
            ("carrel.kernel.cgroup_systemd",))
_START = ("carrel.runtime.create", "carrel.runtime.childplan", "carrel.runtime.cgroupfs",
          "resource")
#: program -> its groups, each named by the modules that bring the others
PROGRAMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "carrel-runtime": (
        ("carrel.runtime.main", "carrel.runtime.container"),
        ("carrel.runtime.cli_start", *_START),
        *_CGROUPS,
        ("carrel.runtime.cli_manage",),
        ("carrel.kernel.seccomp",),
        ("carrel.runtime.enter",),
        ("carrel.runtime.sources",),
        ("carrel.runtime.hooks",),
    ),
    "containerd-shim-carrel-v1": (
        ("carrel.shim.main",),  # alone: the zygote goes on without the archive
        ("carrel.shim.birth", "_blake2"),
        ("carrel.shim.wire", "carrel.shim.schema"),
        ("carrel.shim.daemon", "carrel.shim.inprocess", "carrel.kernel.seccomp", *_START),
        *_CGROUPS,
        ("carrel.shim.cleanup",),
    ),
    "carrel": (
        ("carrel.cli.main", "carrel.cli.client", "carrel.cli.tables", "carrel.cli.terminal"),
        *((f"carrel.cli.cmd_{name}",) for name in (
            "ps", "run", "exec", "start", "containers", "images", "logs", "inspect")),
        ("carrel.cli.units",),
        ("carrel.cli.gotemplate",),
    ),
}


def save(path: str, groups: tuple[tuple[str, ...], ...]) -> int:
    """Write the archive; how many modules it holds.  For a fresh interpreter."""
    index: dict[str, Entry] = {}
    parts: list[bytes] = []
    size = 0
    known = set(sys.modules) - {"__future__"}  # which is here because of this very file
    for names in groups:
        for name in names:
            __import__(name)
        new = [name for name in sys.modules if name not in known]
        known.update(new)
        codes: dict[str, CodeType] = {}
        entries: dict[str, tuple[str, int, int, str]] = {}
        for name in new:
            _take(name, codes, entries, index)
        data = marshal.dumps(codes)
        for name, entry in entries.items():
            index[name] = (*entry, size, size + len(data))
        parts.append(data)
        size += len(data)
    head = marshal.dumps(index)
    _write(path, [MAGIC_NUMBER, len(head).to_bytes(4, "little"), head, *parts])
    return len(index)


def _take(name: str, codes: dict[str, CodeType], entries: dict[str, tuple[str, int, int, str]],
          index: dict[str, Entry]) -> None:
    """A module into the group; what is built in or frozen stays where it is."""
    spec = getattr(sys.modules[name], "__spec__", None)
    origin = spec.origin if spec is not None else None
    if spec is None or origin is None or name != spec.name:
        return
    if isinstance(spec.loader, ExtensionFileLoader):
        found = os.stat(origin)
        index[name] = (origin, found.st_mtime_ns, found.st_size, "", -1, -1)
    elif isinstance(spec.loader, SourceFileLoader):
        with open(origin, "rb") as file:
            found = os.fstat(file.fileno())
            source = file.read()
        codes[name] = compile(source, origin, "exec", dont_inherit=True, optimize=2)
        folders = spec.submodule_search_locations
        entries[name] = (origin, found.st_mtime_ns, found.st_size, folders[0] if folders else "")


def _write(path: str, parts: list[bytes]) -> None:
    """All of it or nothing: a program may start at any moment."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.writelines(parts)
    os.rename(temporary, path)


def main(folder: str) -> None:
    """All archives into ``folder``, each by a process of its own."""
    os.makedirs(folder, exist_ok=True)
    for program, groups in PROGRAMS.items():
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                save(f"{folder}/{program}.code", groups)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(f"coldbuild: no archive for {program}")
