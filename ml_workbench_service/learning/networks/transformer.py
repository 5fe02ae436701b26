"""Causal transformer encoder over windows, in torch and as an ONNX graph; its answer is read at the newest bar.

Positions are rotary (RoFormer, Su et al. 2021, arXiv:2104.09864): a query meets a key by how many bars lie between
them, never by a place in the lookback. So there is nothing to learn for places that few windows reach, and a short
window is the end of a long one. Learned positions were left for that reason: places beyond the short windows would be
trained less. Angles count bars back from the newest, whose own query therefore needs no turning.

Blocks normalise first (Xiong et al., ICML 2020, arXiv:2002.04745), which trains without a warm-up, and their products
have no biases (PaLM, Chowdhery et al. 2022, arXiv:2204.02311). Only the newest bar's state is read, so the last block
asks for that one alone.

The graph is built node by node. An answer must not depend on the windows beside it, to the last bit. Matrix products
with a constant and products within a window keep that on onnxruntime's processor kernels, and so do Softmax,
LayerNormalization and Gelu: each adds up a row by itself, in one order. ReduceMean, ReduceSum and Softplus do not; none
is used.

Legend: N windows, T rows, L the lookback, F features, D units, H heads, E units of a head, P = E / 2 pairs, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.learning.networks.heads import Head
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.learning.networks.windowed import WindowedNetwork

LAST = np.iinfo(np.int64).max


ROTARY_BASE = 10_000.0
"""Su et al. 2021, section 3.2.2: pairs turn once in 2 pi bars, the fastest, to nearly 2 pi x 10,000, the slowest."""


@dataclass(frozen=True)
class TransformerShape:
    """The sizes that, with the weights, make the network again. `units` is a multiple of twice `heads`."""

    units: int
    heads: int
    layers: int
    feedforward_units: int
    lookback: int

    @property
    def width(self) -> int:
        """Units of one head."""
        return self.units // self.heads


class TransformerEncoderNetwork(WindowedNetwork):
    """Window stage, input projection, causal blocks, the newest bar's state through a norm and one linear layer."""

    def __init__(
        self,
        is_level_F: tuple[bool, ...],
        *,
        shape: TransformerShape,
        head: Head,
        dropout: float,
    ) -> None:
        """Draws random weights from torch's generator.

        Args:
            is_level_F: the columns from which the window's mean is subtracted.
            shape: the sizes.
            head: what becomes of the last layer's values.
            dropout: share of units dropped from every branch of a block, and before the last layer.
        """
        super().__init__(is_level_F)
        self.finish = head.finish
        self.project = nn.Linear(len(is_level_F), shape.units)
        self.blocks = nn.ModuleList(_Block(shape, dropout=dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.units)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(shape.units, head.num_raw)
        turns_LP = np.exp(1j * rotary_angles(shape.lookback, shape.width)).astype(np.complex64)
        self.turns_L1P: Tensor
        self.register_buffer("turns_L1P", torch.from_numpy(turns_LP)[:, None], persistent=False)

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows, at most `lookback` of them → (N, K)."""
        states_NTD = self.project(self.window_stage(rows_TNF).transpose(0, 1))
        turns_T1P = self.turns_L1P[-states_NTD.shape[1] :]
        *earlier, last = self.blocks
        for block in earlier:
            states_NTD = block(states_NTD, turns_T1P)
        assert isinstance(last, _Block)
        newest_ND = self.norm(last.newest(states_NTD, turns_T1P))
        return self.finish(self.head(self.dropout(newest_ND)))


def rotary_angles(lookback: int, width: int) -> np.ndarray:
    """Angles (L, P) of a head's pairs of units at each bar: zero at the newest, which is the last, negative before."""
    frequencies_P = ROTARY_BASE ** (-np.arange(0, width, 2) / width)
    angles_LP: np.ndarray = np.arange(1 - lookback, 1)[:, None] * frequencies_P
    return angles_LP


class _Block(nn.Module):
    """Attention, then two layers with GELU between them; each after a norm, each added to what came in."""

    def __init__(self, shape: TransformerShape, *, dropout: float) -> None:
        super().__init__()
        self.width, units = shape.width, shape.units
        self.norm_attention = nn.LayerNorm(units)
        self.query_key_value = nn.Linear(units, 3 * units, bias=False)
        self.merge = nn.Linear(units, units, bias=False)
        self.norm_feedforward = nn.LayerNorm(units)
        self.up = nn.Linear(units, shape.feedforward_units, bias=False)
        self.down = nn.Linear(shape.feedforward_units, units, bias=False)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():  # as GPT-2 does: the sum of all branches begins as wide as one, however many there are
            for branch in (self.merge, self.down):
                branch.weight.mul_((2 * shape.layers) ** -0.5)

    def forward(self, states_NTD: Tensor, turns_T1P: Tensor) -> Tensor:
        """Every bar looks at itself and the bars before it."""
        normed_NTD, units = self.norm_attention(states_NTD), states_NTD.shape[-1]
        weight = self.query_key_value.weight
        both = _turned(self._heads(nn.functional.linear(normed_NTD, weight[: 2 * units])), turns_T1P)
        query, key = both.transpose(1, 2).chunk(2, dim=1)
        value = self._heads(nn.functional.linear(normed_NTD, weight[2 * units :])).transpose(1, 2)
        attended_NHTE = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._after_attention(states_NTD, attended_NHTE.transpose(1, 2).flatten(2))

    def newest(self, states_NTD: Tensor, turns_T1P: Tensor) -> Tensor:
        """The newest bar alone (N, D): it looks at every bar, so nothing is masked, and its own angle is zero."""
        normed_NTD, units = self.norm_attention(states_NTD), states_NTD.shape[-1]
        weight = self.query_key_value.weight
        query = self._heads(nn.functional.linear(normed_NTD[:, -1:], weight[:units])).transpose(1, 2)
        key, value = self._heads(nn.functional.linear(normed_NTD, weight[units:])).chunk(2, dim=2)
        key = _turned(key, turns_T1P).transpose(1, 2)
        attended_NH1E = nn.functional.scaled_dot_product_attention(query, key, value.transpose(1, 2))
        return self._after_attention(states_NTD[:, -1:], attended_NH1E.transpose(1, 2).flatten(2))[:, 0]

    def _heads(self, joined: Tensor) -> Tensor:
        """(N, T, several D) → (N, T, several H, E)."""
        return joined.view(*joined.shape[:2], -1, self.width)

    def _after_attention(self, states_NTD: Tensor, attended_NTD: Tensor) -> Tensor:
        states_NTD = states_NTD + self._dropped(self.merge(attended_NTD))
        hidden = nn.functional.gelu(self.up(self.norm_feedforward(states_NTD)))
        added: Tensor = states_NTD + self._dropped(self.down(hidden))
        return added

    def _dropped(self, branch_NTD: Tensor) -> Tensor:
        """In training some units are dropped, the same ones for all bars of a window (Gal and Ghahramani, NeurIPS 2016,
        arXiv:1512.05287): drawing them for every bar would cost a tenth of the step."""
        if not self.training or not self.dropout.p:
            return branch_NTD
        kept_N1D: Tensor = self.dropout(branch_NTD.new_ones(len(branch_NTD), 1, branch_NTD.shape[-1]))
        return branch_NTD * kept_N1D


def _turned(heads_NTHE: Tensor, turns_T1P: Tensor) -> Tensor:
    """Neighbouring units are a complex number, multiplied by their bar's."""
    pairs_NTHP = torch.view_as_complex(heads_NTHE.view(*heads_NTHE.shape[:-1], -1, 2))
    return torch.view_as_real(pairs_NTHP * turns_T1P).flatten(-2)


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
