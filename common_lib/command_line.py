"""Command line: what commands share, whichever package brings them: how they answer, how they fail, how they end.

    ExitCode.OK            0   done
    ExitCode.FAILED        1   the work itself: a job failed or was cancelled, a check found something, no skill
    ExitCode.USAGE         2   the command line, or a file that it names
    ExitCode.UNREACHABLE   3   nobody answers at the address, or not now (503, 504)
    ExitCode.REFUSED       4   the service says no: key, unknown id, conflict, invalid data, too much memory
    ExitCode.BROKEN        5   something went wrong inside: the service (500), a third server (502), or this program
    ExitCode.INTERRUPTED 130   Ctrl-C
    ExitCode.NO_READER   141   whoever read the output stopped reading

A command is a function whose first parameter is a `CommandLine`; the rest is declared as Typer reads it. A package
brings commands of its own by an entry point of the group `ml_workbench.commands`, which names a `typer.Typer`; groups
of one name are joined.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from common_lib.exceptions import PlatformError
from common_lib.screen import Screen

COMMANDS_GROUP = "ml_workbench.commands"


class ExitCode(IntEnum):
    """How a command ended; see above."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    BROKEN = 5
    INTERRUPTED = 130
    NO_READER = 141


class CommandFailed(Exception):
    """Ends a command with a sentence for people and an exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class UsageMistake(CommandFailed):
    """The command line, or a file that it names, cannot be used as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


@dataclass
class CommandLine:
    """One call of a command: where the service is, and how to answer.

    Attributes:
        url, api_key: as the options say; None leaves it to WORKBENCH_URL and WORKBENCH_API_KEY.
        as_json: one JSON document on stdout, for scripts.
        shows_traceback: of errors that are shown as one sentence otherwise.
    """

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    as_json: bool = False
    shows_traceback: bool = False

    @cached_property
    def screen(self) -> Screen:
        """What is written to."""
        return Screen(as_json=self.as_json)


def exit_code_of(error: PlatformError) -> ExitCode:
    """By the error's status."""
    if error.status in (503, 504):
        return ExitCode.UNREACHABLE
    if error.status in (500, 502):
        return ExitCode.BROKEN
    return ExitCode.REFUSED
