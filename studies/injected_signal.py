"""Injected signal: a verdict must see a true R² of one percent, and the model must have learnt most of it.

A user who has a good column trains `linear` on it beside three indicators, over 20,000 hours. Two figures a series: the
verdict on the card, and how much of the known conditional mean f the served answers to the test part recover,

    recovery = 1 - E(ŷ - f)² / E f²

An abstention counts as the forecast zero.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import columns_needed, read_history, replay_questions
from ml_workbench_service.serving.model import load_model
from ml_workbench_service.serving.predict import Circumstances, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from studies.fits import bench_on, train_once, training_request
from studies.series import SYMBOL, Series, injected_series
from studies.tables import Goal, Run, Table, names, of_all, share
from studies.workers import in_workers

R2 = 0.01
NUM_BARS = 20_000
NUM_SERIES = 40
NUM_BESIDE = 12
LOOKBACK, DEFAULT_LOOKBACK = 8, 24
LEAST_FOUND = 0.8
LEAST_RECOVERY = 0.7
FEATURES = ["signal", "return_1", "volatility_24", "rsi_14"]

FOUND = ("skill", "unverified")
"""A ready-made column that knows something: that it knows no future is nothing a test of skill can prove."""


@dataclass(frozen=True)
class InjectedSignal:
    """One series to train on."""

    number: int
    seed: int
    num_bars: int
    lookback: int


@dataclass(frozen=True)
class Found:
    """The verdict on the model of one series, and how much of the signal it recovered."""

    verdict: str
    certificate: str
    recovery: float
    best_r2: float  # what the known mean itself would reach on the test part
    found_r2: float  # what the model reaches there


def find(injection: InjectedSignal) -> Found:
    """Trains on one series and asks the published version about its test part."""
    series = injected_series(injection.num_bars, seed=injection.seed, number=injection.number, r2=R2)
    with bench_on(series.write) as workbench:
        hyperparameters = {"lookback": injection.lookback}
        body = training_request("Injected", FEATURES, end_date="2019-01-01T00:00:00Z", hyperparameters=hyperparameters)
        card = train_once(workbench, body)
        rows, forecast = answers(workbench, card, series)
    realised = series.close[rows + 1] / series.close[rows] - 1
    mean = series.mean[rows]
    return Found(
        verdict=card.evaluation.verdict,
        certificate=card.certificate.status if card.certificate is not None else "none",
        recovery=1 - float(np.mean((forecast - mean) ** 2) / np.mean(mean**2)),
        best_r2=1 - float(np.mean((realised - mean) ** 2) / np.mean(realised**2)),
        found_r2=1 - float(np.mean((realised - forecast) ** 2) / np.mean(realised**2)),
    )


def answers(workbench: Workbench, card: ModelCard, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Bars (N,) of the test part whose label exists, and the forecasts (N,) that the predict path gives there."""
    model = load_model(workbench.registry.folder(card.id, card.version), card)
    opened = series.opened_ms
    follows = np.append(np.diff(opened) == HOUR_MS, False)
    rows = np.flatnonzero((opened + HOUR_MS > to_ms(card.split.borders["test"])) & follows)
    table = workbench.feature_store.fetch(
        [SYMBOL], card.timeframe, start_ms=None, end_ms=None, features=columns_needed(model)
    )[0]
    begin = int(opened[rows[0]])
    questions = dict(replay_questions(read_history(model, table), from_ms=begin, job_id="evaluate"))
    asked = [questions[int(opened[row]) + HOUR_MS] for row in rows]
    prepared = [prepare(model, question) for question in asked if question is not None]
    records = answer_many(model, prepared, Circumstances(role="candidate"))
    kept = np.array([question is not None for question in asked])
    forecast = np.array([0.0 if record.prediction is None else record.prediction for record in records])
    return rows[kept], forecast


def tables(run: Run) -> list[Table]:
    """One table: a sensible request, which has goals, and the default lookback beside it."""
    num_bars = run.size(NUM_BARS, quick=6_000)
    counts = {LOOKBACK: run.size(NUM_SERIES, quick=2), DEFAULT_LOOKBACK: run.size(NUM_BESIDE, quick=1)}
    found = {
        lookback: in_workers(
            find,
            [InjectedSignal(number, run.seed, num_bars, lookback) for number in range(num_series)],
            progress=run.progress(f"injected signal, lookback {lookback}"),
            num_workers=run.num_workers,
        )
        for lookback, num_series in counts.items()
    }
    sensible = found[LOOKBACK]
    rate = sum(each.verdict in FOUND for each in sensible) / len(sensible)
    recovery = float(np.median([each.recovery for each in sensible]))
    goals = [
        Goal("injected signal: share with skill", rate, LEAST_FOUND),
        Goal("injected signal: median recovery", recovery, LEAST_RECOVERY),
    ]
    caption = (
        f"Series of {num_bars:,} hourly bars with a column that explains {R2:.0%} of the next return's variance; "
        f"`linear` on {names(FEATURES)}, `validation_split` 0.4. *Recovery* is 1 - E(ŷ - f)² / E f² over the test "
        "part, f the known conditional mean; R² are of the realised returns there."
    )
    columns = [
        "lookback", "`skill` or `unverified`", "exact 95 % interval", "`insufficient_data`", "certificate failed",
        "recovery, median (quartiles)", "R² of f", "R² of the model",
    ]  # fmt: skip
    rows = [_row(lookback, each) for lookback, each in found.items()]
    return [Table("injected_signal", "Injected signal", caption, columns, rows, goals)]


def _row(lookback: int, found: list[Found]) -> list[str]:
    is_skill = [each.verdict in FOUND for each in found]
    low, middle, high = np.quantile([each.recovery for each in found], [0.25, 0.5, 0.75])
    return [
        f"{lookback} (default)" if lookback == DEFAULT_LOOKBACK else str(lookback),
        of_all(is_skill),
        share(is_skill),
        of_all([each.verdict == "insufficient_data" for each in found]),
        of_all([each.certificate == "failed" for each in found]),
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{100 * np.median([each.best_r2 for each in found]):.2f} %",
        f"{100 * np.median([each.found_r2 for each in found]):.2f} %",
    ]
