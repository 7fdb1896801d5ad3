"""Ids, names, and the two words that a container gets when nobody names it."""

from __future__ import annotations

import os
import re

from carrel import errdefs
from carrel.engine import texts

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}", re.ASCII)
FULL_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{1,64}", re.ASCII)

_ADJECTIVE_WORDS = (
    "able amber apt arched avid blithe bold brave bright brisk calm candid chipper civil clear "
    "clever cosy crisp curious deft dewy eager earnest easy fair fervent fond frank fresh gentle "
    "gifted glad golden good grand happy hardy honest humble jolly keen kind lively loyal lucid "
    "mellow merry mild modest neat nimble noble open patient plucky polite prompt proud quick "
    "quiet ready robust rosy serene sharp silver sincere smart snug sober spry steady sunny "
    "swift tender thrifty tidy true upbeat vivid warm wise witty zealous")
_PEOPLE_WORDS = (
    "abbe ada alhazen ampere archimedes avicenna babbage bassi bell bohr boole borg bose brahe "
    "carson cauchy cavendish cerf chandra clarke codd curie dalton darwin davinci dijkstra dirac "
    "euclid euler faraday fermat fermi feynman fourier franklin galileo gauss germain goedel "
    "goodall hamilton hawking herschel hertz hilbert hodgkin hopper hubble huygens hypatia jemison "
    "johnson joliot kepler khorana knuth kovalevskaya lamarr lamport laplace leavitt leibniz linne "
    "liskov lovelace maxwell mayer mccarthy meitner mendel mendeleev mirzakhani morse napier "
    "newton noether nobel pascal pasteur pauling perlman planck poincare ptolemy raman ramanujan "
    "riemann ritchie roentgen rubin sagan shannon sinoussi spence stonebraker tesla thompson "
    "torvalds turing volta wiles wilson wozniak wright wu yalow yonath")
_ADJECTIVES, _PEOPLE = tuple(_ADJECTIVE_WORDS.split()), tuple(_PEOPLE_WORDS.split())


def new_id() -> str:
    """64 hexadecimal digits. Not all of the first 12 are digits: Docker's own
    rule, so that a short id is never taken for a number."""
    while True:
        ident = os.urandom(32).hex()
        if not ident[:12].isdigit():
            return ident


def random_name() -> str:
    first, second = os.urandom(2), os.urandom(2)
    adjective = _ADJECTIVES[int.from_bytes(first, "big") % len(_ADJECTIVES)]
    return f"{adjective}_{_PEOPLE[int.from_bytes(second, 'big') % len(_PEOPLE)]}"


def check_name(given: str) -> str:
    """A container's name without its slash; InvalidParameter when it is none."""
    name = given.removeprefix("/")
    if not NAME.fullmatch(name):
        raise errdefs.InvalidParameter(texts.invalid_name(given[:300]))
    return name


def is_id_prefix(ref: str) -> bool:
    return _PREFIX.fullmatch(ref) is not None
