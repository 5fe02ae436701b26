"""Desk report: everything that a desk asks of a version's test part, out of its card and its kept rows.

Reading is no evaluation: the test part was evaluated when the version was judged, and these are the same answers. What
somebody changes because of them is a new recipe, which the multiple-testing log counts when it is trained.
"""

from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.desk_report import DeskReport
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.evaluation.desk.classes import class_report
from ml_workbench_service.evaluation.desk.money import DeskAccount, capacity, drawdowns, moment, months, turnover
from ml_workbench_service.evaluation.desk.ranking import quantile_returns, ranking
from ml_workbench_service.evaluation.desk.rows import DeskRows, read_desk_rows
from ml_workbench_service.evaluation.desk.slices import adjusted, slices, stability
from ml_workbench_service.evaluation.desk.statistics import return_statistics

COUNTED = (
    "What is changed because of these figures is a new recipe: training it is one more evaluation of this test part, "
    "and is counted."
)
MANY_LOOKS = (
    "Many slices, horizons and fifths stand side by side, and the best of many looks good by luck: adjusted p-values "
    "bear all slices of this report, the others stand for themselves."
)
NO_VOLUMES = (
    "Capacity says what spread the decisions bear; what size moves the price cannot be said without volumes. Spreads "
    "are the means that the card charged, so that single fills differ."
)
NO_MONEY = "Nothing is traded on this version's answers, so nothing is said of money."
NO_ORDER = "Its outcomes have no order, so that no forecast ranks them."
NO_FORECAST = "It forecasts nothing, so that nothing is ranked."
SECOND_FILL = "Decisions are filled a bar later: the first bar of the decay is over before a position opens."


def desk_report(card: ModelCard, path: Path) -> DeskReport:
    """The report of a version.

    Raises:
        SeriesNotFoundError: it kept no rows of its test part.
    """
    return report_of(read_desk_rows(card, path))


def report_of(rows: DeskRows) -> DeskReport:
    """The report of rows that are read."""
    account = DeskAccount.of(rows) if rows.is_traded else None
    steady = stability(rows, account)
    kinds, periods = adjusted([slices(rows, account), () if steady is None else steady.periods])
    return DeskReport(
        model_id=rows.card.id,
        version=rows.card.version,
        verdict=rows.card.by_current_rules().evaluation.verdict,
        first=moment(rows.as_of_N.min()),
        last=moment(rows.as_of_N.max()),
        num_rows=len(rows.as_of_N),
        num_answered=int(rows.answered_N.sum()),
        ranking=ranking(rows),
        quantiles=quantile_returns(rows),
        turnover=None if account is None else turnover(account),
        drawdowns=() if account is None else drawdowns(account),
        months=() if account is None else months(account),
        returns=None if account is None else return_statistics(_daily(account)),
        slices=kinds,
        stability=None if steady is None else steady.model_copy(update={"periods": periods}),
        capacity=None if account is None else capacity(account),
        classes=class_report(rows),
        notes=_notes(rows),
    )


def _daily(account: DeskAccount) -> np.ndarray:
    return np.array(list(account.daily(account.net_M).values()))


def _notes(rows: DeskRows) -> tuple[str, ...]:
    notes = [COUNTED, MANY_LOOKS, NO_VOLUMES if rows.is_traded else NO_MONEY]
    if rows.target is None:
        notes.append(NO_FORECAST)
    elif rows.ordered_outcome_N is None:
        notes.append(NO_ORDER)
    if rows.card.fill == "next_close":
        notes.append(SECOND_FILL)
    return tuple(notes)
