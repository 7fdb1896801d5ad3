"""Reading a --format template: text to nodes."""

from __future__ import annotations

from .errors import CliError
from .flags import go_quote
from .gofunctions import FUNCTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_DEPTH = 50
_KEYWORDS = ("if", "else", "end", "range", "with", "break", "continue", "define", "template",
             "block")


class ParseError(CliError):
    """The template's text is wrong."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"template: :{line}: {text}", 1)
        self.reason = f"template: :{line}: {text}"


class Token:
    """A piece of an action: its kind, its text or value, where it stands."""

    __slots__ = ("at", "kind", "value")

    def __init__(self, kind: str, value: Any, at: int) -> None:
        self.kind = kind
        self.value = value
        self.at = at


class Node:
    """text, pipe, if, range or with; ``body`` and ``other`` are lists of nodes."""

    __slots__ = ("at", "body", "kind", "names", "other", "pipe", "text")

    def __init__(self, kind: str, at: int) -> None:
        self.kind = kind
        self.at = at
        self.text = ""
        self.pipe: list[list[Operand]] = []
        self.names: list[str] = []
        self.body: list[Node] = []
        self.other: list[Node] = []


class Operand:
    """dot, field, var, func, const or paren, with the fields that follow."""

    __slots__ = ("at", "fields", "kind", "source", "value")

    def __init__(self, kind: str, value: Any, fields: list[str], at: int, source: str) -> None:
        self.kind = kind
        self.value = value
        self.fields = fields
        self.at = at
        self.source = source


class Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def fail(self, text: str, at: int | None = None) -> ParseError:
        return ParseError(self.line(self.at if at is None else at), text)

    def nodes(self, stop: tuple[str, ...]) -> tuple[list[Node], str, list[Token]]:
        """Nodes up to a keyword of ``stop``; that keyword and the rest of its action."""
        found: list[Node] = []
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.fail("too many nested actions")
        while True:
            start = self.text.find("{{", self.at)
            literal = self.text[self.at:] if start < 0 else self.text[self.at:start]
            if start >= 0 and self.text[start + 2:start + 4] in ("- ", "-\t", "-\n"):
                literal = literal.rstrip()
            if literal:
                node = Node("text", self.at)
                node.text = literal
                found.append(node)
            if start < 0:
                if stop:
                    raise self.fail("unexpected EOF", len(self.text))
                self.depth -= 1
                return found, "", []
            tokens = self.action(start)
            if tokens is None:
                continue
            word = tokens[0].value if tokens and tokens[0].kind == "word" else ""
            if word in ("else", "end"):
                if word not in stop:
                    raise self.fail("unexpected {{" + word + "}}", start)
                self.depth -= 1
                return found, word, tokens[1:]
            found.append(self.node(word, tokens, start))

    def action(self, start: int) -> list[Token] | None:
        """The tokens between "{{" and "}}"; None for a comment."""
        inner = start + 2
        if self.text[inner:inner + 2] in ("- ", "-\t", "-\n"):
            inner += 2
        stripped = self.text[inner:].lstrip()
        if stripped.startswith("/*"):
            end = self.text.find("*/", inner)
            close = self.text.find("}}", end)
            if end < 0 or close < 0:
                raise self.fail("unclosed comment", start)
            trim = self.text[close - 1] == "-"
            self.at = close + 2
            self._trim_right(trim)
            return None
        tokens, end, trim = self.tokens(inner)
        self.at = end
        self._trim_right(trim)
        if not tokens:
            raise self.fail("missing value for command", start)
        return tokens

    def _trim_right(self, trim: bool) -> None:
        if trim:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1

    def tokens(self, at: int) -> tuple[list[Token], int, bool]:
        text = self.text
        found: list[Token] = []
        while True:
            if at >= len(text):
                raise self.fail("unclosed action", at)
            char = text[at]
            if text.startswith("}}", at):
                return found, at + 2, False
            if char in " \t\r\n":
                if text.startswith("-}}", at + 1):
                    return found, at + 4, True
                found.append(Token("space", " ", at))
                at += 1
            else:
                at = self.token(at, found)
            if len(found) > 1 and found[-1].kind == "space" and found[-2].kind == "space":
                found.pop()

    def token(self, at: int, found: list[Token]) -> int:
        text = self.text
        char = text[at]
        if char in "\"`'":
            return self.string(at, found)
        if char in "|(),":
            found.append(Token(char, char, at))
            return at + 1
        if text.startswith(":=", at):
            found.append(Token(":=", ":=", at))
            return at + 2
        if char == "=":
            found.append(Token("=", "=", at))
            return at + 1
        end = at + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        word = text[at:end]
        if char == ".":
            if end >= len(text) and word == ".":
                raise self.fail(f"illegal number syntax: {go_quote(word)}", at)
            if word[1:2].isdigit():
                raise self.fail(f'bad number syntax: "{word}"', at)
            found.append(Token("field" if end > at + 1 else "dot", word[1:], at))
        elif char == "$":
            found.append(Token("var", word, at))
        elif char.isdigit() or (char in "+-" and word[1:2].isdigit()):
            found.append(Token("const", self.number(word, at), at))
        elif char.isalpha() or char == "_":
            found.append(Token("word", word, at))
        else:
            raise self.fail(f"unexpected {go_quote(char)} in command"
                            if char.isprintable() else
                            f"unrecognized character in action: U+{ord(char):04X}", at)
        return end

    def number(self, word: str, at: int) -> int:
        try:
            return int(word, 0)
        except ValueError:
            raise self.fail(f"bad number syntax: {go_quote(word)}", at) from None

    def string(self, at: int, found: list[Token]) -> int:
        text = self.text
        mark = text[at]
        end = at + 1
        out = []
        while end < len(text) and text[end] != mark:
            if text[end] == "\\" and mark != "`":
                end += 1
                escape = text[end:end + 1]
                out.append({"n": "\n", "t": "\t", "r": "\r"}.get(escape, escape))
            else:
                out.append(text[end])
            end += 1
        if end >= len(text):
            raise self.fail("unterminated quoted string" if mark == '"' else
                            "unterminated raw quoted string", at)
        value: Any = "".join(out)
        if mark == "'":
            value = ord(value) if len(value) == 1 else 0
        found.append(Token("const", value, at))
        return end + 1

    def node(self, word: str, tokens: list[Token], at: int) -> Node:
        if word not in _KEYWORDS:
            node = Node("pipe", at)
            node.names, rest = self.declared(tokens, False)
            node.pipe = self.pipeline(rest)
            return node
        if word not in ("if", "range", "with"):
            raise self.fail("{{" + word + "}} is not supported in a format", at)
        node = Node(word, at)
        node.names, rest = self.declared(tokens[1:], word == "range")
        node.pipe = self.pipeline(rest)
        node.body, end, rest = self.nodes(("else", "end"))
        if end == "else":
            rest = [t for t in rest if t.kind != "space"] and rest
            significant = [t for t in rest if t.kind != "space"]
            if significant and significant[0].value in ("if", "with"):
                index = rest.index(significant[0])
                node.other = [self.node(str(significant[0].value), rest[index:], at)]
            elif significant:
                raise self.fail("unexpected <" + str(significant[0].value) + "> in else", at)
            else:
                node.other, _, _ = self.nodes(("end",))
        return node

    def declared(self, tokens: list[Token], several: bool) -> tuple[list[str], list[Token]]:
        """The variables of "$a, $b := "."""
        if not any(t.kind in (":=", "=") for t in tokens):
            return [], tokens
        names = []
        for i, token in enumerate(tokens):
            if token.kind == "var":
                names.append(token.value)
            elif token.kind in (":=", "="):
                if not names or len(names) > (2 if several else 1):
                    raise self.fail("too many declarations in command", token.at)
                return names, tokens[i + 1:]
            elif token.kind not in ("space", ","):
                break
        raise self.fail("unexpected := in command", tokens[0].at)

    def pipeline(self, tokens: list[Token]) -> list[list[Operand]]:
        commands: list[list[Operand]] = [[]]
        i = 0
        while i < len(tokens):
            token = tokens[i]
            if token.kind == "space":
                i += 1
            elif token.kind == "|":
                if not commands[-1]:
                    raise self.fail("missing value for command", token.at)
                commands.append([])
                i += 1
            else:
                operand, i = self.operand(tokens, i)
                commands[-1].append(operand)
        for command in commands:
            if len(command) > 1 and command[0].kind == "func":
                # errors name the whole call
                last = command[-1]
                command[0].source = self.text[command[0].at:last.at + len(last.source)]
        if not commands[-1]:
            raise self.fail("missing value for command", tokens[0].at if tokens else self.at)
        return commands

    def operand(self, tokens: list[Token], i: int) -> tuple[Operand, int]:
        token = tokens[i]
        i += 1
        kind: str = token.kind
        value: Any = token.value
        fields: list[str] = []
        if kind == "(":
            depth, start = 1, i
            while i < len(tokens) and depth:
                depth += {"(": 1, ")": -1}.get(tokens[i].kind, 0)
                i += 1
            if depth:
                raise self.fail("unclosed left paren", token.at)
            kind, value = "paren", self.pipeline(tokens[start:i - 1])
        elif kind == "field":
            kind, fields = "dot", [str(value)]
        elif kind == "word":
            if value in ("true", "false", "nil"):
                kind, value = "const", {"true": True, "false": False, "nil": None}[value]
            elif value in FUNCTIONS or value in ("and", "or"):
                kind = "func"
            else:
                raise self.fail(f"function {go_quote(str(value))} not defined", token.at)
        elif kind not in ("dot", "var", "const"):
            raise self.fail(f"unexpected <{token.value}> in operand", token.at)
        while i < len(tokens) and tokens[i].kind == "field":
            fields.append(tokens[i].value)
            i += 1
        end = tokens[i].at if i < len(tokens) else self.at
        source = self.text[token.at:end].rstrip("-} \t)|")
        return Operand(kind, value, fields, token.at, source), i
