"""Today's verdicts: Holm over what the log knows by now, beside what was published, for many cards in one reading."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.api.models import summary
from ml_workbench_service.contracts.evaluation import Certificate, Comparison, Evaluation, SignificanceTest
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import EvaluationResult, PartRead
from ml_workbench_service.evaluation.todays_verdicts import todays_evaluations, with_todays_verdicts
from ml_workbench_service.evaluation.verdict import apply_verdict, spent_p_value
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint
from tests.integrations.model_cards import model_card

NUM = 4000
PROVEN = Certificate.of(())


def judged(p_value: float) -> Evaluation:
    """As it was published: the first evaluation on its series."""
    test = SignificanceTest(statistic=3.0, p_value=p_value, num_moments=NUM, lag=0)
    compared = [
        Comparison(
            baseline=name, loss="squared_error", model_loss=0.99, baseline_loss=1.0, skill=0.01, diebold_mariano=test,
            effect=0.005, expected_gain=0.07, gain_error=NUM**-0.5, moments_per_year=6000.0,
        )
        for name in ("random_walk", "linear")
    ]  # fmt: skip
    measured = Evaluation(
        test={}, baselines={}, skill={}, verdict="not_judged", reason="measured", comparisons=tuple(compared)
    )
    return apply_verdict(measured, certificate=PROVEN, is_simulated=False, horizon=1, timeframe="1h")


def card_of(job_id: str, evaluation: Evaluation, **changes: Any) -> ModelCard:
    """Of the version that this job published."""
    lineage = model_card().lineage.model_copy(update={"job_id": job_id})
    return model_card(job_id.replace("/", "_"), certificate=PROVEN, **changes).model_copy(
        update={"lineage": lineage, "evaluation": evaluation}
    )


class CountedLog(SqliteMultipleTestingLog):
    """Counts how often it is asked."""

    num_readings = 0

    def other_p_values_of(self, evaluations: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """As it is."""
        self.num_readings += 1
        return super().other_p_values_of(evaluations)


@pytest.fixture
def log(tmp_path: Path) -> CountedLog:
    return CountedLog(tmp_path / "ledgers.db")


def note(log: SqliteMultipleTestingLog, job_id: str, p_value: float | None) -> None:
    """An evaluation of a recipe of its own on the one series."""
    closes = np.exp(0.01 * np.cumsum(np.random.default_rng(0).standard_normal(200)))
    series = ReturnFingerprint.of("EUR/USD", 86_400_000 * np.arange(1, 201), closes)
    at = datetime(2025, 3, 1, tzinfo=UTC)
    read = PartRead(id=job_id, subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=9, at=at)
    log.record_evaluation(read, recipe=job_id, series=[series])
    if p_value is not None:
        log.record_result(job_id, EvaluationResult(p_value, 0, 8, "", b""))


def test_what_was_tried_since_changes_todays_verdict_and_not_the_published_one(log: CountedLog) -> None:
    card = card_of("job", judged(0.004))
    assert card.evaluation.verdict == "skill"
    note(log, "job", spent_p_value(card.evaluation.significance))
    (fresh,) = with_todays_verdicts(log, [card])
    assert fresh.todays_verdict is not None
    assert (fresh.todays_verdict.verdict, fresh.todays_verdict.looks) == ("skill", 1)
    for number in range(9):
        note(log, f"later-{number}", None)
    (crowded,) = with_todays_verdicts(log, [card])
    today, found = crowded.todays_verdict, card.evaluation.significance
    assert today is not None
    assert found is not None
    assert (today.verdict, today.looks, today.proof) == ("no_skill", 10, None)
    assert today.adjusted_p_value == pytest.approx(10 * 0.005)
    assert "after 10 evaluations known today" in today.reason
    assert (crowded.evaluation, found.adjusted_p_value) == (card.evaluation, pytest.approx(0.005))
    (gate,) = todays_evaluations(log, [card])
    assert (gate.verdict, gate.reason) == (today.verdict, today.reason), "the gate reads the same"
    assert todays_evaluations(log, [card])[0] is gate, "what has not changed is not judged again"
    line = summary(crowded)
    assert (line.verdict, line.published_verdict, line.adjusted_p_value) == (
        "no_skill",
        "skill",
        today.adjusted_p_value,
    )
    assert line.adds_over_linear == today.adds_over_linear == "insufficient_data"
    assert summary(card).adds_over_linear == "yes"


def test_power_is_that_of_todays_bar(log: CountedLog) -> None:
    card = card_of("job", judged(0.3))
    assert card.evaluation.verdict == "no_skill"
    note(log, "job", 0.3)
    for number in range(40):
        note(log, f"later-{number}", None)
    (crowded,) = todays_evaluations(log, [card])
    published, today = card.evaluation.significance, crowded.significance
    assert published is not None
    assert today is not None
    assert today.power < published.power
    again = apply_verdict(
        card.evaluation, certificate=PROVEN, is_simulated=False, horizon=1, timeframe="1h", others=[None] * 40
    )
    assert again.significance is not None
    assert today.power == pytest.approx(again.significance.power, abs=0.01)
    assert today.excluded_sharpe is not None
    assert again.significance.excluded_sharpe is not None
    assert published.excluded_sharpe is not None
    assert today.excluded_sharpe >= again.significance.excluded_sharpe > published.excluded_sharpe
    assert (crowded.verdict, crowded.adds_over_linear) == (again.verdict, again.adds_over_linear)


def test_a_list_of_five_hundred_reads_the_log_once(log: CountedLog) -> None:
    cards = [card_of(f"job-{number}", judged(0.004)) for number in range(500)]
    for number in range(0, 500, 25):
        note(log, f"job-{number}", 0.005)
    shown = with_todays_verdicts(log, cards)
    assert log.num_readings == 1
    assert shown[0].todays_verdict is not None
    assert shown[0].todays_verdict.looks == 20


def test_what_was_never_tested_or_judged_by_earlier_rules_stays_as_it_is(log: CountedLog) -> None:
    old = judged(0.004).model_copy(update={"verdict_rules": 1})
    cards = [card_of("old", old), model_card()]
    assert with_todays_verdicts(log, cards) == cards
    assert todays_evaluations(log, cards) == [card.evaluation for card in cards]
    assert log.num_readings == 0


def test_a_log_that_cannot_be_read_hides_no_card_and_passes_no_gate(log: CountedLog) -> None:
    log.path.write_bytes(b"no database at all" * 100)
    card, untested = card_of("job", judged(0.004)), model_card()
    shown, same = with_todays_verdicts(log, [card, untested])
    assert same == untested
    assert shown.todays_verdict is not None
    assert (shown.todays_verdict.verdict, "damaged" in shown.todays_verdict.reason) == (None, True)
    with pytest.raises(UnavailableError):
        todays_evaluations(log, [card])
