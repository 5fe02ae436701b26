"""The hand-written LSTM and GRU step against torch's own, in double precision: outputs and every gradient."""

import pytest
import torch
from torch import Tensor, nn

from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.networks import recurrent_kernel
from ml_workbench_service.learning.networks.heads import forecast_head
from ml_workbench_service.learning.networks.recurrent import KERNEL_SIZES, RecurrentForecaster
from ml_workbench_service.learning.networks.recurrent_kernel import CELLS, RecurrentPass

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
HEAD = forecast_head([parse_target("price_change_1h")], ())

pytestmark = pytest.mark.parametrize("cell", ["LSTM", "GRU"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def reference(cell: str, features: int, units: int, layers: int = 1) -> nn.RNNBase:
    rnn: nn.RNNBase = getattr(nn, cell)(features, units, layers)
    return rnn.double()


def parameters(rnn: nn.RNNBase) -> list[Tensor]:
    return [getattr(rnn, name) for name in PARAMETERS]


def states(rnn: nn.RNNBase, x_TNF: Tensor, *given: Tensor, last: bool = False) -> Tensor:
    found: Tensor = RecurrentPass.apply(CELLS[rnn.mode], last, x_TNF, *(given or parameters(rnn)))
    return found


def gradients(outputs: Tensor, upstream: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((outputs * upstream).sum(), inputs))


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for each, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-12, atol=1e-12)


@pytest.mark.processor
@pytest.mark.parametrize(
    ("steps", "windows", "features", "units"),
    [(1, 1, 1, 1), (3, 5, 2, 4), (24, 7, 4, 16), (10, 1, 6, 3), (60, 3, 2, 37), (5, 2, 40, 8)],
)
@pytest.mark.parametrize("last", [False, True])
def test_states_and_gradients_equal_torchs(
    cell: str, steps: int, windows: int, features: int, units: int, last: bool
) -> None:
    rnn = reference(cell, features, units)
    x_TNF = torch.randn(steps, windows, features, dtype=torch.float64, requires_grad=True)
    wanted = rnn(x_TNF)[0][-1] if last else rnn(x_TNF)[0]
    found = states(rnn, x_TNF, last=last)
    upstream = torch.randn(wanted.shape, dtype=torch.float64)
    inputs = [x_TNF, *parameters(rnn)]
    assert_equal([found], [wanted])
    assert_equal(gradients(found, upstream, inputs), gradients(wanted, upstream, inputs))


def test_gradients_equal_finite_differences(cell: str) -> None:
    rnn = reference(cell, 2, 3)
    inputs = [torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True), *parameters(rnn)]
    upstream = torch.randn(4, 2, 3, dtype=torch.float64)
    for place, found in enumerate(gradients(states(rnn, *inputs), upstream, inputs)):
        for number in range(found.numel()):
            sums = []
            for step in (1e-6, -1e-6):
                moved = [each.detach().clone() for each in inputs]
                moved[place].view(-1)[number] += step
                sums.append(float((states(rnn, *moved) * upstream).sum()))
            assert (sums[0] - sums[1]) / 2e-6 == pytest.approx(float(found.reshape(-1)[number]), abs=1e-7)


@pytest.mark.processor
def test_large_inputs_saturate_as_torchs_do(cell: str) -> None:
    """The gates' tanh is a fraction up to 20, and one beyond."""
    rnn = reference(cell, 1, 8)
    x_TNF = torch.tensor([-1e300, -1e3, -45.0, -20.0, -1e-9, 0.0, 1e-9, 20.0, 45.0, 1e3, 1e300], dtype=torch.float64)
    assert_equal([states(rnn, x_TNF.view(1, -1, 1))], [rnn(x_TNF.view(1, -1, 1))[0]])


def test_a_nan_stays_one(cell: str) -> None:
    """Otherwise absurd features would train on in silence; the loop raises where the loss is no number."""
    rnn = reference(cell, 2, 5)
    x_TNF = torch.randn(4, 2, 2, dtype=torch.float64)
    x_TNF[1, 0, 0] = float("nan")
    found = states(rnn, x_TNF)
    assert found[1:, 0].isnan().all()
    assert found[:, 1].isfinite().all()


@pytest.mark.processor
def test_lengths_that_come_and_go_do_not_disturb_each_other(cell: str) -> None:
    rnn = reference(cell, 3, 5)
    for steps in (8, 3, 8, 5, 12, 4, 12, 1):
        x_TNF = torch.randn(steps, 4, 3, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(steps, 4, 5, dtype=torch.float64)
        inputs = [x_TNF, *parameters(rnn)]
        found, wanted = states(rnn, x_TNF), rnn(x_TNF)[0]
        assert_equal([found], [wanted])
        assert_equal(gradients(found, upstream, inputs), gradients(wanted, upstream, inputs))


@pytest.mark.processor
def test_two_passes_under_way_at_once_keep_their_own_buffers(cell: str) -> None:
    rnn = reference(cell, 3, 5)
    first, second = (torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    upstream = torch.randn(6, 4, 5, dtype=torch.float64)
    found_first, found_second = states(rnn, first), states(rnn, second)
    for x_TNF, found in ((first, found_first), (second, found_second)):
        assert_equal(gradients(found, upstream, [x_TNF]), gradients(rnn(x_TNF)[0], upstream, [x_TNF]))


@pytest.mark.processor
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_stacked_layers_in_a_forecaster_equal_torchs(cell: str, dropout: float) -> None:
    """Dropout draws the same numbers, so the same values fall out."""
    network = RecurrentForecaster(cell, is_level_F=(False,) * 3, units=4, layers=3, head=HEAD, dropout=dropout).double()
    x_TNF = torch.randn(7, 2, 3, dtype=torch.float64)
    upstream, inputs = torch.randn(2, 4, dtype=torch.float64), list(network.rnn.parameters())
    torch.manual_seed(1)
    found = network._by_kernel(x_TNF)
    torch.manual_seed(1)
    wanted = network.rnn(x_TNF)[0][-1]
    assert_equal([found], [wanted])
    assert_equal(gradients(found, upstream, inputs), gradients(wanted, upstream, inputs))


def test_only_training_of_small_batches_takes_the_kernel(cell: str) -> None:
    network = RecurrentForecaster(cell, is_level_F=(False,) * 3, units=5, layers=1, head=HEAD, dropout=0.0)
    most = KERNEL_SIZES[cell] // 5
    assert network.train()._suits_kernel(torch.empty(1, most, 3))
    assert not network._suits_kernel(torch.empty(1, most + 1, 3))
    assert not network._suits_kernel(torch.empty(1, 1, 3, device="meta"))
    assert not network.eval()._suits_kernel(torch.empty(1, 1, 3))


def test_a_second_backward_pass_is_refused_with_what_to_do(cell: str) -> None:
    rnn = reference(cell, 2, 3)
    found = states(rnn, torch.randn(4, 2, 2, dtype=torch.float64))
    found.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the network again"):
        found.sum().backward()


def test_windows_of_every_length_share_one_set_of_buffers(cell: str) -> None:
    """Each length once kept its own: at long lookbacks that was gigabytes by the end of a training."""
    rnn = reference(cell, 3, 6)
    recurrent_kernel._Workspace._free.clear()
    for steps in range(3, 60):
        states(rnn, torch.randn(steps, 4, 3, dtype=torch.float64)).sum().backward()
    (kept,) = (space for spaces in recurrent_kernel._Workspace._free.values() for space in spaces)
    assert kept.steps == 59
