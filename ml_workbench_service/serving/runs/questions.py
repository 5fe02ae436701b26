"""Questions of a run as columns: what many callers ask one version, without a Python object for each.

Legend: N questions, T rows, F features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.serving.predict import BarPrices, Prepared, Question

_NO_ROWS = np.zeros((0, 0))


@dataclass(frozen=True)
class WindowGroup:
    """Windows of one length, scaled.

    Attributes:
        places: of their questions in the run.
        rows_NTF: a window each.
    """

    places: Ints
    rows_NTF: Floats32


@dataclass(frozen=True)
class QuestionRun:
    """The fields of `Question` as columns: numbers are NaN, moments `NO_TIME`, where there is none.

    Attributes:
        bars: the bar that each ends with; None: no question has one.
        groups: the windows; a question whose symbol is unknown has none.
    """

    symbol: Coded
    as_of_ms_N: Ints
    price_N: Floats
    bar_volatility_N: Floats
    newest_available_at_ms_N: Ints
    position_N: Floats
    spread_N: Floats
    clock_N: Bools
    clock_ms_N: Ints
    has_known_age_N: Bools
    received_ms_N: Ints
    is_historical_N: Bools
    warnings: Coded
    bars: Sequence[BarPrices | None] | None
    prediction_ids: Sequence[str]
    groups: Sequence[WindowGroup]

    def __len__(self) -> int:
        return len(self.prediction_ids)

    @classmethod
    def of(cls, asked: Sequence[Prepared]) -> "QuestionRun":
        """Of questions that came one by one."""
        questions = [each.question for each in asked]
        bars = [each.bar for each in questions]
        return cls(
            symbol=Coded.of(each.symbol for each in questions),
            as_of_ms_N=_moments(each.as_of_ms for each in questions),
            price_N=_numbers(each.price for each in questions),
            bar_volatility_N=_numbers(each.bar_volatility for each in questions),
            newest_available_at_ms_N=_moments(each.newest_available_at_ms for each in questions),
            position_N=_numbers(each.position for each in questions),
            spread_N=_numbers(each.spread for each in questions),
            clock_N=_flags(each.clock for each in questions),
            clock_ms_N=_moments(each.clock_ms for each in questions),
            has_known_age_N=_flags(each.has_known_age for each in questions),
            received_ms_N=_moments(each.received_ms for each in questions),
            is_historical_N=_flags(each.is_historical for each in questions),
            warnings=Coded.of(each.warnings for each in asked),
            bars=bars if any(bars) else None,
            prediction_ids=[each.prediction_id for each in questions],
            groups=grouped([each.rows_TF for each in asked]),
        )

    def question(self, number: int) -> Question:
        """One of them, without its window."""
        price, volatility, spread = (
            None if np.isnan(each[number]) else float(each[number])
            for each in (self.price_N, self.bar_volatility_N, self.spread_N)
        )
        clock_ms, received_ms = (
            None if each[number] == NO_TIME else int(each[number]) for each in (self.clock_ms_N, self.received_ms_N)
        )
        return Question(
            symbol=self.symbol.value(number),
            x_TF=_NO_ROWS,
            as_of_ms=int(self.as_of_ms_N[number]),
            price=price,
            bar_volatility=volatility,
            newest_available_at_ms=int(self.newest_available_at_ms_N[number]),
            position=float(self.position_N[number]),
            spread=spread,
            bar=None if self.bars is None else self.bars[number],
            clock=bool(self.clock_N[number]),
            clock_ms=clock_ms,
            has_known_age=bool(self.has_known_age_N[number]),
            received_ms=received_ms,
            is_historical=bool(self.is_historical_N[number]),
            prediction_id=self.prediction_ids[number],
        )


def grouped(windows: Sequence[Floats32 | None]) -> list[WindowGroup]:
    """Scaled windows by their length; a question without one is in no group."""
    by_length: dict[int, list[int]] = {}
    for number, rows_TF in enumerate(windows):
        if rows_TF is not None:
            by_length.setdefault(len(rows_TF), []).append(number)
    return [
        WindowGroup(np.array(numbers), np.stack([each for number in numbers if (each := windows[number]) is not None]))
        for numbers in by_length.values()
    ]


def _numbers(values: Iterable[float | None]) -> Floats:
    return np.array(list(values), dtype=np.float64)  # None becomes NaN


def _moments(values: Iterable[int | None]) -> Ints:
    return np.array([NO_TIME if each is None else each for each in values], dtype=np.int64)


def _flags(values: Iterable[bool]) -> Bools:
    return np.array(list(values), dtype=np.bool_)
