"""The GRU's training step on a CPU, with a hand-written backward pass: about twice as fast as torch's own.

Torch has a fused CPU kernel for the LSTM but none for the GRU, which therefore records some twenty small operations
per time step. Here the recurrence keeps six, and the backward pass three: whatever does not depend on the recurrent
gradient is computed for all time steps at once beforehand, the weight gradients for all time steps at once afterwards.

    r, z = sigmoid(x W_ir + h W_hr + b), sigmoid(x W_iz + h W_hz + b)    torch's gate order: r, z, n
    q    = h W_hn + b_hn
    n    = tanh(x W_in + b_in + r q)
    h'   = n + z (h - n)

    dh' given:  d[r z q] = dh' · [(1-z)(1-n²) r q (1-r),  (h-n) z (1-z),  (1-z)(1-n²) r]
                dh       = dh' z + d[r z q] W_h

Shape legend: T time steps, N windows, F features, H hidden units. Valid for one direction, zero initial state, any
floating dtype, CPU. Elsewhere (CUDA, evaluation, export) use `torch.nn.GRU`, whose parameters these are.
"""

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Workspace:
    """Buffers of one forward and backward pass, and their views by time step (making those costs a third of a pass).

    A pass over fewer steps uses the first ones, so that windows of every length share one set of buffers.
    """

    _free: ClassVar[dict[tuple[Any, ...], list["_Workspace"]]] = defaultdict(list)

    def __init__(self, steps: int, windows: int, units: int, dtype: torch.dtype) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(steps, windows, *shape, dtype=dtype)

        self.steps, self.key = steps, (windows, units, dtype)
        self.gates_TNG, self.new_TNH, self.inner_TNH = empty(2 * units), empty(units), empty(units)
        self.state_TNH = torch.zeros(steps + 1, windows, units, dtype=dtype)
        self.factor_TN3H, self.delta_TN3H, self.dstate_TNH = empty(3, units), empty(3, units), empty(units)
        self.keep_TNH, self.slope_TNH, self.spare_TNH = empty(units), empty(units), empty(units)
        reset_TNH, update_TNH = self.gates_TNG[:, :, :units], self.gates_TNG[:, :, units:]
        self.reset_TNH, self.update_TNH = reset_TNH, update_TNH
        self.forward_steps = list(
            zip(
                self.state_TNH[:-1].unbind(0),
                self.gates_TNG.unbind(0),
                self.new_TNH.unbind(0),
                self.inner_TNH.unbind(0),
                reset_TNH.unbind(0),
                update_TNH.unbind(0),
                self.state_TNH[1:].unbind(0),
                strict=True,
            )
        )
        dstates = self.dstate_TNH.unbind(0)
        self.backward_steps = list(
            zip(
                self.factor_TN3H.unbind(0),
                self.dstate_TNH.unsqueeze(2).unbind(0),
                self.delta_TN3H.unbind(0),
                self.delta_TN3H.flatten(2).unbind(0),
                update_TNH.unbind(0),
                dstates,
                strict=True,
            )
        )
        self.dstates = dstates

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


class GruPass(torch.autograd.Function):
    """`GruPass.apply(x_TNF, w_ih, w_hh, b_ih, b_hh) -> h_TNH`, with the parameters of one `torch.nn.GRU` layer."""

    @staticmethod
    def forward(ctx: Any, x_TNF: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        """All hidden states, after each time step."""
        steps, windows, _ = x_TNF.shape
        units = w_hh.shape[1]
        space = _Workspace.lease(steps, windows, units, x_TNF.dtype)
        rows, split = x_TNF.flatten(0, 1), 2 * units
        torch.addmm(b_ih[:split] + b_hh[:split], rows, w_ih[:split].t(), out=space.gates_TNG[:steps].flatten(0, 1))
        torch.addmm(b_ih[split:], rows, w_ih[split:].t(), out=space.new_TNH[:steps].flatten(0, 1))
        w_gates, w_inner = w_hh[:split].t().contiguous(), w_hh[split:].t().contiguous()
        b_inner = b_hh[split:].expand(windows, units).contiguous()
        addmm, lerp = torch.addmm, torch.lerp
        for h, gates, new, inner, reset, update, following in space.forward_steps[:steps]:
            gates.addmm_(h, w_gates).sigmoid_()
            addmm(b_inner, h, w_inner, out=inner)
            new.addcmul_(reset, inner).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh; torch's own is four times slower
            lerp(new, h, update, out=following)
        ctx.space = space
        ctx.save_for_backward(x_TNF, w_ih, w_hh)
        return space.state_TNH[1 : steps + 1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TNH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the five arguments, in order."""
        x_TNF, w_ih, w_hh = ctx.saved_tensors
        space: _Workspace | None = ctx.space
        if space is None:
            raise RuntimeError("the GRU's graph is freed after one backward pass; call the network again")
        ctx.space = None
        steps = len(x_TNF)
        _factors(space, steps)
        douts, dstates = dout_TNH.unbind(0), space.dstates
        dstates[steps - 1].copy_(douts[-1])
        mul, addcmul = torch.mul, torch.addcmul
        for t in range(steps - 1, -1, -1):
            factor, dstate_3, delta_3, delta, update, dstate = space.backward_steps[t]
            mul(factor, dstate_3, out=delta_3)
            if t:
                addcmul(douts[t - 1], update, dstate, out=dstates[t - 1]).addmm_(delta, w_hh)
        delta_MG = space.delta_TN3H[:steps].flatten(2).flatten(0, 1)
        dw_hh, db_hh = delta_MG.t() @ space.state_TNH[:steps].flatten(0, 1), delta_MG.sum(0)
        inner_delta = space.delta_TN3H[:steps, :, 2]
        torch.mul(space.slope_TNH[:steps], space.dstate_TNH[:steps], out=inner_delta)  # from d q to d(x W_in)
        dw_ih, db_ih = delta_MG.t() @ x_TNF.flatten(0, 1), delta_MG.sum(0)
        dx_TNF = (delta_MG @ w_ih).view_as(x_TNF) if ctx.needs_input_grad[0] else None
        space.give_back()
        return dx_TNF, dw_ih, dw_hh, db_ih, db_hh


def _factors(space: _Workspace, steps: int) -> None:
    """`factor_TN3H` of the module's docstring, and `slope_TNH` = (1-z)(1-n²), for all time steps at once."""
    reset, update, new, spare, keep, slope, factor, inner = (
        each[:steps]
        for each in (
            space.reset_TNH,
            space.update_TNH,
            space.new_TNH,
            space.spare_TNH,
            space.keep_TNH,
            space.slope_TNH,
            space.factor_TN3H,
            space.inner_TNH,
        )
    )
    torch.sub(1, update, out=keep)
    torch.mul(new, new, out=spare)
    torch.addcmul(keep, keep, spare, value=-1, out=slope)
    torch.mul(slope, reset, out=factor[:, :, 2])
    torch.sub(1, reset, out=spare).mul_(inner)
    torch.mul(factor[:, :, 2], spare, out=factor[:, :, 0])
    torch.sub(space.state_TNH[:steps], new, out=spare).mul_(update)
    torch.mul(spare, keep, out=factor[:, :, 1])
