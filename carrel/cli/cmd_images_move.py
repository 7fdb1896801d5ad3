"""pull, push, load, save"""

from __future__ import annotations

import os
import sys

from . import auth, progress
from .client import escape
from .command import MANY, Command
from .errors import CliError
from .flags import Flag
from .reference import parse
from .terminal import clean, is_terminal, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .app import App
    from .flags import Options

_CHUNK = 1 << 20


def _platform(text: str) -> str | None:
    if not text:
        return None
    from .cmd_inspect import platform_json
    return platform_json(text)


def _pull(app: App, options: Options, args: list[str]) -> None:
    from .images import pull
    reference = parse(args[0])
    if options["all-tags"] and (reference.tag or reference.digest):
        raise CliError("tag can't be used with --all-tags/-a")
    if not options["all-tags"] and not reference.tag and not reference.digest \
            and not options["quiet"]:
        print("Using default tag: latest")
    pull(app, args[0], platform=options["platform"], quiet=options["quiet"], out=sys.stdout, fd=1,
         all_tags=options["all-tags"])
    print(clean((reference if options["all-tags"] else reference.tagged()).name
                + _suffix(reference, options["all-tags"])))


def _suffix(reference: Any, all_tags: bool) -> str:
    if all_tags:
        return ""
    tagged = reference.tagged()
    return (f":{tagged.tag}" if tagged.tag else "") + (f"@{tagged.digest}" if tagged.digest
                                                      else "")


def _push(app: App, options: Options, args: list[str]) -> None:
    reference = parse(args[0])
    if options["all-tags"]:
        if reference.tag or reference.digest:
            raise CliError("tag can't be used with --all-tags/-a")
    elif not reference.tag and not reference.digest:
        reference = reference.tagged()
        if not options["quiet"]:
            print(f"Using default tag: {reference.tag}")
    response = app.engine.open(
        "POST", f"/images/{escape(reference.name, '/:')}/push",
        {"tag": None if options["all-tags"] else reference.tag,
         "platform": _platform(options["platform"])},
        headers={"X-Registry-Auth": auth.header(app.config, reference.domain)})
    if options["quiet"]:
        progress.drain(response.values())
        print(reference.name + (f":{reference.tag}" if reference.tag else ""))
        return
    notes: list[str] = []

    def aux(value: dict[str, Any]) -> None:
        if value.get("manifestPushedInsteadOfIndex"):
            notes.append("Not all multiplatform-content is present and only the available "
                         "single-platform image was pushed")

    progress.follow(response.values(), sys.stdout, 1, aux)
    for note in notes:
        warn(f"\n i Info → {note}")


# ---- load and save ----------------------------------------------------------

class _Reading:
    """A file or stdin as pieces; on a terminal with a bar of how far it is."""

    def __init__(self, fd: int, *, bar: bool) -> None:
        self.fd = fd
        self.total = os.fstat(fd).st_size
        self.bar = bar and self.total > 0 and is_terminal(2)

    def pieces(self) -> Iterator[bytes]:
        display = progress.Display(sys.stderr, terminal=True) if self.bar else None
        done = 0
        while data := os.read(self.fd, _CHUNK):
            yield data
            done += len(data)
            if display is not None:
                display.show({"id": "Sending", "status": "archive",
                              "progressDetail": {"current": done, "total": self.total}})


def _load(app: App, options: Options, args: list[str]) -> None:
    fd = 0
    if options["input"]:
        try:
            fd = os.open(options["input"], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CliError(f"open {options['input']}: {(error.strerror or '').lower()}") from None
    elif is_terminal(0):
        raise CliError("requested load from stdin, but stdin is empty")
    quiet = options["quiet"] or not is_terminal(1)
    reading = _Reading(fd, bar=bool(options["input"]) and not quiet)
    response = app.engine.open(
        "POST", "/images/load", {"quiet": "1" if quiet else "0",
                                 "platform": _platform(options["platform"])},
        reading.pieces(), {"Content-Type": "application/x-tar"})
    if response.headers.get("content-type", "").startswith("application/json"):
        progress.follow(response.values(), sys.stdout, 1)
        return
    for data in response.chunks():
        sys.stdout.write(clean(data.decode("utf-8", "replace")))


def save_response(response: Any, path: str) -> None:
    """The body to stdout, or to a file that appears only when it is complete."""
    if not path:
        from .terminal import write_all
        sys.stdout.flush()
        for data in response.chunks():
            write_all(1, data)
        return
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    mode = 0o600
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or '').lower()}") from None
    try:
        try:
            for data in response.chunks():
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view):]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_output(path: str, action: str) -> None:
    """CliError when a file of this name cannot be written."""
    if not path:
        if is_terminal(1):
            raise CliError("cowardly refusing to save to a terminal. "
                           "Use the -o flag or redirect")
        return
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise CliError(f"failed to {action}: invalid output path: stat {folder}: "
                       "no such file or directory")
    if os.path.isdir(path):
        raise CliError(f"failed to {action}: invalid output path: {path} is a directory")
    if os.path.exists(path) and not os.path.isfile(path):
        raise CliError(f"failed to {action}: invalid output path: {path} must be a directory "
                       "or a regular file")


def _save(app: App, options: Options, args: list[str]) -> None:
    check_output(options["output"], "save image")
    query: dict[str, Any] = {"platform": _platform(options["platform"]), "names": args}
    save_response(app.engine.open("GET", "/images/get", query), options["output"])


_TRUST = Flag("disable-content-trust", "", "bool", "Accepted for compatibility", True)
_QUIET = Flag("quiet", "q", "bool", "Print only the result")

COMMANDS = {
    "pull": Command(_pull, "[OPTIONS] NAME[:TAG|@DIGEST]", 1, 1, (
        Flag("all-tags", "a", "bool", "Download all images of the repository"),
        _TRUST,
        Flag("platform", "", "string", "Download the image for this platform",
             os.environ.get("DOCKER_DEFAULT_PLATFORM") or None),
        _QUIET)),
    "push": Command(_push, "[OPTIONS] NAME[:TAG]", 1, 1, (
        Flag("all-tags", "a", "bool", "Upload all images of the repository"),
        _TRUST,
        Flag("platform", "", "string", "Upload only the image for this platform"),
        _QUIET)),
    "load": Command(_load, "[OPTIONS]", 0, 0, (
        Flag("input", "i", "string", "Read this archive, not stdin"),
        Flag("platform", "", "string", "Load only the image for this platform"),
        _QUIET)),
    "save": Command(_save, "[OPTIONS] IMAGE [IMAGE...]", 1, MANY, (
        Flag("output", "o", "string", "Write to this file, not stdout"),
        Flag("platform", "", "string", "Save only the image for this platform"))),
}
