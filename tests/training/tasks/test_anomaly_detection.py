"""An anomaly detector the whole way: trained, judged on injected anomalies, loaded, asked; what it says and refuses."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.evaluation.injected_anomalies import KINDS
from ml_workbench_service.learning.decoders.anomaly import AnomalyDecoder
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import columns_needed, read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.workflows.plan_training import plan_training
from tests.trained_models import InjectedBars, injected_bars, loaded, open_bench, train_model

SYMBOL = "EUR/USD"
FEATURES = ["return_1", "rsi_14", "volatility_12", "sma_10"]
RATE = 0.05
LOOKBACK = 8
LIVE = Circumstances(role="candidate")
SETTINGS: dict[str, dict[str, float]] = {
    "autoencoder": {"autoencoder_units": 12, "bottleneck": 6, "epochs": 8, "learning_rate": 0.01},
    "isolation_forest": {"trees": 40, "max_samples": 256},
}

both = pytest.mark.parametrize("family", list(SETTINGS))
Detector = Callable[[str], tuple[ModelCard, ServedModel]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("anomalies")
    bench = open_bench(folder)
    even_bars().write(folder / "bars", SYMBOL)
    return bench


def even_bars() -> InjectedBars:
    """Bars whose volatility never changes: of others, the test part alarms as often as its volatility has it."""
    bars = injected_bars(10_000, seed=5)
    returns = 0.001 * np.random.default_rng(5).standard_normal(len(bars.close))
    return replace(bars, close=1.1 * np.exp(np.cumsum(returns)))


@pytest.fixture(scope="module")
def detector(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """The card and the loaded version of each family, trained once."""

    @cache
    def trained(family: str) -> tuple[ModelCard, ServedModel]:
        checkpoint: Path = tmp_path_factory.mktemp(family)
        card = train_model(
            bench, family, checkpoint=checkpoint, model_type="anomaly_detection", family=family, target=None,
            timeframe="1h", features=FEATURES, symbols=[SYMBOL], validation_split=0.5,
            hyperparameters={**SETTINGS[family], "lookback": LOOKBACK, "expected_alarm_rate": RATE},
        )  # fmt: skip
        return card, loaded(bench, card)

    return trained


def untouched(bench: Workbench, card: ModelCard, model: ServedModel) -> list[Question]:
    """The test part's questions as a replay asks them, without the clock's abstentions."""
    table = bench.feature_store.fetch([SYMBOL], "1h", start_ms=None, end_ms=None, features=columns_needed(model))[0]
    asked = replay_questions(read_history(model, table), from_ms=to_ms(card.split.borders["test"]), job_id="job")
    return [replace(question, clock=False) for _, question in asked if question is not None]


def answers(model: ServedModel, questions: list[Question]) -> list[PredictionRecord]:
    return answer_many(model, [prepare(model, each) for each in questions], LIVE)


def scale_of(model: ServedModel) -> AnomalyDecoder:
    assert isinstance(model.decoder, AnomalyDecoder)
    return model.decoder


@both
def test_a_record_says_a_score_from_0_to_1_and_alarms_above_the_threshold(
    family: str, bench: Workbench, detector: Detector
) -> None:
    card, model = detector(family)
    records = answers(model, untouched(bench, card, model))
    threshold = scale_of(model).scale.threshold
    assert threshold == card.metrics["threshold"]
    assert {record.label for record in records} == {"usual", "anomaly"}
    for record in records:
        assert record.prediction is not None
        assert 0 <= record.prediction <= 1
        assert record.label == ("anomaly" if record.prediction > threshold else "usual")
        assert (record.direction, record.metadata.strength) == ("hold", 0.0)
        assert (record.interval, record.confidence, record.target) == (None, None, None)
        assert tuple(record.outputs) == card.outputs
        assert sum(driver.share for driver in record.drivers) <= 1 + 1e-9
        assert {driver.feature for driver in record.drivers} <= set(FEATURES)


@both
def test_untouched_windows_alarm_about_as_often_as_was_asked(family: str, bench: Workbench, detector: Detector) -> None:
    """Windows overlap and alarms cluster: 2,500 of them are worth far fewer, and a factor of two is what holds."""
    card, model = detector(family)
    records = answers(model, untouched(bench, card, model))
    realised = np.mean([record.label == "anomaly" for record in records])
    assert RATE / 2 < realised < RATE * 2
    assert card.metrics["alarm_rate"] == pytest.approx(realised, abs=0.005)  # the card's windows end a bar later


@both
def test_a_bad_tick_alarms_names_its_feature_and_is_no_ground_to_abstain(
    family: str, bench: Workbench, detector: Detector
) -> None:
    card, model = detector(family)
    questions = untouched(bench, card, model)[::60]
    spread = {name: np.std([each.x_TF[:, place] for each in questions]) for place, name in enumerate(FEATURES)}
    right = []
    for place, name in ((0, "return_1"), (2, "volatility_12")):
        for question in questions:
            x_TF = question.x_TF.copy()
            x_TF[-1, place] += 25 * spread[name]
            record = answer(model, replace(question, x_TF=x_TF), LIVE)
            assert (record.status, record.label) == ("ok", "anomaly")
            assert record.novelty is not None
            assert record.novelty.score > 1
            right.append(record.drivers[0].feature == name)
    assert np.mean(right) > 0.85


@both
def test_the_card_says_what_was_found_of_every_kind_beside_chance(family: str, detector: Detector) -> None:
    card, _ = detector(family)
    test, chance = card.evaluation.test, card.evaluation.baselines["chance"]
    figures = {name: value for name, value in test.items() if value is not None}
    recalls = [figures[f"recall_{kind}"] for kind in KINDS]
    assert figures["recall"] == pytest.approx(np.mean(recalls))
    assert figures["recall_spike"] > 0.5
    assert figures["recall_stale_price"] > 0.8
    found, false = 0.05 * figures["recall"], 0.95 * figures["alarm_rate"]
    assert figures["precision"] == pytest.approx(found / (found + false))
    assert figures["precision"] > 0.3  # chance: 0.05
    assert figures["num_planted"] == 800
    assert figures["num_windows"] == card.split.num_windows["test"]
    assert card.evaluation.skill["recall_over_chance"] == pytest.approx(figures["recall"] - RATE)
    assert (chance["recall"], chance["alarm_rate"]) == (RATE, RATE)
    assert chance["precision"] == chance["average_precision"] == 0.05
    assert card.evaluation.verdict == "not_applicable"
    assert "injected" in card.evaluation.reason
    assert card.findings == {"expected_alarm_rate": RATE}
    assert (card.target, card.targets, card.classes) == (None, (), ())
    assert (card.precision, card.quantization.accepted) == ("fp32", False)


@both
def test_one_at_a_time_and_many_at_once_say_the_same(family: str, bench: Workbench, detector: Detector) -> None:
    card, model = detector(family)
    questions = untouched(bench, card, model)[:40]
    for one, question in zip(answers(model, questions), questions, strict=True):
        alone = answer(model, question, LIVE)
        assert (alone.prediction, alone.label, alone.drivers) == (one.prediction, one.label, one.drivers)
        assert alone.outputs == one.outputs


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"target": "price_change_1h"}, "body.target", "has no target.*leave `target` out"),
        ({"quantiles": [0.05, 0.5, 0.95]}, "body.quantiles", "not to anomaly_detection; leave them out"),
        ({"features": []}, "body.features", "anomaly_detection needs features"),
        (
            {"hyperparameters": {"expected_alarm_rate": 0}},
            "body.hyperparameters.expected_alarm_rate",
            "not usable",
        ),
        (
            {"hyperparameters": {"expected_alarm_rate": 0.6}},
            "body.hyperparameters.expected_alarm_rate",
            "not usable",
        ),
        ({"family": "lstm"}, "body.family", "known: autoencoder, isolation_forest"),
    ],
)
def test_what_does_not_belong_to_anomalies_is_refused_before_any_training(
    change: dict[str, object], path: str, message: str, bench: Workbench
) -> None:
    body = {
        "name": "watch", "model_type": "anomaly_detection", "features": FEATURES, "symbols": [SYMBOL],
        "start_date": "2020-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z", **change,
    }  # fmt: skip
    with pytest.raises(DataValidationError, match=message) as caught:
        plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)
    assert caught.value.details["errors"][0]["path"] == path


def test_without_a_family_the_autoencoder_is_meant(bench: Workbench) -> None:
    body = {
        "name": "watch", "model_type": "anomaly_detection", "features": FEATURES, "symbols": [SYMBOL],
        "start_date": "2020-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z",
    }  # fmt: skip
    plan = plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)
    assert plan.family == "autoencoder"
    assert plan.timeframe == "1h"
