"""What a command may end with: an error text for the terminal and an exit code."""

from __future__ import annotations


class CliError(Exception):
    """One clear line (or a few) for stderr, and the exit code of the program."""

    def __init__(self, message: str, code: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


class EngineError(CliError):
    """The engine answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Error response from daemon: {text}")
        self.status = status
        self.text = text


class ConnectError(CliError):
    """The engine could not be reached."""


class UsageError(CliError):
    """A flag or an argument is wrong; the usage line of the command follows."""


class Detached(Exception):
    """The user pressed the detach keys."""


class Broken(Exception):
    """The peer closed the connection before it answered."""
