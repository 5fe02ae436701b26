"""Meta-labelling: a primary whose side pays in one regime alone is followed there; a follower of luck has no skill."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PRIMARY_SIDE, PredictRequest
from ml_workbench_service.contracts.training import TrainRequest, parse_target
from ml_workbench_service.integrations.prediction_ledger.rows import entries_of, entry_of
from ml_workbench_service.learning.data.scaling import RowScaler
from ml_workbench_service.learning.data.windows import Borders, Windows
from ml_workbench_service.learning.decoders.decoder import DecodingRun
from ml_workbench_service.learning.decoders.follow import FollowDecoder
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.networks.boosted_trees.explanations import TreeExplainer
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import load_model
from ml_workbench_service.serving.predict import Circumstances, answer, answered, prepare
from ml_workbench_service.serving.request_to_windows import question_of
from ml_workbench_service.serving.runs.answering import answer_run
from ml_workbench_service.serving.runs.questions import QuestionRun
from ml_workbench_service.training.tasks import following
from ml_workbench_service.workflows.plan_training import plan_training
from tests.meta_labelling.followed_bars import FOLLOW, PRIMARY, bench_with_primary, train_follower
from tests.trained_models import DEVIATION, injected_bars, loaded, train_model

QUICK = {"lookback": 3, "num_iterations": 20}


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
        as_of = to_ms(datetime(2021, 6, 16, 10, tzinfo=UTC))

        def record(model: Any, sent: dict[str, Any], as_of: int = as_of) -> Any:
            body = {"features": sent, "as_of": iso_of_ms(as_of), "symbol": "EUR/USD", "timeframe": "1h"}
            question = question_of(model, PredictRequest.model_validate(body), received_ms=as_of)
            return answer(model, question, Circumstances(role="champion"))

        own = record(follower, columns)
        side = record(primary, {"signal": columns["signal"][-primary.card.lookback :]})
        follows = own.outputs["follow"] > own.outputs["skip"]
        assert own.status == side.status == "ok"
        assert own.direction == (side.direction if follows else "hold")
        assert own.outputs["primary_price_change_1h"] == pytest.approx(side.outputs["price_change_1h"], rel=1e-6)
        if side.direction == "hold":
            assert (own.confidence, own.label) == (None, None)
            continue
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


def test_trees_say_what_moved_them_and_their_primarys_word_is_one_of_the_reasons(planted: Trained) -> None:
    """Shapley values of what the classifier reads add up to its logits, of several seeds in the mean."""
    both = train_follower(planted.bench, planted.folder, "both", seeds=[0, 1], hyperparameters=QUICK)
    rows_NTF = np.random.default_rng(2).standard_normal((40, planted.card.lookback, 2)).astype(np.float32)
    for card in (planted.card, both):
        explainer = TreeExplainer(planted.bench.registry.folder(card.id, card.version), card.digest)
        told_NKF = explainer.contributions(rows_NTF)
        assert told_NKF.shape == (40, 2, 1 + 1 + 1)  # the regime, the primary's forecast, and the base
        logits_NK = loaded(planted.bench, card).float32.predict(rows_NTF).outputs_NK[:, :2]
        np.testing.assert_allclose(told_NKF.sum(axis=2), logits_NK, atol=1e-5)
        assert np.abs(told_NKF[:, 1, 0]).mean() > np.abs(told_NKF[:, 1, 1]).mean()


def test_followers_answer_in_float32_and_their_cards_say_why(planted: Trained) -> None:
    assert not planted.card.quantization.accepted
    assert "not be what the primary itself says" in planted.card.quantization.reason


def test_the_ledger_keeps_the_primarys_side(planted: Trained) -> None:
    """Whether it is followed or not: live evidence is judged beside it."""
    model = loaded(planted.bench, planted.card)
    now_ms = to_ms(datetime(2021, 6, 16, 10, tzinfo=UTC))
    for regime in (1.5, -1.5):
        columns = {"signal": [1.0] * model.card.lookback, "regime": [regime] * model.card.lookback}
        body = {"features": columns, "as_of": iso_of_ms(now_ms), "symbol": "EUR/USD", "timeframe": "1h"}
        question = question_of(model, PredictRequest.model_validate(body), received_ms=now_ms)
        found = answered(model, question, Circumstances(role="champion"))
        assert found.record.outputs[PRIMARY_SIDE] == 1.0
        assert found.record.prediction == (1.0 if regime > 0 else 0.0)
        entry = entry_of(found, model.making, is_sampled=True)
        assert entry.row is not None
        assert entry.row[1]["actions"] == "[1, 1, 1]"
        run = answer_run(model, QuestionRun.of([prepare(model, question)]), Circumstances(role="champion"))
        (of_run,) = entries_of(run, model.making, np.array([True]), is_new=lambda *each: True)
        assert of_run.row is not None
        assert of_run.row[1]["actions"] == entry.row[1]["actions"]


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
    common = {"features": ["signal"], "symbols": ["EUR/USD"], "end_date": PRIMARY["end_date"], "validation_split": 0.4}
    train_model(
        bench, "volatility", checkpoint=folder / "volatility", family="linear", target="volatility_1h",
        hyperparameters={"lookback": 3, "epochs": 3}, **common,
    )  # fmt: skip
    train_model(
        bench, "archived", checkpoint=folder / "archived", family="linear", position={"rule": "proportional"},
        hyperparameters={"lookback": 3, "epochs": 3}, **common,
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


def test_folds_follow_too(planted: Trained) -> None:
    card = train_follower(
        planted.bench, planted.folder, "folds", family="linear_classifier", cv={"scheme": "walk_forward", "folds": 2},
        hyperparameters={"lookback": 3, "epochs": 3}, seeds=[0, 1],
    )  # fmt: skip
    assert card.evaluation.walk_forward is not None
    assert [each.baseline for each in card.evaluation.walk_forward.pooled] == ["primary", "thinned"]
    assert card.evaluation.seeds is not None


def test_a_follower_of_what_pays_everywhere_alike_has_no_skill(tmp_path: Path) -> None:
    bench = bench_with_primary(tmp_path, seed=11, is_planted=False)
    card = train_follower(bench, tmp_path)
    assert max(each.diebold_mariano.p_value or 1.0 for each in card.evaluation.comparisons) > 0.025


@pytest.mark.parametrize("persistence", [0.0, 0.97])
@pytest.mark.parametrize("earns", [True, False], ids=["a primary that earns", "a primary that loses"])
def test_skipping_by_chance_is_found_skilful_no_oftener_than_the_level_says(earns: bool, persistence: float) -> None:
    """Many draws of sides, moves and filters that know nothing, through the comparisons that verdicts are made of."""
    chance, num, found, num_draws = np.random.default_rng(5), 1500, 0, 400
    for _ in range(num_draws):
        problem = _market(num, chance)
        moves_N = np.zeros(num)
        moves_N[:-2] = np.diff(np.log(problem.windows.open_R))[1:]
        side_N = np.sign(chance.standard_normal(num))
        if earns:
            side_N = np.where(chance.random(num) < 0.3, np.sign(moves_N), side_N)
        hidden = np.zeros(num)
        for row, shock in enumerate(chance.standard_normal(num)):
            hidden[row] = persistence * hidden[row - 1] + shock
        follows_N = hidden > 0
        held = {"own": np.where(follows_N, side_N, 0.0), "primary": side_N, "thinned": follows_N.mean() * side_N}
        held = {name: each[:-2] for name, each in held.items()}
        p_values = [
            each.comparison().diebold_mariano.p_value
            for each in following.differentials_of(held, np.arange(num - 2), problem)
        ]
        found += max(1.0 if each is None else each for each in p_values) <= 0.025
    assert found <= binom.ppf(0.999, num_draws, 0.025)


def _market(num: int, chance: np.random.Generator) -> TrainingProblem:
    """Hourly bars of one symbol without any drift, as far as a backtest reads them."""
    opened_ms = injected_bars(num, seed=1).opened_ms
    close_N = np.exp(np.cumsum(DEVIATION * chance.standard_normal(num)))
    open_N, nothing_N = np.append(1.0, close_N[:-1]), np.full(num, np.nan)
    whole = np.arange(num)
    windows = Windows(
        rows_RF=np.zeros((num, 1), dtype=np.float32), open_R=open_N, close_R=close_N, opened_ms_R=opened_ms,
        available_at_ms_R=opened_ms + HOUR_MS, runs_R=np.zeros(num, dtype=np.int64),
        symbol_R=np.zeros(num, dtype=np.int64), spread_R=nothing_N, spread_open_R=nothing_N, symbols=("EUR/USD",),
        labels_RK=np.zeros((num, 1), dtype=np.float32), own_labels_RK=np.zeros((num, 1)),
        label_available_at_ms_R=opened_ms, bar_volatility_R=nothing_N, parts={"test": whole},
        decisions={"test": whole}, borders_ms={"test": 0}, num_purged=0, num_untested=0, lookback=1,
        scaler=RowScaler(("signal",), (False,), {}), split=Borders({"test": 0}),
    )  # fmt: skip
    costs = {"EUR/USD": resolved_costs("EUR/USD", None)}
    return TrainingProblem(windows, (parse_target("follow_1h"),), costs=costs)
