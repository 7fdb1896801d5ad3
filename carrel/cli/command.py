"""One command: its usage, its flags, how many arguments it takes, what it does."""

from __future__ import annotations

from .errors import UsageError
from .flags import Flag, usage_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .app import App
    from .flags import Options

    Run = Callable[[App, Options, list[str]], "int | None"]

#: no upper limit
MANY = 1 << 30


class Command:
    """``usage`` is what stands behind the name; ``path`` is set by the index on loading."""

    __slots__ = ("details", "flags", "interspersed", "least", "most", "path", "run", "usage")

    def __init__(self, run: Run, usage: str, least: int, most: int,
                 flags: tuple[Flag, ...] = (), *, interspersed: bool = True,
                 details: str = "") -> None:
        self.run = run
        self.usage = usage
        self.least = least
        self.most = most
        self.flags = flags
        self.interspersed = interspersed
        self.details = details
        self.path = ""

    def usage_line(self) -> str:
        return f"carrel {self.path} {self.usage}".rstrip()

    def check_count(self, args: list[str]) -> None:
        """UsageError unless there are as many arguments as the command takes."""
        count = len(args)
        if self.least <= count <= self.most:
            return
        if self.most == 0:
            wanted = "accepts no arguments"
        elif self.least == self.most:
            wanted = f"requires {self.least} {_arguments(self.least)}"
        elif count < self.least and self.most == MANY:
            wanted = f"requires at least {self.least} {_arguments(self.least)}"
        elif self.least == 0:
            wanted = f"requires at most {self.most} {_arguments(self.most)}"
        else:
            wanted = (f"requires at least {self.least} and at most {self.most} "
                      f"{_arguments(self.most)}")
        raise UsageError(f"carrel: 'carrel {self.path}' {wanted}", 1)

    def help(self, summary: str, aliases: list[str], width: int) -> str:
        """The text of --help."""
        usage = self.usage.split("\n")
        lines = [f"Usage:  carrel {self.path} {usage[0]}".rstrip()]
        lines += [f"\tcarrel {self.path} {more}" for more in usage[1:]]
        lines += ["", summary]
        if self.details:
            lines += ["", *self.details.split("\n")]
        if len(aliases) > 1:
            lines += ["", "Aliases:", "  " + ", ".join(f"carrel {a}" for a in aliases)]
        if self.flags:
            lines += ["", "Options:", *usage_lines(self.flags, width)]
        return "\n".join(lines) + "\n"


def _arguments(count: int) -> str:
    return "argument" if count == 1 else "arguments"
