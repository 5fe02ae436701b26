"""Today's verdicts: published evaluations after every hypothesis that the multiple-testing log knows by now.

A card is never rewritten, and who tries more on the same series raises the bar for all that was published on it. So the
adjustment is made again whenever a verdict is read, here and nowhere else: the gate of a deployment, cards and lists of
the API, the health of what is live. However many cards are read, the log is read once.

Live verdicts are read here too: from the ledger's evidence, the store's bars, and the rules in the version's bundle.
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common_lib.exceptions import PredictionError, UnavailableError
from ml_workbench_service.contracts.evaluation import Evaluation, TodaysVerdict
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import MultipleTestingLog
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.evaluation.live_verdict import LiveRules, live_verdict
from ml_workbench_service.evaluation.verdict import VERDICT_RULES, todays_verdict
from ml_workbench_service.integrations.prediction_ledger.reader import LedgerReader
from ml_workbench_service.learning.bundle.manifest import RECIPE_FILE
from ml_workbench_service.market.costs import ResolvedCosts
from ml_workbench_service.market.regimes import RegimeRule
from ml_workbench_service.resources import Workbench

log = logging.getLogger(__name__)


def todays_evaluations(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[Evaluation]:
    """Each card's evaluation with the verdict that is left today; what was never tested stays as it is.

    Raises:
        UnavailableError: the log cannot be read.
    """
    tested = {card.lineage.job_id for card in cards if is_tested(card)}
    others = multiple_testing.other_p_values_of(sorted(tested)) if tested else {}
    return [
        todays_verdict(
            card.evaluation,
            certificate=card.certificate,
            timeframe=card.timeframe,
            horizon=card.horizon,
            others=others[card.lineage.job_id],
        )
        if is_tested(card)
        else card.evaluation
        for card in cards
    ]


def with_todays_verdicts(multiple_testing: MultipleTestingLog, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The cards, each with today's verdict beside the published one; where the log cannot be read it says so."""
    try:
        today = todays_evaluations(multiple_testing, cards)
    except UnavailableError as error:
        log.warning("today's verdicts are not to be had: %s", error.message)
        unknown = TodaysVerdict(verdict=None, reason=error.message)
        return [_with(card, unknown) if is_tested(card) else card for card in cards]
    return [
        _with(card, _stated(evaluation)) if is_tested(card) else card
        for card, evaluation in zip(cards, today, strict=True)
    ]


def live_verdict_on(card: ModelCard, ledger: LedgerReader, workbench: Workbench) -> LiveVerdict:
    """What live evidence alone says of a version.

    Raises:
        PredictionError: its recipe cannot be read.
        UnavailableError: the ledger cannot be read.
        UpstreamError, UpstreamTimeoutError, DataValidationError: the store does not give its bars.
    """
    answers_of = partial(ledger.live_answers, card.id, card.version)
    rules = _live_rules(workbench.registry.folder(card.id, card.version) / RECIPE_FILE)
    return live_verdict(card, answers_of, workbench.feature_store, rules)


def _live_rules(file: Path) -> LiveRules:
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
        regimes = {symbol: RegimeRule.from_json(each) for symbol, each in recipe.get("regimes", {}).items()}
        costs = {symbol: ResolvedCosts.model_validate(each) for symbol, each in recipe.get("costs", {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PredictionError(
            f"the recipe of {file.parent.parent.name} {file.parent.name} cannot be read; restore it from a backup or "
            "train it again"
        ) from error
    return LiveRules(regimes, costs)


def is_tested(card: ModelCard) -> bool:
    """Whether there is a p-value that later evaluations may raise."""
    return card.evaluation.significance is not None and card.evaluation.verdict_rules >= VERDICT_RULES


def _with(card: ModelCard, today: TodaysVerdict) -> ModelCard:
    return card.model_copy(update={"todays_verdict": today})


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
