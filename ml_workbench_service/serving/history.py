"""Feature windows for serving, out of fetched tables: the newest for a live request, every bar for a replay, by the
same code.

Legend: N bars, T rows of a window, F features.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.learning.data.window_losses import streaks
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import pip_size
from ml_workbench_service.market.features.tables import SPREAD
from ml_workbench_service.market.fills import OPEN, fetch_with_opens, open_spreads
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import BarPrices, Question

SPARE_BARS = 8
MOST_NAMED = 3
"""Features that a refusal names."""


@dataclass(frozen=True)
class SymbolHistory:
    """One symbol's fetched bars as a model reads them."""

    model: ServedModel
    table: FeatureTable
    x_NF: Floats
    close_N: Floats
    bar_volatility_N: Floats
    streak_N: Ints  # complete consecutive rows that end at each bar
    spread_open_N: Floats  # in price units, at each bar's open
    follows_N: Bools  # whether the bar before is there

    def question(self, row: int, *, as_of_ms: int | None = None, prediction_id: str | None = None) -> Question:
        """The question that row `row` asks; a window shorter than the lookback where the run of bars is."""
        num_rows = min(int(self.streak_N[row]), self.model.card.lookback)
        available_at_ms = int(self.table.available_at_ms[row])
        volatility = float(self.bar_volatility_N[row])
        question = Question(
            symbol=self.table.symbol,
            x_TF=self.x_NF[row + 1 - num_rows : row + 1],
            as_of_ms=available_at_ms if as_of_ms is None else as_of_ms,
            price=float(self.close_N[row]),
            bar_volatility=volatility if np.isfinite(volatility) else None,
            newest_available_at_ms=available_at_ms,
            spread=self._spread(row),
            bar=self._bar(row),
            warnings=self.table.warnings,
        )
        return question if prediction_id is None else replace(question, prediction_id=prediction_id)

    def _bar(self, row: int) -> BarPrices:
        """What fills read of the bar."""
        opens_N = self.table.columns.get(OPEN)
        is_priced = opens_N is not None and bool(np.isfinite(opens_N[row]))
        return BarPrices(
            opened_ms=int(self.table.opened_ms[row]),
            open=float(opens_N[row]) if opens_N is not None and is_priced else None,
            close=float(self.close_N[row]),
            spread_open=float(self.spread_open_N[row]) if np.isfinite(self.spread_open_N[row]) else None,
            previous_opened_ms=int(self.table.opened_ms[row - 1]) if self.follows_N[row] else None,
        )

    def _spread(self, row: int) -> float | None:
        """The bar's own spread, where its table has one."""
        spread_N = self.table.columns.get(SPREAD)
        if spread_N is None or not np.isfinite(spread_N[row]):
            return None
        return float(spread_N[row])


def bars_needed(model: ServedModel) -> int:
    """Bars to fetch for one answer: the window with what its expressions reach back, and the volatility's kernel."""
    return int(max(model.card.lookback + model.derivation.history, EWMA_BARS + 1)) + SPARE_BARS


def columns_needed(model: ServedModel) -> list[str]:
    """What the features are or are made of, and the close."""
    return list(dict.fromkeys([*model.derivation.base_columns, "close"]))


def fetch_range(
    model: ServedModel, store: FeatureStore, *, symbols: Sequence[str], start_ms: int, end_ms: int
) -> list[FeatureTable]:
    """The bars of a range, and before them what its first window reaches back to; raises what the store raises."""
    warm_up_ms = int(calendar.advance(start_ms, -bars_needed(model) * model.timeframe_ms)) - 7 * calendar.DAY_MS

    def ask(features: list[str]) -> list[FeatureTable]:
        return store.fetch(symbols, model.card.timeframe, start_ms=warm_up_ms, end_ms=end_ms, features=features)

    return fetch_with_opens(ask, columns_needed(model))


def read_history(model: ServedModel, table: FeatureTable) -> SymbolHistory:
    """A fetched table in a model's columns, with how long each run of complete bars is."""
    runs = calendar.runs(table.opened_ms, model.timeframe_ms, table.calendar)
    columns = model.derivation.read(table.columns, opened_ms=table.opened_ms, runs=runs)
    x_NF = np.column_stack([columns[name] for name in model.card.features])
    close = np.asarray(table.columns["close"])
    return SymbolHistory(
        model,
        table,
        x_NF,
        close,
        model.bar_volatility(table.symbol, table.opened_ms, close),
        streaks(np.asarray(np.isfinite(x_NF).all(axis=1) & np.isfinite(close)), runs),
        _opening_spreads(model, table),
        np.concatenate([[False], np.diff(runs) == 0]),
    )


def _opening_spreads(model: ServedModel, table: FeatureTable) -> Floats:
    """(N,) what a fill at each open meets; NaN of a symbol without costs, which is only ever abstained from."""
    costs = model.costs.get(table.symbol)
    if costs is None:
        return np.full(len(table), np.nan)
    spread_N = open_spreads(table, costs)
    return np.where(np.isfinite(spread_N), spread_N, (costs.spread_pips or 0.0) * pip_size(table.symbol))


def newest_question(model: ServedModel, table: FeatureTable, *, as_of_ms: int | None) -> Question:
    """The question of the newest bar.

    Raises:
        DataValidationError: the newest bars have missing values or a gap, so that no window ends there.
    """
    history = read_history(model, table)
    if history.streak_N[-1] < model.card.min_window:
        raise DataValidationError.at(
            "body.as_of",
            f"{table.symbol} has a missing bar or feature within the last {model.card.min_window} bars: "
            f"{_lacking(history)}; ask again once more bars are known, or send the features yourself",
            code="incomplete_window",
        )
    return history.question(len(table) - 1, as_of_ms=as_of_ms)


def _lacking(history: SymbolHistory) -> str:
    """Which features have no value on the newest bars, and how many bars they need of which there are so many."""
    model, num = history.model, len(history.table)
    newest_TF = history.x_NF[-model.card.min_window :]
    lacking = np.flatnonzero(~np.isfinite(newest_TF).all(axis=0))
    names = [model.card.features[number] for number in lacking]
    if not names:
        return f"the bars of the newest run are fewer ({int(history.streak_N[-1])})"
    said = [model.derivation.needs(name) for name in names[:MOST_NAMED]]
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{'; '.join(said)}{more} ({num} bars were fetched)"


def replay_questions(history: SymbolHistory, *, from_ms: int, job_id: str) -> Iterator[tuple[int, Question | None]]:
    """Every bar opened at or after `from_ms`, oldest first, as (available_at_ms, question); None where no window ends.

    Prediction ids follow from job, symbol and bar, so that a replay sent twice is deduplicated by the queue.
    """
    for row in range(int(np.searchsorted(history.table.opened_ms, from_ms)), len(history.table)):
        available_at_ms = int(history.table.available_at_ms[row])
        if history.streak_N[row] < history.model.card.lookback:
            yield available_at_ms, None
            continue
        name = f"{job_id}|{history.table.symbol}|{available_at_ms}"
        yield available_at_ms, history.question(row, prediction_id=hashlib.sha256(name.encode()).hexdigest()[:32])


def merged_questions(
    model: ServedModel, tables: Sequence[FeatureTable], *, from_ms: int, job_id: str
) -> Iterator[tuple[int, int, Question | None]]:
    """`replay_questions` of all tables as (available_at_ms, place of the table, question), in the order in which bars
    became known; in the tables' order at one moment."""

    def of(place: int, table: FeatureTable) -> Iterator[tuple[int, int, Question | None]]:
        for available_at_ms, question in replay_questions(read_history(model, table), from_ms=from_ms, job_id=job_id):
            yield available_at_ms, place, question

    return heapq.merge(*(of(place, table) for place, table in enumerate(tables)), key=itemgetter(0, 1))
