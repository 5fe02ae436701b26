"""The hand-written GRU step against `torch.nn.GRU`, in double precision: outputs and every gradient."""

import pytest
import torch
from torch import Tensor, nn

from ml_workbench_service.learning.networks import gru_kernel
from ml_workbench_service.learning.networks.gru_kernel import GruPass

pytestmark = pytest.mark.processor

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def reference(features: int, units: int) -> nn.GRU:
    return nn.GRU(features, units).double()


def parameters(gru: nn.GRU) -> list[Tensor]:
    return [getattr(gru, name) for name in PARAMETERS]


def gradients(states_TNH: Tensor, upstream_TNH: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((states_TNH * upstream_TNH).sum(), inputs))


@pytest.mark.parametrize(
    ("steps", "windows", "features", "units"), [(1, 1, 1, 1), (3, 5, 2, 4), (24, 7, 4, 16), (10, 1, 6, 3)]
)
def test_states_and_gradients_equal_torchs(steps: int, windows: int, features: int, units: int) -> None:
    gru = reference(features, units)
    x_TNF = torch.randn(steps, windows, features, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(steps, windows, units, dtype=torch.float64)
    wanted, _ = gru(x_TNF)
    found = GruPass.apply(x_TNF, *parameters(gru))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    inputs = [x_TNF, *parameters(gru)]
    for ours, theirs in zip(gradients(found, upstream, inputs), gradients(wanted, upstream, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    gru = reference(2, 3)
    inputs = [torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True), *parameters(gru)]
    upstream = torch.randn(4, 2, 3, dtype=torch.float64)
    for place, found in enumerate(gradients(GruPass.apply(*inputs), upstream, inputs)):
        for number in range(found.numel()):
            sums = []
            for step in (1e-6, -1e-6):
                moved = [each.detach().clone() for each in inputs]
                moved[place].view(-1)[number] += step
                sums.append(float((GruPass.apply(*moved) * upstream).sum()))
            assert (sums[0] - sums[1]) / 2e-6 == pytest.approx(float(found.view(-1)[number]), abs=1e-7)


def test_a_gradient_of_the_last_state_alone_is_right_too() -> None:
    """What a forecaster asks for: all other states get no gradient from above."""
    gru = reference(3, 4)
    x_TNF = torch.randn(6, 2, 3, dtype=torch.float64)
    found = GruPass.apply(x_TNF, *parameters(gru))[-1]
    wanted = gru(x_TNF)[0][-1]
    upstream = torch.randn(2, 4, dtype=torch.float64)
    ours, theirs = gradients(found, upstream, parameters(gru)), gradients(wanted, upstream, parameters(gru))
    for each, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-12)


def test_lengths_that_come_and_go_do_not_disturb_each_other() -> None:
    gru = reference(3, 5)
    for steps in (8, 3, 8, 5, 12, 4, 12, 1):
        x_TNF = torch.randn(steps, 4, 3, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(steps, 4, 5, dtype=torch.float64)
        inputs = [x_TNF, *parameters(gru)]
        found, wanted = GruPass.apply(*inputs), gru(x_TNF)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
        for ours, theirs in zip(gradients(found, upstream, inputs), gradients(wanted, upstream, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_two_passes_under_way_at_once_keep_their_own_buffers() -> None:
    gru = reference(3, 5)
    first, second = (torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    upstream = torch.randn(6, 4, 5, dtype=torch.float64)
    found_first = GruPass.apply(first, *parameters(gru))
    found_second = GruPass.apply(second, *parameters(gru))
    for x_TNF, found in ((first, found_first), (second, found_second)):
        torch.testing.assert_close(
            gradients(found, upstream, [x_TNF])[0],
            gradients(gru(x_TNF)[0], upstream, [x_TNF])[0],
            rtol=1e-10,
            atol=1e-12,
        )


def test_stacked_layers_equal_torchs() -> None:
    gru = nn.GRU(3, 4, 2).double()
    x_TNF = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 2, 4, dtype=torch.float64)
    states = x_TNF
    for layer in range(2):
        states = GruPass.apply(states, *(getattr(gru, name.replace("l0", f"l{layer}")) for name in PARAMETERS))
    inputs = [x_TNF, *gru.parameters()]
    for ours, theirs in zip(
        gradients(states, upstream, inputs), gradients(gru(x_TNF)[0], upstream, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_second_backward_pass_is_refused_with_what_to_do() -> None:
    gru = reference(2, 3)
    states = GruPass.apply(torch.randn(4, 2, 2, dtype=torch.float64), *parameters(gru))
    states.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the network again"):
        states.sum().backward()


def test_windows_of_every_length_share_one_set_of_buffers() -> None:
    """Each length once kept its own: at long lookbacks that was gigabytes by the end of a training."""
    gru = nn.GRU(3, 6)
    for steps in range(3, 60):
        GruPass.apply(torch.randn(steps, 4, 3), *parameters(gru)).sum().backward()
    kept = [
        space for spaces in gru_kernel._Workspace._free.values() for space in spaces if space.gates_TNG.shape[1] == 4
    ]
    kept = [space for space in kept if space.new_TNH.shape[2:] == (6,) and space.new_TNH.dtype == torch.float32]
    assert [len(space.state_TNH) for space in kept] == [60]
