"""Synthetic predictions: the records of a run, each known by its number alone, so that every process can make them.

Record n belongs to symbol n mod K and is that symbol's bar n div K, one minute after the one before it. Prices walk
at random and forecasts know a little of the next move, so that an agent has rewards to learn from; one in seventeen
abstains. All are the live version's, with a price: each causes exactly one decision.
"""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import numpy as np

from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import Interval, PredictionMetadata, PredictionRecord

BEGIN = datetime(2025, 3, 3, tzinfo=UTC)  # a Monday
BAR = timedelta(minutes=1)
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "AUD", "CAD", "NZD", "SEK")
SYMBOLS = tuple("/".join(pair) for pair in permutations(_CURRENCIES, 2))
ABSTAIN_EVERY = 17
_COSTS = Costs(spread_pips=0.5, commission_bp=0.1, slippage_bp=0.1, swap_long_pips=0.2, swap_short_pips=0.1)
_VOLATILITY = 0.001


class SyntheticPredictions:
    """The first `num_records` records of a seed.

    Args:
        seed: of prices and forecasts.
        num_symbols: K, at most 64.
        num_records: how many there are.
    """

    def __init__(self, seed: int, *, num_symbols: int, num_records: int) -> None:
        self.num_symbols = num_symbols
        self.num_records = num_records
        rng = np.random.default_rng([seed, 1])
        moves = rng.normal(0.0, _VOLATILITY, size=num_records)
        noise = rng.normal(0.0, 0.3 * _VOLATILITY, size=num_records)
        self._forecasts = 0.3 * moves + noise
        self._prices = np.empty(num_records)
        for place in range(num_symbols):
            own = moves[place::num_symbols]
            # the move that a record forecasts is the one to its symbol's next record
            self._prices[place::num_symbols] = 1.1 * np.exp(np.concatenate(([0.0], np.cumsum(own)[:-1])))[: len(own)]

    def symbol_of(self, number: int) -> str:
        """The record's symbol."""
        return SYMBOLS[number % self.num_symbols]

    def record(self, number: int) -> PredictionRecord:
        """Record `number`; the same to the bit in every process."""
        symbol = self.symbol_of(number)
        as_of = BEGIN + (number // self.num_symbols) * BAR
        abstains = number % ABSTAIN_EVERY == ABSTAIN_EVERY - 1
        forecast = None if abstains else float(self._forecasts[number])
        return PredictionRecord(
            prediction_id=prediction_id(number),
            model_id="flood",
            version="1.0.0",
            version_id="1.0.0",
            role="champion",
            symbol=symbol,
            timeframe="1m",
            target="price_change_1m",
            as_of=as_of,
            valid_until=as_of + BAR,
            timestamp=as_of,
            price=float(self._prices[number]),
            source="live",
            sample="live",
            status="abstain" if abstains else "ok",
            prediction=forecast,
            direction="hold" if forecast is None else "buy" if forecast > 0 else "sell",
            confidence=None if forecast is None else 0.55,
            outputs={"price_change_1m": forecast},
            interval=None if forecast is None else Interval(level=0.9, lower=forecast - 16e-4, upper=forecast + 16e-4),
            novelty=None,
            abstain_reasons=("novel_input",) if abstains else (),
            metadata=PredictionMetadata(
                precision="fp32", data_source="synthetic", volatility=_VOLATILITY, costs=_COSTS,
                correlation_id=f"flood-{number}",
            ),
        )  # fmt: skip


def prediction_id(number: int) -> str:
    """A record's id."""
    return f"record-{number}"


def number_of(identifier: str) -> int | None:
    """The number in a record's id; None of what is no such record."""
    head, _, tail = identifier.partition("-")
    return int(tail) if head == "record" and tail.isdigit() else None
