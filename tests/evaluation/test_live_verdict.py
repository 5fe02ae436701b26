"""The live verdict: skill from evidence alone, and what is no evidence."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Bars, FeatureStore, Floats, Ints, OutsideThing
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.evaluation.growing_samples import FIRST_LIVE_MOMENTS
from ml_workbench_service.evaluation.live_verdict import live_verdict
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.outcomes.live_evidence import MOST_MISSING_SHARE, RECEIVED_SHARE, LiveAnswers
from tests.integrations.model_cards import model_card
from tests.trained_models import DEVIATION, InjectedBars, injected_bars

NUM, HISTORY, R2 = 1_300, 800, 0.1
SLACK_MS = int(RECEIVED_SHARE * HOUR_MS)
BARS = injected_bars(NUM, seed=3, r2=R2)


class InMemoryBars:
    """A `BarSource` of one hourly series."""

    def __init__(self, opened_ms: Ints, close: Floats) -> None:
        opened = np.append(close[:1], close[:-1])
        self._bars = Bars(
            symbol="EUR/USD", timeframe="1h", opened_ms=opened_ms, available_at_ms=opened_ms + HOUR_MS, open=opened,
            high=np.maximum(opened, close), low=np.minimum(opened, close), close=close, data_source="file", extra={},
        )  # fmt: skip

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The one."""
        return self._bars

    def own_columns(self) -> list[str]:
        """None."""
        return []

    def now_ms(self) -> int | None:
        """The clock's."""
        return None

    def check(self) -> OutsideThing:
        """Well."""
        return OutsideThing(mode="folder", state="ok")


def store(bars: InjectedBars = BARS, *, without: Ints | None = None) -> FeatureStore:
    """A store of these bars, some of them missing."""
    kept = np.setdiff1d(np.arange(len(bars.close)), [] if without is None else without)
    return LocalFeatureStore(InMemoryBars(bars.opened_ms[kept], bars.close[kept]))


def answers(prediction: Floats, *, since: int = HISTORY, after_ms: int = 60_000) -> LiveAnswers:
    """One to each bar from some bar on, so long after it was known."""
    rows = np.arange(since, NUM)
    known_ms = BARS.opened_ms[rows] + HOUR_MS
    nothing = np.full(len(rows), np.nan)
    return LiveAnswers(
        as_of_ms_N=known_ms, answered_ms_N=known_ms + after_ms, prediction_N=prediction[rows],
        abstains_N=np.zeros(len(rows), dtype=bool), break_even_N=nothing, barrier_N=nothing,
    )  # fmt: skip


def some(of: LiveAnswers, kept: Any) -> LiveAnswers:
    """Some of the answers."""
    return LiveAnswers(**{name: column[kept] for name, column in vars(of).items()})


def said(of: LiveAnswers, *, within: FeatureStore | None = None, **card: Any) -> LiveVerdict:
    """The verdict on them."""
    return live_verdict(model_card(**card), lambda _: of, within or store())


KNOWING = np.sqrt(R2) * DEVIATION * BARS.signal
IGNORANT = np.sqrt(R2) * DEVIATION * np.random.default_rng(5).standard_normal(NUM)


def test_answers_that_came_true_are_skill() -> None:
    found = said(answers(KNOWING))
    assert (found.verdict, found.next_at) == ("skill", 2 * FIRST_LIVE_MOMENTS)
    assert found.p_value is not None
    assert found.p_value <= 0.025
    assert found.missing_share == 0.0


def test_answers_that_know_nothing_are_not() -> None:
    found = said(answers(IGNORANT))
    assert found.verdict == "insufficient_data"
    assert "nothing is proved" in found.reason


def test_forecasts_that_know_something_and_shout_are_not_while_their_loss_is_larger() -> None:
    found = said(answers(20 * KNOWING))
    assert found.verdict == "insufficient_data"
    assert "its loss is not below that of random_walk" in found.reason


def test_the_first_test_waits_for_its_moments_and_reads_no_later_ones() -> None:
    whole = answers(KNOWING)
    waiting = said(some(whole, slice(200, None)))
    assert (waiting.verdict, waiting.next_at) == ("insufficient_data", FIRST_LIVE_MOMENTS)
    turned = whole.prediction_N.copy()
    turned[FIRST_LIVE_MOMENTS + 30 :] *= -1  # closures take a few labels of the first four hundred
    assert said(replace(whole, prediction_N=turned)).p_value == said(whole).p_value


@pytest.mark.parametrize(("after_ms", "verdict"), [(SLACK_MS, "skill"), (SLACK_MS + 1, "insufficient_data")])
def test_evidence_was_received_within_a_tenth_of_a_bar(after_ms: int, verdict: str) -> None:
    assert said(answers(KNOWING, after_ms=after_ms)).verdict == verdict


@pytest.mark.parametrize(("moved_ms", "verdict"), [(SLACK_MS, "skill"), (HOUR_MS // 2, "insufficient_data")])
def test_evidence_is_about_a_bar_of_the_grid(moved_ms: int, verdict: str) -> None:
    made = answers(KNOWING, after_ms=moved_ms)
    assert said(replace(made, as_of_ms_N=made.as_of_ms_N + moved_ms)).verdict == verdict


def test_of_several_answers_to_a_bar_the_first_one_counts() -> None:
    first, better = answers(IGNORANT), answers(KNOWING, after_ms=120_000)
    both = LiveAnswers(**{name: np.concatenate([vars(better)[name], column]) for name, column in vars(first).items()})
    assert said(both).p_value == said(first).p_value


def test_a_period_with_more_than_a_twentieth_unasked_says_nothing() -> None:
    whole = answers(KNOWING)
    chance = np.random.default_rng(1)
    for share, verdict in ((0.8 * MOST_MISSING_SHARE, "skill"), (1.6 * MOST_MISSING_SHARE, "insufficient_data")):
        kept = np.ones(len(whole.as_of_ms_N), dtype=bool)
        kept[1:] = chance.random(len(kept) - 1) >= share
        found = said(some(whole, kept))
        assert found.verdict == verdict
        assert found.missing_share == pytest.approx(share, rel=0.4)


def test_who_stops_asking_is_missing_from_then_on() -> None:
    whole = answers(KNOWING)
    found = said(some(whole, slice(None, 420)))
    assert found.verdict == "insufficient_data"
    assert "were not asked" in found.reason


def test_bars_that_the_store_lacks_are_missing_too() -> None:
    gone = HISTORY + np.flatnonzero(np.random.default_rng(2).random(NUM - HISTORY) < 0.04)
    found = said(answers(KNOWING), within=store(without=gone))
    assert found.verdict == "insufficient_data"
    assert found.missing_share > MOST_MISSING_SHARE


def test_abstentions_are_asked_and_prove_nothing() -> None:
    whole = answers(KNOWING)
    abstains = np.arange(len(whole.as_of_ms_N)) % 10 == 5
    found = said(replace(whole, abstains_N=abstains))
    assert (found.verdict, found.missing_share) == ("skill", 0.0)
    assert found.num_moments < said(whole).num_moments


@pytest.mark.parametrize(
    ("target", "prediction", "verdict"),
    [
        ("direction_1h", np.sign(KNOWING), "skill"),
        ("direction_1h", np.sign(IGNORANT), "insufficient_data"),
        ("triple_barrier_1h", np.sign(KNOWING), "skill"),
        ("triple_barrier_1h", np.ones(NUM), "insufficient_data"),
    ],
)
def test_classes_are_asked_for_more_than_their_frequencies(target: str, prediction: Floats, verdict: str) -> None:
    made = answers(prediction)
    made = replace(made, barrier_N=np.full(len(made.as_of_ms_N), 0.3 * DEVIATION))
    assert said(made, target=target).verdict == verdict


def test_a_volatility_is_asked_against_seasonal_ones() -> None:
    moves = np.abs(np.append(np.diff(np.log(BARS.close)), 0.0))
    kinds: dict[str, Callable[[], Floats]] = {
        "skill": lambda: np.exp(0.5 * np.log(moves + 1e-9) + 0.5 * np.log(DEVIATION)),
        "insufficient_data": lambda: np.full(NUM, DEVIATION),
    }
    for verdict, make in kinds.items():
        assert said(answers(make()), target="volatility_1h").verdict == verdict


@pytest.mark.parametrize("target", [None, "market_regime_1h"])
def test_what_bars_do_not_tell_has_no_live_verdict(target: str | None) -> None:
    assert said(answers(KNOWING), target=target).verdict == "not_applicable"


def test_without_bars_before_the_period_there_is_no_baseline() -> None:
    found = said(answers(KNOWING, since=100))
    assert found.verdict == "insufficient_data"
    assert "too late for a baseline" in found.reason


def test_without_an_answer_there_is_nothing_to_say() -> None:
    assert said(some(answers(KNOWING), slice(0, 0))).reason.startswith("no answer was received in time")
