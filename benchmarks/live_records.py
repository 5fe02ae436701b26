"""Records as a live feed brings them: twenty pairs in turn, each an hour further, everything filled in.

For benchmarks below HTTP. The numbers come from a fixed seed; a record costs its maker what copying it costs.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np

from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import Interval, Novelty, PredictionMetadata, PredictionRecord

PAIRS = (
    "EUR/USD", "GBP/USD", "USD/JPY", "USD/CHF", "AUD/USD", "USD/CAD", "NZD/USD", "EUR/GBP", "EUR/JPY", "EUR/CHF",
    "GBP/JPY", "AUD/JPY", "CAD/JPY", "CHF/JPY", "EUR/AUD", "EUR/CAD", "GBP/CHF", "GBP/AUD", "AUD/CAD", "NZD/JPY",
)  # fmt: skip
FIRST = datetime(2024, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


def live_records(num: int, *, prefix: str) -> Iterator[PredictionRecord]:
    """So many records of the live version; their ids are the prefix and a number that counts up."""
    chance = np.random.default_rng(107)
    strengths = chance.standard_normal(num).tolist()
    patterns = [_pattern(pair) for pair in PAIRS]
    as_of = FIRST
    for number in range(num):
        pattern, strength = patterns[number % len(PAIRS)], strengths[number]
        if number and number % len(PAIRS) == 0:
            as_of += HOUR
        yield pattern.model_copy(
            update={
                "prediction_id": f"{prefix}-{number}",
                "as_of": as_of,
                "valid_until": as_of + HOUR,
                "timestamp": as_of,
                "price": 1.1 + 0.001 * strength,
                "prediction": 0.001 * strength,
                "direction": "buy" if strength > 0 else "sell",
            }
        )


def _pattern(pair: str) -> PredictionRecord:
    return PredictionRecord(
        prediction_id="",
        model_id="lstm_price_predictor",
        version="1.0.0",
        version_id="1.0.0",
        role="champion",
        symbol=pair,
        timeframe="1h",
        target="price_change_1h",
        as_of=FIRST,
        valid_until=FIRST + HOUR,
        timestamp=FIRST,
        price=1.1,
        source="live",
        sample="live",
        status="ok",
        prediction=0.00042,
        direction="buy",
        confidence=0.6123456789,
        outputs={"price_change_1h": 0.00042123456789},
        interval=Interval(level=0.9, lower=-0.0011123456789, upper=0.0019123456789),
        novelty=Novelty(score=0.37123456789, top_features=("bb_width", "rsi_14")),
        warnings=("short_window",),
        metadata=PredictionMetadata(
            precision="fp32",
            data_source="embedded sample, simulated",
            correlation_id="0123456789abcdef0123456789abcdef",
            volatility=0.00108123456789,
            deployment_id="deployment-0123456789abcdef",
            costs=Costs(spread_pips=0.8, commission_bp=0.0, slippage_bp=0.1, swap_long_pips=-0.6, swap_short_pips=0.2),
        ),
    )
