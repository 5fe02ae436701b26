"""Model cards for tests, with sensible values wherever a test does not care."""

from datetime import UTC, datetime
from typing import Any

from ml_workbench_service.contracts.models import ModelCard

MOMENT = datetime(2025, 3, 3, tzinfo=UTC)


def model_card(model_id: str = "model", version: str = "1.0.0", **changes: Any) -> ModelCard:
    """A small lstm's card; keyword arguments replace fields."""
    fields: dict[str, Any] = {
        "id": model_id,
        "name": "A model",
        "type": "time_series",
        "version": version,
        "created_at": MOMENT,
        "metrics": {"mse": 2e-6},
        "family": "lstm",
        "symbols": ("EUR/USD",),
        "timeframe": "1h",
        "features": ("macd",),
        "target": "price_change_1h",
        "horizon": 1,
        "lookback": 24,
        "min_window": 3,
        "outputs": ("price_change_1h",),
        "precision": "fp32",
        "quantization": {"accepted": False, "reason": "not measured"},
        "evaluation": {
            "test": {"mse": 2e-6},
            "baselines": {"random_walk": {"mse": 2e-6}},
            "skill": {},
            "verdict": "not_judged",
            "reason": "a test",
        },
        "split": {"borders": {}, "num_windows": {"test": 100}, "num_purged": 0},
        "data_source": "file",
        "calendar": "fx",
        "fill": "next_open",
        "expires_at": MOMENT.replace(year=2026),
        "hyperparameters": {"lookback": 24},
        "epochs_run": 1,
        "lineage": {"job_id": "job", "data_fingerprint": "sha256:0", "seeds": (0,), "library_versions": {}},
    }
    return ModelCard.model_validate(fields | changes)
