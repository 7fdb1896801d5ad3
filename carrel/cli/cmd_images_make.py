"""tag, rmi, commit, import, export; build, which is not ours yet"""

from __future__ import annotations

import os
import sys

from . import progress
from .client import escape
from .cmd_images_move import check_output, save_response
from .command import MANY, Command
from .errors import CliError, EngineError
from .flags import Flag
from .reference import parse
from .terminal import clean, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .app import App
    from .flags import Options


def _tag(app: App, options: Options, args: list[str]) -> None:
    try:
        target = parse(args[1])
    except CliError as error:
        raise CliError(f'Error parsing reference: "{args[1]}" is not a valid repository/tag: '
                       f"{error.message}") from None
    if target.digest:
        raise CliError("refusing to create a tag with a digest reference")
    target = target.tagged()
    app.engine.call("POST", f"/images/{escape(args[0], '/:@')}/tag",
                    {"repo": target.name, "tag": target.tag})


def _rmi(app: App, options: Options, args: list[str]) -> int:
    failed = False
    platforms = None
    if options["platform"]:
        from .cmd_inspect import platform_json
        platforms = [platform_json(p) for p in options["platform"]]
    query: dict[str, Any] = {"force": options["force"], "platforms": platforms,
                             "noprune": options["no-prune"]}
    for name in args:
        try:
            answer = app.engine.call("DELETE", f"/images/{escape(name, '/:@')}", query) or []
        except EngineError as error:
            warn(error.message)
            failed = failed or not (options["force"] and error.status == 404)
            continue
        for item in answer:
            for key in ("Deleted", "Untagged"):
                if item.get(key):
                    print(f"{key}: {clean(item[key])}")
    return 1 if failed else 0


def _commit(app: App, options: Options, args: list[str]) -> None:
    repository = tag = ""
    if len(args) > 1:
        target = parse(args[1])
        if target.digest:
            raise CliError("cannot commit to digest reference")
        target = target.tagged()
        repository, tag = target.name, target.tag
    answer = app.engine.call("POST", "/commit", {
        "container": args[0], "repo": repository, "tag": tag,
        "comment": options["message"], "author": options["author"],
        "changes": options["change"], "pause": None if options["pause"] else "0"})
    print(answer["Id"])


def _import(app: App, options: Options, args: list[str]) -> None:
    source = args[0]
    repository = args[1] if len(args) > 1 else ""
    if repository:
        parse(repository)
    body: Iterator[bytes] | None = None
    name = source
    if source == "-":
        body = _pieces(0)
    elif not source.startswith(("http://", "https://", "git://", "github.com/")):
        name = "-"
        try:
            body = _pieces(os.open(source, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise CliError(f"open {source}: {(error.strerror or '').lower()}") from None
    response = app.engine.open("POST", "/images/create", {
        "fromSrc": name, "repo": repository or None, "message": options["message"] or None,
        "changes": options["change"], "platform": options["platform"] or None}, body)
    progress.follow(response.values(), sys.stdout, 1)


def _pieces(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, 1 << 20):
        yield data


def _export(app: App, options: Options, args: list[str]) -> None:
    check_output(options["output"], "export container")
    save_response(app.engine.open("GET", f"/containers/{escape(args[0])}/export"),
                  options["output"])


def _build(app: App, options: Options, args: list[str]) -> None:
    raise CliError(
        "carrel: 'build' is not built yet\n\nBuild with Docker's buildx, which needs nothing but "
        "an engine's socket:\n\n    DOCKER_HOST="
        f"{app.endpoint().host} docker buildx build ...", hint="or 'carrel import' and "
        "'carrel commit' to make an image by hand")


_CHANGE = Flag("change", "c", "list", "Apply a Dockerfile instruction to the image")

COMMANDS = {
    "tag": Command(_tag, "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", 2, 2),
    "rmi": Command(_rmi, "[OPTIONS] IMAGE [IMAGE...]", 1, MANY, (
        Flag("force", "f", "bool", "Remove the image even if it is in use by a stopped "
             "container or has several names"),
        Flag("no-prune", "", "bool", "Keep untagged parents"),
        Flag("platform", "", "strings", "Remove only the image for this platform"))),
    "commit": Command(_commit, "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", 1, 2, (
        Flag("author", "a", "string", 'Author ("Ada Lovelace <ada@example.org>")'),
        _CHANGE,
        Flag("message", "m", "string", "Message of the commit"),
        Flag("pause", "p", "bool", "Pause the container meanwhile", True))),
    "import": Command(_import, "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", 1, MANY, (
        _CHANGE,
        Flag("message", "m", "string", "Message of the image"),
        Flag("platform", "", "string", "Platform of the image"))),
    "export": Command(_export, "[OPTIONS] CONTAINER", 1, 1, (
        Flag("output", "o", "string", "Write to this file, not stdout"),)),
    "build": Command(_build, "[OPTIONS] PATH | URL | -", 0, MANY, (
        Flag("build-arg", "", "list", "Set a variable of the build"),
        Flag("file", "f", "string", "Name of the Dockerfile"),
        Flag("iidfile", "", "string", "Write the image's ID to this file"),
        Flag("label", "", "list", "Set metadata"),
        Flag("network", "", "string", "Network of the steps"),
        Flag("no-cache", "", "bool", "Use no cache"),
        Flag("platform", "", "string", "Platform of the image"),
        Flag("progress", "", "string", "How progress is shown"),
        Flag("pull", "", "bool", "Always look for newer base images"),
        Flag("quiet", "q", "bool", "Print only the image's ID"),
        Flag("tag", "t", "list", "Name of the image"),
        Flag("target", "", "string", "Stage to build"))),
}
