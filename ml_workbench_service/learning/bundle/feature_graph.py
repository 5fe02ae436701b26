"""Feature graph: a version's network with its scaler in front, one ONNX file that takes features in their own units.

    features   (N, T, F) float64   values of the card's features in its order, oldest row first
    symbol     (N,) text           only of a version of several symbols: whose scale is meant, spelt as on the card
    positions  (N, 1) float32      only of policies: -1, 0 or 1, what is held

The row stage (`learning.data.scaling`) becomes nodes in double precision, cast to float32 where the network begins, so
that the network sees the rows that serving gives it: to the bit, except that level features' logarithms may differ in
the last bit of a double, which moves an answer by 1e-6 at most. The network's own nodes are taken over as they are.

When it fails: nothing is refused. A price of zero or below, which serving answers with an error, has no logarithm, and
its answer is no number; only a symbol that the version does not know is an error.

Legend: S symbols, N windows, T rows, F features.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from common_lib.exceptions import PredictionError
from ml_workbench_service.learning.data.scaling import LARGEST_ROW, RowScaler

FEATURES, SYMBOL, POSITIONS, ROWS = "features", "symbol", "positions", "rows"
PREFIX = "row_stage/"
LABEL_ENCODER_OPSET = 3
"""Of the domain `ai.onnx.ml`."""


def feature_graph(file: Path, scaler: RowScaler) -> ModelProto:
    """The graph of `file` behind the row stage of `scaler`; checked.

    Raises:
        PredictionError: the file is no graph, or not one of this service's.
    """
    try:
        network = onnx.load(str(file))
        model = _joined(network, scaler)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises protobuf's errors, and its own, which have no common class
        raise PredictionError(f"{file.name} is no graph that the row stage can stand before: {error}") from error
    return model


def _joined(network: ModelProto, scaler: RowScaler) -> ModelProto:
    inputs = {each.name: each for each in network.graph.input}
    if ROWS not in inputs:
        raise ValueError(f"it has no input `{ROWS}`")
    stage = _RowStage(scaler)
    num_features = len(scaler.features)
    asked = [helper.make_tensor_value_info(FEATURES, TensorProto.DOUBLE, ["N", "T", num_features])]
    if len(scaler.symbols) > 1:
        asked.append(helper.make_tensor_value_info(SYMBOL, TensorProto.STRING, ["N"]))
    asked += [each for name, each in inputs.items() if name != ROWS]
    opsets = {each.domain: each.version for each in network.opset_import}
    opsets.setdefault("ai.onnx.ml", LABEL_ENCODER_OPSET)
    return helper.make_model(
        helper.make_graph(
            [*stage.nodes, *network.graph.node],
            network.graph.name,
            asked,
            list(network.graph.output),
            [*stage.constants, *network.graph.initializer],
        ),
        opset_imports=[helper.make_opsetid(domain, number) for domain, number in sorted(opsets.items())],
        ir_version=network.ir_version,
        producer_name=network.producer_name,
        functions=list(network.functions),
    )


class _RowStage:
    """`RowScaler.rows` as nodes, from `features` to `rows`."""

    def __init__(self, scaler: RowScaler) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        scales = list(scaler.symbols.values())
        values = FEATURES
        if any(scaler.is_level_F):
            logs = self._add("Log", [FEATURES], "logs")
            is_level = self._constant("is_level", np.array(scaler.is_level_F))
            values = self._add("Where", [is_level, logs, FEATURES], "values")
        center = self._of_symbol("center", np.stack([each.center_F for each in scales]), tuple(scaler.symbols))
        scale = self._of_symbol("scale", np.stack([each.scale_F for each in scales]), tuple(scaler.symbols))
        centred = self._add("Sub", [values, center], "centred")
        scaled = self._add("Div", [centred, scale], "scaled")
        bounds = [self._constant("least", np.float64(-LARGEST_ROW)), self._constant("most", np.float64(LARGEST_ROW))]
        cut = self._add("Clip", [scaled, *bounds], "cut")
        self.nodes.append(helper.make_node("Cast", [cut], [ROWS], name=f"{PREFIX}cast", to=TensorProto.FLOAT))

    def _of_symbol(self, name: str, table_SF: np.ndarray, symbols: tuple[str, ...]) -> str:
        """The symbol's row of a table, as (N, 1, F); of one symbol it is a constant."""
        if len(symbols) == 1:
            return self._constant(name, table_SF[0].astype(np.float64))
        if not any(node.op_type == "LabelEncoder" for node in self.nodes):
            # a number that no row of the tables has makes the runtime refuse a symbol that is not known
            encoder = helper.make_node(
                "LabelEncoder", [SYMBOL], [f"{PREFIX}number"], name=f"{PREFIX}encode", domain="ai.onnx.ml",
                keys_strings=list(symbols), values_int64s=list(range(len(symbols))), default_int64=len(symbols),
            )  # fmt: skip
            self.nodes.append(encoder)
        table_S1F = self._constant(f"{name}s", table_SF[:, None].astype(np.float64))
        return self._add("Gather", [table_S1F, f"{PREFIX}number"], name)

    def _constant(self, name: str, value: np.ndarray | np.float64) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), f"{PREFIX}{name}"))
        return f"{PREFIX}{name}"

    def _add(self, operator: str, inputs: list[str], output: str) -> str:
        name = f"{PREFIX}{output}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name))
        return name
