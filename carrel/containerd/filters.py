r"""containerd's filter language.

    selectors  := selector ("," selector)*                all must match
    selector   := fieldpath [operator value]              without: presence
    fieldpath  := field ("." field)*
    field      := quoted | [A-Za-z_] [A-Za-z0-9_]*
    operator   := "==" | "!=" | "~="
    value      := quoted | [^\s,]+                        ~= also takes /re/ and |re|

Of a list of filters one must match; an empty list matches everything.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence

from carrel import errdefs

#: gives the value at a field path and whether it is present
Lookup = Callable[[Sequence[str]], tuple[str, bool]]
Filter = Callable[[Lookup], bool]

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def compile_all(filters: Sequence[str]) -> Filter:
    """One predicate for a list of filters."""
    parsed = [_Parser(text).parse() for text in filters]
    if not parsed or any(not selectors for selectors in parsed):
        return lambda lookup: True
    return lambda lookup: any(all(s(lookup) for s in selectors) for selectors in parsed)


def in_labels(labels: Mapping[str, str], path: Sequence[str]) -> tuple[str, bool]:
    """The usual lookup for ``labels.KEY``; a key may hold dots."""
    value = labels.get(".".join(path)) if path else None
    return (value, True) if value is not None else ("", False)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> list[Filter]:
        if not self._text:
            return []
        selectors = [self._selector()]
        self._skip()
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error("unexpected input")
            self._at += 1
            selectors.append(self._selector())
            self._skip()
        return selectors

    def _skip(self) -> None:
        """White space may stand between any two parts."""
        while self._text[self._at:self._at + 1].isspace():
            self._at += 1

    def _error(self, problem: str) -> errdefs.InvalidParameter:
        marked = f"{self._text[:self._at]} >|{self._text[self._at:]}|< "
        return errdefs.InvalidParameter(f"filters: parse error: [{marked}]: {problem}")

    def _selector(self) -> Filter:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            path.append(self._field())
        self._skip()
        operator = self._text[self._at:self._at + 2]
        if not operator or operator[0] == ",":
            return lambda lookup: lookup(path)[1]
        if operator not in ("==", "!=", "~="):
            raise self._error("unsupported operator")
        self._at += 2
        value = self._value(operator == "~=")
        if operator == "==":
            return lambda lookup: lookup(path) == (value, True)
        if operator == "!=":
            return lambda lookup: lookup(path)[0] != value
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise self._error(f"bad regular expression: {error}") from error
        return lambda lookup: (lambda found: found[1] and pattern.search(found[0]) is not None)(
            lookup(path))

    def _field(self) -> str:
        self._skip()
        if self._text.startswith('"', self._at):
            return self._quoted()
        match = _FIELD.match(self._text, self._at)
        if match is None:
            raise self._error("expected field or quoted")
        self._at = match.end()
        return match.group()

    def _value(self, regexp: bool) -> str:
        self._skip()
        first = self._text[self._at:self._at + 1]
        if first == '"':
            return self._quoted()
        if regexp and first and first in "/|":
            end = self._at + 1
            while end < len(self._text) and self._text[end] != first:
                end += 2 if self._text[end] == "\\" else 1
            if end >= len(self._text):
                raise self._error("quoted literal not terminated")
            value = self._text[self._at + 1:end].replace("\\" + first, first)
            self._at = end + 1
            return value
        match = _VALUE.match(self._text, self._at)
        if match is None:
            raise self._error("expected value or quoted")
        self._at = match.end()
        return match.group()

    def _quoted(self) -> str:
        match = _QUOTED.match(self._text, self._at)
        if match is None:
            raise self._error("quoted literal not terminated")
        try:
            # a Go string literal; of what Python's literals lack nothing is used in labels
            value = ast.literal_eval(match.group())
        except (SyntaxError, ValueError) as error:
            raise self._error(f"invalid quoted string: {error}") from error
        self._at = match.end()
        return str(value)
