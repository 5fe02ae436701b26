"""Recipes: what is one hypothesis, which rows it has, and that training it again finds nothing where nothing is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service import families as families  # registers every family
from ml_workbench_service.contracts.evaluation import Certificate, CertificateCheck, Evaluation
from ml_workbench_service.contracts.market import FeatureTable, Floats
from ml_workbench_service.contracts.multiple_testing import EvaluationResult
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.evaluation.growing_samples import LEVEL, level
from ml_workbench_service.evaluation.verdict import apply_verdict, spent_p_value, todays_verdict
from ml_workbench_service.learning.interfaces.dataset import TrainingOrder
from ml_workbench_service.learning.interfaces.differentials import Differentials, pack, unpack
from ml_workbench_service.training import tasks as tasks  # and every task
from ml_workbench_service.training.recipes import PooledSample, digest_of, own_columns, recipe_of

HOUR_MS = 3_600_000
PASSED = Certificate.of((CertificateCheck(name="features", status="passed", detail="Nothing moved."),))
BODY: dict[str, Any] = {
    "name": "One", "model_type": "time_series", "family": "linear", "features": ["signal", "return_1"],
    "target": "price_change_1h", "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z",
    "end_date": "2022-01-01T00:00:00Z",
}  # fmt: skip


class Store:
    """One that makes its indicators itself."""

    def altered(self, alter: Any) -> "Store":
        """The same."""
        return self


def order(**changes: Any) -> TrainingOrder:
    plan = {"model_id": changes.get("model_id", "one"), "version": "1.0.0"}
    return TrainingOrder.of(
        TrainRequest.model_validate({**BODY, **changes}),
        plan,
        job_id="job",
        store=Store(),  # type: ignore[arg-type]
    )


def table(num: int = 500, *, begin: int = 0) -> FeatureTable:
    rows = np.arange(begin, begin + num)
    columns = {"close": 1.1 + 1e-4 * np.sin(rows), "signal": np.cos(rows), "return_1": np.sin(rows)}
    return FeatureTable("EUR/USD", "1h", rows * HOUR_MS, (rows + 1) * HOUR_MS, columns, "file")


def hashed(made: TrainingOrder, tables: Sequence[FeatureTable] = (), results: Any = lambda _: []) -> str:
    return recipe_of(made, tables or [table()], Store(), results=results)  # type: ignore[arg-type]


SAME = {
    "another name": {"name": "Two"},
    "another id": {"model_id": "other"},
    "notes": {"notes": "tried again"},
    "priority": {"priority": "high"},
    "other dates": {"start_date": "2019-03-01T00:00:00Z", "end_date": "2023-01-01T00:00:00Z"},
    "known until": {"as_of": "2022-06-01T00:00:00Z"},
    "the same timeframe, written out": {"timeframe": "1h"},
    "a default, written out": {"hyperparameters": {"lookback": 24}},
    "the position rule that holds anyway": {"position": {"rule": "sign_after_costs"}},
    "the pair's other spelling": {"symbols": ["EURUSD"]},
}
OTHER = {
    "a seed": {"seeds": [1]},
    "a feature less": {"features": ["signal"]},
    "a target": {"target": "log_return_1h"},
    "a hyper-parameter": {"hyperparameters": {"lookback": 12}},
    "costs": {"costs": {"spread_pips": 3.0}},
    "a position rule": {"position": {"rule": "kelly"}},
    "a split": {"validation_split": 0.3},
    "another family": {"family": "gru"},
    "one more symbol": {"symbols": ["EUR/USD", "GBP/USD"]},
}


@pytest.mark.parametrize("what", SAME)
def test_a_recipe_does_not_depend_on_names_and_dates(what: str) -> None:
    assert hashed(order(**SAME[what])) == hashed(order())


@pytest.mark.parametrize("what", OTHER)
def test_any_other_change_is_a_new_recipe(what: str) -> None:
    assert hashed(order(**OTHER[what])) != hashed(order())


def test_the_code_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashed(order())
    monkeypatch.setattr("ml_workbench_service.training.recipes._package_code", lambda: "changed")
    assert hashed(order()) != before


def test_own_columns_are_what_nobody_can_make_again() -> None:
    assert own_columns(order(), [table()], Store()) == ["signal"]  # type: ignore[arg-type]
    remote: Any = object()
    assert own_columns(order(), [table()], remote) == ["return_1", "signal"]


def test_a_revised_own_column_is_a_new_recipe_and_a_longer_one_is_not() -> None:
    base = hashed(order())
    judged = {base: [EvaluationResult(0.3, 101 * HOUR_MS, 200 * HOUR_MS, "", b"rows")]}
    digest = digest_of(["signal"], [table()], from_ms=101 * HOUR_MS, until_ms=200 * HOUR_MS)
    judged[base] = [replace(judged[base][0], own_columns=digest)]

    def results(recipe: str) -> list[EvaluationResult]:
        return judged.get(recipe, [])

    assert hashed(order(), [table(900)], results) == base, "bars that came later"
    assert hashed(order(), [table(900, begin=50)], results) == base, "a range that begins later, before what was judged"
    revised = table()
    revised.columns["signal"][150] += 1e-9
    other = hashed(order(), [revised], results)
    assert other != base
    assert hashed(order(), [revised], results) == other
    early, late = table(), table()
    early.columns["signal"][50] += 1.0
    late.columns["signal"][300] += 1.0
    assert hashed(order(), [early], results) == hashed(order(), [late], results) == base, "rows nobody was judged on"
    assert hashed(order(), [table(100)], results) != base, "who cannot show the judged rows has another recipe"


def losses(gains_T: Floats, *, begin: int = 0, name: str = "random_walk") -> Differentials:
    """Of a small forecast whose Clark-West gains are these."""
    num = len(gains_T)
    moments = HOUR_MS * (begin + np.arange(num))
    distance = np.full(num, 0.01)
    return Differentials(
        name, "squared_error", 1, moments, 1.0 - gains_T + distance, np.ones(num), gains_T, distance, is_nested=True
    )


def test_differentials_are_kept_to_six_digits() -> None:
    chance = np.random.default_rng(0)
    own = [losses(chance.standard_normal(300), name=name) for name in ("random_walk", "drift")]
    found = unpack(pack([own[0], replace(own[1], model_T=own[0].model_T, gain_T=own[0].gain_T)]))
    assert [(each.baseline, each.is_nested, each.loss) for each in found] == [
        ("random_walk", True, "squared_error"), ("drift", True, "squared_error"),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].moments_T, own[0].moments_T)
    np.testing.assert_allclose(found[0].gain_T, own[0].gain_T, atol=2e-6)


def evaluation_of(own: Sequence[Differentials]) -> Evaluation:
    return Evaluation(
        test={}, baselines={}, skill={}, verdict="not_judged", reason="",
        comparisons=tuple(each.comparison() for each in own),
    )  # fmt: skip


class Recipe:
    """One that is trained again and again, by the product's own functions."""

    def __init__(self) -> None:
        self.results: list[EvaluationResult] = []

    def train(self, own: Differentials) -> Evaluation:
        """The verdict of one more version with these rows."""
        pooled = PooledSample.of([own], self.results)
        found = apply_verdict(
            evaluation_of([own]), certificate=PASSED, is_simulated=False, horizon=1, timeframe="1h",
            sample=pooled.tested,
        )  # fmt: skip
        self.results.append(pooled.result(spent_p_value(found.significance), ""))
        return found


def test_each_row_is_judged_once_by_the_version_that_reached_it_first() -> None:
    recipe, chance = Recipe(), np.random.default_rng(1)
    gains = chance.standard_normal(2000)
    first = recipe.train(losses(gains[:600]))
    again = recipe.train(losses(gains[:600] + 5.0))
    assert again.significance is not None
    assert first.significance is not None
    assert again.significance.p_value == pytest.approx(first.significance.p_value, abs=1e-4)
    recipe.train(losses(gains[200:500] + 5.0, begin=200))
    assert [len(each.differentials) > 0 for each in recipe.results] == [True, False, False], "nothing was added"
    second = recipe.train(losses(gains[400:1250], begin=400))
    kept = unpack(recipe.results[3].differentials)[0]
    np.testing.assert_array_equal(kept.moments_T, HOUR_MS * np.arange(600, 1250))
    whole = losses(gains[:1200]).comparison()
    assert second.significance is not None
    assert (second.significance.doublings, second.significance.num_moments) == (1, 1200)
    assert second.significance.p_value == pytest.approx(whole.decisive.p_value, abs=1e-4)
    assert second.significance.adjusted_p_value == pytest.approx(
        min(1.0, (whole.decisive.p_value or 0.0) * LEVEL / level(1)), abs=1e-3
    )


def test_rows_of_other_baselines_are_not_pooled() -> None:
    recipe, chance = Recipe(), np.random.default_rng(2)
    recipe.train(losses(chance.standard_normal(400)))
    found = PooledSample.of([losses(chance.standard_normal(300), name="another")], recipe.results)
    assert found.tested is not None
    assert found.tested.stage.num_moments == 300
    assert PooledSample.of([], recipe.results) == PooledSample(None, ())


@pytest.mark.parametrize("moves", ["by a month", "back and forth"])
def test_training_26_times_finds_skill_in_at_most_one_null_series_in_twenty(moves: str) -> None:
    """Ever `skill` over 26 versions of 30 recipes without any: at most 5 %, within the 99 % limit of that many.

    Each version has its own luck on its own rows, also on rows that were judged before.
    """
    chance, ever, num_recipes = np.random.default_rng(3), 0, 30
    for _ in range(num_recipes):
        recipe, verdicts = Recipe(), []
        for version in range(26):
            begin = 40 * version if moves == "by a month" else int(chance.integers(0, 400))
            verdicts.append(recipe.train(losses(chance.standard_t(4, 300), begin=begin)).verdict)
        ever += "skill" in verdicts
    assert ever <= num_recipes * 0.05 + 2.33 * np.sqrt(num_recipes * 0.05 * 0.95)


def test_a_verdict_reads_as_all_hypotheses_of_today_leave_it() -> None:
    gains = 0.1 + np.random.default_rng(4).standard_normal(3000)
    found = Recipe().train(losses(gains))
    assert found.verdict == "skill"
    given: dict[str, Any] = {"certificate": PASSED, "timeframe": "1h", "horizon": 1}
    assert todays_verdict(found, others=[], **given).verdict == "skill"
    p_value = spent_p_value(found.significance)
    assert p_value is not None
    crowded = todays_verdict(found, others=[None] * int(LEVEL / p_value + 1), **given)
    assert crowded.verdict in ("no_skill", "insufficient_data")
    assert crowded.significance is not None
    assert "known today" in crowded.reason
    assert todays_verdict(found, others=[p_value / 2] * 3, **given).verdict == "skill", "found skills make room"
    old = found.model_copy(update={"verdict_rules": 1})
    assert todays_verdict(old, others=[None] * 10**4, **given) == old
