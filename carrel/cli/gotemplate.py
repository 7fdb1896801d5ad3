"""The part of Go's text/template that --format uses.

Values are what JSON has, plus rows of a table.  A template can name fields, call the
functions of :mod:`.gofunctions` and use if, range and with: it never reaches a Python
attribute.
"""

from __future__ import annotations

from .errors import CliError
from .flags import go_quote
from .gofunctions import FUNCTIONS, HEADER_KEEPS, Null, go_type, printed, true
from .goparse import Node, Operand, ParseError, Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_MAX_OUTPUT = 1 << 26


class ExecError(Exception):
    """The template does not fit the value."""


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.nodes, _, _ = Parser(text).nodes(())
        except ParseError as error:
            raise CliError(f"failed to parse template: {error.reason}") from None

    def execute(self, value: Any, *, kind: str = "", header: bool = False) -> str:
        """The text for one value; ``kind`` is how errors call its type."""
        return _Run(self, value, kind, header).text()


class _Run:
    def __init__(self, template: Template, value: Any, kind: str, header: bool) -> None:
        self.template = template
        self.root = value
        self.kind = kind
        self.header = header
        self.variables: list[tuple[str, Any]] = [("$", value)]
        self.out: list[str] = []
        self.written = 0

    def text(self) -> str:
        self.walk(self.template.nodes, self.root)
        return "".join(self.out)

    def fail(self, operand: Operand, text: str) -> ExecError:
        before = self.template.text[:operand.at]
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1)
        return ExecError(f'template: :{line}:{column}: executing "" at '
                         f"<{operand.source}>: {text}")

    def write(self, text: str) -> None:
        self.written += len(text)
        if self.written > _MAX_OUTPUT:
            raise CliError("the template's output is too large")
        self.out.append(text)

    def walk(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            if node.kind == "text":
                self.write(node.text)
                continue
            value = self.pipe(node.pipe, dot)
            if node.kind == "pipe":
                if node.names:
                    self.variables.append((node.names[0], value))
                else:
                    self.write(printed(value))
                continue
            depth = len(self.variables)
            if node.kind == "range":
                self.loop(node, value, dot)
            else:
                if node.names:
                    self.variables.append((node.names[0], value))
                inner = value if node.kind == "with" else dot
                self.walk(node.body if true(value) else node.other,
                          inner if true(value) else dot)
            del self.variables[depth:]

    def loop(self, node: Node, value: Any, dot: Any) -> None:
        pairs = list(_pairs(value))
        if not pairs:
            self.walk(node.other, dot)
            return
        for key, item in pairs:
            depth = len(self.variables)
            if len(node.names) == 2:
                self.variables.append((node.names[0], key))
            if node.names:
                self.variables.append((node.names[-1], item))
            self.walk(node.body, item)
            del self.variables[depth:]

    def pipe(self, commands: list[list[Operand]], dot: Any) -> Any:
        value: Any = _NOTHING
        for command in commands:
            value = self.command(command, dot, value)
        return value

    def command(self, command: list[Operand], dot: Any, last: Any) -> Any:
        first = command[0]
        extra = [] if last is _NOTHING else [last]
        if first.kind == "func":
            return self.call(first, command[1:], dot, extra)
        arguments = [self.operand(o, dot) for o in command[1:]] + extra
        if arguments and not (first.kind == "dot" and first.fields):
            raise self.fail(first, f"can't give argument to non-function {first.source}")
        return self.operand(first, dot, arguments)

    def call(self, first: Operand, rest: list[Operand], dot: Any, extra: list[Any]) -> Any:
        name = first.value
        if name in ("and", "or"):
            value: Any = None
            for operand in rest:
                value = self.operand(operand, dot)
                if true(value) == (name == "or"):
                    return value
            return extra[0] if extra else value
        arguments = [self.operand(o, dot) for o in rest] + extra
        if self.header and name in HEADER_KEEPS:
            return arguments[-1] if name in ("pad", "truncate") and not rest else arguments[0]
        try:
            value = FUNCTIONS[name](*arguments)
        except TypeError:
            raise self.fail(first, f"wrong number or type of args for {name}") from None
        except ValueError as error:
            raise self.fail(first, f"error calling {name}: {error}") from None
        for field in first.fields:
            value = self.field(first, value, field, [])
        return value

    def operand(self, operand: Operand, dot: Any, arguments: list[Any] | None = None) -> Any:
        kind = operand.kind
        if kind == "const":
            return operand.value
        if kind == "func":
            return self.call(operand, [], dot, [])
        if kind == "paren":
            value = self.pipe(operand.value, dot)
        elif kind == "var":
            value = self.variable(operand)
        else:
            value = dot
        last = len(operand.fields) - 1
        for i, field in enumerate(operand.fields):
            value = self.field(operand, value, field, (arguments or []) if i == last else [])
        return value

    def variable(self, operand: Operand) -> Any:
        for name, value in reversed(self.variables):
            if name == operand.value:
                return value
        raise self.fail(operand, f"undefined variable {go_quote(operand.value)}")

    def field(self, operand: Operand, value: Any, name: str, arguments: list[Any]) -> Any:
        if isinstance(value, dict):
            if arguments:
                raise self.fail(operand, f"{name} is not a method but has arguments")
            if name in value:
                return value[name]
            raise self.fail(operand, f"map has no entry for key {go_quote(name)}")
        if value is None or isinstance(value, Null):
            raise self.fail(operand, f"nil pointer evaluating interface {{}}.{name}")
        getter = getattr(value, "get", None) if not isinstance(value, (str, int, float, list)) \
            else None
        if getter is not None:
            try:
                return getter(name, arguments)
            except KeyError:
                raise self.fail(operand, f"can't evaluate field {name} in type {self.kind}"
                                ) from None
            except TypeError:
                wanted = int(name in value.listing.with_argument) if hasattr(
                    value, "listing") else 0
                raise self.fail(operand, f"wrong number of args for {name}: want {wanted} got "
                                f"{len(arguments)}") from None
        raise self.fail(operand, f"can't evaluate field {name} in type {go_type(value)}")


class _Nothing:
    """No value came down the pipe (None is a value)."""


_NOTHING = _Nothing()


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from sorted(value.items())
    elif isinstance(value, list):
        yield from enumerate(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        for i in range(min(value, 1 << 16)):
            yield i, i
    elif value is not None and not isinstance(value, Null):
        raise ExecError(f"template: :1: range can't iterate over {printed(value)}")
