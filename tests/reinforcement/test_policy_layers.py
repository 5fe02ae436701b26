"""Gradients written out are those that torch derives."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ml_workbench_service.reinforcement.policy_network import ACTIVATIONS, Activation, Layers

pytestmark = pytest.mark.processor


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 3), (5, 7, 6, 3)])
def test_the_gradient_is_that_of_automatic_differentiation(activation: Activation, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    linear = [nn.Linear(num_in, num_out) for num_in, num_out in pairwise(sizes)]
    layers = Layers(linear, activation)
    inputs, slopes = torch.randn(11, 5), torch.randn(11, 3)
    outputs = layers(inputs)
    parameters = [each for layer in linear for each in (layer.weight, layer.bias)]
    wanted = torch.autograd.grad((outputs * slopes).sum(), parameters)
    assert torch.equal(layers.forward(inputs), outputs)
    layers.backward(slopes)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_gradient_replaces_the_one_before() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(4, 2)
    layers, inputs = Layers([layer], "tanh"), torch.randn(6, 4)
    found = []
    for _ in range(2):
        layers.forward(inputs)
        layers.backward(torch.ones(6, 2))
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone())
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], inputs.sum(0).expand(2, 4))
