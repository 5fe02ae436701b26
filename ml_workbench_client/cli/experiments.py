"""`experiments` and `replay`: searches over settings, and past bars through the predict path."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandLine
from ml_workbench_client.cli import following, opening, request_files, train
from ml_workbench_client.cli.train import Detached

if TYPE_CHECKING:
    from ml_workbench_service.contracts.experiments import Experiment

experiments = typer.Typer(no_args_is_help=True)
app = typer.Typer()
app.add_typer(experiments, name="experiments", help="Searches over settings.", rich_help_panel=train.PANEL)
TRIALS_SHOWN = 20


@experiments.command("run")
def run(
    line: CommandLine,
    file: Annotated[str, typer.Option("--file", "-f", help="A request as JSON or YAML; - reads stdin.")],
    num_trials: Annotated[int | None, typer.Option(min=1, help="In place of the file's.")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random or grid.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="No trial begins after so many seconds.")] = None,
    detach: Detached = False,
) -> None:
    """Search over settings, and follow it until the winner is judged."""
    body = request_files.read_request(file)
    body |= opening.given(num_trials=num_trials, sampler=sampler, timeout_s=timeout_s)
    with opening.workbench(line) as bench:
        started = bench.search(**body)
        if detach:
            following.started(line, started)
            return
        state = following.follow(line, started)
        found = started.details
    _answer(line, found)
    following.check_success(line, state)


@experiments.command("list")
def list_(
    line: CommandLine, limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20
) -> None:
    """List experiments, newest first."""
    with opening.workbench(line) as bench:
        found = bench.experiments(limit=limit).all()
    line.screen.rows(
        "experiments",
        found,
        {
            "id": "id",
            "name": "name",
            "status": lambda each: each.status.value,
            "trials": lambda each: f"{each.num_finished}/{each.num_trials}",
            "best": "best_value",
            "created": "created_at",
        },
        nothing="no experiments yet; `ml-workbench experiments run -f request.yaml` starts one",
    )


@experiments.command("show")
def show(line: CommandLine, experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT")]) -> None:
    """Show an experiment: its best trials, what mattered, and what came of the winner."""
    with opening.workbench(line) as bench:
        found = bench.experiment(experiment).details
    _answer(line, found)


@app.command("replay", rich_help_panel="Live")
def replay(
    line: CommandLine,
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]")],
    symbols: Annotated[list[str], typer.Option(help="Such as EUR/USD,GBP/USD.")],
    start: Annotated[str, typer.Option(help="First bar, 2025-01-06T00:00:00Z.")],
    end: Annotated[str, typer.Option(help="Bars before this.")],
    speed: Annotated[float | None, typer.Option(help="Bars per second; default: as fast as it goes.")] = None,
    detach: Detached = False,
) -> None:
    """Stream past bars through the predict path into the queue; needs a running agent."""
    model_id, _, version = model.partition("@")
    fields: dict[str, Any] = opening.given(
        model_id=model_id,
        version=version or None,
        symbols=opening.listed(symbols),
        start_date=start,
        end_date=end,
        speed=speed,
    )
    with opening.workbench(line) as bench:
        job = bench.replay(**fields)
        if detach:
            following.started(line, job)
            return
        state = following.follow(line, job)
    line.screen.thing(state, f"replay {state.id}", following.job_facts(state))
    following.check_success(line, state)


def _answer(line: CommandLine, found: "Experiment") -> None:
    if line.as_json:
        line.screen.document(found)
        return
    line.screen.facts(
        f"{found.name}: {found.status.value}",
        {
            "id": found.id,
            "trials": f"{len(found.trials)} of {found.num_trials}, by {found.sampler}",
            "objective": found.objective,
            "best trial": found.best_trial and {"number": found.best_trial.number, "value": found.best_trial.value},
            "importance": found.importance,
            "trials ever": found.num_trials_ever,
            "deflated Sharpe": found.deflated_sharpe,
        },
    )
    best = sorted((each for each in found.trials if each.value is not None), key=lambda each: -(each.value or 0.0))
    if best:
        rows = [[each.number, each.state, each.value, each.params] for each in best[:TRIALS_SHOWN]]
        line.screen.table(["trial", "state", "value", "settings"], rows)
