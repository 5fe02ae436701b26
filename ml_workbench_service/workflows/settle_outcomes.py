"""Outcome settlement of what no record's price has told: fetch the closes, label them as in training, write them.

One line: overdue rows → by version and symbol → the feature store's closes → the label functions of training → the
ledger, and the live intervals that wait for the same outcome.

A row is about the last bar known at its `as_of`, within a bar. Where the store has no such bar, or not yet the one at
the horizon's end, the row is asked for again with growing pauses, for three days; then, or at once where no label can
exist, it is `unavailable` with the reason. A store that fails postpones everything and is said once.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.contracts.clock import WALL, Clock, clock_ms
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_ledger.rows import HISTORICAL, Waiting
from ml_workbench_service.market import calendar
from ml_workbench_service.market.class_labels import direction_labels, price_moves, triple_barrier_labels
from ml_workbench_service.market.outcomes.pending import Found
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile
from ml_workbench_service.market.targets import EWMA_BARS, Labels, ewma_volatility, label
from ml_workbench_service.serving.abstain_by_clock import FIXINGS_PAUSE_BARS
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ex_ante_volatility

EVERY_S = 60.0
LAST_PAUSE_S = 3600.0
MOST_ROWS = 5000
"""Of one round; the rest is still overdue in the next."""
MOST_SPAN_BARS = 10_000
"""Bars of one fetch."""
FIRST_RETRY_MS, LAST_RETRY_MS = 60_000, 6 * calendar.HOUR_MS
GIVE_UP_MS = 3 * calendar.DAY_MS
"""A bar that a store has not delivered so long after its time is missing for good."""
MOST_PRICE_GAP, MOST_BARS_MOVED, USUAL_BAR = 0.002, 6.0, 0.005
"""A record's price farther than this share, and six standard deviations of one bar, from the store's close is of
another market or of simulated bars: sides and sources of one pair differ by a twentieth of the share, and within a bar
the price has moved on. The last is a bar's deviation where none is known, a daily one's."""

Reason = Literal["closure", "missing_bar", "no_bar", "not_known_yet", "other_prices", "no_volatility", "not_served"]
"""The horizon spans a closure · a bar within it is missing · the store has no bar at the row's moment · none at the
horizon's end yet · its close is not the record's price · no past volatility for barriers · no such symbol or range."""
_FINAL: tuple[Reason, ...] = ("closure", "other_prices", "no_volatility")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolved:
    """One round: rows that got an outcome, that never will, and that are asked for again."""

    num_known: int = 0
    num_unavailable: int = 0
    num_postponed: int = 0


@dataclass(frozen=True)
class _Verdict:
    row: Waiting
    realised: float | None
    at_ms: int
    reason: Reason | None


ProfilesOf = Callable[[str, str], Mapping[str, SeasonalProfile] | None]
"""The seasonal profiles of a version of a model, by symbol; None where it is gone, and nobody knows them."""


def _without_season(model_id: str, version: str) -> Mapping[str, SeasonalProfile]:
    return {}


def resolve_overdue(
    ledger: PredictionLedger,
    store: FeatureStore,
    intervals: LiveIntervals,
    *,
    now_ms: int | None = None,
    profiles_of: ProfilesOf = _without_season,
) -> Resolved:
    """One round; barriers lie where the version's own volatility puts them.

    Raises:
        UpstreamError, UpstreamTimeoutError: the store failed; nothing has changed.
        UnavailableError: the ledger cannot be read or written.
    """
    now = clock_ms(WALL) if now_ms is None else now_ms
    verdicts: list[_Verdict] = []
    for rows in _groups(ledger.overdue(now, limit=MOST_ROWS)):
        verdicts.extend(_judged(rows, store, profiles_of))
    final = [each for each in verdicts if each.reason is None or _is_final(each, now)]
    again = [each for each in verdicts if each.reason is not None and not _is_final(each, now)]
    if not verdicts:
        return Resolved()
    settled = ledger.resolve(
        [Found(each.row.prediction_id, each.realised, each.at_ms) for each in final],
        reasons={each.row.prediction_id: str(each.reason) for each in final},
    )
    ledger.postpone({each.row.prediction_id: now + _pause_ms(each.row.num_tries) for each in again})
    for each in final:
        is_live = each.row.sample != HISTORICAL
        if is_live and each.realised is not None and each.row.prediction_id in settled:
            row = each.row
            intervals.mature(row.model_id, row.version, row.symbol, row.as_of_ms, each.realised)
    known = sum(each.realised is not None for each in final)
    return Resolved(known, len(final) - known, len(again))


class OutcomeResolver:
    """Rounds in a thread of its own, as long as something is overdue.

    Args:
        clock: by which a row is overdue.
        every_s: from one look for overdue rows to the next; longer and longer while the store fails.
        profiles_of: the seasons of a version's volatility.
    """

    def __init__(
        self,
        ledger: PredictionLedger,
        store: FeatureStore,
        intervals: LiveIntervals,
        *,
        every_s: float = EVERY_S,
        clock: Clock = WALL,
        profiles_of: ProfilesOf = _without_season,
    ) -> None:
        self._profiles_of = profiles_of
        self._ledger, self._store, self._intervals = ledger, store, intervals
        self._every_s = every_s
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settlement", daemon=True)
        self.num_failures = 0

    def start(self) -> None:
        """The first round comes after one pause."""
        self._thread.start()

    def stop(self) -> None:
        """After the fetch at hand, or without it where that takes long: nothing is half written."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopping.wait(min(self._every_s * 2**self.num_failures, LAST_PAUSE_S)):
            try:
                resolve_overdue(
                    self._ledger, self._store, self._intervals, now_ms=clock_ms(self._clock),
                    profiles_of=self._profiles_of,
                )  # fmt: skip
            except PlatformError as error:
                if not self.num_failures:
                    log.warning("outcomes are not settled just now, and are tried again: %s", error.message)
                self.num_failures = min(self.num_failures + 1, 16)
                continue
            except Exception:  # the thread's end would go unnoticed
                log.exception("outcomes are not settled just now, and are tried again")
                self.num_failures = min(self.num_failures + 1, 16)
                continue
            if self.num_failures:
                log.info("outcomes are settled again")
            self.num_failures = 0


def _groups(overdue: Sequence[Waiting]) -> Iterator[list[Waiting]]:
    """Rows that one fetch serves: of one version and symbol, within a span of time."""
    ordered = sorted(overdue, key=lambda row: (row[1:8], row.as_of_ms))
    for _, members in groupby(ordered, key=lambda row: row[1:8]):
        span: list[Waiting] = []
        for row in members:
            if span and row.as_of_ms - span[0].as_of_ms > MOST_SPAN_BARS * TIMEFRAMES_MS[row.timeframe]:
                yield span
                span = []
            span.append(row)
        yield span


def _judged(rows: Sequence[Waiting], store: FeatureStore, profiles_of: ProfilesOf) -> list[_Verdict]:
    """What the store's closes say of these rows, which share all but their moment."""
    first, bar_ms = rows[0], TIMEFRAMES_MS[rows[0].timeframe]
    start_ms = int(calendar.advance(first.as_of_ms, -(EWMA_BARS + 2) * bar_ms)) - 7 * calendar.DAY_MS
    end_ms = max(row.due_ms for row in rows) + 7 * calendar.DAY_MS
    try:
        table = store.fetch([first.symbol], first.timeframe, start_ms=start_ms, end_ms=end_ms, features=["close"])[0]
    except DataValidationError:  # no such symbol, or no bar in this range: the row says so once it is given up
        return [_Verdict(row, None, row.due_ms, "not_served") for row in rows]
    runs = calendar.runs(table.opened_ms, bar_ms, table.calendar)
    places = [_place(row, table, bar_ms) for row in rows]
    found = [place for place in places if place is not None]
    labels = iter(_labels(rows, places, found, table, runs, profiles_of))
    allowed_N = MOST_PRICE_GAP + MOST_BARS_MOVED * np.nan_to_num(ewma_volatility(_close(table)), nan=USUAL_BAR)
    verdicts = []
    for row, place in zip(rows, places, strict=True):
        if place is None:
            verdicts.append(_Verdict(row, None, row.due_ms, "no_bar"))
            continue
        value, available_at_ms = next(labels)
        close = float(_close(table)[place])
        if row.price is not None and abs(row.price / close - 1) > allowed_N[place]:
            verdicts.append(_Verdict(row, None, row.due_ms, "other_prices"))
        elif np.isfinite(value):
            verdicts.append(_Verdict(row, value, available_at_ms, None))
        else:
            verdicts.append(_Verdict(row, None, row.due_ms, _why_not(row, place, table, runs)))
    return verdicts


def _place(row: Waiting, table: FeatureTable, bar_ms: int) -> int | None:
    """The last bar known at the row's moment; None where that is more than a bar of market time ago."""
    place = int(np.searchsorted(table.available_at_ms, row.as_of_ms, side="right")) - 1
    if place < 0:
        return None
    age_ms = int(calendar.market_ms(row.as_of_ms)) - int(calendar.market_ms(int(table.available_at_ms[place])))
    allowed_bars = 1 + (FIXINGS_PAUSE_BARS if table.calendar == "fixings" else 0)
    return place if age_ms < allowed_bars * bar_ms else None


def _labels(
    rows: Sequence[Waiting],
    places: Sequence[int | None],
    found: Sequence[int],
    table: FeatureTable,
    runs: Ints,
    profiles_of: ProfilesOf,
) -> list[tuple[float, int]]:
    """Value and moment of each row that has a place, by training's own functions; NaN where there is no label."""
    target, close = rows[0].target, _close(table)
    at = np.array(found, dtype=np.int64)
    labelled = price_moves if target.classes else label
    moves = labelled(
        target,
        close=close,
        opened_ms=table.opened_ms,
        available_at_ms=table.available_at_ms,
        runs=runs,
        timeframe=table.timeframe,
    )
    if not target.classes:
        return _pairs(moves.values[at], moves.available_at_ms[at])
    if target.measure == "direction":
        costs = [row.break_even for row, place in zip(rows, places, strict=True) if place is not None]
        own = Labels(moves.values[at], moves.available_at_ms[at], 0, 0)
        labels = direction_labels(own, break_even_N=np.array(costs, dtype=np.float64))
        return _pairs(labels.values - 1, own.available_at_ms)
    volatility_N = _volatility(rows[0], table, profiles_of)
    labels = triple_barrier_labels(target, moves, close=close, bar_volatility=volatility_N, width=rows[0].barrier_width)
    return _pairs(labels.values[at] - 1, labels.available_at_ms[at])  # sell hold buy, lower neither upper: -1 0 1


def _volatility(row: Waiting, table: FeatureTable, profiles_of: ProfilesOf) -> Floats:
    """(N,) as the row's version has it; unknown where the version is gone."""
    profiles = profiles_of(row.model_id, row.version)
    if profiles is None:
        return np.full(len(table), np.nan)
    return ex_ante_volatility(profiles.get(row.symbol), table.opened_ms, _close(table), horizon=row.target.horizon)


def _pairs(values: Floats, available_at_ms: Ints) -> list[tuple[float, int]]:
    return list(zip(values.tolist(), available_at_ms.tolist(), strict=True))


def _close(table: FeatureTable) -> Floats:
    return np.asarray(table.columns["close"])


def _why_not(row: Waiting, place: int, table: FeatureTable, runs: Ints) -> Reason:
    """Why a bar that is there has no label for this row."""
    end = place + row.horizon
    if end >= len(table):
        return "not_known_yet"
    if runs[end] != runs[place] or not np.isfinite(_close(table)[place : end + 1]).all():
        return "missing_bar"
    is_intraday = TIMEFRAMES_MS[row.timeframe] < calendar.DAY_MS
    spans = table.opened_ms[end] - table.opened_ms[place] != row.horizon * TIMEFRAMES_MS[row.timeframe]
    return "closure" if is_intraday and spans else "no_volatility"


def _is_final(verdict: _Verdict, now_ms: int) -> bool:
    row = verdict.row
    return verdict.reason in _FINAL or now_ms > max(row.due_ms, row.answered_ms) + GIVE_UP_MS


def _pause_ms(num_tries: int) -> int:
    return int(min(FIRST_RETRY_MS * 2 ** min(num_tries, 30), LAST_RETRY_MS))
