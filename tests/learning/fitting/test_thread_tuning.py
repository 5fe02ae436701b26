"""One thread or several: the weights are the same, and several are given up where they fall behind."""

from collections.abc import Iterator

import pytest
import torch

from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.fitting.loop import PATIENCE, PROBE, SHORTEST, Schedule, ThreadTuner, fit
from ml_workbench_service.learning.fitting.objectives import SquaredError
from ml_workbench_service.learning.networks.heads import forecast_head
from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster
from ml_workbench_service.testing.synthetic import IS_LEVEL, Recorder, cut, symbol_rows


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.processor
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("units", [16, 64, 128])
def test_the_number_of_threads_changes_no_bit_of_the_weights(cell: str, units: int) -> None:
    """Small batches by our kernel, an LSTM of 128 units by torch's: that one trains on one thread where it must."""
    assert torch.equal(trained(cell, units, threads=1), trained(cell, units, threads=2))


def trained(cell: str, units: int, *, threads: int) -> torch.Tensor:
    """Weights after two epochs of the loop, which may use so many threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(3)
    head = forecast_head([parse_target("price_change_1h")], ())
    network = RecurrentForecaster(cell, is_level_F=IS_LEVEL, units=units, layers=1, head=head, dropout=0.1)
    schedule = Schedule(learning_rate=0.01, batch_size=32, epochs=2, patience=10, shortest_window=3, seed=5)
    windows = cut(symbol_rows(num=1000), lookback=30)
    fit(network, windows, schedule, device=torch.device("cpu"), report=Recorder(), objective=SquaredError())
    return torch.cat([each.detach().reshape(-1) for each in network.parameters()])


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
