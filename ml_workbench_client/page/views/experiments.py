"""Experiments: searches over settings, drawn from their trials while these come in."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, card, facts, grid, link, note, row, text
from ml_workbench_client.page.components.figure import show_figure
from ml_workbench_client.page.components.growing_list import growing_list
from ml_workbench_client.page.components.part import Part, nothing
from ml_workbench_client.page.components.table import Cell, amount_cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_figures import FigureInputs, draw
from ml_workbench_service.contracts.experiments import Experiment, ExperimentSummary

EVERY_S = 3.0


@view("/experiments", "Experiments")
def experiments(visit: Visit) -> None:
    """All of them, newest first."""
    with card():
        with row():
            link("Start an experiment", "/new-experiment", classes="btn btn-main")
        growing_list(
            lambda num: visit.bench.experiments().first(num), _list, noun="experiments", every_s=EVERY_S,
            empty="No experiment yet: a search over settings, whose winner alone is judged on the test part.",
        )  # fmt: skip


def _list(found: list[ExperimentSummary], most: int) -> None:
    table(
        {"name": "Experiment", "status": "Status", "trials": "Trials", "best": "Best score", "created": "Asked for"},
        [
            {
                "name": Cell(each.name, href=words.path("experiments", each.id)),
                "status": status_cell(each.status.value),
                "trials": Cell(each.num_finished, f"{each.num_finished} of {each.num_trials}"),
                "best": amount_cell(each.best_value, 4),
                "created": time_cell(each.created_at),
            }
            for each in found
        ],
        label="Experiments",
        numeric=("trials", "best"),
        page_rows=most,
    )


@view("/experiments/{experiment_id}", "Experiment")
def experiment(visit: Visit, experiment_id: str) -> None:
    """Its trials, what mattered, and what came of the winner."""
    Part(lambda: visit.bench.experiment(experiment_id).details, _all, every_s=EVERY_S)


def _all(found: Experiment) -> None:
    with card():
        with row():
            text(found.name, "strong")
            badge(found.status.value)
        note(f"objective: {words.readable(found.objective)}; sampler: {found.sampler}")
        best = found.best_trial
        facts(
            {
                "trials": f"{len(found.trials)} of {found.num_trials}",
                "best score": best.value if best else None,
                "best setting": best.params if best else None,
                "trials ever on this validation part": found.num_trials_ever,
                "deflated Sharpe": words.percent(found.deflated_sharpe, 0),
                "probability of overfitting": words.percent(found.probability_of_backtest_overfitting, 0),
            }
        )
        if found.error is not None:
            text(found.error.message, "text-bad")
        with row():
            link("Its job", words.path("jobs", found.id))
            made = found.result or {}
            if "model_id" in made:
                link("The winner's model", words.path("models", made["model_id"], version=made.get("version", "")))
    if not found.trials:
        nothing("No trial has begun yet.")
        return
    given = FigureInputs(trials=columns_of(found), importance=found.importance)
    with grid("wide even"):
        for name, title in (("trials", "Trials"), ("importance", "What mattered")):
            with card(title):
                show_figure(draw(name, given))
    with card("Settings and scores"):
        show_figure(draw("parallel_coordinates", given))
    with card("All trials"):
        _trials(found)


def columns_of(found: Experiment) -> dict[str, list[Any]]:
    """Trials as the figures read them: a column `params.<name>` for each hyper-parameter."""
    names = list(dict.fromkeys(name for each in found.trials for name in each.params))
    return {
        "number": [each.number for each in found.trials],
        "state": [each.state for each in found.trials],
        "value": [each.value for each in found.trials],
        "spread": [each.spread for each in found.trials],
        "sharpe": [each.sharpe for each in found.trials],
        **{f"params.{name}": [each.params.get(name) for each in found.trials] for name in names},
    }


def _trials(found: Experiment) -> None:
    names = list(dict.fromkeys(name for each in found.trials for name in each.params))
    columns = {"number": "Trial", "state": "State", "value": "Score", **{name: words.readable(name) for name in names}}
    if any(each.message for each in found.trials):
        columns["message"] = "Why"
    table(
        columns,
        [
            {
                "number": Cell(each.number, str(each.number)),
                "state": status_cell(each.state),
                "value": amount_cell(each.value, 4),
                **{name: Cell(_sortable(each.params.get(name)), words.plain(each.params.get(name))) for name in names},
                "message": each.message,
            }
            for each in found.trials
        ],
        label="Trials",
        numeric=("number", "value"),
    )
    with ui.element("div"):
        note("A score is of the validation part alone; the winner's card has the test part's.")


def _sortable(value: Any) -> Any:
    return value if isinstance(value, int | float | str) or value is None else str(value)
