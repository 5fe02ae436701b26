"""Settings of the environment, for commands that work on a service's own files."""

from typing import TYPE_CHECKING

from common_lib.command_line import CommandFailed, ExitCode

if TYPE_CHECKING:
    from ml_workbench_service.settings import Settings


def settings_of_environment() -> "Settings":
    """Of the environment.

    Raises:
        CommandFailed: a variable has a value that it does not take; each is named.
    """
    from pydantic import ValidationError

    from ml_workbench_service.settings import Settings, mistakes

    try:
        return Settings()
    except ValidationError as error:
        raise CommandFailed("; ".join(mistakes(error)), ExitCode.USAGE) from None
