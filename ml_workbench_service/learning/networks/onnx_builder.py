"""ONNX graph builder: the window stage that every family's graph begins with, and the frame around its nodes.

Graphs are written node by node. torch's exporter was measured and left: it takes 4 to 13 seconds, fixes the window's
length for more than one recurrent layer, and leaves the weights behind slices so that quantisation skips the LSTM.
These graphs have no node too many, any batch and length, and answer faster; `export` compares each with its network.

Legend: N windows, T rows, F features, K outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from common_lib.exceptions import DataValidationError
from ml_workbench_service.learning.fitting.ensemble_graph import moved, renamed

OPSETS: Mapping[str, int] = {"": 20, "ai.onnx.ml": 3}
"""Version of each domain's operators; of a domain that is not here, the first."""
IR_VERSION = 10
Shape = Sequence[str | int]


class Graph:
    """Nodes and constants in the order they are added; begins with the window stage.

    Args:
        is_level_F: the columns from which the window's mean is subtracted.
        has_positions: whether there is a second input, `positions` (N, 1).

    Attributes:
        windows: name of the windows (N, T, F) after that stage.
    """

    def __init__(self, is_level_F: Sequence[bool], *, has_positions: bool = False) -> None:
        self._has_positions = has_positions
        self._num_features = len(is_level_F)
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self.windows = _window_stage(self, is_level_F)
        self.add("Gather", [self.windows, self.constant("last", np.int64(-1))], ["last_rows"], axis=1)

    def constant(self, name: str, value: Any) -> str:
        """Keeps a constant and returns its name."""
        self._constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Adds a node; `domain="ai.onnx.ml"` takes the operator from there, and the model imports that domain once."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def include(self, model: ModelProto, prefix: str) -> None:
        """Adds another graph as it is, every name under the prefix: it reads `{prefix}rows`, which must be there.

        Raises:
            DataValidationError: it was written for other versions of the operators.
        """
        for each in model.opset_import:
            if each.version != OPSETS.get(each.domain, 1):
                raise DataValidationError.at(
                    "body.meta.primary",
                    "the primary was published by a release whose graphs cannot be joined with today's; train it again",
                )
        names = {"rows": f"{prefix}rows"}
        self._nodes += [renamed(node, prefix, names) for node in model.graph.node]
        self._constants += [moved(each, prefix) for each in model.graph.initializer]

    def model(self, name: str, *, num_outputs: int) -> ModelProto:
        """`rows` (N, T, F) → `outputs` (N, K) and `last_rows` (N, F), the last row after the window stage; checked."""
        inputs: dict[str, Shape] = {"rows": ["N", "T", self._num_features]}
        if self._has_positions:
            inputs["positions"] = ["N", 1]
        outputs: dict[str, Shape] = {"outputs": ["N", num_outputs], "last_rows": ["N", self._num_features]}
        model = helper.make_model(
            helper.make_graph(self._nodes, name, _described(inputs), _described(outputs), self._constants),
            opset_imports=[
                helper.make_opsetid(domain, OPSETS.get(domain, 1))
                for domain in sorted({"", *(node.domain for node in self._nodes)})
            ],
            ir_version=IR_VERSION,
            producer_name="ml-workbench",
        )
        checker.check_model(model, full_check=True)
        return model


def _described(shapes: Mapping[str, Shape]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def _window_stage(graph: Graph, is_level_F: Sequence[bool]) -> str:
    """Level columns lose their mean over the window; without any, the rows pass as they are.

    The mean is a pooling over each feature's own T values: onnxruntime's ReduceMean adds them up in an order that
    depends on the batch, so that the last bits of an answer would depend on its neighbours.
    """
    if not any(is_level_F):
        return "rows"
    graph.add("Transpose", ["rows"], ["features_first"], perm=[0, 2, 1])
    graph.add("GlobalAveragePool", ["features_first"], ["feature_means"])
    graph.add("Transpose", ["feature_means"], ["mean"], perm=[0, 2, 1])
    graph.add("Mul", ["mean", graph.constant("is_level", np.array(is_level_F, np.float32))], ["shift"])
    graph.add("Sub", ["rows", "shift"], ["windows"])
    return "windows"
