"""The live verdict: skill from evidence alone, and what is no evidence."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Bars, FeatureStore, Floats, Ints, OutsideThing
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.evaluation.growing_samples import FIRST_LIVE_MOMENTS
from ml_workbench_service.evaluation.live_verdict import LiveRules, live_verdict
from ml_workbench_service.evaluation.policy_evidence import policy_periods
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import resolved_costs, session_factor, step_log_return, swap_cost, unit_cost
from ml_workbench_service.market.outcomes.live_evidence import (
    MOST_MISSING_SHARE,
    RECEIVED_SHARE,
    UNKNOWN_ACTION,
    LiveAnswers,
)
from ml_workbench_service.market.regimes import REGIMES, RegimeRule, regime_features
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
    return LiveAnswers(**{name: None if column is None else column[kept] for name, column in vars(of).items()})


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
    both = LiveAnswers(
        **{
            name: None if column is None else np.concatenate([vars(better)[name], column])
            for name, column in vars(first).items()
        }
    )
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


def test_scores_and_feature_sets_bet_on_nothing() -> None:
    assert said(answers(KNOWING), target=None, type="anomaly_detection").verdict == "not_applicable"


@pytest.mark.parametrize(
    ("card", "names"),
    [({"target": "market_regime_1h"}, "regimes' rule"), ({"target": None, "type": "reinforcement_learning"}, "costs")],
)
def test_a_bundle_that_does_not_keep_its_rules_says_so(card: dict[str, Any], names: str) -> None:
    found = said(answers(KNOWING), **card)
    assert (found.verdict, names in found.reason) == ("insufficient_data", True)


def present_regimes(rule: RegimeRule) -> Floats:
    """The regime that each bar is in."""
    runs = calendar.runs(BARS.opened_ms, HOUR_MS, "fx")
    return rule.classify(*regime_features(BARS.close, runs))


@pytest.mark.parametrize(
    ("knows", "verdict"),
    [("the next one", "skill"), ("the present one", "insufficient_data"), ("calm", "insufficient_data")],
)
def test_a_regime_is_asked_for_more_than_what_the_rule_itself_tells(knows: str, verdict: str) -> None:
    rule = RegimeRule(trend=0.7, volatility=DEVIATION)
    present = present_regimes(rule)
    following = np.append(present[1:], present[-1])
    is_told = np.random.default_rng(4).random(NUM) < 0.5  # half of what comes next, else the present
    spoken = {
        "the next one": np.where(is_told, following, present),
        "the present one": present,
        "calm": np.full(NUM, float(REGIMES.index("calm"))),
    }[knows]
    card = model_card(target="market_regime_1h")
    found = live_verdict(card, lambda _: answers(spoken), store(), LiveRules(regimes={"EUR/USD": rule}))
    assert found.verdict == verdict, found.reason
    assert found.p_value is not None, "it was tested, three baselines and all"
    assert found.baseline in ("frequencies", "persistence", "present_statistics")


COSTS = {"EUR/USD": resolved_costs("EUR/USD")}
POLICY = model_card(target=None, type="reinforcement_learning", outputs=("q_short", "q_flat", "q_long"))


def policy_answers(side: Floats, **when: Any) -> LiveAnswers:
    """Of a policy that goes where it is told from every position."""
    rows = np.arange(HISTORY, NUM)
    made = answers(np.full(NUM, np.nan), **when)
    return replace(made, actions_N3=np.repeat(side[rows].astype(np.int64)[:, None], 3, axis=1))


def ahead() -> Floats:
    """The side of the move that a decision of this bar earns: from the next open, this close, to the one after."""
    return np.sign(np.append(np.diff(BARS.close), 0.0))


def test_a_policy_that_earns_net_of_costs_has_skill_beside_flat_and_holding_on() -> None:
    known = np.where(np.random.default_rng(6).random(NUM) < 0.9, ahead(), 0.0)
    found = live_verdict(POLICY, lambda _: policy_answers(known), store(), LiveRules(costs=COSTS))
    assert (found.verdict, found.next_at) == ("skill", 2 * FIRST_LIVE_MOMENTS)
    assert found.baseline in ("flat", "buy_and_hold")


@pytest.mark.parametrize("kind", ["chance", "flat", "against"])
def test_a_policy_that_does_not_earn_has_shown_nothing(kind: str) -> None:
    side = {"chance": np.random.default_rng(5).choice([-1.0, 1.0], NUM), "flat": np.zeros(NUM), "against": -ahead()}
    found = live_verdict(POLICY, lambda _: policy_answers(side[kind]), store(), LiveRules(costs=COSTS))
    assert found.verdict == "insufficient_data"
    assert "nothing is proved" in found.reason


def test_a_policys_steps_are_those_of_its_own_walk_by_the_one_rule_for_fills() -> None:
    """Each answer turns the position round, or opens one: what is paid needs the position that it holds itself."""
    turning = policy_answers(np.zeros(NUM))
    turning = replace(turning, actions_N3=np.tile(np.array([1, 1, -1]), (NUM - HISTORY, 1)))
    (period,) = policy_periods(POLICY, lambda _: turning, store(), COSTS)
    table = store().fetch(["EUR/USD"], "1h", start_ms=0, end_ms=None, features=["close", "open"])[0]
    opened, costs = np.asarray(table.columns["open"]), COSTS["EUR/USD"]
    net, held = [], 0
    for row in range(HISTORY, NUM - 2):
        position = 1 if held <= 0 else -1
        entry_ms, exit_ms = int(table.opened_ms[row + 1]), int(table.opened_ms[row + 2])
        priced = costs.model_copy(update={"spread_pips": (costs.spread_pips or 0.0) * float(session_factor(entry_ms))})
        net.append(
            step_log_return(
                position, opened[row + 1], opened[row + 2],
                cost=unit_cost(priced, "EUR/USD", opened[row + 1]) * abs(position - held),
                swap=swap_cost(priced, "EUR/USD", opened[row + 1], position, entry_ms, exit_ms),
            )
        )  # fmt: skip
        held = position
    gained, _ = period.gains()["flat"]
    np.testing.assert_allclose(gained[:-1], net[:-1], atol=1e-12)
    assert gained[-1] < net[-1], "the last one pays for closing"
    assert period.num_answered == period.num_bars == len(net)


def test_answers_of_before_actions_were_kept_are_no_evidence() -> None:
    old = policy_answers(ahead())
    assert old.actions_N3 is not None
    old = replace(old, actions_N3=np.full_like(old.actions_N3, UNKNOWN_ACTION))
    found = live_verdict(POLICY, lambda _: old, store(), LiveRules(costs=COSTS))
    assert (found.verdict, found.num_answered) == ("insufficient_data", 0)


def test_bars_that_a_policy_was_not_asked_about_are_missing() -> None:
    whole = policy_answers(ahead())
    kept = np.ones(len(whole.as_of_ms_N), dtype=bool)
    kept[1:] = np.random.default_rng(1).random(len(kept) - 1) >= 0.1
    found = live_verdict(POLICY, lambda _: some(whole, kept), store(), LiveRules(costs=COSTS))
    assert found.verdict == "insufficient_data"
    assert found.missing_share == pytest.approx(0.1, rel=0.4)


FOLLOWER = model_card(target="follow_1h", type="classification", outputs=("skip", "follow", "primary_price_change_1h"))


def follower_answers(side: Floats, follows: Floats) -> LiveAnswers:
    """Of a follower whose primary says `side` at each bar, 0 where it says nothing, and who acts on it where it may."""
    made = policy_answers(side)
    taken = np.where(follows, side, 0.0)[HISTORY:]
    return replace(made, prediction_N=taken[: len(made.as_of_ms_N)])


@pytest.mark.parametrize("earns", [True, False], ids=["a primary that earns", "a primary that loses"])
def test_a_follower_that_knows_when_its_primary_is_right_has_skill(earns: bool) -> None:
    """Beside the primary always, and beside it thinned to the share that is followed."""
    chance = np.random.default_rng(3)
    right = chance.random(NUM) < (0.6 if earns else 0.4)
    side = np.where(right, ahead(), -ahead())
    found = live_verdict(
        FOLLOWER, lambda _: follower_answers(side, right | (chance.random(NUM) < 0.1)), store(), LiveRules(costs=COSTS)
    )
    assert (found.verdict, found.next_at) == ("skill", 2 * FIRST_LIVE_MOMENTS)
    assert found.baseline in ("primary", "thinned")


@pytest.mark.parametrize("right", [0.3, 0.7], ids=["a primary that loses", "a primary that earns"])
def test_a_follower_that_skips_blindly_has_shown_nothing(right: float) -> None:
    chance = np.random.default_rng(4)
    side = np.where(chance.random(NUM) < right, ahead(), -ahead())
    found = live_verdict(
        FOLLOWER, lambda _: follower_answers(side, chance.random(NUM) < 0.5), store(), LiveRules(costs=COSTS)
    )
    assert found.verdict == "insufficient_data"
    assert "nothing is proved" in found.reason


def test_followers_answers_without_their_primarys_side_are_no_evidence() -> None:
    old = follower_answers(ahead(), np.ones(NUM))
    old = replace(old, actions_N3=np.full((len(old.as_of_ms_N), 3), UNKNOWN_ACTION))
    found = live_verdict(FOLLOWER, lambda _: old, store(), LiveRules(costs=COSTS))
    assert (found.verdict, found.num_answered) == ("insufficient_data", 0)


def test_labels_that_begin_at_the_fill_are_settled_from_there() -> None:
    """A forecast of the move after the fill is skill where the card says so, and none where it says the close."""
    moved = KNOWING[1:]
    later = np.append(moved, 0.0)  # says at each bar what the bar after it knew: the move from t + 1 to t + 2
    assert said(answers(later), label_start="fill").verdict == "skill"
    assert said(answers(later)).verdict == "insufficient_data"


def test_without_bars_before_the_period_there_is_no_baseline() -> None:
    found = said(answers(KNOWING, since=100))
    assert found.verdict == "insufficient_data"
    assert "too late for a baseline" in found.reason


def test_without_an_answer_there_is_nothing_to_say() -> None:
    assert said(some(answers(KNOWING), slice(0, 0))).reason.startswith("no answer was received in time")
