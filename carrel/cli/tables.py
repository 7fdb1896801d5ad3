"""Lists of things as tables, as JSON or through a template, by Docker's rules."""

from __future__ import annotations

import sys

from .errors import CliError
from .terminal import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Field = Callable[..., Any]

_MIN_WIDTH = 10
_PADDING = 3


class Listing:
    """What a kind of thing shows: its fields, their headers, the usual columns.

    A field is a function of the item and of ``trunc``; fields in ``with_argument`` take one
    more value from the template (``{{.Label "name"}}``)."""

    def __init__(self, kind: str, fields: dict[str, Field], headers: dict[str, str],
                 columns: Sequence[str], *, with_argument: frozenset[str] = frozenset()) -> None:
        self.kind = kind
        self.fields = fields
        self.headers = headers
        self.columns = columns
        self.with_argument = with_argument


class Row:
    """One item as a template sees it."""

    __slots__ = ("item", "listing", "trunc")

    def __init__(self, listing: Listing, item: Any, trunc: bool) -> None:
        self.listing = listing
        self.item = item
        self.trunc = trunc

    def get(self, name: str, arguments: Sequence[Any] = ()) -> Any:
        """The value of a field; KeyError if there is none."""
        field = self.listing.fields[name]
        value = field(self.item, self.trunc, *arguments)
        return clean(value) if isinstance(value, str) else value

    def as_dict(self) -> dict[str, Any]:
        """Every field, by name."""
        return {name: self.listing.fields[name](self.item, self.trunc)
                for name in sorted(self.listing.fields)
                if name not in self.listing.with_argument}


class HeaderRow:
    """The row above: every field is its title."""

    __slots__ = ("listing",)

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def get(self, name: str, arguments: Sequence[Any] = ()) -> Any:
        if name not in self.listing.fields:
            raise KeyError(name)
        if name == "Label" and arguments:
            # the last part of com.example.my-label, as a title
            return str(arguments[0]).rsplit(".", 1)[-1].replace("-", " ").replace("_", " ")
        return self.listing.headers.get(name, "<no value>")

    def as_dict(self) -> dict[str, Any]:
        return dict(self.listing.headers)


def show(listing: Listing, items: Iterable[Any], format_text: str = "", *, trunc: bool = True,
         columns: Sequence[str] | None = None) -> None:
    """Print the items as the --format of the command line asks."""
    sys.stdout.write(render(listing, items, format_text, trunc=trunc, columns=columns))


def render(listing: Listing, items: Iterable[Any], format_text: str = "", *, trunc: bool = True,
           columns: Sequence[str] | None = None) -> str:
    """The text that :func:`show` prints."""
    if format_text in ("", "table"):
        names = columns or listing.columns
        lines = [[listing.headers[n] for n in names]]
        for item in items:
            row = Row(listing, item, trunc)
            lines.append([str(row.get(n)) for n in names])
        return join(lines)
    from .gotemplate import ExecError
    try:
        return _by_template(listing, items, format_text, trunc)
    except ExecError as error:
        raise CliError(f"failed to execute template: {error}") from None


def check_format(format_text: str) -> None:
    """CliError for a template that cannot be read, before the engine is asked anything."""
    if "{{" in format_text:
        from .gotemplate import Template
        Template(format_text)


def _by_template(listing: Listing, items: Iterable[Any], format_text: str, trunc: bool) -> str:
    from .gotemplate import Template
    table = format_text.startswith("table")
    text = format_text[5:].strip() if table else format_text
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    if text == "json":
        text = "{{json .}}"
    template = Template(text)
    out = []
    if table:
        out.append(template.execute(HeaderRow(listing), kind=listing.kind, header=True))
    out += [template.execute(Row(listing, item, trunc), kind=listing.kind) for item in items]
    if table:
        return join([line.split("\t") for text in out for line in text.split("\n")])
    return "".join(f"{text}\n" for text in out)


def join(lines: list[list[str]]) -> str:
    """Cells to aligned columns.  A column is a block of consecutive lines that go on to its
    right; the last cell of a line has no width."""
    widths: list[list[int]] = [[] for _ in lines]
    _measure(lines, widths, 0, 0, len(lines))
    out = []
    for cells, width in zip(lines, widths, strict=True):
        padded = [cell.ljust(w) for cell, w in zip(cells, width, strict=False)]
        out.append("".join(padded) + cells[-1] + "\n")
    return "".join(out)


def _measure(lines: list[list[str]], widths: list[list[int]], column: int, first: int,
             last: int) -> None:
    i = first
    while i < last:
        if len(lines[i]) - 1 <= column:
            i += 1
            continue
        end = i
        while end < last and len(lines[end]) - 1 > column:
            end += 1
        width = max(_MIN_WIDTH, max(len(lines[n][column]) for n in range(i, end)) + _PADDING)
        for n in range(i, end):
            widths[n].append(width)
        _measure(lines, widths, column + 1, i, end)
        i = end


def ellipsis(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last one "…" when some are left out."""
    return text if len(text) <= limit else text[:limit - 1] + "…"


def short_id(text: str) -> str:
    """The twelve characters that people read of an ID."""
    return text.rpartition(":")[2][:12] if text.startswith("sha256:") else text[:12]
