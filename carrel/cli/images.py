"""Pulling, for ``run``, ``create`` and ``pull``."""

from __future__ import annotations

from . import auth, progress
from .reference import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from .app import App


def pull(app: App, image: str, *, platform: str, quiet: bool, out: TextIO, fd: int,
         all_tags: bool = False) -> None:
    """Download an image and show how it goes."""
    reference = parse(image)
    if not all_tags:
        reference = reference.tagged()
    tag = None if all_tags else (reference.digest or reference.tag)
    response = app.engine.open(
        "POST", "/images/create",
        {"fromImage": reference.name, "tag": tag, "platform": platform or None},
        headers={"X-Registry-Auth": auth.header(app.config, reference.domain)})
    if quiet:
        progress.drain(response.values())
    else:
        progress.follow(response.values(), out, fd)
