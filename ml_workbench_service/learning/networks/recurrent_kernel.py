"""Backpropagation through time for one LSTM or GRU layer on a CPU, by hand.

Two operations per time step and direction: a matrix product by torch, and the rest of the cell by `cell_kernels`. A
row of a state holds the hidden units, the features of the next time step, and a one, so that the recurrent product
adds inputs and biases too, and the gradients of all weights are one product at the end.

    gates[t] = cell(states[t] W')        states[t + 1, :, :H] = h'        W = [W_h  W_x  b]
    dh      += delta[t] W_h              dW = sum over t of delta[t]' states[t]

Always on one thread: products of this size gain nothing from a second one, and the weights must not depend on the
number of threads. oneDNN's LSTM gradients do on processors without AVX-512.

Shape legend: T time steps, N windows, F features, H hidden units, G = 4 H gates, K = H + F + 1. Valid for one
direction, zero initial state, float32 and float64, CPU. Elsewhere (CUDA, evaluation, export) use torch's own layers,
whose parameters these are.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ml_workbench_service.learning.networks import cell_kernels


@dataclass(frozen=True)
class Cell:
    """What an LSTM and a GRU do not share."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    joined: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # torch's four parameters → W (G, K)
    parted: Callable[[Tensor, int], tuple[Tensor, ...]]  # its gradient → theirs


def _joined_lstm(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return torch.cat([w_hh, w_ih, (b_ih + b_hh)[:, None]], dim=1)


def _parted_lstm(d_GK: Tensor, units: int) -> tuple[Tensor, ...]:
    return d_GK[:, units:-1], d_GK[:, :units], d_GK[:, -1], d_GK[:, -1]


def _joined_gru(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """The new state's two products stay apart, because the reset gate scales only the one with the state."""
    units = w_hh.shape[1]
    split = 2 * units
    w_GK = w_hh.new_zeros(4 * units, units + w_ih.shape[1] + 1)
    w_GK[:split, :units], w_GK[3 * units :, :units] = w_hh[:split], w_hh[split:]
    w_GK[: 3 * units, units:-1], w_GK[: 3 * units, -1] = w_ih, b_ih
    w_GK[:split, -1] += b_hh[:split]
    w_GK[3 * units :, -1] = b_hh[split:]
    return w_GK


def _parted_gru(d_GK: Tensor, units: int) -> tuple[Tensor, ...]:
    recurrent_GK = torch.cat([d_GK[: 2 * units], d_GK[3 * units :]])
    return d_GK[: 3 * units, units:-1], recurrent_GK[:, :units], d_GK[: 3 * units, -1], recurrent_GK[:, -1]


CELLS = {
    "LSTM": Cell(cell_kernels.lstm_forward, cell_kernels.lstm_backward, _joined_lstm, _parted_lstm),
    "GRU": Cell(cell_kernels.gru_forward, cell_kernels.gru_backward, _joined_gru, _parted_gru),
}


class _Workspace:
    """Buffers of one forward and backward pass, their views by time step, and the same memory as numpy arrays.

    A pass over fewer steps uses the first ones, so that windows of every length share one set of buffers.
    """

    _free: ClassVar[dict[tuple[Any, ...], list["_Workspace"]]] = defaultdict(list)

    def __init__(self, steps: int, windows: int, features: int, units: int, dtype: torch.dtype) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=dtype)

        self.steps, self.key = steps, (windows, features, units, dtype)
        self.gates_TNG = zeros(steps, windows, 4 * units)
        self.states_TNK = zeros(steps + 1, windows, units + features + 1)
        cells_TNH, bounded_TNH = zeros(steps + 1, windows, units), zeros(steps, windows, units)
        self.states_TNK[:, :, -1] = 1
        self.dstate_NH, self.dcell_NH = zeros(windows, units), zeros(windows, units)
        self.nothing_TNH = zeros(steps, windows, units)
        self.gates, self.states = self.gates_TNG.unbind(0), self.states_TNK.unbind(0)
        self.for_forward = [each.numpy() for each in (self.gates_TNG, self.states_TNK, cells_TNH, bounded_TNH)]
        self.for_forward.append(np.array(cell_kernels.NUMBERS, dtype=self.for_forward[0].dtype))
        self.for_backward = [each.numpy() for each in (self.dstate_NH, self.dcell_NH)]

    @classmethod
    def lease(cls, steps: int, *key: Any) -> "_Workspace":
        """A free workspace of that shape and at least so many steps, else a new one in its place.

        A pass whose backward never comes simply drops its own.
        """
        free = cls._free[key]
        if free and (space := free.pop()).steps >= steps:
            return space
        return cls(steps, *key)

    def give_back(self) -> None:
        """Lets the next forward pass have it."""
        self._free[self.key].append(self)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Costs a third of a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class RecurrentPass(torch.autograd.Function):
    """`RecurrentPass.apply(cell, last, x_TNF, w_ih, w_hh, b_ih, b_hh)`, with the parameters of one layer of torch's.

    Gives the last state (N, H) or the states after each time step (T, N, H).
    """

    @staticmethod
    @_one_thread()
    def forward(ctx: Any, cell: Cell, last: bool, x_TNF: Tensor, *parameters: Tensor) -> Tensor:
        """The recurrence; autograd keeps its workspace until `backward`."""
        steps, windows, features = x_TNF.shape
        units = parameters[1].shape[1]
        space = _Workspace.lease(steps, windows, features, units, x_TNF.dtype)
        space.states_TNK[:steps, :, units:-1] = x_TNF
        w_GK = cell.joined(*parameters)
        w_KG = w_GK.t().contiguous()
        forward, arrays, mm = cell.forward, space.for_forward, torch.mm
        for t in range(steps):
            mm(space.states[t], w_KG, out=space.gates[t])
            forward(t, *arrays)
        ctx.cell, ctx.last, ctx.space, ctx.steps, ctx.w_GK = cell, last, space, steps, w_GK
        return space.states_TNK[steps if last else slice(1, steps + 1), ..., :units].clone(
            memory_format=torch.contiguous_format
        )

    @staticmethod
    @once_differentiable
    @_one_thread()
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, in order."""
        space: _Workspace | None = ctx.space
        if space is None:
            raise RuntimeError("the layer's graph is freed after one backward pass; call the network again")
        ctx.space = None
        steps, units = ctx.steps, dout.shape[-1]
        w_GH, dstate_NH = ctx.w_GK[:, :units], space.dstate_NH.zero_()
        space.dcell_NH.zero_()
        if ctx.last:
            dstate_NH.copy_(dout)
        dout_TNH = space.nothing_TNH if ctx.last else dout.contiguous()
        backward, arrays = ctx.cell.backward, [*space.for_forward, dout_TNH.numpy(), *space.for_backward]
        for t in range(steps - 1, -1, -1):
            backward(t, *arrays)
            dstate_NH.addmm_(space.gates[t], w_GH)
        delta_MG = space.gates_TNG[:steps].flatten(0, 1)
        d_GK = (space.states_TNK[:steps].flatten(0, 1).t() @ delta_MG).t()
        dx_TNF = None
        if ctx.needs_input_grad[2]:
            dx_TNF = (delta_MG @ ctx.w_GK[:, units:-1]).unflatten(0, (steps, -1))
        space.give_back()
        return None, None, dx_TNF, *ctx.cell.parted(d_GK, units)
