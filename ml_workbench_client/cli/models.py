"""`models`: versions: what they are, what they achieved, side by side, and their end."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from common_lib.command_line import CommandLine, UsageMistake
from ml_workbench_client.cli import desk, following, opening, tables

if TYPE_CHECKING:
    from ml_workbench_client.frames import Rows
    from ml_workbench_service.contracts.models import ModelCard, SetAside

models = typer.Typer(no_args_is_help=True)
app = typer.Typer()
app.add_typer(models, name="models", help="Models, their versions and what they achieved.", rich_help_panel="Models")
Name = Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="Such as small or small@1.0.0.")]
Version = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="Such as small@1.0.0.")]


@models.command("list")
def list_(
    line: CommandLine,
    model_type: Annotated[str | None, typer.Option(help="time_series, classification …")] = None,
    status: Annotated[str | None, typer.Option(help="experimental, deployed or archived.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Models that know this symbol.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first, instead of by id.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
) -> None:
    """List the models: the live version of each, else its newest."""
    with opening.workbench(line) as bench:
        found = bench.models(
            model_type=model_type, status=cast(Any, status), symbol=symbol, order="newest" if newest else None,
            limit=limit,
        ).all()  # fmt: skip
        aside = bench.set_aside
    line.screen.rows(
        "models",
        found,
        {
            "id": "id",
            "version": "version",
            "verdict": "verdict",
            "status": "status",
            "target": "target",
            "symbols": "symbols",
        },
        nothing="no models yet; train one with `ml-workbench train`",
    )
    _tell_of(line, aside)


@models.command("versions")
def versions(line: CommandLine, model: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    """List the versions of a model, newest first."""
    with opening.workbench(line) as bench:
        found = bench.model(model).versions.all()
        aside = bench.model(model).set_aside
    line.screen.rows(
        "versions",
        found,
        {
            "version": "version",
            "verdict": lambda each: each.evaluation.verdict,
            "status": "status",
            "family": "family",
            "target": "target",
            "created": "created_at",
        },
    )
    _tell_of(line, aside)


@models.command("show")
def show(line: CommandLine, model: Name) -> None:
    """Show a version's card: what it is, how it was judged, and why."""
    with opening.workbench(line) as bench:
        card = opening.model_of(bench, model).card
    line.screen.thing(card, f"{card.id} {card.version}: {card.evaluation.verdict}", _facts(card))


@models.command("report")
def report(
    line: CommandLine,
    model: Name,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Default: MODEL-VERSION.html.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write a version's report: one HTML page with all figures, which opens without network."""
    with opening.workbench(line) as bench, line.screen.waiting("the service draws the figures"):
        chosen = opening.model_of(bench, model)
        page = chosen.report()
        name = output or f"{chosen.id}-{chosen.version or chosen.card.version}.html"
    path = Path(page.save(name)).resolve()
    line.screen.thing({"file": str(path)}, f"{name} is written", {})
    if open_:
        import webbrowser

        webbrowser.open(path.as_uri())


@models.command("desk-report")
def desk_report(line: CommandLine, model: Name) -> None:
    """Show what a desk asks of a version's test part; with --json all of it."""
    with opening.workbench(line) as bench, line.screen.waiting("the rows are read"):
        found = opening.model_of(bench, model).desk_report()
    desk.show(line.screen, found)


@models.command("importance")
def importance(
    line: CommandLine,
    model: Name,
    part: Annotated[str, typer.Option(help="calibration, or test, where each column counts.")] = "calibration",
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Permutations of each column.")] = 10,
) -> None:
    """Measure what a version's answers lose without each of its columns."""
    wanted = cast(Literal["calibration", "test"], part)  # the service refuses another, by its name
    with opening.workbench(line) as bench:
        state = following.follow(line, bench.importance(model, part=wanted, num_repeats=repeats))
    desk.show_importance(line.screen, state)
    following.check_success(line, state)


@models.command("series")
def series(
    line: CommandLine,
    model: Name,
    part: Annotated[str, typer.Option(help="test, calibration or validation.")] = "test",
    output: tables.Output = None,
) -> None:
    """Row by row what a version was judged on: forecast, what came true, position, and what it paid."""
    tables.check_suffix(output)
    wanted = cast(Literal["test", "calibration", "validation"], part)  # the service refuses another, by its name
    with opening.workbench(line) as bench, line.screen.waiting("the rows are on their way"):
        table = opening.model_of(bench, model).series(wanted)
    tables.put_out(line, table, output)


@models.command("compare")
def compare(
    line: CommandLine, versions: Annotated[list[str], typer.Argument(metavar="MODEL@VERSION …", help="Two or more.")]
) -> None:
    """Put the figures of versions side by side, on the rows that they have in common."""
    if len(versions) < 2:
        raise UsageMistake("a comparison takes two versions or more, such as a@1.0.0 b@1.2.0")
    with opening.workbench(line) as bench:
        found = bench.compare(*(opening.model_of(bench, each) for each in versions))
    line.screen.thing(dict(found), "Compared on common rows", _flat(found))


@models.command("archive")
def archive(line: CommandLine, version: Version) -> None:
    """Take a version out of the candidates; its files stay."""
    with opening.workbench(line) as bench:
        card = opening.version_of(bench, version).archive()
    line.screen.thing(card, f"{card.id} {card.version} is {card.status}", {})


@models.command("restore")
def restore(line: CommandLine, version: Version) -> None:
    """Make an archived version a candidate again."""
    with opening.workbench(line) as bench:
        card = opening.version_of(bench, version).restore()
    line.screen.thing(card, f"{card.id} {card.version} is {card.status}", {})


@models.command("purge")
def purge(
    line: CommandLine,
    model: Name,
    confirm: Annotated[str | None, typer.Option(help="The model's id, in place of being asked.")] = None,
) -> None:
    """Remove the files of an archived version, or of a whole undeployed model, for good.

    Its figures in the multiple-testing log, its deployments and its predictions stay.
    """
    model_id = model.partition("@")[0]
    if confirm is None:
        if not sys.stdin.isatty() or line.as_json:
            raise UsageMistake(f"this removes {model} for good; confirm it with --confirm {model_id}")
        confirm = typer.prompt(f"This removes {model} for good. Type {model_id} to confirm", err=True)
    if confirm != model_id:
        raise UsageMistake(f"nothing was removed: --confirm must be {model_id}")
    with opening.workbench(line) as bench:
        opening.model_of(bench, model).purge(confirm=confirm)
    line.screen.thing({"purged": model}, f"{model} is purged", {})


def _tell_of(line: CommandLine, aside: "Rows[SetAside]") -> None:
    """What a list leaves out, and why; beside the answer, so that scripts read the list alone."""
    for each in aside:
        line.screen.note(f"{each.model_id} {each.version} is not served ({each.state}): {each.reason}")


def _facts(card: "ModelCard") -> dict[str, Any]:
    certificate = card.certificate
    return {
        "reason": card.evaluation.reason,
        "name": card.name,
        "type": f"{card.type}, {card.family}",
        "status": card.status,
        "symbols": card.symbols,
        "timeframe": card.timeframe,
        "target": card.target_names,
        "features": card.features,
        "lookback": card.lookback,
        "metrics": card.metrics,
        "leakage certificate": None if certificate is None else certificate.status,
        "precision": card.precision,
        "data": card.data_source,
        "warnings": list(card.warnings),
        "expires": card.expires_at,
        "trained": card.created_at,
        "notes": card.notes,
        "digest": card.digest,
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Figures by their path, for a table of names and values."""
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= _flat(each, f"{name} {key}".strip())
    return found
