"""`FollowingFamily`: any classifier's family, trained on a primary's outputs beside the features.

The classifier reads windows of its own lookback L, whose rows hold the features and what the primary says at each row.
The published graph reads L + P - 1 rows, P the primary's lookback, and runs the primary at the last L of them itself:
nobody who asks the version needs to know that there are two networks.

Legend: N windows, R rows of all symbols, T rows of a window, F features, K outputs of the primary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from ml_workbench_service.learning.data.scaling import RowScaler, SymbolScale
from ml_workbench_service.learning.data.windows import PARTS, Windows
from ml_workbench_service.learning.decoders.follow import primary_output
from ml_workbench_service.learning.interfaces.family import AnyFamily, Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.primary import Primary
from ml_workbench_service.learning.networks.followed.estimates import FollowerEstimate
from ml_workbench_service.learning.networks.followed.joint import Joint

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_DEVIATION = 1e-9


class FollowingFamily(Family[Contract], abstract=True):
    """A family whose networks run a primary first.

    Args:
        inner: the classifier's.
        primary: whose outputs it reads.
    """

    model_type = ModelType.CLASSIFICATION

    def __init__(self, inner: AnyFamily, primary: Primary) -> None:
        self.hyperparameters = inner.hyperparameters
        self.inner, self.primary = inner, primary

    @property
    def name(self) -> str:  # type: ignore[override]
        """The classifier's."""
        return self.inner.name

    @property
    def lookback(self) -> int:
        """Rows for the classifier's window, at whose first the primary has a whole one."""
        return self.inner.lookback + self.primary.lookback - 1

    @property
    def min_window(self) -> int:  # type: ignore[override]
        """No shorter one: the primary is asked about whole windows, as in training."""
        return self.lookback

    def check_features(self, num_features: int) -> None:
        """The classifier's, of what it reads."""
        self.inner.check_features(len(self.primary.reference.reads))

    def check_request(self, request: TrainRequest, features: Sequence[str]) -> None:
        """The classifier's, of what it reads."""
        self.inner.check_request(request, self.primary.reference.reads)

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """The classifier's training, over the primary's outputs."""
        windows, primary = problem.windows, self.primary
        outputs_RK = _outputs(primary, windows, self.inner.lookback)
        train_NK = outputs_RK[windows.parts["train"]]
        deviation_K = train_NK.std(axis=0)
        joint = Joint(
            lookback=self.inner.lookback,
            primary_lookback=primary.lookback,
            own=np.array([windows.features.index(name) for name in primary.reference.reads], dtype=np.int64),
            asked=primary.columns_among(windows.features),
            is_level_F=windows.scaler.is_level_F,
            mean_K=train_NK.mean(axis=0).astype(np.float32),
            deviation_K=np.where(deviation_K > LEAST_DEVIATION, deviation_K, 1.0).astype(np.float32),
        )
        own = replace(problem, windows=_joined(windows, joint, outputs_RK, primary), primary=None)
        return _whole(self.inner.train(own, accelerator=accelerator, report=report), joint, primary)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The classifier's, or the judging of the whole graph."""
        return self._estimate.memory_bytes(self.inner, num_rows)

    def seconds(self, num_windows: int) -> float:
        """The classifier's, and the primary's answers."""
        return self._estimate.seconds(self.inner, num_windows=num_windows, num_rows=num_windows, split=0.0)

    @property
    def _estimate(self) -> FollowerEstimate:
        return FollowerEstimate.of(self.primary.card, self.primary.reference)


def _outputs(primary: Primary, windows: Windows, lookback: int) -> Floats32:
    """(R, K) what the primary says at every row that a classifier's window holds; 0 elsewhere."""
    ends = np.concatenate([each[part] for each in (windows.parts, windows.decisions) for part in PARTS])
    rows = np.unique((np.unique(ends)[:, None] - np.arange(lookback)).reshape(-1))
    asked_RP = np.ascontiguousarray(windows.rows_RF[:, primary.columns_among(windows.features)])
    said_NK = primary.outputs(asked_RP, rows)
    found_RK = np.zeros((len(windows.rows_RF), said_NK.shape[1]), dtype=np.float32)
    found_RK[rows] = said_NK
    return found_RK


def _joined(windows: Windows, joint: Joint, outputs_RK: Floats32, primary: Primary) -> Windows:
    """The classifier's windows: its features, then the primary's outputs."""
    num = outputs_RK.shape[1]
    names = tuple(windows.features[place] for place in joint.own)
    levels = tuple(windows.scaler.is_level_F[place] for place in joint.own)
    scales = {
        symbol: SymbolScale(
            np.append(scale.center_F[joint.own], joint.mean_K), np.append(scale.scale_F[joint.own], joint.deviation_K),
            np.ones(1),
        )
        for symbol, scale in windows.scaler.symbols.items()
    }  # fmt: skip
    return replace(
        windows,
        rows_RF=np.ascontiguousarray(np.hstack([windows.rows_RF[:, joint.own], joint.scaled(outputs_RK)])),
        lookback=joint.lookback,
        scaler=RowScaler(
            (*names, *map(primary_output, primary.card.outputs)), (*levels, *[False] * num), scales
        ),
    )  # fmt: skip


def _whole(inner: Trained, joint: Joint, primary: Primary) -> Trained:
    """The classifier with its primary before it, as one network."""

    def predict(rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        asked_NLPF = rows_NTF[:, joint.windows_LP][..., joint.asked]
        num, lookback = asked_NLPF.shape[:2]
        said_NK = primary.answer(asked_NLPF.reshape(num * lookback, *asked_NLPF.shape[2:]))
        own_NLF = rows_NTF[:, -lookback:][..., joint.own]
        read_NLV = np.concatenate([own_NLF, joint.scaled(said_NK).reshape(num, lookback, -1)], axis=2)
        outputs_NC = inner.predict(np.ascontiguousarray(read_NLV, dtype=np.float32), None).outputs_NK
        last_NF = rows_NTF[:, -1] - rows_NTF.mean(axis=1) * np.array(joint.is_level_F, dtype=np.float32)
        newest_NK = said_NK.reshape(num, lookback, -1)[:, -1]
        return RawPrediction(np.concatenate([outputs_NC, newest_NK], axis=1).astype(np.float32), last_NF)

    def graph() -> "ModelProto":
        from ml_workbench_service.learning.networks.followed.graph import followed_graph

        return followed_graph(inner.graph(), primary.file, joint)

    outputs = (*inner.outputs, *map(primary_output, primary.card.outputs))
    return Trained(
        outputs=outputs,
        weights=inner.weights,
        network=_described(inner.network, joint, num_outputs=len(outputs)),
        graph=graph,
        predict=predict,
        epochs_run=inner.epochs_run,
        best_epoch=inner.best_epoch,
        warnings=inner.warnings,
        findings=inner.findings,
        can_quantize=False,
    )


def _described(inner: Mapping[str, Any], joint: Joint, *, num_outputs: int) -> dict[str, Any]:
    return {
        "kind": "followed",
        "classifier": dict(inner),
        "num_features": len(joint.is_level_F),
        "num_outputs": num_outputs,
        "lookback": joint.lookback,
        "primary_lookback": joint.primary_lookback,
    }
