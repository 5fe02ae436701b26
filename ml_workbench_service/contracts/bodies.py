"""Large bodies: what the service has its table process read, so that no request stops its event loop.

A thread would not do: it holds the interpreter while it parses. The process answers with an error, or with something
that takes microseconds to read, by the operation's kind:

    contract    the same JSON, shortest
    requests    of `/predict` and its batch: what is said of each item as JSON, its columns as `<f8`, packed as
                `contracts.batches` has it; of an item that is not valid its error
    tensors     of the inference protocol: `!I`, the length of the JSON, the JSON, and every tensor as bytes behind it
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.agents import AgentRequest
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.deployment import DeployRequest
from ml_workbench_service.contracts.experiments import ExperimentRequest
from ml_workbench_service.contracts.importance import ImportanceRequest
from ml_workbench_service.contracts.inference_protocol import InferenceRequest
from ml_workbench_service.contracts.jobs import ReplayRequest
from ml_workbench_service.contracts.market_data import FeatureRequest
from ml_workbench_service.contracts.outcomes import OutcomeReport
from ml_workbench_service.contracts.prediction import PredictBatchRequest, PredictRequest
from ml_workbench_service.contracts.resilience import ResilienceRequest
from ml_workbench_service.contracts.training import TrainRequest

READ_HERE = 64 * 1024
"""Bytes of a prediction's body that the service reads itself: 0.6 ms where all is well."""
SHORT = 8 * 1024
"""Of any other body, and of one that is not valid: what is wrong takes twenty times as long as what is right."""
FEW_MISTAKES = 1024
"""Bytes of a body that has no room for many mistakes: a longer one is asked for their number before FastAPI, which
takes 4 µs for each, puts them into words."""
BODIES: Mapping[str, type[Contract]] = {
    "/api/v1/models/{model_id}/predict": PredictRequest,
    "/api/v1/models/{model_id}/predict/batch": PredictBatchRequest,
    "/v2/models/{model_id}/infer": InferenceRequest,
    "/v2/models/{model_id}/versions/{version}/infer": InferenceRequest,
    "/api/v1/models/train": TrainRequest,
    "/api/v1/experiments": ExperimentRequest,
    "/api/v1/models/{model_id}/versions/{version}/importance": ImportanceRequest,
    "/api/v1/features/batch": FeatureRequest,
    "/api/v1/models/{model_id}/deploy": DeployRequest,
    "/api/v1/agents": AgentRequest,
    "/api/v1/replays": ReplayRequest,
    "/api/v1/resilience": ResilienceRequest,
    "/api/v1/predictions/{prediction_id}/outcome": OutcomeReport,
}
"""What a POST to a path takes: every operation with a body."""


class BodyTask(Contract):
    """A body to be read; its bytes come behind the order."""

    kind: Literal["body"] = "body"
    path: str = Field(description="Of the operation.")
    num_json: int | None = Field(default=None, description="Bytes of it that are JSON; null: all.")
