"""carrel cp"""

from __future__ import annotations

import os
import stat
import sys

from . import jsonc
from .client import escape
from .command import Command
from .errors import CliError, EngineError
from .flags import Flag
from .terminal import is_terminal, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .app import App
    from .flags import Options

#: bits of Go's os.FileMode
_GO_DIRECTORY = 1 << 31
_GO_LINK = 1 << 27


def split(argument: str) -> tuple[str, str]:
    """CONTAINER:PATH, or ("", PATH) for a file of this machine."""
    if argument.startswith("/"):
        return "", argument
    container, colon, path = argument.partition(":")
    return ("", argument) if not colon or container.startswith(".") else (container, path)


def _run(app: App, options: Options, args: list[str]) -> None:
    source, destination = args
    if not source:
        raise CliError("source can not be empty")
    if not destination:
        raise CliError("destination can not be empty")
    source_container, source_path = split(source)
    target_container, target_path = split(destination)
    if source_container and target_container:
        raise CliError("copying between containers is not supported")
    if source_container:
        _from(app, options, source_container, source_path, target_path)
    elif target_container:
        _to(app, options, source_path, target_container, target_path)
    else:
        raise CliError("must specify at least one container source")


def _stat(app: App, container: str, path: str) -> dict[str, Any] | None:
    """What the engine says of a path in a container; None if it is not there."""
    try:
        response = app.engine.open("HEAD", f"/containers/{escape(container)}/archive",
                                   {"path": path})
    except EngineError as error:
        if error.status == 404:
            return None
        raise
    return _stat_of(response.headers)


def _stat_of(headers: dict[str, str]) -> dict[str, Any]:
    from binascii import Error, a2b_base64
    try:
        value = jsonc.loads(a2b_base64(headers.get("x-docker-container-path-stat", "")))
    except (Error, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CliError("unable to get resource stat from response: the header is not understood")
    return value


def _done(options: Options, content: int, sent: int, where: str) -> None:
    if options["quiet"] or not is_terminal(2):
        return
    from .units import human_size
    text = f"Successfully copied {human_size(content, 3)}"
    if content != sent:
        text += f" (transferred {human_size(sent, 3)})"
    sys.stdout.flush()
    sys.stderr.write(f"{text} to {where}\n")


# ---- out of a container -----------------------------------------------------

def _from(app: App, options: Options, container: str, source: str, target: str) -> None:
    base = os.path.basename(source.rstrip("/"))
    if options["follow-link"]:
        found = _stat(app, container, source)
        if found and found.get("mode", 0) & _GO_LINK:
            source = os.path.join(os.path.dirname(source.rstrip("/")), found["linkTarget"])
    response = app.engine.open("GET", f"/containers/{escape(container)}/archive",
                               {"path": source})
    found = _stat_of(response.headers)
    if target == "-":
        sys.stdout.flush()
        for data in response.chunks():
            write_all(1, data)
        return
    directory = bool(found.get("mode", 0) & _GO_DIRECTORY)
    try:
        where, name = _place(target, directory=directory, base=base,
                             contents=_is_contents(source))
        _extract(options, response.chunks(), where, name,
                 0 if directory else int(found.get("size") or 0), target)
    finally:
        response.close()


def _is_contents(path: str) -> bool:
    """``dir/.`` means what is in it; the root has no name of its own either."""
    return path.endswith("/.") or path in (".", "/") or not path.strip("/.")


def _place(target: str, *, directory: bool, base: str, contents: bool) -> tuple[str, str]:
    """The directory to unpack in, and the name of the archive's top there ("" for none)."""
    if os.path.isdir(target):
        return target, "" if directory and (contents or not base) else base
    asserted = target.endswith(("/", "/."))
    if os.path.islink(target):
        # the user's own link at the place that the user named: as docker, through it once
        target = os.path.realpath(target)
    if os.path.lexists(target.rstrip("/")):
        if directory:
            raise CliError("cannot copy directory")
        if asserted:
            raise CliError("not a directory")
    elif asserted and not directory:
        raise CliError("no such directory")
    plain = target.rstrip("/")
    parent = os.path.dirname(plain) or "."
    if not os.path.isdir(parent):
        raise CliError(f'invalid output path: directory "{os.path.abspath(parent)}" does not '
                       "exist")
    return parent, os.path.basename(plain)


def _extract(options: Options, pieces: Iterator[bytes], where: str, name: str, size: int,
             target: str) -> None:
    import tarfile

    from .tarsafe import Extractor, Stream
    root = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stream = Stream(pieces)
        tops: list[str] = []

        def place(parts: list[str]) -> list[str]:
            """The archive's top gets our name; what is below keeps its own."""
            if not tops:
                tops.extend(parts[:1] or [""])
            if tops[0]:
                if parts[:1] != tops:
                    raise CliError("the archive has more than one top: "
                                   f"{tops[0]!r} and {(parts or [''])[0]!r}")
                parts = parts[1:]
            return [name, *parts] if name else parts

        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                Extractor(root, ownership=options["archive"]).extract(archive, place)
        except tarfile.TarError as error:
            raise CliError(f"the engine's archive is not understood: {error}") from None
        stream.drain()
        _done(options, size or stream.count, stream.count, os.path.abspath(target))
    finally:
        os.close(root)


# ---- into a container -------------------------------------------------------

def _to(app: App, options: Options, source: str, container: str, target: str) -> None:
    found = _stat(app, container, target)
    path = target
    if found and found.get("mode", 0) & _GO_LINK:
        path = os.path.join(os.path.dirname(target.rstrip("/")), found["linkTarget"])
        found = _stat(app, container, path)
    directory = bool(found and found.get("mode", 0) & _GO_DIRECTORY)
    if source == "-":
        if not directory:
            raise CliError(f'destination "{container}:{target}" must be a directory')
        _put(app, options, container, path, _stdin())
        return
    from .tarmake import TarMaker
    follow = options["follow-link"] or source.endswith("/")
    plain = source if source == "/" else source.rstrip("/")
    try:
        info = os.stat(plain) if follow else os.lstat(plain)
    except OSError as error:
        raise CliError(f"lstat {os.path.abspath(source)}: "
                       f"{(error.strerror or '').lower()}") from None
    is_dir = stat.S_ISDIR(info.st_mode)
    where, top = _inside(path, exists=found is not None, directory=directory, source=source,
                         is_dir=is_dir)
    maker = TarMaker(plain, top, follow_top=follow)
    counter = _Counter(maker.pieces())
    _put(app, options, container, where, counter.pieces())
    _done(options, maker.size, counter.count, f"{container}:{target}")


def _inside(path: str, *, exists: bool, directory: bool, source: str, is_dir: bool,
            ) -> tuple[str, str]:
    """The directory in the container to unpack in, and the name of the archive's top."""
    base = os.path.basename(os.path.abspath(source))
    if directory:
        return path, "." if is_dir and _is_contents(source) else base
    if exists and is_dir:
        raise CliError("cannot copy directory")
    if not exists and path.endswith(("/", "/.")) and not is_dir:
        raise CliError("no such directory")
    plain = path.rstrip("/")
    return os.path.dirname(plain) or "/", os.path.basename(plain)


def _put(app: App, options: Options, container: str, path: str,
         pieces: Iterator[bytes]) -> None:
    app.engine.call("PUT", f"/containers/{escape(container)}/archive", {
        "path": path, "noOverwriteDirNonDir": "true",
        "copyUIDGID": "true" if options["archive"] else None}, pieces)


class _Counter:
    """Pieces, and how many bytes they were."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.source = pieces
        self.count = 0

    def pieces(self) -> Iterator[bytes]:
        for data in self.source:
            self.count += len(data)
            yield data


def _stdin() -> Iterator[bytes]:
    while data := os.read(0, 1 << 18):
        yield data


COMMANDS = {"cp": Command(
    _run, "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n[OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    2, 2, (
        Flag("archive", "a", "bool", "Keep user and group IDs"),
        Flag("follow-link", "L", "bool", "Follow a link at SRC_PATH"),
        Flag("quiet", "q", "bool", "Do not say what was copied"),
    ), details="'-' as the source reads a tar archive from stdin and unpacks it in a directory\n"
    "of the container; '-' as the destination writes a tar archive to stdout.")}
