"""One thread or several: the weights are the same, and several are given up where they fall behind."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ml_workbench_service.learning.fitting.thread_tuning import PATIENCE, PROBE, SHORTEST, ThreadTuner


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("units", [16, 64, 128])
def test_the_number_of_threads_changes_no_bit_of_the_weights(cell: type[nn.RNNBase], units: int) -> None:
    assert torch.equal(trained(cell, units, threads=[1]), trained(cell, units, threads=[2]))
    assert torch.equal(trained(cell, units, threads=[1]), trained(cell, units, threads=[1, 2, 2]))


def trained(cell: type[nn.RNNBase], units: int, *, threads: list[int]) -> torch.Tensor:
    """Weights after ten steps, with these numbers of threads in turn."""
    torch.manual_seed(3)
    rnn, head = cell(4, units), nn.Linear(units, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    adam = torch.optim.Adam(parameters, lr=0.01, fused=True)
    for step in range(10):
        torch.set_num_threads(threads[step % len(threads)])
        adam.zero_grad()
        states, _ = rnn(torch.randn(24, 32, 4))
        nn.functional.mse_loss(head(states[-1]), torch.randn(32, 1)).backward()
        adam.step()
    return torch.cat([each.detach().reshape(-1) for each in parameters])


def test_several_threads_are_tried_and_given_up_where_they_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    tuner = ThreadTuner(2)
    seen = []
    for _ in range(PROBE + 2 * PATIENCE + 5):
        tuner.next_batch()
        seen.append(torch.get_num_threads())
        now += 0.003 if torch.get_num_threads() == 1 else 0.030
    assert 2 in seen
    assert seen[-1] == 1
    assert seen.count(2) <= 3, "a tenth of the speed is noticed within a few batches"


def test_several_threads_are_kept_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    tuner = ThreadTuner(2)
    seen = []
    for _ in range(2 * SHORTEST):
        tuner.next_batch()
        seen.append(torch.get_num_threads())
        now += 0.003 if torch.get_num_threads() == 1 else 0.002
    assert seen.count(2) > 0.9 * len(seen)
