"""`train`: one training from a request file, from options with the request's own fields, or from both."""

from typing import Annotated, Any

import typer

from common_lib.command_line import CommandFailed, CommandLine
from ml_workbench_client.cli import following, opening, request_files

app = typer.Typer()
PANEL = "Models"
SKILL = "skill"
File = Annotated[
    str | None, typer.Option("--file", "-f", help="A request as JSON or YAML; - reads stdin. Options lie over it.")
]
Detached = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait; print the job's id and end.")]


@app.command("train", rich_help_panel=PANEL)
def train(
    line: CommandLine,
    file: File = None,
    name: Annotated[str | None, typer.Option(help="Title for people.")] = None,
    model_type: Annotated[str | None, typer.Option(help="time_series, classification, anomaly_detection, …")] = None,
    family: Annotated[str | None, typer.Option(help="Default: the type's first family.")] = None,
    features: Annotated[list[str] | None, typer.Option(help="Names with commas between; may be repeated.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Such as price_change_1h.")] = None,
    symbols: Annotated[list[str] | None, typer.Option(help="Such as EUR/USD,GBP/USD.")] = None,
    start: Annotated[str | None, typer.Option(help="First bar, 2023-01-01T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option(help="Bars before this.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A hyper-parameter, lstm_units=64.")] = None,
    validation_split: Annotated[float | None, typer.Option(help="The last share by time, 0.2.")] = None,
    model_id: Annotated[str | None, typer.Option(help="Default: the slug of the name.")] = None,
    timeframe: Annotated[str | None, typer.Option(help="Default: the target's own unit.")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="One training each, 0,1,2.")] = None,
    as_of: Annotated[str | None, typer.Option(help="Use only bars known at this moment.")] = None,
    notes: Annotated[str | None, typer.Option(help="Kept on the card.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again though nothing has changed.")] = False,
    detach: Detached = False,
    require_skill: Annotated[bool, typer.Option(help="End with 1 unless the verdict is `skill`.")] = False,
) -> None:
    """Train a model, and follow it until its verdict.

    Fields that have no option (cv, costs, quantiles, label, position …) stand in the file.
    """
    body = {} if file is None else request_files.read_request(file)
    targets = opening.listed(target)
    body |= opening.given(
        name=name,
        model_type=model_type,
        family=family,
        features=opening.listed(features),
        target=targets[0] if len(targets) == 1 else targets,
        symbols=opening.listed(symbols),
        start_date=start,
        end_date=end,
        validation_split=validation_split,
        model_id=model_id,
        timeframe=timeframe,
        seeds=[_seed(each) for each in opening.listed(seeds)],
        as_of=as_of,
        notes=notes,
        force=force or None,
    )
    if set_:
        body["hyperparameters"] = {**body.get("hyperparameters", {}), **opening.settings(set_)}
    with opening.workbench(line) as bench:
        job = bench.train(**body)
        if detach:
            following.started(line, job)
            return
        _say_estimate(line, job.accepted)
        state = following.follow(line, job)
        card = job.model.card if state.status.value == "succeeded" else None
    _answer(line, state, card)
    following.check_success(line, state)
    if require_skill and card is not None and card.evaluation.verdict != SKILL:
        raise CommandFailed(f"the verdict is {card.evaluation.verdict}, and --require-skill asks for {SKILL}")


def _seed(text: str) -> int | str:
    return int(text) if text.isdigit() else text  # anything else the service refuses, in its own words


def _say_estimate(line: CommandLine, accepted: dict[str, Any]) -> None:
    estimate = accepted.get("estimate") or {}
    if estimate:
        line.screen.note(
            f"{accepted['model_id']} {accepted['version']}: {estimate['num_windows']:,} windows, about "
            f"{estimate['duration_s']:.0f} s and {estimate['memory_gb']:.1f} GB; job {accepted['job_id']}"
        )


def _answer(line: CommandLine, state: Any, card: Any) -> None:
    if line.as_json:
        verdict = None if card is None else {"verdict": card.evaluation.verdict, "reason": card.evaluation.reason}
        line.screen.document({"job": state.model_dump(mode="json"), "evaluation": verdict})
    elif card is not None:
        line.screen.facts(
            f"{card.id} {card.version}: {card.evaluation.verdict}",
            {
                "reason": card.evaluation.reason,
                "metrics": card.metrics,
                "epochs": card.epochs_run,
                "warnings": list(card.warnings),
                "job": state.id,
            },
        )
