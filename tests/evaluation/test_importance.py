"""Permutation importance: what carries is found, what does not is noise, blocks stay whole, looks are counted."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import ConflictError, DataValidationError, JobCancelled
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.importance import ImportancePart, ImportanceReport
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.evaluation.importance import JudgedWindows, judged_windows, permutation_importance
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.workflows.judged import measure_importance
from tests.trained_models import injected_bars, loaded, open_bench, train_model

NUM_BARS = 2_400
SHARED: dict[str, Any] = {
    "features": ["signal", "noise", "sma_20"],
    "symbols": ["EUR/USD", "GBP/USD"],
    "validation_split": 0.4,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "linear": {"family": "linear", "hyperparameters": {"lookback": 3, "epochs": 6}},
    "trees": {"family": "lightgbm", "hyperparameters": {"lookback": 3}},
    "policy": {
        "model_type": "reinforcement_learning", "target": None, "family": "q_learning", "symbols": ["EUR/USD"],
        "hyperparameters": {"lookback": 3, "epochs": 2, "bins": 3},
    },
    "classes": {
        "model_type": "classification", "target": "direction_1h", "family": "linear_classifier",
        "hyperparameters": {"lookback": 3},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A workbench with bars, and versions that are trained when they are first asked for."""

    bench: Workbench
    folder: Path
    cards: dict[str, ModelCard] = field(default_factory=dict)

    def card(self, name: str) -> ModelCard:
        """Of a version, one of `REQUESTS`."""
        if name not in self.cards:
            request = SHARED | REQUESTS[name]
            self.cards[name] = train_model(self.bench, name, checkpoint=self.folder / name, **request)
        return self.cards[name]

    @cached_property
    def once(self) -> JudgedWindows:
        """The linear version's test part."""
        return self.windows("linear")

    def windows(self, name: str, part: ImportancePart = "test") -> JudgedWindows:
        card = self.card(name)
        path = self.bench.registry.folder(card.id, card.version) / EVALUATION_FILE
        return judged_windows(loaded(self.bench, card), self.bench.feature_store, path, part)

    def job(self, name: str, part: ImportancePart, *, report: Recorder | None = None) -> ImportanceReport:
        order = {"model_id": name, "version": "1.0.0", "part": part, "num_repeats": 3}
        spec = JobSpec(
            id=f"job-{name}-{part}", kind=JobKind.IMPORTANCE, request=order, created_at=utc_now(), correlation_id="c"
        )
        found = measure_importance.run(spec, checkpoint=self.folder, report=report or Recorder(), workbench=self.bench)
        return ImportanceReport.model_validate(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two symbols, whose `signal` tells the next return and whose `noise` nothing."""
    folder = tmp_path_factory.mktemp("importance")
    bench = open_bench(folder)
    for number, symbol in enumerate(("EUR/USD", "GBP/USD")):
        injected_bars(NUM_BARS, seed=number, r2=0.2).write(folder / "bars", symbol)
        file = folder / "bars" / f"{symbol.replace('/', '')}_1h.csv"
        noise = np.random.default_rng(100 + number).standard_normal(NUM_BARS)
        pl.read_csv(file).with_columns(pl.Series("noise", noise)).write_csv(file)
    return Made(bench, folder)


@pytest.mark.parametrize(
    "name", ["linear", *(pytest.param(each, marks=pytest.mark.more) for each in ("trees", "classes"))]
)
def test_what_carries_the_forecast_comes_first_and_what_does_not_is_noise(name: str, made: Made) -> None:
    windows = made.windows(name)
    columns, loss = permutation_importance(windows, num_repeats=5, seed=1, progress=lambda step, total: None)
    assert columns[0].name == "signal"
    by_name = {each.name: each for each in columns}
    assert by_name["signal"].adjusted_p_value is not None
    assert by_name["signal"].adjusted_p_value < 1e-4
    assert by_name["signal"].share_of_loss == pytest.approx((by_name["signal"].loss_added.value or 0) / loss)
    noise = by_name["noise"].loss_added
    assert noise.value is not None
    assert noise.error is not None
    assert abs(noise.value) < 4 * noise.error
    assert loss == pytest.approx(float(windows.losses().mean()))


def test_the_loss_as_it_is_is_the_cards(made: Made) -> None:
    windows = made.windows("linear")
    evaluation = made.card("linear").evaluation
    assert len(windows.end_N) == evaluation.num_answered
    assert float(windows.losses().mean()) == pytest.approx(evaluation.test["mse"], rel=1e-5)


def test_all_columns_from_one_other_window_are_that_windows_answer(made: Made) -> None:
    windows = made.windows("linear")
    source = windows.shuffled(np.random.default_rng(0))
    whole = replace(windows, end_N=windows.end_N[source])
    rows = windows._windows(np.arange(len(source)))
    for column in range(rows.shape[2]):
        rows[:, :, column] = windows._windows(source)[:, :, column]
    np.testing.assert_array_equal(whole._windows(np.arange(len(source))), rows)
    assert (windows.symbol_N[source] == windows.symbol_N).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_blocks_stay_whole_and_every_window_is_used_once(made: Made, seed: int) -> None:
    windows = made.once
    source = windows.shuffled(np.random.default_rng(seed))
    assert sorted(source.tolist()) == list(range(len(source)))
    joins = np.flatnonzero(np.diff(source) != 1)
    num_blocks = sum(int((windows.symbol_N == place).sum()) // windows.block for place in (0, 1))
    assert len(joins) <= num_blocks + 2  # one more of each symbol where it was turned around
    assert windows.block == made.card("linear").lookback + 1


def test_on_the_test_part_every_column_is_noted_once_and_others_bear_it(made: Made) -> None:
    log, card = made.bench.multiple_testing, made.card("linear")
    before = len(log.other_p_values(card.lineage.job_id))
    calm = made.job("linear", "calibration")
    assert calm.num_counted == 0
    assert len(log.other_p_values(card.lineage.job_id)) == before
    found = made.job("linear", "test")
    assert found.num_counted == len(SHARED["features"])
    assert found.columns[0].name == "signal"
    assert len(log.other_p_values(card.lineage.job_id)) == before + found.num_counted
    again = made.job("linear", "test")
    assert again == found
    assert len(log.other_p_values(card.lineage.job_id)) == before + found.num_counted


def test_it_can_be_cancelled(made: Made) -> None:
    with pytest.raises(JobCancelled):
        made.job("linear", "calibration", report=Recorder(cancel_at_check=2))
    report = Recorder()
    made.job("linear", "calibration", report=report)
    assert [step for step, _, _ in report.steps] == [1, 2, 3]  # one a column


def test_bars_that_have_changed_are_refused(made: Made) -> None:
    file = made.folder / "bars" / "EURUSD_1h.csv"
    kept = file.read_text(encoding="utf-8")
    try:
        frame = pl.read_csv(file)
        frame.with_columns(pl.col("signal") * 1.5).write_csv(file)
        with pytest.raises(ConflictError, match="no longer those"):
            made.windows("linear")
    finally:
        file.write_text(kept, encoding="utf-8")


@pytest.mark.more
def test_what_forecasts_nothing_is_refused(made: Made) -> None:
    made.card("policy")
    with pytest.raises(DataValidationError, match="only forecasts"):
        made.job("policy", "test")
