"""Commands of other packages: `typer.Typer`s named by the entry point group `ml_workbench.commands`.

The service's own commands come this way too; in a checkout that is not installed there is no entry point, and they are
found where they stand. Law: a broken package costs its own commands and one line on stderr, never the program.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

import typer

from common_lib.command_line import COMMANDS_GROUP, CommandLine, UsageMistake

SERVICE = EntryPoint("service", "ml_workbench_service.cli.commands:app", COMMANDS_GROUP)
OF_THE_SERVICE = {
    "serve": "Start the service.",
    "doctor": "Look at everything the service needs.",
    "backup": "Write a backup of the service.",
    "restore": "Bring a backup back.",
}


def apps() -> Iterator[typer.Typer]:
    """Everything that packages bring, the service's own first."""
    found = {each.name: each for each in entry_points(group=COMMANDS_GROUP)}
    service = found.pop(SERVICE.name, SERVICE)
    if find_spec(service.module) is None:
        yield _not_installed()
    for each in (service, *found.values()):
        if find_spec(each.module.partition(".")[0]) is not None:
            yield from _loaded(each)


def _loaded(entry_point: EntryPoint) -> Iterator[typer.Typer]:
    try:
        app = entry_point.load()
        if not isinstance(app, typer.Typer):
            raise TypeError(f"{entry_point.value} is no typer.Typer")
    except Exception as error:  # a stranger's code may raise anything; it costs its own commands alone
        package = entry_point.module if entry_point.dist is None else entry_point.dist.name
        sys.stderr.write(f"the commands of {package} are left out ({type(error).__name__}: {error})\n")
    else:
        yield app


def _not_installed() -> typer.Typer:
    """The service's commands where its package is not there: each says what to install."""
    app = typer.Typer()
    checks = typer.Typer()
    for name, sentence in OF_THE_SERVICE.items():
        _placeholder(app, name, sentence)
    _placeholder(checks, "check", "Read a folder of bars and say how.")
    app.add_typer(checks, name="data")
    return app


def _placeholder(app: typer.Typer, name: str, sentence: str) -> None:
    @app.command(name, help=f"{sentence} (needs ml-workbench-service)")
    def tell(line: CommandLine) -> None:
        raise UsageMistake(
            f"`{name}` works on the service's own machine and needs its package: pip install ml-workbench-service, or "
            "run it from a checkout of the service"
        )
