"""What browsers may not do.

A TCP listener is within reach of every web page that somebody on this machine or its
network opens. Such a page can send simple requests to any address, and by DNS rebinding
it can make its own name stand for this daemon. A page cannot forge ``Host``, ``Origin``
and ``Sec-Fetch-Site``; these are looked at. Unix sockets are out of its reach.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from carrel import errdefs
from carrel.engine import web

#: top-level names that nobody can register
_PRIVATE = ("localhost", "internal")


def check(request: web.Request) -> None:
    """Forbidden for what a web page on another site may have sent."""
    if not request.connection.exposed:
        return
    host = request.headers.get("Host", "")
    if not request.connection.encrypted and not _own_name(host):
        raise errdefs.Forbidden(
            f"Host {host[:80]!r} is not a name of this daemon",
            hint="use its IP address or host name: another name may be a web page's")
    origin = request.headers.get("Origin")
    if origin is not None and _page(origin) != host.lower():
        raise errdefs.Forbidden(f"requests from web pages of {origin[:80]!r} are not served")
    if request.headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
        raise errdefs.Forbidden("requests from web pages of another site are not served")


def _page(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _own_name(host: str) -> bool:
    """An address, a name without domain, or the machine's: none that a stranger can own."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    return bool(name) and ("." not in name or name.rsplit(".", 1)[1] in _PRIVATE
                           or name == os.uname().nodename.lower())
