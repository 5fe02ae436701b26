"""Columns to questions: what `request_to_windows.question_of` makes of one body, of N rows that are known to be right.

Legend: N rows, T rows of a window, F features, R bars.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.market import calendar
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.serving.abstain_by_clock import past_of_run
from ml_workbench_service.serving.model import ServedModel, bar_ends_ms
from ml_workbench_service.serving.runs.questions import QuestionRun, WindowGroup


@dataclass(frozen=True)
class AskedRows:
    """What rows say beside their features.

    Attributes:
        as_of_ms_N: `NO_TIME` where a row does not say it.
        price_N: NaN where it has none.
        position_N: 0 where it names none.
    """

    symbol: Coded
    as_of_ms_N: Ints
    price_N: Floats
    position_N: Floats

    def __len__(self) -> int:
        return len(self.price_N)

    def taken(self, places: Ints) -> "AskedRows":
        """The rows at these places."""
        return AskedRows(
            self.symbol.taken(places), self.as_of_ms_N[places], self.price_N[places], self.position_N[places]
        )

    def moments_ms(self, model: ServedModel, received_ms: int) -> Ints:
        """(N,) what each is about: the last bar that was over at receipt, unless it says another."""
        assumed_ms = received_ms // model.timeframe_ms * model.timeframe_ms
        return np.where(self.as_of_ms_N == NO_TIME, assumed_ms, self.as_of_ms_N)

    def is_past(self, model: ServedModel, received_ms: int) -> Bools:
        """(N,) whether each asks about the past."""
        is_past_N = past_of_run(model, self.moments_ms(model, received_ms), now_ms=received_ms)
        return np.asarray(is_past_N & (self.as_of_ms_N != NO_TIME))


class Windows:
    """The features of rows, a column each, with where every row's window begins and ends within them.

    Args:
        columns: each of R values; those of a row lie one behind the other.
        begins, ends: (N,) of each row's.
    """

    def __init__(self, columns: Mapping[str, Floats], begins: Ints, ends: Ints) -> None:
        self.columns, self.begins, self.ends = columns, begins, ends

    @property
    def lengths(self) -> Ints:
        """(N,) rows of each window."""
        return self.ends - self.begins

    def of(self, row: int) -> dict[str, Floats]:
        """One row's columns."""
        return {name: each[self.begins[row] : self.ends[row]] for name, each in self.columns.items()}

    def taken(self, places: Ints) -> "Windows":
        """Those of the rows at these places."""
        return Windows(self.columns, self.begins[places], self.ends[places])

    def scaled(self, model: ServedModel, symbol: Coded) -> list[WindowGroup]:
        """As the network reads them, cut to the lookback, by their length.

        Raises:
            DataValidationError: a level feature that is not positive.
        """
        x_RF = np.column_stack([self.columns[name] for name in model.card.features])
        lengths_N, groups = np.minimum(self.lengths, model.card.lookback), []
        for code, name in enumerate(symbol.choices):
            if name not in model.scaler.symbols:
                continue
            places = np.flatnonzero(symbol.codes_N == code)
            if not len(places):
                continue
            rows_RF, begins = self._rows(model, name, x_RF, self.ends[places], lengths_N[places])
            for length in np.unique(lengths_N[places]).tolist():
                is_of_length = lengths_N[places] == length
                groups.append(WindowGroup(places[is_of_length], _cut(rows_RF, begins[is_of_length], length)))
        return _joined(groups)

    @staticmethod
    def _rows(model: ServedModel, symbol: str, x_RF: Floats, ends: Ints, lengths: Ints) -> tuple[Floats32, Ints]:
        """The scaled rows that a symbol's windows have, and where each window begins among them.

        A row's result does not depend on those around it: where windows overlap, each row is scaled once.
        """
        begins, total = ends - lengths, int(lengths.sum())
        first, last = int(begins.min()), int(ends.max())
        if last - first <= total:
            return model.scaler.rows(symbol, x_RF[first:last]), begins - first
        among = np.cumsum(lengths) - lengths
        return model.scaler.rows(symbol, x_RF[np.repeat(begins - among, lengths) + np.arange(total)]), among


def _cut(rows_RF: Floats32, begins: Ints, length: int) -> Floats32:
    """(N, T, F) windows: where they lie one behind the other, as they are."""
    if len(begins) == 1 or (np.diff(begins) == length).all():
        return rows_RF[begins[0] : begins[0] + len(begins) * length].reshape(len(begins), length, -1)
    return np.asarray(rows_RF[begins[:, None] + np.arange(length)])


def _joined(groups: Sequence[WindowGroup]) -> list[WindowGroup]:
    """One group a length, in the order of the rows."""
    by_length: dict[int, list[WindowGroup]] = {}
    for each in groups:
        by_length.setdefault(each.rows_NTF.shape[1], []).append(each)
    found = []
    for same in by_length.values():
        if len(same) == 1:
            found += same
            continue
        places = np.concatenate([each.places for each in same])
        order = np.argsort(places)
        found.append(WindowGroup(places[order], np.concatenate([each.rows_NTF for each in same])[order]))
    return found


def questions_of(model: ServedModel, asked: AskedRows, windows: Windows, *, received_ms: int) -> QuestionRun:
    """The questions of rows, each of which is right by itself.

    Args:
        received_ms: when the request came in, by the service's clock.

    Raises:
        DataValidationError: a level feature that is not positive, in one of them.
    """
    num, card = len(asked), model.card
    as_of_ms_N, is_past_N = asked.moments_ms(model, received_ms), asked.is_past(model, received_ms)
    is_said_N = asked.as_of_ms_N != NO_TIME
    is_short_N = windows.lengths < card.lookback
    warnings = (("as_of_assumed",), ("as_of_assumed", "short_window"), (), ("short_window",))
    return QuestionRun(
        symbol=asked.symbol,
        as_of_ms_N=as_of_ms_N,
        price_N=asked.price_N,
        bar_volatility_N=_volatilities(model, asked.symbol, windows, as_of_ms_N),
        newest_available_at_ms_N=as_of_ms_N,
        position_N=asked.position_N,
        spread_N=np.full(num, np.nan),
        clock_N=np.ones(num, dtype=np.bool_),
        clock_ms_N=np.where(is_past_N, NO_TIME, received_ms),
        has_known_age_N=is_said_N,
        received_ms_N=np.full(num, received_ms),
        is_historical_N=is_past_N,
        warnings=Coded(warnings, 2 * is_said_N + is_short_N),
        bars=None,
        prediction_ids=new_prediction_ids(num),
        groups=windows.scaled(model, asked.symbol),
    )


def new_prediction_ids(num: int) -> list[str]:
    """As `contracts.prediction.new_prediction_id` makes them, by one call of the system."""
    digits = os.urandom(16 * num).hex()
    return [digits[begin : begin + 32] for begin in range(0, 32 * num, 32)]


def _volatilities(model: ServedModel, symbol: Coded, windows: Windows, as_of_ms_N: Ints) -> Floats:
    """(N,) `request_to_windows.bar_volatility` of each; NaN where unknown."""
    found_N = np.full(len(as_of_ms_N), np.nan)
    close = windows.columns.get("close")
    if close is None:
        return found_N
    num_bad = np.concatenate([[0], np.cumsum(close <= 0)])
    is_known_N = (windows.lengths > EWMA_BARS) & (num_bad[windows.ends] == num_bad[windows.begins])
    offsets = np.arange(-EWMA_BARS - 1, 0)
    for code, name in enumerate(symbol.choices):
        rows = np.flatnonzero(is_known_N & (symbol.codes_N == code))
        close_NW = close[windows.ends[rows, None] + offsets]
        ends_ms_N1 = bar_ends_ms(model, as_of_ms_N[rows])[:, None]
        # a moment after each opening, since Sunday's opening and Friday's close are one moment of market time
        opened_ms_NW = calendar.advance(ends_ms_N1, 1 + model.timeframe_ms * offsets) - 1
        found_N[rows] = model.volatility_of_windows(name, opened_ms_NW, close_NW)
    return np.where(np.isfinite(found_N), found_N, np.nan)
