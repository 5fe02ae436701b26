"""`Recording`: what one version said over a past range, as arrays; what an agent would have read from the queue.

Legend: M records in the order in which they became known, symbols in the request's order at one moment.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from ml_workbench_service.contracts.market import Bools, FillRule, Floats, Ints
from ml_workbench_service.contracts.prediction import Sample

SAMPLES: tuple[Sample, ...] = get_args(Sample)
"""The parts that predictions fall into, in the order of time; `sample_M` numbers them."""
OUT_OF_SAMPLE: tuple[Sample, ...] = ("test", "live")
"""Predictions for bars that taught the model nothing."""


@dataclass(frozen=True)
class Recording:
    """Predictions of one version; NaN where a record has no such number.

    Attributes:
        as_of_ms_M: when the bar was known; within a symbol strictly increasing.
        symbol_M: position in `symbols`.
        price_M: the bar's close.
        opened_ms_M: when the bar opened.
        open_M: its open.
        spread_open_M: the spread there, in price units.
        prediction_M: NaN where the model abstained.
        volatility_M: ex-ante standard deviation of the target over its horizon.
        width_M: upper end of the interval less the lower one.
        strength_M: which way the model leans, -1 to 1, where its prediction is no forecast.
        abstained_M: whether the answer was to abstain.
        kept_M: whether it was so for nothing but a closed market: positions are kept.
        sample_M: position in `SAMPLES`.
        costs_M5: what trading cost at that bar: spread in pips, commission and slippage in basis points, swap long and
            short in pips a night (the fields of `Costs`, in their order).
        num_skipped: bars within the range without a whole window behind them.
        num_in_sample: bars left out because the model had learnt from them.
    """

    model_id: str
    version: str
    timeframe: str
    symbols: tuple[str, ...]
    fill: FillRule
    data_source: str
    as_of_ms_M: Ints
    symbol_M: Ints
    price_M: Floats
    opened_ms_M: Ints
    open_M: Floats
    spread_open_M: Floats
    prediction_M: Floats
    volatility_M: Floats
    width_M: Floats
    strength_M: Floats
    abstained_M: Bools
    kept_M: Bools
    sample_M: Ints
    costs_M5: Floats
    num_skipped: int = 0
    num_in_sample: int = 0

    def __len__(self) -> int:
        return len(self.as_of_ms_M)

    @property
    def num_by_sample(self) -> dict[Sample, int]:
        """How many records fall into each part; parts without any are left out."""
        counts = np.bincount(self.sample_M, minlength=len(SAMPLES))
        return {sample: int(count) for sample, count in zip(SAMPLES, counts, strict=True) if count}

    @property
    def span_ms(self) -> tuple[int, int]:
        """First moment, and just after the last one: half-open, as the ledgers name a part."""
        return int(self.as_of_ms_M[0]), int(self.as_of_ms_M[-1]) + 1
