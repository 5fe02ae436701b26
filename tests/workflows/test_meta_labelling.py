"""Meta-labelling: a primary whose side pays in one regime alone is followed there, and a follower of luck has no skill.

    return(t + 1) = deviation x (edge · signal(t) + noise(t + 1))       where regime(t) > 0; else noise alone

`signal` is ± 1. The primary reads the signal, the follower the regime.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.decoders.decoder import DecodingRun
from ml_workbench_service.learning.decoders.follow import FollowDecoder
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import load_model
from ml_workbench_service.serving.predict import Circumstances, answer
from ml_workbench_service.serving.request_to_windows import question_of
from ml_workbench_service.workflows.plan_training import plan_training
from tests.trained_models import DEVIATION, injected_bars, loaded, open_bench, train_model

EDGE = 0.7
NUM_BARS = 9_000
PRIMARY_ENDS = "2020-09-01T00:00:00Z"
FOLLOW: dict[str, Any] = {
    "name": "Follower", "model_id": "follower", "model_type": "classification", "family": "lightgbm_classifier",
    "features": ["regime"], "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z",
    "end_date": "2021-09-01T00:00:00Z", "hyperparameters": {"lookback": 3}, "meta": {"primary": "primary@1.0.0"},
    "validation_split": 0.4,
}  # fmt: skip


def write_bars(folder: Path, *, seed: int, is_planted: bool) -> None:
    """Half of the bars reward the signal; where nothing is planted all of them do, half as much."""
    opened_ms, chance = injected_bars(NUM_BARS, seed=seed).opened_ms, np.random.default_rng(seed)
    signal, regime = np.sign(chance.standard_normal(NUM_BARS)), chance.standard_normal(NUM_BARS)
    edge = np.where(regime > 0, EDGE, 0.0) if is_planted else np.full(NUM_BARS, EDGE / 2)
    returns = np.zeros(NUM_BARS)
    returns[1:] = DEVIATION * ((edge * signal)[:-1] + chance.standard_normal(NUM_BARS)[1:])
    close = 1.1 * np.exp(np.cumsum(returns))
    opens = np.concatenate([close[:1], close[:-1]])
    columns = {"open": opens, "high": np.maximum(opens, close) * 1.0001, "low": np.minimum(opens, close) / 1.0001}
    stamps = {"timestamp": [iso_of_ms(int(each)) for each in opened_ms]}
    pl.DataFrame({**stamps, **columns, "close": close, "signal": signal, "regime": regime}).write_csv(
        folder / "EURUSD_1h.csv"
    )


def bench_with_primary(folder: Path, *, seed: int, is_planted: bool) -> Workbench:
    """Bars, and a linear forecast of the next bar by the signal, fitted on the first months."""
    bench = open_bench(folder)
    write_bars(folder / "bars", seed=seed, is_planted=is_planted)
    train_model(
        bench, "primary", checkpoint=folder / "primary", family="linear", features=["signal"], symbols=["EUR/USD"],
        hyperparameters={"lookback": 3, "epochs": 20}, end_date=PRIMARY_ENDS, validation_split=0.4,
    )  # fmt: skip
    return bench


def train_follower(bench: Workbench, folder: Path, model_id: str = "follower", **changes: Any) -> ModelCard:
    """As `FOLLOW`, with changes."""
    return train_model(bench, model_id, checkpoint=folder / model_id, target=None, **{
        name: value for name, value in {**FOLLOW, **changes}.items() if name not in ("name", "model_id")
    })  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One primary, and a follower of it."""

    bench: Workbench
    folder: Path
    card: ModelCard


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Where the side pays in one regime."""
    folder = tmp_path_factory.mktemp("planted")
    bench = bench_with_primary(folder, seed=3, is_planted=True)
    return Trained(bench, folder, train_follower(bench, folder))


def test_the_paying_regime_is_found_and_following_it_earns_more(planted: Trained) -> None:
    card, test = planted.card, planted.card.evaluation.test
    assert 0.3 < (test["share_followed"] or 0) < 0.7
    assert (test["precision"] or 0) > (test["primary_precision"] or 0) + 0.05
    assert (card.evaluation.skill["net_over_primary"] or 0) > 0
    assert (card.evaluation.skill["net_over_thinned"] or 0) > 0
    assert {each.baseline for each in card.evaluation.comparisons} == {"primary", "thinned"}
    assert all((each.diebold_mariano.p_value or 1) < 0.025 for each in card.evaluation.comparisons)
    assert card.evaluation.verdict in ("unverified", "implausible")  # the columns are the user's own
    rows = pl.read_parquet(planted.bench.registry.folder(card.id, card.version) / "evaluation.parquet")
    assert set(rows["position"].drop_nulls().to_list()) <= {-1, 0, 1}


def test_nothing_leaks_and_no_row_is_used_that_the_primary_was_fitted_on(planted: Trained) -> None:
    card = planted.card
    assert [each.name for each in card.certificate.checks if each.status == "failed"] == []
    primary = planted.bench.registry.card("primary", "1.0.0")
    assert card.primary is not None
    assert card.primary.digest == primary.digest
    assert card.primary.fitted_until == primary.split.borders["test"]
    assert card.primary.is_clipped
    assert any(each.startswith("range_clipped: primary@1.0.0") for each in card.warnings)
    rows = pl.read_parquet(planted.bench.registry.folder(card.id, card.version) / "evaluation.parquet")
    assert rows["as_of"].min() > card.primary.fitted_until  # type: ignore[operator]


def test_served_it_takes_the_primarys_side_where_it_follows_and_outlives_it(planted: Trained) -> None:
    follower, primary = (
        loaded(planted.bench, planted.bench.registry.card(name, "1.0.0")) for name in ("follower", "primary")
    )
    assert isinstance(follower.decoder, FollowDecoder)
    chance, seen = np.random.default_rng(0), set()
    for _ in range(30):
        signal = np.sign(chance.standard_normal(follower.card.lookback))
        columns = {"signal": signal.tolist(), "regime": chance.standard_normal(follower.card.lookback).tolist()}
        columns["regime"][-1] = float(chance.choice([-1.5, 1.5]))
        as_of = follower.last_available_at_ms + 3_600_000

        def record(model: Any, sent: dict[str, Any], as_of: int = as_of) -> Any:
            body = {"features": sent, "as_of": iso_of_ms(as_of), "context": {"symbol": "EUR/USD"}}
            question = question_of(model, PredictRequest.model_validate(body), received_ms=as_of)
            return answer(model, question, Circumstances(role="champion"))

        own = record(follower, columns)
        side = record(primary, {"signal": columns["signal"][-primary.card.lookback :]})
        follows = own.outputs["follow"] > own.outputs["skip"]
        assert own.status == side.status == "ok"
        assert own.direction == (side.direction if follows else "hold")
        assert own.outputs["primary_price_change_1h"] == pytest.approx(side.outputs["price_change_1h"], rel=1e-6)
        assert own.confidence == max(own.outputs["follow"], own.outputs["skip"])
        seen.add((columns["regime"][-1] > 0, follows))
    assert seen == {(True, True), (False, False)}


def test_runs_are_decoded_as_windows_alone(planted: Trained) -> None:
    model = loaded(planted.bench, planted.card)
    rows_NTF = np.random.default_rng(1).standard_normal((50, model.card.lookback, 2)).astype(np.float32)
    together = model.float32.predict(rows_NTF).outputs_NK
    alone = np.concatenate([model.float32.predict(each[None]).outputs_NK for each in rows_NTF])
    assert np.array_equal(together, alone)
    unit = np.ones(50)
    scale = np.tile(model.scaler.symbols["EUR/USD"].label_scale_K, (50, 1))
    run = DecodingRun(scale, np.full(50, 1e-3), np.full(50, 1e-4), np.zeros(50), unit, unit)
    found = model.decoder.decode_run(together, run)
    for row in range(50):
        one = model.decoder.decode(together[row], run.context(row))
        assert (one.prediction, one.direction, one.label) == (
            found.prediction.value(row), found.direction.value(row), found.label.value(row)
        )  # fmt: skip
        assert one.outputs == found.outputs.value(row)
        assert (one.confidence, one.strength) == (found.confidence.value(row), found.strength.value(row))


@pytest.mark.parametrize("family", ["linear_classifier", "lstm_classifier"])
def test_networks_follow_too(planted: Trained, family: str) -> None:
    card = train_follower(
        planted.bench, planted.folder, family, family=family, hyperparameters={"lookback": 4, "epochs": 8}
    )
    assert card.lookback == card.min_window == 4 + 3 - 1
    assert (card.evaluation.skill["net_over_thinned"] or 0) > 0


def test_the_primary_may_go_once_it_has_a_follower(planted: Trained, tmp_path: Path) -> None:
    """Its graph is part of the bundle: nothing else is opened to answer."""
    copied = tmp_path / planted.card.id / planted.card.version
    shutil.copytree(planted.bench.registry.folder(planted.card.id, planted.card.version), copied)
    assert np.isfinite(load_model(copied, planted.card).smoke().outputs_NK).all()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"meta": {"primary": "nobody@1.0.0"}}, "body.meta.primary", "sound version"),
    ({"meta": {"primary": "primary@9.0.0"}}, "body.meta.primary", "no such version"),
    ({"meta": {"primary": "follower@1.0.0"}}, "body.meta.primary", "follows a primary itself"),
    ({"end_date": "2020-06-01T00:00:00Z"}, "body.end_date", "was fitted on rows known until"),
    ({"symbols": ["EUR/USD", "GBP/USD"]}, "body.symbols", "leave those out"),
    ({"timeframe": "4h"}, "body.timeframe", "reads bars of 1h"),
    ({"target": "direction_1h"}, "body.target", "follow_1h"),
    ({"model_type": "time_series", "family": None, "target": "price_change_1h"}, "body.meta", "does not learn"),
    ({"meta": None, "target": "follow_1h"}, "body.target", "meta.primary"),
]


@pytest.mark.parametrize(("changes", "path", "words"), REFUSED)
def test_what_cannot_be_followed_is_refused(planted: Trained, changes: dict[str, Any], path: str, words: str) -> None:
    body = {name: value for name, value in {**FOLLOW, **changes}.items() if value is not None}
    with pytest.raises(DataValidationError) as refused:
        plan_training(TrainRequest.model_validate(body), planted.bench, unfinished=[], max_memory_gb=16)
    (error,) = refused.value.details["errors"]
    assert error["path"] == path
    assert words in error["message"]


def test_a_version_without_sides_and_an_archived_one_are_refused(planted: Trained) -> None:
    bench, folder = planted.bench, planted.folder
    common = {"features": ["signal"], "symbols": ["EUR/USD"], "end_date": PRIMARY_ENDS, "validation_split": 0.4}
    train_model(
        bench, "volatility", checkpoint=folder / "volatility", family="linear", target="volatility_1h",
        hyperparameters={"lookback": 3, "epochs": 3}, **common,
    )  # fmt: skip
    train_model(
        bench, "archived", checkpoint=folder / "archived", family="linear", position={"rule": "sign_after_costs",
        "band": 0.1}, hyperparameters={"lookback": 3, "epochs": 3}, **common,
    )  # fmt: skip
    for words, name in (("no position earns", "volatility"), ("rule of its own", "archived")):
        body = {**FOLLOW, "meta": {"primary": f"{name}@1.0.0"}}
        with pytest.raises(DataValidationError, match=words):
            plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)
    bench.registry.archive("archived", "1.0.0")
    with pytest.raises(DataValidationError, match="is archived"):
        plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)


def test_all_features_are_the_primarys_where_none_is_sent(planted: Trained) -> None:
    body = {**FOLLOW, "features": []}
    plan = plan_training(TrainRequest.model_validate(body), planted.bench, unfinished=[], max_memory_gb=16)
    assert plan.derivation.features == ("signal",)
    assert plan.primary is not None
    assert plan.primary.reads == ("signal",)
    assert to_ms(plan.primary.fitted_until) > to_ms(plan.request.start_date)
