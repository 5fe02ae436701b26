"""A model card for tests that need one without training."""

from datetime import UTC, datetime

from ml_workbench_service.contracts.models import Evaluation, Lineage, ModelCard, Quantization, Split

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def card_of(model_id: str, version: str, job_id: str) -> ModelCard:
    """A card with all that a card must have."""
    return ModelCard(
        id=model_id,
        name="LSTM",
        type="time_series",
        version=version,
        created_at=NOW,
        metrics={"mae": 0.0012, "loss": 0.5, "skill": None},
        family="lstm",
        symbols=("EUR/USD",),
        timeframe="1h",
        features=("sma_20",),
        target="price_change_1h",
        horizon=1,
        lookback=24,
        min_window=3,
        outputs=("price_change_1h",),
        precision="fp32",
        quantization=Quantization(accepted=False, reason="slower"),
        evaluation=Evaluation(test={}, baselines={}, skill={}, verdict="not_judged", reason=""),
        split=Split(borders={}, num_windows={}, num_purged=0),
        data_source="simulated",
        calendar="fx",
        fill="next_open",
        expires_at=NOW,
        hyperparameters={},
        epochs_run=3,
        lineage=Lineage(job_id=job_id, data_fingerprint="f", seeds=(0,), library_versions={}),
    )
