"""Today's verdicts: published evaluations after every hypothesis that the multiple-testing log knows by now.

A card is never rewritten, and who tries more on the same series raises the bar for all that was published on it. So the
adjustment is made again whenever a verdict is read, here and nowhere else: the gate of a deployment, cards and lists of
the API, the health of what is live. However many cards are read, the log is read once.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.evaluation import VERDICT_RULES, Evaluation, TodaysVerdict
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import MultipleTestingLog
from ml_workbench_service.evaluation.verdict import todays_verdict

MOST_KEPT = 1_000
"""Verdicts kept until the log has grown or the card is read again: a list asks for the same ones each time."""

log = logging.getLogger(__name__)


class _Told(NamedTuple):
    """An evaluation as of today, and what a card says of it."""

    evaluation: Evaluation
    stated: TodaysVerdict


_kept: OrderedDict[str, tuple[Evaluation, Sequence[float | None], _Told]] = OrderedDict()


def todays_evaluations(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[Evaluation]:
    """Each card's evaluation with the verdict that is left today; what was never tested stays as it is.

    Raises:
        UnavailableError: the log cannot be read.
    """
    told = _all_told(multiple_testing, cards)
    return [card.evaluation if each is None else each.evaluation for card, each in zip(cards, told, strict=True)]


def with_todays_verdicts(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The cards, each with today's verdict beside the published one; where the log cannot be read it says so."""
    return [
        card if today is None else _with(card, today)
        for card, today in zip(cards, stated_today(multiple_testing, cards), strict=True)
    ]


def stated_today(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[TodaysVerdict | None]:
    """Today's verdict of each card, the same object while nothing has changed; None of what was never tested."""
    try:
        told = _all_told(multiple_testing, cards)
    except UnavailableError as error:
        log.warning("today's verdicts are not to be had: %s", error.message)
        unknown = TodaysVerdict(verdict=None, reason=error.message)
        return [unknown if is_tested(card) else None for card in cards]
    return [None if each is None else each.stated for each in told]


def _with(card: ModelCard, today: TodaysVerdict) -> ModelCard:
    """The card with today's verdict."""
    return card.model_copy(update={"todays_verdict": today})


def is_tested(card: ModelCard) -> bool:
    """Whether there is a p-value that later evaluations may raise."""
    return card.evaluation.significance is not None and card.evaluation.verdict_rules >= VERDICT_RULES


def _all_told(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[_Told | None]:
    tested = {card.lineage.job_id for card in cards if is_tested(card)}
    others = multiple_testing.other_p_values_of(sorted(tested)) if tested else {}
    return [_told(card, others[card.lineage.job_id]) if is_tested(card) else None for card in cards]


def _told(card: ModelCard, others: Sequence[float | None]) -> _Told:
    """Told once for the same card and the same hypotheses, known by their identity."""
    kept = _kept.get(card.digest)
    if kept is not None and kept[0] is card.evaluation and kept[1] is others:
        return kept[2]
    today = todays_verdict(
        card.evaluation,
        certificate=card.certificate,
        timeframe=card.timeframe,
        horizon=card.horizon,
        others=others,
    )
    told = _Told(today, _stated(today))
    _kept[card.digest] = (card.evaluation, others, told)
    while len(_kept) > MOST_KEPT:
        with suppress(KeyError):  # another thread made room meanwhile
            _kept.popitem(last=False)
    return told


def _stated(evaluation: Evaluation) -> TodaysVerdict:
    found, adds = evaluation.significance, evaluation.adds_over_linear
    return TodaysVerdict(
        verdict=evaluation.verdict,
        reason=evaluation.reason,
        proof=evaluation.proof,
        looks=None if found is None else found.looks,
        adjusted_p_value=None if found is None else found.adjusted_p_value,
        adds_over_linear=None if adds is None else adds.answer,
        economic=evaluation.economic,
    )
