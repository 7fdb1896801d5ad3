"""What is sent to token services, and what their answers may be."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import errdefs
from carrel.registry import auth
from carrel.registry.auth import Authorizer, Challenge
from carrel.registry.client import Credential

ANONYMOUS = Credential()
REALM = "https://auth.example/token"
CHALLENGE = f'Bearer realm="{REALM}",service="registry.example",scope="ignored"'


class Service:
    """Remembers requests; answers all of them the same."""

    def __init__(self, credential: Credential = ANONYMOUS, status: int = 200,
                 body: bytes = b'{"token":"abc","expires_in":300}') -> None:
        self.credential = credential
        self.answer = (status, body)
        self.seen: list[tuple[str, str, dict[str, str], bytes | None]] = []
        self.authorizer = Authorizer("registry.example", self.ask, self.fetch, ())

    async def ask(self, *_: Any) -> Credential:
        return self.credential

    async def fetch(self, method: str, url: str, headers: dict[str, str],
                    data: bytes | None) -> tuple[int, bytes]:
        self.seen.append((method, url, headers, data))
        return self.answer

    async def challenged(self, *challenges: str) -> bool:
        return await self.authorizer.answer(list(challenges) or [CHALLENGE],
                                            "repository:a/b:pull", "ref")


async def test_anonymous_token() -> None:
    service = Service()
    assert await service.challenged()
    assert service.authorizer.header("repository:a/b:pull") == "Bearer abc"
    assert service.authorizer.header("repository:other:pull") == ""
    method, url, headers, _ = service.seen[0]
    assert method == "GET" and "Authorization" not in headers
    assert parse_qs(urlsplit(url).query) == {"service": ["registry.example"],
                                             "scope": ["repository:a/b:pull"]}


async def test_password_goes_as_basic_to_the_token_service() -> None:
    service = Service(Credential("me", "pw"))
    assert await service.challenged()
    assert service.seen[0][2]["Authorization"] == Credential("me", "pw").basic
    assert "account=me" in service.seen[0][1] and "pw" not in service.seen[0][1]


async def test_identity_token_is_posted() -> None:
    service = Service(Credential("me", identity_token="refresh"),
                      body=b'{"access_token":"xyz","refresh_token":"next"}')
    assert await service.challenged()
    method, url, _, data = service.seen[0]
    assert (method, url) == ("POST", REALM)
    form = parse_qs((data or b"").decode())
    assert form["grant_type"] == ["refresh_token"] and form["refresh_token"] == ["refresh"]
    assert service.authorizer.header("repository:a/b:pull") == "Bearer xyz"
    assert service.authorizer.identity_token == "next"


async def test_registry_token_is_used_as_it_is() -> None:
    service = Service(Credential(registry_token="Bearer given"))
    assert await service.challenged()
    assert service.seen == []
    assert service.authorizer.header("repository:a/b:pull") == "Bearer given"


async def test_basic() -> None:
    service = Service(Credential("u", "p"))
    assert await service.challenged('Basic realm="x"')
    assert service.authorizer.header("anything") == Credential("u", "p").basic
    with pytest.raises(errdefs.Unauthorized, match="no basic auth credentials"):
        await Service().challenged('Basic realm="x"')
    assert not await Service().challenged('Negotiate abc')


@pytest.mark.parametrize(("status", "body", "kind"), [
    (401, b"", errdefs.Unauthorized), (403, b"{}", errdefs.Forbidden),
    (500, b"oops", errdefs.SystemFailure), (200, b"[]", errdefs.SystemFailure),
    (200, b"{", errdefs.SystemFailure), (200, b'{"token":5}', errdefs.SystemFailure),
    (200, b'{"token":"a\\r\\nX-Evil: 1"}', errdefs.SystemFailure),
    (200, b'{"token":""}', errdefs.SystemFailure), (200, b"[" * 99999, errdefs.SystemFailure),
])
async def test_bad_answers(status: int, body: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await Service(Credential("u", "p"), status, body).challenged()


def test_challenges() -> None:
    found = auth.choose(['Basic realm="b"', CHALLENGE])
    assert found == Challenge("bearer", {"realm": REALM, "service": "registry.example",
                                         "scope": "ignored"})
    assert auth.choose(["Digest x=y"]) is None
    assert auth.parse_challenge("Bearer realm=plain, service=x").parameters == {
        "realm": "plain", "service": "x"}


@given(st.text(max_size=300))
def test_any_header_is_read_without_harm(text: str) -> None:
    challenge = auth.parse_challenge(text)
    assert all(len(value) <= 4096 for value in challenge.parameters.values())
