"""`Layers`: fully connected layers with their gradient written out, over the parameters of `nn.Linear` modules.

For two layers of 64 units and a batch of 64, torch's automatic differentiation costs three times its products: it
builds a graph of some forty nodes for every step. Tests hold these gradients against it.

Legend: B inputs of a batch, D numbers of an input, A outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "relu"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Layers:
    """Asks and teaches; one batch at a time.

    Args:
        linear: the layers, which keep their parameters.
        activation: between them.
    """

    def __init__(self, linear: Sequence[nn.Linear], activation: Activation) -> None:
        self.linear = tuple(linear)
        self.activation: Activation = activation
        self._activate = ACTIVATIONS[activation]
        self._inputs: list[Tensor] = []

    def __call__(self, inputs_BD: Tensor) -> Tensor:
        """Outputs (B, A); differentiable as usual."""
        hidden = inputs_BD
        for layer in self.linear[:-1]:
            hidden = self._activate(nn.functional.linear(hidden, layer.weight, layer.bias))
        return nn.functional.linear(hidden, self.linear[-1].weight, self.linear[-1].bias)

    @torch.no_grad()
    def forward(self, inputs_BD: Tensor) -> Tensor:
        """Outputs (B, A), with what `backward` needs kept."""
        self._inputs = [inputs_BD]
        for layer in self.linear[:-1]:
            self._inputs.append(self._activate(torch.addmm(layer.bias, self._inputs[-1], layer.weight.t())))
        return torch.addmm(self.linear[-1].bias, self._inputs[-1], self.linear[-1].weight.t())

    @torch.no_grad()
    def backward(self, slopes_BA: Tensor) -> None:
        """Writes the gradient of every parameter, given the loss's slopes at the outputs of the last `forward`."""
        slopes = slopes_BA
        for number in range(len(self.linear) - 1, -1, -1):
            layer, inputs = self.linear[number], self._inputs[number]
            torch.mm(slopes.t(), inputs, out=_gradient(layer.weight))
            torch.sum(slopes, 0, out=_gradient(layer.bias))
            if number:
                through = 1 - inputs * inputs if self.activation == "tanh" else inputs > 0
                slopes = torch.mm(slopes, layer.weight) * through


def _gradient(parameter: Tensor) -> Tensor:
    """Where the gradient belongs: a view of the optimizer's flat vector, or its own memory."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
