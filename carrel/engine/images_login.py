"""`docker login`: are these credentials good?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrel import errdefs

if TYPE_CHECKING:
    from carrel.engine.context import EngineContext

_HUB = ("", "https://index.docker.io/v1/", "index.docker.io", "docker.io",
        "registry-1.docker.io")


async def login(ctx: EngineContext, body: dict[str, Any]) -> str:
    """An identity token, or "" where the registry gives none; Unauthorized."""
    from carrel.registry import hosts
    from carrel.registry.client import Credential, RegistryClient

    address = str(body.get("serveraddress") or "")
    host = hosts.HUB if address in _HUB else address.partition("://")[2] or address
    host = host.partition("/")[0]
    if not host or "@" in host:
        raise errdefs.InvalidParameter(f"invalid registry address {address!r}")
    credential = Credential(str(body.get("username") or ""), str(body.get("password") or ""),
                            str(body.get("identitytoken") or ""))

    async def give(asked: str, _: str, __: list[str]) -> Credential:
        return credential if asked == host else Credential()

    insecure = tuple(ctx.config.insecure_registries)
    async with RegistryClient(give, insecure=insecure) as client:
        return await client.check_login(hosts.endpoint(host, insecure))
