"""Attaching to a container that exists: for ``attach`` and ``start -a``."""

from __future__ import annotations

from .client import escape
from .errors import EngineError
from .streams import Session, parse_detach_keys
from .terminal import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .app import App
    from .flags import Options


def attach(app: App, options: Options, container: str, info: dict[str, Any], *, stdin: bool,
           sig_proxy: bool, condition: str, start: Callable[[], None] | None = None) -> bytes:
    """Join our streams to the container's, wait for its end; the answer of /wait."""
    engine = app.engine
    path = f"/containers/{escape(container)}"
    keys = options["detach-keys"] or app.config.text("detachKeys")
    parsed = parse_detach_keys(keys)
    tty = bool(info["Config"]["Tty"])
    stdin = stdin and bool(info["Config"]["OpenStdin"])
    query = {"stream": True, "stdin": stdin, "stdout": True, "stderr": True,
             "detachKeys": keys or None}
    stream = engine.hijack_begin(path + "/attach", query, None)
    waiting = engine.begin("POST", path + "/wait", {"condition": condition})
    engine.hijack_end(stream, path + "/attach")
    wait = engine.read_head(waiting, "POST")
    if wait.status >= 400:
        stream.close()
        raise engine.error_of(wait, "POST", path + "/wait")
    session = Session(stream, tty=tty, stdin=0 if stdin else -1, stderr=1 if tty else 2,
                      detach_keys=parsed)

    def forward(name: str) -> None:
        engine.call("POST", path + "/kill", {"signal": name})

    def resize() -> None:
        rows, columns = size(1)
        if rows and columns:
            try:
                engine.call("POST", path + "/resize", {"h": rows, "w": columns})
            except EngineError:
                pass  # it has ended meanwhile

    session.begin(forward=forward if sig_proxy else None, resize=resize)
    try:
        if start is not None:
            try:
                start()
            except EngineError:
                wait.close()
                raise
        if session.resize is not None:
            resize()
        return session.run(wait)
    finally:
        session.end()
