"""Where a registry is, and how it may be spoken to.

TLS, always, except to loopback *literals* and to what the administrator listed as
insecure.  No decision is taken from what a name resolves to: an answer of
``127.0.0.1`` in the DNS must not switch TLS off.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from carrel.errdefs import InvalidParameter
from carrel.oci.reference import DEFAULT_DOMAIN, Reference

HUB = "registry-1.docker.io"


@dataclass(frozen=True)
class Endpoint:
    """One server to ask for a repository."""

    host: str               # with the port, as in the reference
    schemes: tuple[str, ...]  # to try in this order
    verify: bool            # certificates
    path: str = ""          # of a mirror's base URL
    mirror: bool = False

    def url(self, scheme: str, rest: str) -> str:
        return f"{scheme}://{self.host}{self.path}/v2/{rest}"


def split_port(host: str) -> tuple[str, str]:
    """(name without brackets, port) of ``host[:port]``."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.lstrip(":")
    name, _, port = host.partition(":")
    return name, port


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, where the host is written as one."""
    try:
        return ipaddress.ip_address(split_port(host)[0])
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    name = split_port(host)[0].lower()
    address = address_of(host)
    return name == "localhost" or (address is not None and address.is_loopback)


def is_insecure(host: str, configured: tuple[str, ...]) -> bool:
    """Loopback, or listed: ``host[:port]``, or a network that holds a literal address."""
    if is_loopback(host):
        return True
    address = address_of(host)
    for item in configured:
        item = item.removeprefix("http://").removeprefix("https://").rstrip("/")
        if item == host:
            return True
        if address is not None and "/" in item:
            try:
                if address in ipaddress.ip_network(item, strict=False):
                    return True
            except ValueError:
                continue
    return False


def endpoint(host: str, insecure: tuple[str, ...], default_scheme: str = "") -> Endpoint:
    if default_scheme not in ("", "http", "https"):
        raise InvalidParameter(f"unsupported scheme {default_scheme!r} for a registry")
    if default_scheme == "http":
        return Endpoint(host, ("http",), verify=False)
    if is_insecure(host, insecure) and default_scheme != "https":
        # without TLS first on loopback: that is what listens there nearly always
        schemes = ("http", "https") if is_loopback(host) else ("https", "http")
        return Endpoint(host, schemes, verify=False)
    return Endpoint(host, ("https",), verify=True)


def endpoints(reference: Reference, *, mirrors: tuple[str, ...] = (),
              insecure: tuple[str, ...] = (), default_scheme: str = "",
              pull: bool = True) -> list[Endpoint]:
    """Mirrors (of Docker Hub, for pulls only) first, the registry itself last."""
    found = []
    if pull and reference.domain == DEFAULT_DOMAIN:
        for mirror in mirrors:
            parts = urlsplit(mirror if "://" in mirror else f"https://{mirror}")
            if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
                raise InvalidParameter(f"invalid registry mirror {mirror!r}")
            found.append(Endpoint(parts.netloc, (parts.scheme,),
                                  verify=not is_insecure(parts.netloc, insecure),
                                  path=parts.path.rstrip("/"), mirror=True))
    host = HUB if reference.domain == DEFAULT_DOMAIN else reference.domain
    return [*found, endpoint(host, insecure, default_scheme)]


def may_follow(source_host: str, url: str, insecure: tuple[str, ...]) -> bool:
    """Whether a URL that a registry gave (redirect, token realm) may be asked.

    A registry on the network must not make us talk to this machine, to link-local
    services, to private addresses, or without TLS.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return False
    if parts.netloc == source_host or is_insecure(source_host, insecure):
        # one that may be spoken to in the clear can be anything anyway, but it cannot
        # reach the cloud's metadata service through us
        address = address_of(parts.netloc)
        return address is None or not address.is_link_local
    if is_insecure(parts.netloc, insecure) and not is_loopback(parts.netloc):
        return True
    if parts.scheme != "https":
        return False
    address = address_of(parts.netloc)
    if address is not None and not address.is_global:
        return False
    return not is_loopback(parts.netloc)
