"""Planted bars in memory, and a training on them: for studies that train hundreds of times and publish nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder, assemble
from ml_workbench_service.training import tasks as tasks  # registers them
from studies.series import SYMBOL


def kind_of(feature: str) -> FeatureKind:
    """All planted columns are stationary."""
    return "stationary"


def ordered(features: Sequence[str], **changes: Any) -> TrainingOrder:
    """`linear` on these columns unless the changes say else."""
    body: dict[str, Any] = {
        "name": "planted",
        "model_type": "time_series",
        "family": "linear",
        "features": list(features),
        "symbols": [SYMBOL],
        "start_date": "2010-01-01T00:00:00Z",
        "end_date": "2030-01-01T00:00:00Z",
        **changes,
    }
    plan = {"model_id": "planted", "version": "1.0.0"}
    store = LocalFeatureStore(SampleRates())
    return TrainingOrder.of(TrainRequest.model_validate(body), plan, job_id="planted", store=store)


def assembled(order: TrainingOrder, opened_ms: Ints, close: Floats, columns: Mapping[str, Floats]) -> TrainingData:
    """Labelled and cut as the service does it."""
    bar_ms = TIMEFRAMES_MS[order.timeframe]
    table = FeatureTable(SYMBOL, order.timeframe, opened_ms, opened_ms + bar_ms, {**columns, "close": close}, "file")
    return assemble(order, [table], kind_of=kind_of)
