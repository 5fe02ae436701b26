"""Learning is real: an injected signal is found through the whole workflow, and a shuffled one is not.

Bars in a folder → feature store → labels → parts → training → export → registry → served answers.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import columns_needed, read_history, replay_questions
from ml_workbench_service.serving.predict import Circumstances, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.testing.synthetic import skill
from tests.trained_models import INJECTED_R2, InjectedBars, injected_bars, loaded, open_bench, train_model

NUM_BARS = 14_000
LOOKBACK = 6
SEED = 11


@dataclass(frozen=True)
class Grown:
    """A trained version and the bars it grew on."""

    bench: Workbench
    card: ModelCard
    bars: InjectedBars

    @property
    def test_rows(self) -> np.ndarray:
        """Bars of the test part with a label, by their times alone."""
        opened = self.bars.opened_ms
        follows = np.append(np.diff(opened) == HOUR_MS, False)
        return np.flatnonzero((opened + HOUR_MS > to_ms(self.card.split.borders["test"])) & follows)

    @property
    def realised(self) -> Floats:
        """The test rows' price changes, from the bars themselves."""
        rows, close = self.test_rows, self.bars.close
        return np.asarray(close[rows + 1] / close[rows] - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("injected")


@cache
def grown(folder: Path, family: str, is_shuffled: bool) -> Grown:
    """Trained once for all tests of this file."""
    bars = injected_bars(NUM_BARS, seed=SEED)
    home = folder / f"{family}-{is_shuffled}"
    bench = open_bench(home)
    signal = np.random.default_rng(SEED + 1).permutation(bars.signal) if is_shuffled else bars.signal
    bars.write(home / "bars", "EUR/USD", signal)
    card = train_model(
        bench, family, checkpoint=home, family=family, features=["signal", "return_1"], symbols=["EUR/USD"],
        validation_split=0.5,
        hyperparameters={
            f"{family}_units": 8, "epochs": 12, "patience": 4, "batch_size": 128, "lookback": LOOKBACK,
            "learning_rate": 0.01, "dropout": 0.0,
        },
    )  # fmt: skip
    return Grown(bench, card, bars)


def skill_of(card: ModelCard) -> float:
    value = card.evaluation.skill["mse_against_random_walk"]
    assert value is not None
    return value


families = pytest.mark.parametrize("family", ["lstm", "gru"])


@families
def test_at_least_half_of_the_oracles_skill_is_recovered(family: str, folder: Path) -> None:
    model, records = served(folder, family)
    assert len(records) == model.card.split.num_windows["test"]
    answered = np.array([record.status == "ok" for record in records])
    assert answered.sum() == model.card.metrics["num_windows"] == model.card.evaluation.num_answered
    assert model.card.evaluation.answered_share == answered.mean() > 0.99
    rows, realised = model.test_rows[answered], model.realised[answered]
    oracle = skill(realised, model.bars.oracle[rows])
    assert oracle == pytest.approx(INJECTED_R2, abs=0.025)  # two standard errors on so many rows
    assert skill_of(model.card) >= 0.5 * max(oracle, INJECTED_R2)
    assert model.card.metrics["information_coefficient"] > 0.8 * np.corrcoef(realised, model.bars.oracle[rows])[0, 1]
    assert model.card.metrics["random_walk_mse"] == pytest.approx(float(np.mean(realised**2)), rel=1e-9)


@families
def test_with_the_column_shuffled_nothing_is_found(family: str, folder: Path) -> None:
    """Forecasts without relation to the outcome have a correlation of 0 ± 1/√n, and a skill of at most about IC²."""
    model = grown(folder, family, True)
    bound = 3 / np.sqrt(len(model.test_rows))
    coefficient = model.card.metrics["information_coefficient"]
    assert coefficient is None or abs(coefficient) < bound
    assert skill_of(model.card) < bound**2
    assert skill_of(model.card) > -0.02  # early stopping keeps it from believing in noise


@cache
def served(folder: Path, family: str) -> tuple[Grown, list[PredictionRecord]]:
    """The test part's bars, answered through the predict path."""
    model = grown(folder, family, False)
    network = loaded(model.bench, model.card)
    table = model.bench.feature_store.fetch(
        ["EUR/USD"], "1h", start_ms=None, end_ms=None, features=columns_needed(network)
    )[0]
    begin = int(model.bars.opened_ms[model.test_rows[0]])
    questions = dict(replay_questions(read_history(network, table), from_ms=begin, job_id="job"))
    asked = [questions[int(model.bars.opened_ms[row]) + HOUR_MS] for row in model.test_rows]
    prepared = [prepare(network, question) for question in asked if question is not None]
    assert len(prepared) == len(asked)
    return model, answer_many(network, prepared, Circumstances(role="candidate"))


@families
def test_the_interval_covers_what_it_promises_on_the_test_part(family: str, folder: Path) -> None:
    model, records = served(folder, family)
    assert 0.87 <= model.card.metrics["interval_coverage"] <= 0.93
    assert {record.sample for record in records} == {"test"}
    covered = [
        record.interval.lower <= outcome <= record.interval.upper
        for record, outcome in zip(records, model.realised, strict=True)
        if record.interval is not None
    ]
    assert len(covered) > 0.99 * len(records)
    assert 0.87 <= np.mean(covered) <= 0.93


@families
def test_a_stated_confidence_comes_true_as_often(family: str, folder: Path) -> None:
    model, records = served(folder, family)
    dead_zone = loaded(model.bench, model.card).dead_zone
    stated, came_true = [], []
    for record, outcome in zip(records, model.realised, strict=True):
        if record.status == "abstain":
            continue
        zone = dead_zone(record.symbol, record.price, as_of_ms=to_ms(record.as_of))
        happened = "hold" if abs(outcome) <= zone else ("buy" if outcome > 0 else "sell")
        stated.append(record.confidence)
        came_true.append(happened == record.direction)
    assert {record.direction for record in records} == {"buy", "sell", "hold"}
    assert np.mean(stated) == pytest.approx(np.mean(came_true), abs=4 * 0.5 / np.sqrt(len(stated)))
    unsure, sure = np.array_split(np.argsort(stated), 2)
    assert np.mean(np.array(came_true)[sure]) > np.mean(np.array(came_true)[unsure])


@families
def test_alarms_are_rare_on_data_like_the_training_datas(family: str, folder: Path) -> None:
    _, records = served(folder, family)
    alarms = np.mean(["novel_input" in record.abstain_reasons for record in records])
    assert alarms < 0.01
