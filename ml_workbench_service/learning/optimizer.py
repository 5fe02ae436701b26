"""Adam with clipped gradients (Kingma and Ba, ICLR 2015, arXiv:1412.6980), in as few operations as the device allows.

On a processor a small network spends a fifth of its step on bookkeeping per tensor. There all parameters, and all
gradients, are views of one flat vector each, so that clipping, Adam and zeroing are one operation each. On CUDA the
parameters keep the layout that cuDNN wants.
"""

import torch
from torch import nn

GRADIENT_NORM = 1.0
"""Pascanu, Mikolov and Bengio, ICML 2013: longer gradients are scaled down to this norm."""


class ClippedAdam:
    """`zero_grad`, backward, `step`; the network's gradients must not be set to None in between."""

    def __init__(self, network: nn.Module, *, learning_rate: float) -> None:
        self._parameters = list(network.parameters())
        self._flat: nn.Parameter | None = None
        if self._parameters[0].device.type == "cpu":
            self._flat = _flattened(self._parameters)
        optimized = self._parameters if self._flat is None else [self._flat]
        self._adam = torch.optim.Adam(optimized, lr=learning_rate, fused=True)

    def zero_grad(self) -> None:
        """Forgets the last gradients."""
        if self._flat is None:
            self._adam.zero_grad(set_to_none=True)
            return
        assert self._flat.grad is not None
        self._flat.grad.zero_()

    def step(self) -> None:
        """Clips and applies the gradients."""
        if self._flat is None:
            nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM, foreach=True)
        else:
            gradient = self._flat.grad
            assert gradient is not None
            gradient.mul_((GRADIENT_NORM / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))
        self._adam.step()


def _flattened(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Makes parameters and gradients views of one vector each, and returns it with its gradient."""
    flat = nn.Parameter(torch.cat([each.detach().reshape(-1) for each in parameters]))
    flat.grad = torch.zeros_like(flat)
    begin = 0
    for each in parameters:
        end = begin + each.numel()
        each.data = flat.detach()[begin:end].view_as(each)
        each.grad = flat.grad[begin:end].view_as(each)
        begin = end
    return flat
