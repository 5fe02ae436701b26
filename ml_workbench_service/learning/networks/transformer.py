"""A causal transformer encoder over windows in torch; its answer is read at the newest bar.

Positions are rotary (RoFormer, Su et al. 2021, arXiv:2104.09864): a query meets a key by how many bars lie between
them, never by a place in the lookback. So there is nothing to learn for places that few windows reach, and a short
window is the end of a long one. Learned positions were left for that reason: places beyond the short windows would be
trained less. Angles count bars back from the newest, whose own query therefore needs no turning.

Blocks normalise first (Xiong et al., ICML 2020, arXiv:2002.04745), which trains without a warm-up, and their products
have no biases (PaLM, Chowdhery et al. 2022, arXiv:2204.02311). Only the newest bar's state is read, so the last block
asks for that one alone.

Legend: N windows, T rows, L the lookback, F features, D units, H heads, E units of a head, P = E / 2 pairs, K outputs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.windowed import WindowedNetwork

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
