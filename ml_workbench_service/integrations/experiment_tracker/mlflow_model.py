"""MLmodel: a published version as a folder that MLflow loads with its `onnx` flavour. Data, never code: no pickle.

    MLmodel                  flavours, signature, and `metadata`: features, symbols, units, digest
    model.onnx               the float32 network behind the row stage (`learning.bundle.feature_graph`)
    input_example.json       one window of the training part's averages
    requirements.txt, …      what it was written with

`mlflow.pyfunc.load_model(…).predict({"features": …})` answers what the service's float32 network says to the same
window: `outputs` in units of the label scale (`metadata.label_scale`) and `last_rows`. What serving adds around the
network (int8, intervals, calibration, novelty, abstaining) is not in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from common_lib.exceptions import PredictionError
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.feature_graph import FEATURES, POSITIONS, SYMBOL, feature_graph
from ml_workbench_service.learning.bundle.manifest import MODEL_FILE, RECIPE_FILE
from ml_workbench_service.learning.data.scaling import RawRows, RowScaler, load_scaler

SESSION_OPTIONS = {
    "intra_op_num_threads": 1,
    "inter_op_num_threads": 1,
    "execution_mode": "sequential",
    "extra_session_config": {"session.set_denormal_as_zero": "1", "session.intra_op.allow_spinning": "0"},
}
"""As `learning.bundle.onnx_runtime` opens it: the same sums, in the same order."""
PROVIDERS = ["CPUExecutionProvider"]
PACKAGES = ("mlflow", "onnx", "onnxruntime", "numpy")


def why_no_network(bundle: Path) -> str | None:
    """Why a version has no network to hand over; None where it has one."""
    if (bundle / MODEL_FILE).exists():
        return None
    return "its family makes no network: a feature set is a list of expressions, which bundle/recipe.json holds"


@dataclass(frozen=True)
class MlflowModel:
    """A version's network as MLflow's `onnx` flavour keeps it."""

    card: ModelCard
    scaler: RowScaler
    graph: ModelProto

    @classmethod
    def of(cls, bundle: Path, card: ModelCard) -> "MlflowModel":
        """Read from a published bundle; raises PredictionError where its recipe or graph cannot be read."""
        scaler = _scaler(bundle)
        return cls(card, scaler, feature_graph(bundle / MODEL_FILE, scaler))

    @property
    def reads_positions(self) -> bool:
        """Whether what is held is one of its inputs."""
        return any(each.name == POSITIONS for each in self.graph.graph.input)

    @property
    def window_of_averages(self) -> dict[str, np.ndarray]:
        """The input example: every row the training part's average, in the features' own units."""
        symbol, scale = next(iter(self.scaler.symbols.items()))
        is_level_F = np.array(self.scaler.is_level_F)
        row_F = np.where(is_level_F, np.exp(np.where(is_level_F, scale.center_F, 0.0)), scale.center_F)
        example = {FEATURES: np.tile(row_F, (1, self.card.lookback, 1))}
        if len(self.scaler.symbols) > 1:
            example[SYMBOL] = np.array([symbol])
        if self.reads_positions:
            example[POSITIONS] = np.zeros((1, 1), np.float32)
        return example

    def write(self, target: Path, *, run_id: str, model_id: str) -> None:
        """Writes the folder `target`, which must not exist; `run_id` and `model_id` are MLflow's."""
        import mlflow.onnx
        from mlflow.models import Model

        mlflow.onnx.save_model(
            self.graph,
            str(target),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=self._signature(),
            input_example=self.window_of_averages,
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            onnx_execution_providers=PROVIDERS,
            onnx_session_options=SESSION_OPTIONS,
            metadata=self._metadata(),
            save_as_external_data=False,
        )

    def _signature(self) -> Any:
        from mlflow.models import ModelSignature
        from mlflow.types.schema import Schema, TensorSpec

        num_features = len(self.scaler.features)
        asked = [TensorSpec(np.dtype(np.float64), (-1, -1, num_features), FEATURES)]
        if len(self.scaler.symbols) > 1:
            asked.append(TensorSpec(np.dtype(np.str_), (-1,), SYMBOL))
        if self.reads_positions:
            asked.append(TensorSpec(np.dtype(np.float32), (-1, 1), POSITIONS))
        answered = [
            TensorSpec(np.dtype(np.float32), (-1, len(self.card.outputs)), "outputs"),
            TensorSpec(np.dtype(np.float32), (-1, num_features), "last_rows"),
        ]
        return ModelSignature(inputs=Schema(asked), outputs=Schema(answered))

    def _metadata(self) -> Mapping[str, object]:
        """What a reader of the MLmodel file needs to ask it rightly."""
        card, symbols = self.card, self.scaler.symbols
        return {
            "model_id": card.id,
            "version": card.version,
            "digest": card.digest,
            "family": card.family,
            "symbols": list(symbols),
            "timeframe": card.timeframe,
            "features": list(card.features),
            "lookback": card.lookback,
            "min_window": card.min_window,
            "target": card.target,
            "outputs": list(card.outputs),
            "label_scale": {symbol: scale.label_scale_K.tolist() for symbol, scale in symbols.items()},
        }


def _scaler(bundle: Path) -> RowScaler:
    try:
        scaler = load_scaler(json.loads((bundle / RECIPE_FILE).read_text(encoding="utf-8"))["scaler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PredictionError(f"{RECIPE_FILE} cannot be read, and with it the scaler: {error!r}") from error
    if isinstance(scaler, RawRows):
        raise PredictionError("its rows are not scaled, so there is no row stage")
    return scaler
