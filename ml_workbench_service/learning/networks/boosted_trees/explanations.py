"""TreeSHAP: how much each feature added to what boosted trees say of a window, exactly.

    Lundberg, Erion and Lee, "Consistent individualized feature attribution for tree ensembles", 2018, arXiv:1802.03888;
    Lundberg et al., Nature Machine Intelligence 2, 2020: LightGBM's own `pred_contrib`, from the texts in the bundle

A column's contribution is a Shapley value, so those of all columns of a feature (its rows, mean and slope) may be added
up, and so may those of an ensemble's members. Where nothing is known of a column a tree goes both ways, in the shares
that its training windows went. Stated before anything that is not a sum: before quantiles are sorted, before
probabilities. Contributions are in units of the label scale, of classes in logits.

When it fails: of columns that say the same, trees use one or the other, and share the credit as they happened to grow;
it explains the model, not the market. One or two milliseconds a window of 300 trees. Needs lightgbm, 160 MiB.

Of a follower (meta-labelling) the classifier is explained, over what it reads: its features and, each as a feature of
its own, what its primary says. The rows that it reads are taken out of the bundle's graph.

Legend: N windows, T rows, F features, D columns, K outputs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import load_file

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.learning.bundle.manifest import MODEL_FILE, NETWORK_FILE, RECIPE_FILE, WEIGHTS_FILE, verify
from ml_workbench_service.learning.data.scaling import RowScaler
from ml_workbench_service.learning.networks.boosted_trees.graph import WindowColumns, columns_graph
from ml_workbench_service.learning.networks.followed.graph import CLASSIFIER
from ml_workbench_service.learning.networks.graph_session import GraphSession, session

KIND = "boosted_trees"


@dataclass(frozen=True)
class _Member:
    """The boosters of one seed.

    Attributes:
        weight: what it counts in the mean.
        boosters: LightGBM's.
        keep_K, shift_K: of classes, what the sums are multiplied by and what is added; 1 and 0 of forecasts.
    """

    weight: float
    boosters: tuple[Any, ...]
    keep_K: Floats
    shift_K: Floats

    def contributions(self, matrix_ND: Floats32) -> Floats:
        """(N, K, D + 1), bases last."""
        found = []
        for each in self.boosters:
            plain = np.asarray(each.predict(matrix_ND, pred_contrib=True, num_threads=1), dtype=np.float64)
            found.append(plain.reshape(len(matrix_ND), -1, matrix_ND.shape[1] + 1))
        found_NKD = np.concatenate(found, axis=1) * self.keep_K[:, None]
        found_NKD[:, :, -1] += self.shift_K
        return found_NKD


class TreeExplainer:
    """Boosted trees of one bundle, read from its texts.

    Args:
        folder: the bundle's.
        digest: what its manifest must be.

    Raises:
        BundleDamagedError: the bundle is not what was published, or holds no boosted trees.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        name = f"{folder.parent.name}/{folder.name}"
        if verify(folder) != digest:
            raise BundleDamagedError(
                f"the bundle {name} was changed after its card was read; restore it from a backup or train it again"
            )
        network = json.loads((folder / NETWORK_FILE).read_text(encoding="utf-8"))
        recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        described = [
            {**each, **each.get("classifier", {})} for each in network.get("members", [{"weight": 1.0, **network}])
        ]
        if any(each.get("kind") != KIND for each in described):
            raise BundleDamagedError(f"the bundle {name} holds no boosted trees; restore it from a backup")
        weights = load_file(folder / WEIGHTS_FILE)
        self._members = [_member(each, weights) for each in described]
        is_level_F = RowScaler.from_json(recipe["scaler"]).is_level_F
        self._follower: _FollowerRows | None = None
        if "primary_lookback" in described[0]:
            reads = recipe["plan"]["primary"]["reads"]
            places = [recipe["scaler"]["features"].index(name) for name in reads]
            is_level_F = tuple(is_level_F[each] for each in places)
            is_level_F += (False,) * (described[0]["num_features"] - len(places))
            self._follower = _FollowerRows(folder / MODEL_FILE)
        features = tuple(f"feature{place}" for place in range(len(is_level_F)))
        layout = WindowColumns(features, is_level_F, described[0]["lookback"], described[0]["columns"])
        self._feature_of_D = np.array(layout.feature_of)
        self._derive = GraphSession(columns_graph(layout))

    def contributions(self, rows_NTF: Floats32) -> Floats:
        """(N, K, F + 1) what each feature adds to each output, and last what all begin from; they add up to the raw
        output. Of a follower its two classes, over what its classifier reads."""
        if self._follower is not None:
            rows_NTF = self._follower(rows_NTF)
        matrix_ND, _ = self._derive(rows_NTF)
        found_NKD = sum(each.weight * each.contributions(matrix_ND) for each in self._members)
        assert isinstance(found_NKD, np.ndarray), "there is a member"
        totals_NKF = np.zeros((*found_NKD.shape[:2], rows_NTF.shape[2] + 1))
        for column, feature in enumerate(self._feature_of_D):
            totals_NKF[:, :, feature] += found_NKD[:, :, column]
        totals_NKF[:, :, -1] = found_NKD[:, :, -1]
        return totals_NKF


class _FollowerRows:
    """What a follower's classifier reads of whole windows, out of the bundle's graph; the same of every seed."""

    def __init__(self, file: Path) -> None:
        model = onnx.load(str(file))
        names = [name for node in model.graph.node for name in node.output if name.endswith(f"{CLASSIFIER}rows")]
        model.graph.output.append(onnx.helper.make_tensor_value_info(names[0], onnx.TensorProto.FLOAT, None))
        self._name = names[0]
        self._session = session(model)

    def __call__(self, rows_NTF: Floats32) -> Floats32:
        """(N, L, V)."""
        (read_NLV,) = self._session.run([self._name], {"rows": rows_NTF})
        return np.asarray(read_NLV, dtype=np.float32)


def _member(described: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> _Member:
    import lightgbm

    prefix = f"seed{described['seed']}." if "seed" in described else ""
    texts = [weights[f"{prefix}booster{place}"].tobytes().decode() for place in range(described["boosters"])]
    nothing_K = np.zeros(described["num_outputs"])
    return _Member(
        weight=described["weight"],
        boosters=tuple(lightgbm.Booster(model_str=text) for text in texts),
        keep_K=np.asarray(weights.get(f"{prefix}keep", nothing_K + 1.0), dtype=np.float64),
        shift_K=np.asarray(weights.get(f"{prefix}shift", nothing_K), dtype=np.float64),
    )
