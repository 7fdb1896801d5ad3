"""Unpacking an archive that an engine sent, without leaving the destination.

The archive's names and links were chosen inside a container.  Every directory is entered by
descriptor and never through a symbolic link, so neither ``..``, nor an absolute name, nor a
link in the archive, nor one that somebody swaps in meanwhile leads out of the destination.
"""

from __future__ import annotations

import os
import tarfile

from .errors import CliError
from .terminal import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 18
_PERMISSIONS = 0o777


class Stream:
    """Pieces of bytes as the file that tarfile reads."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.buffer = b""
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        parts = []
        left = size if size >= 0 else 1 << 62
        while left:
            if not self.buffer:
                self.buffer = next(self.pieces, b"")
                if not self.buffer:
                    break
            data, self.buffer = self.buffer[:left], self.buffer[left:]
            parts.append(data)
            left -= len(data)
        joined = b"".join(parts)
        self.count += len(joined)
        return joined

    def drain(self) -> None:
        """Read the padding behind the archive's end, so that the connection can be kept."""
        for _ in self.pieces:
            pass


def components(name: str) -> list[str]:
    """The parts of a member's name; CliError when it tries to climb."""
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise CliError(f"the archive has a name that leads out of it: {name!r}")
    return parts


class Extractor:
    """Unpacks below the directory ``root``, a descriptor that stays the caller's."""

    def __init__(self, root: int, *, ownership: bool = False) -> None:
        self.root = root
        self.ownership = ownership and os.geteuid() == 0
        self.directories: list[tuple[list[str], tarfile.TarInfo]] = []

    def extract(self, archive: tarfile.TarFile,
                place: Callable[[list[str]], list[str]]) -> None:
        """Every member, at the path that ``place`` makes of its own."""
        for member in archive:
            parts = place(components(member.name))
            if not parts:
                continue  # the destination itself, which is the user's
            if any(p in ("", ".", "..") or "/" in p for p in parts):
                raise CliError(f"cannot unpack to {'/'.join(parts)!r}")
            if member.islnk():
                self._hard_link(parts, place(components(member.linkname)))
                continue
            self._member(archive, member, parts)
        for parts, member in reversed(self.directories):
            self._finish_directory(parts, member)

    def _walk(self, parts: list[str], *, make: bool) -> int:
        """A descriptor of the directory; missing ones are made if ``make``."""
        fd = os.dup(self.root)
        try:
            for part in parts:
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o755, dir_fd=fd)
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise CliError(f"cannot unpack to {'/'.join(parts)!r}: "
                               "a directory on the way is a link or a file") from None
            raise
        return fd

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo,
                parts: list[str]) -> None:
        parent = self._walk(parts[:-1], make=True)
        name = parts[-1]
        try:
            if member.isdir():
                self._directory(parent, name, parts, member)
                return
            self._clear(parent, name, parts)
            if member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.isreg():
                source = archive.extractfile(member)
                assert source is not None
                self._file(parent, name, source, member)
            elif member.isfifo():
                os.mkfifo(name, member.mode & _PERMISSIONS, dir_fd=parent)
            else:
                warn(f"not copied, a device: {'/'.join(parts)}")
                return
            self._attributes(parent, name, member)
        finally:
            os.close(parent)

    def _directory(self, parent: int, name: str, parts: list[str],
                   member: tarfile.TarInfo) -> None:
        try:
            os.close(os.open(name, _DIRECTORY, dir_fd=parent))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
        self.directories.append((parts, member))

    def _clear(self, parent: int, name: str, parts: list[str]) -> None:
        """Make room for something that is no directory."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            raise CliError(f"cannot overwrite directory {'/'.join(parts)!r} with "
                           "non-directory") from None

    def _file(self, parent: int, name: str, source: IO[bytes], member: tarfile.TarInfo) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                     0o600, dir_fd=parent)
        try:
            while data := source.read(_CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view):]
            if self.ownership:
                os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, self._mode(member))
        finally:
            os.close(fd)

    def _mode(self, member: tarfile.TarInfo) -> int:
        """Set-user-ID is kept only together with the owner it was meant for."""
        return member.mode & (0o7777 if self.ownership else _PERMISSIONS)

    def _attributes(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        if self.ownership and not member.isreg():
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, parts: list[str], source: list[str]) -> None:
        if not source:
            raise CliError("the archive has a hard link to its own top")
        old = self._walk(source[:-1], make=False)
        try:
            new = self._walk(parts[:-1], make=True)
            try:
                self._clear(new, parts[-1], parts)
                os.link(source[-1], parts[-1], src_dir_fd=old, dst_dir_fd=new,
                        follow_symlinks=False)
            finally:
                os.close(new)
        finally:
            os.close(old)

    def _finish_directory(self, parts: list[str], member: tarfile.TarInfo) -> None:
        """Modes and times of directories, when nothing more is written into them."""
        try:
            fd = self._walk(parts, make=False)
        except (OSError, CliError):
            return  # a later member took its place
        try:
            if self.ownership:
                os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, self._mode(member))
            os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)
