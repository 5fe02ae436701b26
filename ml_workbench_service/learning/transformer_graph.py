"""The ONNX graph of a transformer encoder, node by node.

An answer must not depend on the windows beside it, to the last bit. Matrix products with a constant and products
within a window keep that on onnxruntime's processor kernels, and so do Softmax, LayerNormalization and Gelu: each adds
up a row by itself, in one order. ReduceMean, ReduceSum and Softplus do not; none is used.

Legend: N windows, T rows, L the lookback, D units, H heads, E units of a head, P = E / 2 pairs, K outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.onnx_parts import Graph
from ml_workbench_service.learning.transformer import TransformerShape, rotary_angles

LAST = np.iinfo(np.int64).max


def transformer_graph(
    weights: Mapping[str, np.ndarray], *, shape: TransformerShape, is_level_F: Sequence[bool], head: Head
) -> ModelProto:
    """`rows` (N, T, F), T at most the lookback → `outputs` (N, K) and `last_rows` (N, F).

    Args:
        weights: named as `TransformerEncoderNetwork` names them.
        shape: the network's sizes.
        is_level_F: the columns from which the window's mean is subtracted.
        head: what becomes of the last layer's values.
    """
    graph = Graph(is_level_F)
    encoded_ND = _Encoder(graph, weights, shape).encoded()
    layer = [graph.constant("head_weight", weights["head.weight"]), graph.constant("head_bias", weights["head.bias"])]
    graph.add("Gemm", [encoded_ND, *layer], ["raw"], transB=1)
    head.add_to(graph, "raw")
    return graph.model("transformer", num_outputs=head.num_outputs)


class _Encoder:
    """From the graph's windows to the newest bar's state; what `_op` returns is the name of its output."""

    def __init__(self, graph: Graph, weights: Mapping[str, np.ndarray], shape: TransformerShape) -> None:
        self._graph = graph
        self._weights = weights
        self._shape = shape
        self._num_names = 0
        num_rows = self._op("Shape", ["rows"], start=1, end=2)
        self._cos_T1E, self._sin_T1E = self._tables(num_rows)
        self._mask_TT = self._mask(num_rows) if shape.layers > 1 else ""

    def encoded(self) -> str:
        """(N, D)."""
        projected = self._op("MatMul", [self._graph.windows, self._matrix("project")])
        states_NTD = self._op("Add", [projected, self._constant(self._weights["project.bias"])])
        for layer in range(self._shape.layers - 1):
            states_NTD = self._block(states_NTD, f"blocks.{layer}")
        return self._norm(self._newest(states_NTD, f"blocks.{self._shape.layers - 1}"), "norm")

    def _block(self, states_NTD: str, block: str) -> str:
        """Every bar looks at itself and the bars before it."""
        heads = self._shape.heads
        normed = self._norm(states_NTD, f"{block}.norm_attention")
        joined = self._op("MatMul", [normed, self._constant(self._query_key_value(block))])
        query_key, value = self._split(self._heads(joined), [2 * heads, heads])
        query, key = self._split(self._turned(query_key), [heads, heads])
        scores = self._op("MatMul", [self._op("Transpose", [query], perm=[0, 2, 1, 3]), self._keys(key)])
        attended_NHTE = self._attended(self._op("Add", [scores, self._mask_TT]), value)
        attended_NTHE = self._op("Transpose", [attended_NHTE], perm=[0, 2, 1, 3])
        return self._after_attention(states_NTD, self._reshaped(attended_NTHE, [0, 0, -1]), block)

    def _newest(self, states_NTD: str, block: str) -> str:
        """The newest bar looks at every bar: (N, T, D) → (N, D). Its own angle is zero, so its query is not turned."""
        heads, units = self._shape.heads, self._shape.units
        normed = self._norm(states_NTD, f"{block}.norm_attention")
        weight = self._query_key_value(block)
        newest_normed = self._op("Gather", [normed, self._constant(np.int64(-1))], axis=1)
        query = self._op("MatMul", [newest_normed, self._constant(weight[:, :units])])
        joined = self._op("MatMul", [normed, self._constant(weight[:, units:])])
        key, value = self._split(self._heads(joined), [heads, heads])
        query_NH1E = self._reshaped(query, [0, heads, 1, self._shape.width])
        scores = self._op("MatMul", [query_NH1E, self._keys(self._turned(key))])
        attended = self._reshaped(self._attended(scores, value), [0, -1])
        newest_ND = self._op("Gather", [states_NTD, self._constant(np.int64(-1))], axis=1)
        return self._after_attention(newest_ND, attended, block)

    def _query_key_value(self, block: str) -> np.ndarray:
        """The joint matrix (D, 3D). Heads of queries and keys have the first units of all pairs before the second ones,
        which changes no product of the two; each takes half of the division by the root of a head's width."""
        width, num_turned = self._shape.width, 2 * self._shape.units
        matrix = self._weights[f"{block}.query_key_value.weight"].T
        turned = matrix[:, :num_turned].reshape(len(matrix), -1, width // 2, 2).swapaxes(2, 3)
        return np.hstack([turned.reshape(len(matrix), -1) * np.float32(width**-0.25), matrix[:, num_turned:]])

    def _heads(self, joined: str) -> str:
        """(N, T, several D) → (N, T, several H, E)."""
        return self._reshaped(joined, [0, 0, -1, self._shape.width])

    def _turned(self, heads_NTHE: str) -> str:
        """Units turned by their bar's age."""
        first, second = self._split(heads_NTHE, [self._shape.width // 2] * 2, axis=3)
        swapped = self._op("Concat", [second, first], axis=3)
        by_cos, by_sin = self._op("Mul", [heads_NTHE, self._cos_T1E]), self._op("Mul", [swapped, self._sin_T1E])
        return self._op("Add", [by_cos, by_sin])

    def _keys(self, key_NTHE: str) -> str:
        return self._op("Transpose", [key_NTHE], perm=[0, 2, 3, 1])

    def _attended(self, scores: str, value_NTHE: str) -> str:
        value_NHTE = self._op("Transpose", [value_NTHE], perm=[0, 2, 1, 3])
        return self._op("MatMul", [self._op("Softmax", [scores], axis=-1), value_NHTE])

    def _after_attention(self, states: str, attended: str, block: str) -> str:
        states = self._op("Add", [states, self._op("MatMul", [attended, self._matrix(f"{block}.merge")])])
        normed = self._norm(states, f"{block}.norm_feedforward")
        hidden = self._op("Gelu", [self._op("MatMul", [normed, self._matrix(f"{block}.up")])])
        return self._op("Add", [states, self._op("MatMul", [hidden, self._matrix(f"{block}.down")])])

    def _norm(self, states: str, name: str) -> str:
        parameters = [self._constant(self._weights[f"{name}.{each}"]) for each in ("weight", "bias")]
        return self._op("LayerNormalization", [states, *parameters], epsilon=1e-5)

    def _tables(self, num_rows: str) -> tuple[str, str]:
        """Cosines and sines of the window's own, newest rows; the sines of the first units are negative."""
        angles_LP = rotary_angles(self._shape.lookback, self._shape.width)
        cos, sin = np.cos(angles_LP).astype(np.float32), np.sin(angles_LP).astype(np.float32)
        begin = self._op("Neg", [num_rows])
        ends = [self._constant(np.array([LAST])), self._constant(np.array([0]))]
        cos_T1E, sin_T1E = (
            self._op("Slice", [self._constant(np.hstack(halves)[:, None]), begin, *ends])
            for halves in ((cos, cos), (-sin, sin))
        )
        return cos_T1E, sin_T1E

    def _mask(self, num_rows: str) -> str:
        """Minus infinity where a bar would look at a later one."""
        lookback = self._shape.lookback
        mask_LL = np.triu(np.full((lookback, lookback), -np.inf, np.float32), k=1)
        ends = self._op("Concat", [num_rows, num_rows], axis=0)
        return self._op("Slice", [self._constant(mask_LL), self._constant(np.array([0, 0])), ends])

    def _matrix(self, name: str) -> str:
        return self._constant(self._weights[f"{name}.weight"].T)

    def _reshaped(self, name: str, sizes: list[int]) -> str:
        return self._op("Reshape", [name, self._constant(np.array(sizes))])

    def _split(self, name: str, sizes: list[int], axis: int = 2) -> list[str]:
        outputs = [self._new_name() for _ in sizes]
        self._graph.add("Split", [name, self._constant(np.array(sizes))], outputs, axis=axis)
        return outputs

    def _op(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        output = self._new_name()
        self._graph.add(operator, inputs, [output], **attributes)
        return output

    def _constant(self, value: Any) -> str:
        return self._graph.constant(self._new_name(), value)

    def _new_name(self) -> str:
        self._num_names += 1
        return f"encoder_{self._num_names}"
