"""Prediction records for tests, with sensible values wherever a test does not care."""

from datetime import UTC, datetime, timedelta
from typing import Any

from ml_workbench_service.contracts.prediction import PredictionRecord

MONDAY = datetime(2025, 3, 3, tzinfo=UTC)


def prediction_record(number: int = 0, **changes: Any) -> PredictionRecord:
    """The record of hour `number` after a Monday; keyword arguments replace fields, `metadata` is merged."""
    as_of = changes.pop("as_of", MONDAY + timedelta(hours=number))
    metadata = {"precision": "fp32", "data_source": "file", "volatility": 0.001, **changes.pop("metadata", {})}
    symbol = changes.get("symbol", "EUR/USD")
    body: dict[str, Any] = {
        "prediction_id": f"{symbol}-{number}",
        "model_id": "model",
        "version": "1.0.0",
        "version_id": "1.0.0",
        "role": "champion",
        "symbol": symbol,
        "timeframe": "1h",
        "target": "price_change_1h",
        "as_of": as_of,
        "valid_until": as_of + timedelta(hours=1),
        "timestamp": as_of,
        "price": 1.1,
        "source": "live",
        "sample": "live",
        "status": "ok",
        "prediction": 0.0001,
        "direction": "buy",
        "confidence": 0.55,
        "outputs": {"price_change_1h": 0.0001},
        "interval": {"level": 0.9, "lower": -0.0016, "upper": 0.0018},
        "novelty": {"score": 0.2},
        "metadata": metadata,
    }
    return PredictionRecord.model_validate(body | changes)
