"""The operations that build a container's file system view (run in the child)."""

from __future__ import annotations

import os
from errno import EINVAL, EPERM
from stat import S_ISDIR

from carrel.kernel import paths, syscalls
from carrel.kernel.plan import Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from carrel.runtime.options import Options
    from carrel.runtime.view import View

STEP = "mounts"
#: mount(2) takes one page of data
_DATA_MAX = 4000


class MountOperation(Operation):
    """One that works on a destination in the container's root."""

    __slots__ = ("destination", "view")
    step = STEP

    def __init__(self, view: View, destination: str) -> None:
        self.view = view
        self.destination = destination


class SetPropagation(Operation):
    """Cut the new mount namespace off from the host's."""

    __slots__ = ("propagation",)
    step = STEP

    def __init__(self, propagation: int) -> None:
        self.propagation = propagation

    def describe(self) -> str:
        return "make every mount of the new namespace " + _propagation_name(self.propagation)

    def execute(self, kernel: Any) -> None:
        fd = kernel.open_tree(syscalls.AT_FDCWD, "/", 0)
        kernel.mount_setattr(fd, syscalls.AT_RECURSIVE, propagation=self.propagation)
        kernel.close(fd)

    def shell(self) -> str:
        return f"mount --make-r{_propagation_name(self.propagation)} /"


class MountRootfs(Operation):
    """Mount one layer of the root file system, seen by the container only."""

    __slots__ = ("data", "flags", "fstype", "source", "target")
    step = "rootfs"

    def __init__(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self.source, self.target, self.fstype = source, target, fstype
        self.flags, self.data = flags, data

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.target}"

    def execute(self, kernel: Any) -> None:
        data = self.data
        if len(data) > _DATA_MAX:
            base, data = _relative_layers(data)
            fd = kernel.openat(syscalls.AT_FDCWD, base, os.O_PATH | os.O_CLOEXEC)
            kernel.fchdir(fd)
            kernel.close(fd)
        kernel.mount(self.source, self.target, self.fstype, self.flags, data or None)
        if self.flags & 4096 and self.flags & ~(4096 | 16384):  # a bind takes flags when remounted
            kernel.mount(self.source, self.target, None, self.flags | 32)

    def shell(self) -> str:
        if self.flags & 4096:
            return f"mount --rbind {self.source} {self.target}"
        return f"mount -t {self.fstype} -o '{self.data}' {self.source} {self.target}"


def _relative_layers(data: str) -> tuple[str, str]:
    """The folder that all lower directories share, and the data with them relative to it.

    The absolute paths of 100 layers are longer than a page.
    """
    options = data.split(",")
    for number, option in enumerate(options):
        if option.startswith("lowerdir="):
            layers = option[len("lowerdir="):].split(":")
            base = os.path.commonpath(layers) if len(layers) > 1 else "/"
            options[number] = "lowerdir=" + ":".join(
                os.path.relpath(layer, base) for layer in layers)
            return base, ",".join(options)
    return "/", data


class PrivateParent(Operation):
    """pivot_root refuses a root whose parent mount is shared: cut that one off."""

    __slots__ = ("path",)
    step = STEP

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"make the mount that holds {self.path} private"

    def execute(self, kernel: Any) -> None:
        parent = _mount_point_of(self.path)
        fd = kernel.open_tree(syscalls.AT_FDCWD, parent, 0)
        kernel.mount_setattr(fd, 0, propagation=syscalls.MS_PRIVATE)
        kernel.close(fd)

    def shell(self) -> str:
        return f"mount --make-private $(findmnt -no TARGET -T {self.path})"


class OpenRootfs(MountOperation):
    """Make the root file system a mount of its own and hold it."""

    __slots__ = ("bind",)
    step = "rootfs"

    def __init__(self, view: View, path: str, *, bind: bool) -> None:
        super().__init__(view, path)
        self.bind = bind

    def describe(self) -> str:
        return f"open root file system {self.destination}"

    def execute(self, kernel: Any) -> None:
        if self.bind:
            tree = kernel.open_tree(syscalls.AT_FDCWD, self.destination,
                                    syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
            where = kernel.open_tree(syscalls.AT_FDCWD, self.destination, 0)
            kernel.move_mount(tree, where, self.destination)
            kernel.close(where)
            self.view.root_fd = tree
        else:
            self.view.root_fd = kernel.open_tree(syscalls.AT_FDCWD, self.destination, 0)

    def shell(self) -> str | None:
        return f"mount --rbind {self.destination} {self.destination}" if self.bind else None


class Mount(MountOperation):
    """Mount a new file system (proc, sysfs, tmpfs, ...) on a directory."""

    __slots__ = ("fstype", "options", "read_only_late", "ready", "source")

    def __init__(self, view: View, destination: str, fstype: str, source: str,
                 options: Options, *, read_only_late: bool = False, ready: int = -1) -> None:
        super().__init__(view, destination)
        self.fstype, self.source, self.options = fstype, source, options
        self.read_only_late = read_only_late
        #: made ahead (see stock.py), or -1
        self.ready = ready

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.destination}"

    def execute(self, kernel: Any) -> None:
        target, existed = self._target(kernel)
        tree = self.ready if self.ready >= 0 else self._make(kernel, target, existed)
        if self.options.copy_up:
            from carrel.runtime.copyup import copy_tree
            copy_tree(kernel, self.view.root_fd, self.destination, tree)
        if self.fstype == "tmpfs" or (self.destination.startswith("/proc/")
                                      and self.fstype != "proc"):
            check_proc(kernel, self.destination, target, tree)
        kernel.move_mount(tree, target, self.destination)
        kernel.close(target)
        set_propagation(kernel, tree, self.options)
        if self.destination.rstrip("/") == "/dev":
            self.view.dev_fd = tree
        if self.read_only_late:
            self.view.late_read_only.append((tree, self.destination))
        elif tree != self.view.dev_fd:
            kernel.close(tree)

    def _make(self, kernel: Any, target: int, existed: bool) -> int:
        data = list(self.options.data)
        attributes = self.options.attr_set
        if self.fstype == "tmpfs" and self.options.value("mode") is None and existed:
            data.append(f"mode={kernel.fstat(target).st_mode & 0o7777:o}")
        if self.read_only_late:
            attributes &= ~syscalls.MOUNT_ATTR_RDONLY
        return new_filesystem(kernel, self.fstype, self.source, data, self.options.superblock,
                              attributes)

    def _target(self, kernel: Any) -> tuple[int, bool]:
        """(the directory to mount on, whether it was there already)"""
        root = self.view.root_fd
        if self.fstype in ("proc", "sysfs") and paths.is_symlink(kernel, root, self.destination):
            raise OSError(EINVAL, f'filesystem "{self.fstype}" must be mounted on ordinary '
                                  f"directory", self.destination)
        found = paths.find_in_root(kernel, root, self.destination)
        if found >= 0 and S_ISDIR(kernel.fstat(found).st_mode):
            return found, True
        if found >= 0:
            kernel.close(found)
        return paths.make_directory(kernel, root, self.destination), False

    def shell(self) -> str:
        words = ",".join(self.options.data)
        return f"mount -t {self.fstype} {f'-o {words} ' if words else ''}" \
               f"{self.source or self.fstype} ./{self.destination.lstrip('/')}"


class BindMount(MountOperation):
    """Bind a file or directory of the host into the container."""

    __slots__ = ("beneath", "index", "map_fd", "options", "source")

    def __init__(self, view: View, destination: str, source: str, options: Options,
                 index: int, map_fd: int = -1, beneath: str = "") -> None:
        super().__init__(view, destination)
        self.source, self.options, self.index = source, options, index
        #: the folder that the source must not lead out of, or ""
        self.beneath = beneath
        #: a user namespace whose id maps the mount shall have, or -1
        self.map_fd = map_fd

    def describe(self) -> str:
        return f"bind {self.source} on {self.destination}"

    def execute(self, kernel: Any) -> None:
        options = self.options
        if self.view.foreign_sources:
            tree = self.view.report.ask_tree(self.index)
        else:
            tree = clone_source(kernel, self.source, options.bind == "rbind", self.beneath)
            if self.map_fd >= 0:
                kernel.mount_setattr(
                    tree, syscalls.AT_RECURSIVE if options.idmap == "ridmap" else 0,
                    syscalls.MOUNT_ATTR_IDMAP, userns_fd=self.map_fd)
        if S_ISDIR(kernel.fstat(tree).st_mode):
            target = paths.make_directory(kernel, self.view.root_fd, self.destination)
        else:
            target = paths.make_file(kernel, self.view.root_fd, self.destination)
        check_proc(kernel, self.destination, target, tree)
        if options.flags_asked:
            self._set_attributes(kernel, tree)
        if options.recursive_set or options.recursive_clear:
            kernel.mount_setattr(tree, syscalls.AT_RECURSIVE, options.recursive_set,
                                 options.recursive_clear)
        kernel.move_mount(tree, target, self.destination)
        kernel.close(target)
        set_propagation(kernel, tree, options)
        kernel.close(tree)

    def _set_attributes(self, kernel: Any, tree: int) -> None:
        """As remount(2) does it: access times stay as the source has them unless one of their
        modes is asked for, everything else that is not asked for goes."""
        from carrel.runtime.options import RESET
        options = self.options
        wanted, times = options.attr_set, syscalls.MOUNT_ATTR_NODIRATIME
        atime = syscalls.MOUNT_ATTR__ATIME | times & ~wanted if options.access_times else 0
        try:
            kernel.mount_setattr(tree, 0, wanted, RESET & ~wanted & ~times | atime)
        except OSError as error:
            if error.errno != EPERM:
                raise
            # In a user namespace the source's own restrictions are locked: they are kept, what
            # was asked for is added; that one of them goes is refused where it was asked for.
            asked = options.attr_clear & ~(syscalls.MOUNT_ATTR__ATIME | times)
            free = syscalls.MOUNT_ATTR_NOSYMFOLLOW & ~wanted
            kernel.mount_setattr(tree, 0, wanted, asked | free | atime)

    def shell(self) -> str:
        return f"mount --{self.options.bind or 'bind'} {self.source} " \
               f"./{self.destination.lstrip('/')}"


class MaskPath(MountOperation):
    """Hide a file behind /dev/null, a directory behind an empty tmpfs."""

    __slots__ = ()
    step = "masked paths"

    def describe(self) -> str:
        return f"mask {self.destination}"

    def execute(self, kernel: Any) -> None:
        target = paths.find_in_root(kernel, self.view.root_fd, self.destination)
        if target < 0:
            return
        if S_ISDIR(kernel.fstat(target).st_mode):
            tree = new_empty(kernel)
        else:
            tree = kernel.open_tree(self.view.null_fd, "",
                                    syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        kernel.move_mount(tree, target, self.destination)
        kernel.close(tree)
        kernel.close(target)

    def shell(self) -> str:
        path = "./" + self.destination.lstrip("/")
        return f"if [ -d {path} ]; then mount -t tmpfs -o ro tmpfs {path}; " \
               f"elif [ -e {path} ]; then mount --bind /dev/null {path}; fi"


class MaskPaths(MountOperation):
    """All masked paths at once: the directories share one empty tmpfs."""

    __slots__ = ("paths", "ready")
    step = "masked paths"

    def __init__(self, view: View, masked: list[str], ready: int = -1) -> None:
        super().__init__(view, "")
        self.paths = masked
        #: the empty tmpfs, made ahead, or -1
        self.ready = ready

    def describe(self) -> str:
        return f"mask {', '.join(self.paths)}"

    def execute(self, kernel: Any) -> None:
        empty = -1
        root = self.view.root_fd
        for path in self.paths:
            target = paths.find_in_root(kernel, root, path)
            if target < 0:
                continue
            if S_ISDIR(kernel.fstat(target).st_mode):
                if empty < 0:
                    tree = empty = self.ready if self.ready >= 0 else new_empty(kernel)
                else:
                    tree = kernel.open_tree(empty, "", syscalls.OPEN_TREE_CLONE
                                            | syscalls.AT_EMPTY_PATH)
            else:
                tree = kernel.open_tree(self.view.null_fd, "", syscalls.OPEN_TREE_CLONE
                                        | syscalls.AT_EMPTY_PATH)
            kernel.move_mount(tree, target, path)
            kernel.close(target)
            if tree != empty:
                kernel.close(tree)
        if empty >= 0:
            kernel.close(empty)

    def shell(self) -> str:
        return "\n".join(MaskPath(self.view, p).shell() for p in self.paths)


class ReadOnlyPath(MountOperation):
    """Bind a path on itself, read-only."""

    __slots__ = ()
    step = "read-only paths"

    def describe(self) -> str:
        return f"make {self.destination} read-only"

    def execute(self, kernel: Any) -> None:
        target = paths.find_in_root(kernel, self.view.root_fd, self.destination)
        if target < 0:
            return
        tree = kernel.open_tree(target, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
                                | syscalls.AT_RECURSIVE)
        kernel.mount_setattr(tree, 0, syscalls.MOUNT_ATTR_RDONLY)
        kernel.move_mount(tree, target, self.destination)
        kernel.close(tree)
        kernel.close(target)

    def shell(self) -> str:
        path = "./" + self.destination.lstrip("/")
        return f"[ ! -e {path} ] || {{ mount --rbind {path} {path}; " \
               f"mount -o remount,bind,ro {path}; }}"


class FinishReadOnly(MountOperation):
    """Make read-only what had to be filled first, and the root if asked."""

    __slots__ = ("root",)

    def __init__(self, view: View, *, root: bool) -> None:
        super().__init__(view, "/")
        self.root = root

    def describe(self) -> str:
        return "make the root read-only" if self.root else "make late mounts read-only"

    def execute(self, kernel: Any) -> None:
        for fd, _ in self.view.late_read_only:
            kernel.mount_setattr(fd, 0, syscalls.MOUNT_ATTR_RDONLY)
        if self.root:
            kernel.mount_setattr(self.view.root_fd, 0, syscalls.MOUNT_ATTR_RDONLY)

    def shell(self) -> str | None:
        return "mount -o remount,bind,ro ." if self.root else None


class PivotRoot(MountOperation):
    """Make the container's root ``/`` and drop the host's mounts."""

    __slots__ = ("propagation",)
    step = "pivot_root"

    def __init__(self, view: View, propagation: int) -> None:
        super().__init__(view, "/")
        self.propagation = propagation

    def describe(self) -> str:
        return "pivot_root into the container"

    def execute(self, kernel: Any) -> None:
        old = kernel.open_tree(syscalls.AT_FDCWD, "/", 0)
        kernel.fchdir(self.view.root_fd)
        # put_old on top of the new root: no directory for it is needed
        kernel.pivot_root(".", ".")
        if self.propagation & syscalls.MS_SHARED:
            # only then the old root is a peer of the host's, which must not see it go
            kernel.mount_setattr(old, syscalls.AT_RECURSIVE, propagation=syscalls.MS_SLAVE)
        kernel.fchdir(old)
        kernel.umount2(".", syscalls.MNT_DETACH)
        kernel.close(old)
        if self.propagation:
            kernel.mount_setattr(self.view.root_fd, 0, propagation=self.propagation)
        kernel.fchdir(self.view.root_fd)

    def shell(self) -> str:
        return "pivot_root . . && umount -l ."


class MoveRoot(MountOperation):
    """--no-pivot: move the root mount over ``/`` (initramfs has no pivot_root)."""

    __slots__ = ()
    step = "move root"

    def describe(self) -> str:
        return "move the container's root over /"

    def execute(self, kernel: Any) -> None:
        # The host's procfs and sysfs would stay below the moved mount, where a
        # user namespace inside counts them as visible and may mount its own: take
        # them away (in this namespace only), the topmost first.
        for point, fstype in reversed(_mount_table()):
            inside = point == self.destination or point.startswith(self.destination + "/")
            if fstype in ("proc", "sysfs") and not inside:
                self._remove(kernel, point)
        kernel.fchdir(self.view.root_fd)
        kernel.mount(".", "/", None, syscalls.MS_MOVE)
        kernel.chroot(".")
        kernel.fchdir(self.view.root_fd)

    @staticmethod
    def _remove(kernel: Any, point: str) -> None:
        try:
            kernel.umount2(point, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno not in (EINVAL, EPERM):
                raise
            # locked by a user namespace: what is over it hides it as well
            kernel.mount("tmpfs", point, "tmpfs", 0, "size=0")

    def shell(self) -> str:
        return "mount --move . / && cd /"


class ChangeRoot(MountOperation):
    """chroot, where the container shares a mount namespace."""

    __slots__ = ()
    step = "chroot"

    def describe(self) -> str:
        return "chroot into the container"

    def execute(self, kernel: Any) -> None:
        kernel.fchdir(self.view.root_fd)
        kernel.chroot(".")
        kernel.fchdir(self.view.root_fd)

    def shell(self) -> str:
        return "cd ROOTFS && chroot ."


def new_filesystem(kernel: Any, fstype: str, source: str, data: list[str] | tuple[str, ...],
                   superblock: list[str] | tuple[str, ...], attributes: int) -> int:
    """A new file system as a detached mount."""
    context = kernel.fsopen(fstype)
    try:
        if source:
            kernel.fsconfig_string(context, "source", source)
        for flag in superblock:
            kernel.fsconfig_flag(context, flag)
        for item in data:
            key, equals, value = item.partition("=")
            if equals:
                kernel.fsconfig_string(context, key, value)
            else:
                kernel.fsconfig_flag(context, key)
        kernel.fsconfig_create(context)
        return int(kernel.fsmount(context, attributes))
    finally:
        kernel.close(context)


def new_empty(kernel: Any) -> int:
    """A directory with nothing in it, for ever."""
    return new_filesystem(kernel, "tmpfs", "tmpfs", ["nr_blocks=1", "nr_inodes=1"], (),
                          syscalls.MOUNT_ATTR_RDONLY)


def clone_source(kernel: Any, source: str, recursive: bool, beneath: str = "") -> int:
    """A bind source as a detached mount. Below ``beneath`` other containers may write:
    no link is followed there (a volume's subpath that is swapped, CVE-2017-1002101)."""
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    if not beneath:
        return int(kernel.open_tree(syscalls.AT_FDCWD, source, flags))
    if not source.startswith(beneath + "/"):
        raise OSError(EINVAL, f"the mount source is not below {beneath}", source)
    base = kernel.openat(syscalls.AT_FDCWD, beneath, os.O_PATH | os.O_DIRECTORY)
    fd = kernel.openat2(base, source[len(beneath) + 1:], os.O_PATH,
                        syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS)
    kernel.close(base)
    tree = int(kernel.open_tree(fd, "", flags | syscalls.AT_EMPTY_PATH))
    kernel.close(fd)
    return tree


#: below /proc a bind may cover these only: statistics that somebody gives another view of
_PROC_FILES = frozenset("/proc/" + name for name in (
    "cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime",
    "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"))


def check_proc(kernel: Any, destination: str, target: int, tree: int) -> None:
    """Nothing but a procfs on /proc, nothing inside it: what the kernel tells and hides
    there is not to be replaced (CVE-2019-19921). Looked up at the target's descriptor,
    so that a link of the image leads to the same answer."""
    if destination.rstrip("/") == "/proc":
        if kernel.fstatfs_type(tree) != syscalls.PROC_SUPER_MAGIC:
            raise OSError(EINVAL, '"/proc" cannot be mounted because it is not of type proc')
    elif kernel.fstatfs_type(target) == syscalls.PROC_SUPER_MAGIC \
            and destination not in _PROC_FILES:
        raise OSError(EINVAL, f'"{destination}" cannot be mounted because it is inside /proc')


def set_propagation(kernel: Any, tree: int, options: Options) -> None:
    for propagation, recursive in options.propagation:
        kernel.mount_setattr(tree, syscalls.AT_RECURSIVE if recursive else 0,
                             propagation=propagation)


def _propagation_name(flag: int) -> str:
    return {syscalls.MS_PRIVATE: "private", syscalls.MS_SHARED: "shared",
            syscalls.MS_SLAVE: "slave", syscalls.MS_UNBINDABLE: "unbindable"}.get(flag, str(flag))


def _mount_point_of(path: str) -> str:
    path = os.path.realpath(path)
    for point in _mount_points():
        if path == point or path.startswith(point.rstrip("/") + "/"):
            return point
    return "/"


def _mount_points() -> list[str]:
    return sorted((point for point, _ in _mount_table()), key=len, reverse=True)


def _mount_table() -> list[tuple[str, str]]:
    """(mount point, file system type) of this namespace, in the order of mounting."""
    with open("/proc/self/mountinfo", "rb") as f:
        lines = f.read().splitlines()
    rows = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        point = before.split(b" ")[4]
        for code, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"),
                                (b"\\134", b"\\")):
            point = point.replace(code, character)
        rows.append((os.fsdecode(point), os.fsdecode(after.split(b" ")[0])))
    return rows
