"""Injected leaks and clean pipelines: a real training's certificate finds all of the ones and is silent on the others.

An injected leak (`injected_leaks`) is in force while the whole training runs, certificate included, as a mistake in
the code would be. Columns that know the future, and honest ones, stand in the user's own bars beside three
indicators.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from ml_workbench_service.contracts.models import ModelCard
from studies import clean_pipelines
from studies.clean_pipelines import INDICATORS, PIPELINES
from studies.fits import bench_on, train_once, training_request
from studies.injected_leaks import FEATURES, INJECTED_LEAKS, columns, honest_columns
from studies.series import null_series
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

NUM_BARS = 9_000
INJECTION, COLUMN, HONEST, CLEAN = "injection", "column", "honest", "clean"
LEAKS, RIGHT = (INJECTION, COLUMN), (HONEST, CLEAN)


@dataclass(frozen=True)
class Case:
    """One training: the injected leak, column or pipeline of this number."""

    kind: str
    number: int
    seed: int


@dataclass(frozen=True)
class Certified:
    """What its certificate says."""

    name: str
    family: str
    status: str
    failed: tuple[str, ...]
    verdict: str
    p_value: float | None  # what the test alone would have said


def certified(case: Case) -> Certified:
    """Trains it through the workflow and reads the card."""
    if case.kind == CLEAN:
        return _read(PIPELINES[case.number].name, clean_pipelines.train(case.number, case.seed))
    if case.kind == INJECTION:
        return _with_leak(case)
    series = null_series(NUM_BARS, seed=case.seed, number=3000 + case.number)
    if case.kind == COLUMN:
        known = columns(series.close, series.opened_ms, seed=case.seed)
    else:
        known = honest_columns(series.close, seed=case.seed)
    name = list(known)[case.number]
    with bench_on(partial(series.write, more={name: known[name]})) as workbench:
        return _read(f"column `{name}`", train_once(workbench, _request([name, *INDICATORS])))


def cases(seed: int) -> list[Case]:
    """Every leak, column and pipeline, once."""
    series = null_series(100, seed=seed, number=0)
    numbers = {
        INJECTION: len(INJECTED_LEAKS),
        COLUMN: len(columns(series.close, series.opened_ms, seed=seed)),
        HONEST: len(honest_columns(series.close, seed=seed)),
        CLEAN: len(PIPELINES),
    }
    return [Case(kind, number, seed) for kind, num in numbers.items() for number in range(num)]


def tables(run: Run) -> list[Table]:
    """The leaks, one a row; and the clean trainings together."""
    asked = cases(run.seed)
    if run.is_quick:
        asked = [next(each for each in asked if each.kind == kind) for kind in (*LEAKS, *RIGHT)]
    found = in_workers(certified, asked, progress=run.progress("injected leaks"), num_workers=run.num_workers)
    by_kind = {
        kind: [each for case, each in zip(asked, found, strict=True) if case.kind == kind] for kind in (*LEAKS, *RIGHT)
    }
    return [_leaks([each for kind in LEAKS for each in by_kind[kind]]), _alarms(by_kind[CLEAN], by_kind[HONEST])]


def _leaks(found: list[Certified]) -> Table:
    is_found = [each.status == "failed" for each in found]
    rows = [
        [
            each.name,
            "yes" if each.status == "failed" else "**no**",
            ", ".join(f"`{name}`" for name in each.failed) or "-",
            "-" if each.p_value is None else f"{each.p_value:.3f}",
            f"`{each.verdict}`",
        ]
        for each in found
    ]
    caption = (
        f"{of_all(is_found)} found. Trainings on {NUM_BARS:,} hourly bars of driftless series; the first rows are "
        "mistakes in the code, the last ones columns of the user's own that know the future. *p* is what the test of "
        "skill alone would have said: without the certificate, 0.025 or less would be `skill`."
    )
    goals = [Goal("injected leaks: share found", sum(is_found) / len(found), 1.0)]
    return Table("injected_leaks", "Injected leaks", caption, ["leak", "found", "by", "p", "verdict"], rows, goals)


def _alarms(clean: list[Certified], honest: list[Certified]) -> Table:
    rows, num_alarms = [], 0
    families = len({each.family for each in clean})
    for title, found in ((f"pipelines over {families} families", clean), ("honest columns of the user's own", honest)):
        is_alarm = [each.status == "failed" for each in found]
        num_alarms += sum(is_alarm)
        alarms = "; ".join(f"{each.name}: {', '.join(each.failed)}" for each in found if each.status == "failed")
        unprovable = sum(each.status == "unprovable" for each in found)
        rows.append([title, of_all(is_alarm), share(is_alarm), str(unprovable), alarms or "-"])
    caption = (
        "Clean trainings: every family, targets of every measure, on driftless bars, with a ready-made column, on ECB "
        "fixings and on the simulated sample. `unprovable` is no alarm: a ready-made column cannot be made again."
    )
    goals = [Goal("clean pipelines: false alarms", num_alarms, 0, at_most=True)]
    headings = ["clean", "alarms", "exact 95 % interval", "`unprovable`", "which"]
    return Table("clean_pipelines", "Clean pipelines", caption, headings, rows, goals)


def _with_leak(case: Case) -> Certified:
    injected = INJECTED_LEAKS[case.number]
    series = null_series(NUM_BARS, seed=case.seed, number=2000 + case.number)
    with bench_on(series.write) as workbench, injected.inject():
        body = _request(list(FEATURES)) | dict(injected.request)
        if body["model_type"] == "feature_engineering":
            del body["family"]
        card = train_once(workbench, body)
    return _read(injected.name, card)


def _read(name: str, card: ModelCard) -> Certified:
    certificate = card.certificate
    assert certificate is not None, "every training is certified"
    failed = tuple(check.name for check in certificate.checks if check.status == "failed")
    tested = card.evaluation.significance
    p_value = None if tested is None else tested.p_value
    return Certified(name, card.family, certificate.status, failed, card.evaluation.verdict, p_value)


def _request(features: list[str]) -> dict[str, Any]:
    """`linear` for a moment; an injected leak may ask for another type."""
    hyperparameters = {"lookback": 6, "epochs": 10, "batch_size": 512, "learning_rate": 0.005}
    return training_request("Leak", features, hyperparameters=hyperparameters)
