"""Root of the command line: groups joined into one program, the options of every command, errors as one sentence.

Help is plain text: it fits sixty columns and costs a third of what `rich` would.

Every command gets `--url`, `--api-key`, `--json` and `--debug`; they may stand before the command's name too.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from common_lib.command_line import CommandFailed, CommandLine, ExitCode, exit_code_of
from common_lib.exceptions import PlatformError, RouteNotFoundError
from ml_workbench_client.cli import agents, data, deployments, experiments, jobs, models, plugins, predict, queue, train
from ml_workbench_client.cli import service as service_commands
from ml_workbench_client.cli.sections import Sections
from ml_workbench_service.contracts.extras import missing_extra

EPILOG = (
    "Exit codes: 0 done · 1 the work itself failed · 2 usage · 3 nobody answers · 4 refused by the service · "
    "5 went wrong inside · 130 interrupted · 141 the reader of a pipe is gone."
)
GROUPS = (train, jobs, models, predict, deployments, experiments, queue, agents, data, service_commands)
"""In the order of the help."""

Url = Annotated[
    str | None,
    typer.Option("--url", help="Address of the service; default: WORKBENCH_URL, else http://127.0.0.1:8005.",
                 rich_help_panel="Everywhere"),
]  # fmt: skip
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Its key; WORKBENCH_API_KEY keeps it out of the list of processes.",
                 rich_help_panel="Everywhere"),
]  # fmt: skip
AsJson = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout, for scripts.", rich_help_panel="Everywhere"),
]
ShowsTraceback = Annotated[
    bool,
    typer.Option("--debug", help="Show where an error comes from.", rich_help_panel="Everywhere"),
]
EVERYWHERE: dict[str, tuple[Any, Any]] = {
    "url": (Url, None),
    "api_key": (ApiKey, None),
    "as_json": (AsJson, False),
    "shows_traceback": (ShowsTraceback, False),
}
"""Options of every command, each with its default."""


def build() -> typer.Typer:
    """The whole program."""
    root = typer.Typer(
        name="ml-workbench",
        cls=Sections,
        help="Train models on exchange rates, learn whether they have skill, deploy them, and follow what they do.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback()(_remember)
    for module in GROUPS:
        join(root, module.app)
    for app in plugins.apps():
        join(root, app)
    return root


def join(root: typer.Typer, app: typer.Typer) -> None:
    """Adds the commands and groups of `app`; groups of one name become one, and what is there already stays."""
    taken = {each.name for each in root.registered_commands}
    for each in app.registered_commands:
        if each.name not in taken and each.callback is not None:
            each.callback = opened(each.callback)
            root.registered_commands.append(each)
    groups = {each.name: each.typer_instance for each in root.registered_groups}
    for group in app.registered_groups:
        if group.typer_instance is None:
            continue
        there = groups.get(group.name)
        if there is None:
            there = typer.Typer(cls=Sections, no_args_is_help=group.typer_instance.info.no_args_is_help is True)
            own = group.typer_instance.registered_callback
            if own is not None and own.callback is not None:
                own.callback = opened(own.callback)
                there.registered_callback = own
            root.add_typer(there, name=group.name, help=group.help, rich_help_panel=group.rich_help_panel)
        join(there, group.typer_instance)


def opened(function: Callable[..., Any]) -> Callable[..., None]:
    """A command as Typer calls it: with the options of every command, and errors as one sentence and an exit code."""
    if getattr(function, "is_opened", False):
        return function
    own = list(signature(function).parameters.values())[1:]
    everywhere = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in EVERYWHERE.items()
    ]
    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(function)
    def call(*, context: typer.Context, **given: Any) -> None:
        line = _line(context, {name: given.pop(name) for name in EVERYWHERE})
        if context.invoked_subcommand is None:
            carry_out(lambda: function(line, **given), line)

    keyword_only = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
    call.__signature__ = signature(function).replace(parameters=[context, *keyword_only, *everywhere])  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in (context, *keyword_only, *everywhere)}
    call.is_opened = True  # type: ignore[attr-defined]
    del call.__wrapped__
    return call


def carry_out(work: Callable[[], None], line: CommandLine) -> None:
    """Does the work; what goes wrong ends the program with a sentence, the next step and an exit code."""
    try:
        work()
    except typer.Exit:
        raise
    except BrokenPipeError:
        _leave_the_pipe()
        raise typer.Exit(ExitCode.NO_READER) from None
    except KeyboardInterrupt:
        line.screen.note("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        if line.shows_traceback:
            import traceback

            traceback.print_exception(error)
        raise typer.Exit(_told(error, line)) from None


def _told(error: Exception, line: CommandLine) -> ExitCode:
    """Says what went wrong, and how the program ends."""
    screen = line.screen
    if isinstance(error, CommandFailed):
        if error.message:
            screen.error(error.message)
        return error.code
    if isinstance(error, PlatformError):
        correlation = {"correlation_id": error.correlation_id} if error.correlation_id else {}
        message = error.message.replace("Workbench(url=…)", "--url")  # the client speaks to scripts
        if isinstance(error, RouteNotFoundError):
            message = "the service has no such operation; it is of another version (`ml-workbench version`)"
        screen.error(message, {"error_code": error.error_code, "details": error.details, **correlation})
        if not line.as_json:
            _say_where(error, line)
        return exit_code_of(error)
    if isinstance(error, ImportError):
        told = missing_extra(error)
        if told is not None:
            return _told(told, line)
        screen.error(f"{error}; install what this command needs, then run it again")
        return ExitCode.USAGE
    if isinstance(error, OSError):
        screen.error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; check the path")
        return ExitCode.USAGE
    screen.error(f"{type(error).__name__}: {error}; run it again with --debug, and report what it shows")
    return ExitCode.BROKEN


def _say_where(error: PlatformError, line: CommandLine) -> None:
    """Further mistakes of a request, and where the service's log tells of the failure."""
    mistakes = error.details.get("errors")
    if isinstance(mistakes, list) and len(mistakes) > 1:
        for each in mistakes:
            line.screen.note(f"  {each.get('path')}: {each.get('message')}")
    for gate in error.details.get("gates") or error.details.get("gate_results") or ():
        if isinstance(gate, dict) and not gate.get("passed", True):
            line.screen.note(f"  gate {gate.get('gate')}: {gate.get('value')} (limit {gate.get('limit')})")
    if error.correlation_id and error.status >= 500:
        line.screen.note(f"  the service's log tells more under {error.correlation_id}")


def _line(context: typer.Context, given: dict[str, Any]) -> CommandLine:
    """The options as they stand at the command, else before it."""
    before: dict[str, Any] = context.find_root().obj or {}
    return CommandLine(**{name: value or before.get(name, value) for name, value in given.items()})


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from ml_workbench_service import __version__

        typer.echo(f"ml-workbench {__version__}")
        raise typer.Exit


def _remember(
    context: typer.Context,
    *,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    shows_traceback: ShowsTraceback = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Show the version of this program and end."
        ),
    ] = False,
) -> None:
    context.obj = {"url": url, "api_key": api_key, "as_json": as_json, "shows_traceback": shows_traceback}


def _leave_the_pipe() -> None:
    """Whatever is still buffered goes nowhere, and nobody complains at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def main() -> None:
    """Runs the program; the script `ml-workbench`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal of another encoding gets a question mark, not an error
    try:
        typer.main.get_command(build()).main(prog_name="ml-workbench")
    except BrokenPipeError:
        _leave_the_pipe()
        sys.exit(ExitCode.NO_READER)
