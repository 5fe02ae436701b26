"""Adam with gradient clipping (Kingma and Ba, ICLR 2015, arXiv:1412.6980), in as few operations as the device allows.

On a processor a small network spends a fifth of its step on bookkeeping per tensor. There all parameters, and all
gradients, are views of one flat vector each, so that clipping, Adam and zeroing are one operation each. The
class `torch.optim.Adam` is not used on processors: making the first one loads torch's compiler, four seconds of each
training; the kernel behind it steps the flat vector. On CUDA the parameters keep the layout that cuDNN wants.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8
GRADIENT_NORM = 1.0
"""Pascanu, Mikolov and Bengio, ICML 2013: longer gradients are scaled down to this norm."""


class ClippedAdam:
    """`zero_grad`, backward, `step`; the network's gradients must not be set to None in between."""

    def __init__(self, network: nn.Module, *, learning_rate: float) -> None:
        self._parameters = list(network.parameters())
        self._by_torch: torch.optim.Adam | None = None
        if self._parameters[0].device.type == "cpu":
            self._flat = _FlatAdam(self._parameters, learning_rate=learning_rate)
        else:
            self._by_torch = torch.optim.Adam(self._parameters, lr=learning_rate, fused=True)

    def zero_grad(self) -> None:
        """Forgets the last gradients."""
        if self._by_torch is None:
            self._flat.gradient.zero_()
        else:
            self._by_torch.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clips and applies the gradients."""
        if self._by_torch is None:
            self._flat.step()
            return
        nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM, foreach=True)
        self._by_torch.step()

    def state(self) -> dict[str, Tensor]:
        """Everything but the parameters that decides the next steps: both moments and the number of steps."""
        if self._by_torch is None:
            return self._flat.state()
        return {
            f"{number}.{name}": value
            for number, each in self._by_torch.state_dict()["state"].items()
            for name, value in each.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, into a fresh optimizer of the same network."""
        if self._by_torch is None:
            for name, value in self._flat.state().items():
                value.copy_(state[name])
            return
        whole = self._by_torch.state_dict()
        whole["state"] = {}
        for key, value in state.items():
            number, name = key.split(".", 1)
            whole["state"].setdefault(int(number), {})[name] = value
        self._by_torch.load_state_dict(whole)


class _FlatAdam:
    """Adam's state over one vector, stepped by the kernel behind `torch.optim.Adam(fused=True)`.

    The class `torch.optim.Adam` loads torch's compiler when the first one is made: four seconds of every training. Its
    functional form sorts the tensors by device and type at each step, which takes a small network as long as the
    kernel does.
    """

    def __init__(self, parameters: list[nn.Parameter], *, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._weights, self.gradient = _flattened(parameters)
        self._mean, self._square = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._num_steps = torch.zeros(())

    def state(self) -> dict[str, Tensor]:
        """The moments and the number of steps themselves, not copies."""
        return {"mean": self._mean, "square": self._square, "num_steps": self._num_steps}

    def step(self) -> None:
        """Nothing here is a parameter or tracked, so that no gradient mode has to be changed."""
        self.gradient.mul_((GRADIENT_NORM / (torch.linalg.vector_norm(self.gradient) + 1e-6)).clamp_(max=1.0))
        self._num_steps.add_(1)
        torch._fused_adam_(
            [self._weights], [self.gradient], [self._mean], [self._square], [], [self._num_steps],
            amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=self._learning_rate, weight_decay=0.0, eps=EPSILON,
            maximize=False,
        )  # fmt: skip


def _flattened(parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Makes parameters and gradients views of one vector each, and returns both vectors."""
    weights = torch.cat([each.detach().reshape(-1) for each in parameters])
    gradient = torch.zeros_like(weights)
    begin = 0
    for each in parameters:
        end = begin + each.numel()
        each.data = weights[begin:end].view_as(each)
        each.grad = gradient[begin:end].view_as(each)
        begin = end
    return weights, gradient
