"""The ``filters`` parameter: ``{"label": ["a=b"]}`` or the old ``{"label": {"a=b": true}}``."""

from __future__ import annotations

from collections.abc import Mapping

from carrel import errdefs
from carrel.engine import jsonio


class Filters:
    """Values by name; a name that is not accepted is an error, as in Docker."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, list[str]] | None = None) -> None:
        self._values = dict(values or {})

    def __contains__(self, name: str) -> bool:
        return bool(self._values.get(name))

    def __bool__(self) -> bool:
        return any(self._values.values())

    def get(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one(self, name: str, default: str = "") -> str:
        """The single value of a name."""
        values = self.get(name)
        if len(values) > 1:
            raise errdefs.InvalidParameter(f"invalid filter '{name}={values}': only one value")
        return values[0] if values else default

    def flag(self, name: str, default: bool) -> bool:
        """A boolean filter such as ``dangling=true``."""
        if name not in self:
            return default
        true = {"1", "t", "T", "true", "TRUE", "True"}
        false = {"0", "f", "F", "false", "FALSE", "False"}
        values = set(self.get(name))
        if values <= true:
            return True
        if values <= false:
            return False
        raise errdefs.InvalidParameter(f"invalid filter '{name}={sorted(values)}'")

    def match(self, name: str, value: str) -> bool:
        """True when there is no such filter, or one of its values is the value."""
        values = self.get(name)
        return not values or value in values

    def match_labels(self, labels: Mapping[str, str], name: str = "label") -> bool:
        """All wanted ``key`` or ``key=value`` are in the labels."""
        return all(_label_in(want, labels) for want in self.get(name))

    def excludes_labels(self, labels: Mapping[str, str], name: str = "label!") -> bool:
        """True when one of the unwanted labels is there."""
        return any(_label_in(want, labels) for want in self.get(name))


def _label_in(want: str, labels: Mapping[str, str]) -> bool:
    key, equals, value = want.partition("=")
    return key in labels and (not equals or labels[key] == value)


def parse(text: str | None, accepted: frozenset[str]) -> Filters:
    """Read the parameter; refuse names that the operation does not know."""
    if not text:
        return Filters()
    value = jsonio.decode(text)
    if not isinstance(value, dict):
        raise errdefs.InvalidParameter("invalid filters: an object is needed")
    result: dict[str, list[str]] = {}
    for name, given in value.items():
        if name not in accepted:
            raise errdefs.InvalidParameter(f"invalid filter '{name}'")
        items = [k for k, v in given.items() if v] if isinstance(given, dict) else given
        if not isinstance(items, list) or not all(isinstance(i, str) for i in items):
            raise errdefs.InvalidParameter(f"invalid filter '{name}'")
        result[name] = items
    return Filters(result)
