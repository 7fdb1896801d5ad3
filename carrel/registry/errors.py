"""What registries answer, in the words that Docker's users know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import responses
from typing import Any

from carrel import errdefs
from carrel.oci.reference import Reference

_WORDS = {
    "BLOB_UNKNOWN": "blob unknown", "BLOB_UPLOAD_INVALID": "blob upload invalid",
    "BLOB_UPLOAD_UNKNOWN": "blob upload unknown", "DENIED": "denied",
    "DIGEST_INVALID": "digest invalid", "MANIFEST_BLOB_UNKNOWN": "manifest blob unknown",
    "MANIFEST_INVALID": "manifest invalid", "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_INVALID": "name invalid", "NAME_UNKNOWN": "name unknown",
    "SIZE_INVALID": "size invalid", "TAG_INVALID": "tag invalid",
    "TOOMANYREQUESTS": "toomanyrequests", "UNAUTHORIZED": "unauthorized",
    "UNAVAILABLE": "unavailable", "UNSUPPORTED": "unsupported", "UNKNOWN": "unknown",
}
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS", 503: "UNAVAILABLE"}
_MAX_TEXT = 512


@dataclass(frozen=True)
class Answer:
    """An error answer, read as far as it can be."""

    status: int
    code: str
    text: str
    url: str
    method: str

    @property
    def words(self) -> str:
        if self.text and self.status < 500:
            return self.text
        # of a broken registry the status says more than what it may still have to say
        said = f"unexpected status from {self.method} request to {self.url}: {self.status}"
        if phrase := responses.get(self.status):
            said += f" {phrase}"
        return f"{said}: {self.text}" if self.text else said


class Transient(Exception):
    """Worth another attempt: a cut connection, a 5xx."""


def printable(text: str) -> str:
    """A registry's text goes to terminals and logs: no control characters, bounded."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).strip()


def read_answer(status: int, body: bytes, method: str, url: str) -> Answer:
    code, text = _BY_STATUS.get(status, ""), ""
    try:
        document: Any = json.loads(body)
        first = document["errors"][0]
        code = str(first.get("code") or code)
        message = str(first.get("message") or "")
        word = _WORDS.get(code, printable(code.lower().replace("_", " ")))
        text = f"{word}: {printable(message)}" if message else word
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if code and status < 500:
            detail = {"UNAUTHORIZED": "authentication required",
                      "DENIED": "requested access to the resource is denied",
                      "TOOMANYREQUESTS": "too many requests"}.get(code, f"status {status}")
            text = f"{_WORDS[code]}: {detail}"
    return Answer(status, code, text, url, method)


def pull_error(answer: Answer, reference: Reference) -> errdefs.CarrelError:
    """The error of a pull, by what the registry said."""
    words = answer.words
    name = reference.familiar_name
    if answer.code in ("DENIED",) or (answer.code == "UNAUTHORIZED"
                                      and reference.domain == "docker.io"):
        if answer.code == "UNAUTHORIZED":
            words = "denied: requested access to the resource is denied"
        return errdefs.NotFound(f"pull access denied for {name}, repository does not exist or may "
                                f"require 'docker login': {words}")
    if answer.code == "MANIFEST_UNKNOWN":
        return errdefs.NotFound(f"manifest for {reference.familiar} not found: {words}")
    if answer.code == "NAME_UNKNOWN":
        return errdefs.NotFound(f"repository {name} not found: {words}")
    if answer.status == 404:
        return errdefs.NotFound(f"manifest for {reference.familiar} not found: manifest unknown: "
                                f"{words}")
    return general(answer)


def general(answer: Answer) -> errdefs.CarrelError:
    if answer.status == 401 or answer.code == "UNAUTHORIZED":
        return errdefs.Unauthorized(answer.words)
    if answer.status == 403 or answer.code == "DENIED":
        return errdefs.Forbidden(answer.words)
    if answer.status == 404:
        return errdefs.NotFound(answer.words)
    if answer.status == 429:
        return errdefs.Unavailable(answer.words)
    return errdefs.SystemFailure(answer.words)
