"""`ClippedAdam` against torch's own Adam and gradient clipping, over several steps."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.adam import adam

from ml_workbench_service.learning.fitting.optimizer import BETAS, EPSILON, GRADIENT_NORM, ClippedAdam

pytestmark = pytest.mark.processor


class Net(nn.Module):
    """An LSTM and a head: several tensors of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x_TNF: torch.Tensor) -> torch.Tensor:
        """(N, 1)."""
        states, _ = self.rnn(x_TNF)
        answer: torch.Tensor = self.head(states[-1])
        return answer


def loss(network: nn.Module, scale: float, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    dtype = next(network.parameters()).dtype
    x_TNF, wanted = (torch.randn(*shape, generator=chance, dtype=dtype) for shape in ((6, 8, 3), (8, 1)))
    return scale * (network(x_TNF) - wanted).square().mean()


@pytest.mark.parametrize(("scale", "num_clipped"), [(1e-3, 0), (1e4, 12)])
def test_steps_equal_adam_with_clipping(scale: float, num_clipped: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ours = Net().double()
    theirs = copy.deepcopy(ours)
    optimizer = ClippedAdam(ours, learning_rate=0.01)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    clipped = 0
    for step in range(12):
        optimizer.zero_grad()
        found = loss(ours, scale, step)
        found.backward()
        optimizer.step()
        adam.zero_grad()
        wanted = loss(theirs, scale, step)
        wanted.backward()
        clipped += bool(nn.utils.clip_grad_norm_(theirs.parameters(), GRADIENT_NORM) > GRADIENT_NORM)
        adam.step()
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-11, msg=name)
    assert clipped == num_clipped


def test_weights_can_be_kept_and_put_back_while_they_share_one_vector() -> None:
    torch.manual_seed(0)
    network = Net()
    optimizer = ClippedAdam(network, learning_rate=0.1)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    before = loss(network, 1.0, 0).item()
    for _ in range(3):
        optimizer.zero_grad()
        loss(network, 1.0, 0).backward()
        optimizer.step()
    assert loss(network, 1.0, 0).item() != before
    network.load_state_dict(kept)
    assert loss(network, 1.0, 0).item() == before
    optimizer.zero_grad()
    loss(network, 1.0, 0).backward()
    optimizer.step()
    assert loss(network, 1.0, 0).item() != before


def test_a_step_is_that_of_torchs_functional_form_to_the_bit() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ours = Net()
    optimizer = ClippedAdam(ours, learning_rate=0.01)
    weights = torch.cat([each.detach().reshape(-1) for each in ours.parameters()])
    mean, square, num_steps = torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros(())
    for step in range(5):
        optimizer.zero_grad()
        loss(ours, 1.0, step).backward()
        gradient = torch.cat([each.grad.reshape(-1) for each in ours.parameters() if each.grad is not None])
        gradient.mul_((GRADIENT_NORM / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))
        adam(
            [weights], [gradient], [mean], [square], [], [num_steps], fused=True, amsgrad=False, beta1=BETAS[0],
            beta2=BETAS[1], lr=0.01, weight_decay=0.0, eps=EPSILON, maximize=False,
        )  # fmt: skip
        optimizer.step()
        assert torch.equal(torch.cat([each.detach().reshape(-1) for each in ours.parameters()]), weights)
