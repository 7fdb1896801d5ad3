"""Who we are to a registry: Basic, or a bearer token from the service that it names.

Credentials go to the registry's own host and to its token service, nowhere else, and
to the token service only where :func:`hosts.may_follow` lets us.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from carrel import errdefs
from carrel.registry import hosts
from carrel.registry.errors import printable

_CHALLENGE = re.compile(
    r'([A-Za-z0-9_-]{1,32})\s*=\s*(?:"((?:[^"\\]|\\.){0,2048})"|([^\s,"]{1,2048}))', re.ASCII)
_MAX_TOKEN = 1 << 20
#: of tokens whose answer does not say
_DEFAULT_LIFE = 60


@dataclass(frozen=True)
class Credential:
    """What a user gave for one registry; all empty: nothing."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @property
    def basic(self) -> str:
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


#: (host, reference, WWW-Authenticate values) -> credential
Asker = Callable[[str, str, list[str]], Awaitable[Credential]]


@dataclass(frozen=True)
class Challenge:
    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenge(header: str) -> Challenge:
    scheme, _, rest = header.strip().partition(" ")
    parameters = {m[1].lower(): m[2] if m[2] is not None else m[3]
                  for m in _CHALLENGE.finditer(rest[:8192])}
    return Challenge(scheme.lower(), parameters)


def choose(headers: list[str]) -> Challenge | None:
    """Bearer before Basic; others are not spoken."""
    challenges = [parse_challenge(h) for h in headers[:8]]
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None


class Authorizer:
    """The Authorization header for one registry host, by scope."""

    def __init__(self, host: str, ask: Asker, fetch: Callable[..., Awaitable[tuple[int, bytes]]],
                 insecure: tuple[str, ...]) -> None:
        """``fetch(method, url, headers=, data=)`` gives status and (bounded) body."""
        self._host = host
        self._ask = ask
        self._fetch = fetch
        self._insecure = insecure
        self._headers: dict[str, tuple[str, float]] = {}
        self.identity_token = ""    # a fresh one, of a login

    def header(self, scope: str) -> str:
        """What to send now; "" until the registry has asked for something."""
        value, until = self._headers.get(scope) or self._headers.get("") or ("", 0.0)
        return value if until > time.monotonic() else ""

    async def answer(self, challenges: list[str], scope: str, reference: str) -> bool:
        """After a 401: get what it asks for; False when there is nothing to try."""
        challenge = choose(challenges)
        if challenge is None:
            return False
        credential = await self._ask(self._host, reference, challenges)
        if challenge.scheme == "basic":
            if not credential.username and not credential.password:
                raise errdefs.Unauthorized("no basic auth credentials")
            self._headers[""] = (credential.basic, float("inf"))
            return True
        if credential.registry_token:
            token = credential.registry_token.removeprefix("Bearer ")
            self._headers[scope] = (f"Bearer {token}", float("inf"))
            return True
        await self._token(challenge, scope, credential)
        return True

    async def _token(self, challenge: Challenge, scope: str, credential: Credential) -> None:
        realm = challenge.parameters.get("realm", "")
        if not hosts.may_follow(self._host, realm, self._insecure):
            raise errdefs.Forbidden(
                f"refusing to ask {printable(realm)!r} for a token: {self._host} must name a token "
                "service that is reached by https and is not on a private network")
        service = challenge.parameters.get("service", "")
        if credential.identity_token:
            status, body = await self._oauth(realm, service, scope, {
                "grant_type": "refresh_token", "refresh_token": credential.identity_token})
        else:
            status, body = await self._get_token(realm, service, scope, credential)
        if status != 200:
            raise _token_error(status, body, realm)
        token, life = self._read(body)
        self._headers[scope] = (f"Bearer {token}", time.monotonic() + max(life - 10, 5))

    async def _get_token(self, realm: str, service: str, scope: str, credential: Credential,
                         ) -> tuple[int, bytes]:
        query = [("service", service)] if service else []
        query += [("scope", part) for part in scope.split(" ") if part]
        headers = {}
        if credential.username or credential.password:
            headers["Authorization"] = credential.basic
            query.append(("account", credential.username))
        joint = "&" if urlsplit(realm).query else "?"
        return await self._fetch("GET", realm + (joint + urlencode(query) if query else ""),
                                 headers=headers, data=None)

    async def _oauth(self, realm: str, service: str, scope: str, form: dict[str, str],
                     ) -> tuple[int, bytes]:
        form = {**form, "service": service, "client_id": "carrel", "scope": scope}
        return await self._fetch(
            "POST", realm, data=urlencode(form).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"})

    def _read(self, body: bytes) -> tuple[str, float]:
        import json

        try:
            document: Any = json.loads(body[:_MAX_TOKEN])
            token = document.get("token") or document.get("access_token")
            life = float(document.get("expires_in") or _DEFAULT_LIFE)
            self.identity_token = str(document.get("refresh_token") or "")
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise errdefs.SystemFailure("the token service's answer is not understood") from None
        # it becomes a header: nothing may end that line
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise errdefs.SystemFailure("the token service gave no usable token")
        return token, life


def _token_error(status: int, body: bytes, realm: str) -> errdefs.CarrelError:
    from carrel.registry.errors import general, read_answer

    if status == 401:
        detail = read_answer(status, body, "GET", realm)
        text = detail.words if detail.text else "incorrect username or password"
        return errdefs.Unauthorized(text if text.startswith("unauthorized") else
                                    f"unauthorized: {text}")
    return general(read_answer(status, body, "GET", urlsplit(realm)._replace(query="").geturl()))
