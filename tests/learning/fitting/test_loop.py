"""The training loop: what it reports, when it stops, which weights it leaves, and what it refuses."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from common_lib.exceptions import JobCancelled, TrainingError
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.data.windows import Windows, build
from ml_workbench_service.learning.fitting.loop import Outcome, Schedule, _lengths, _OnDevice, fit, score
from ml_workbench_service.learning.fitting.objectives import SquaredError
from ml_workbench_service.learning.networks.heads import forecast_head
from ml_workbench_service.learning.networks.linear import LinearForecaster
from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, Recorder, cut, symbol_rows

pytestmark = pytest.mark.processor

CPU = torch.device("cpu")
HEAD = forecast_head([parse_target("price_change_1h")], ())
SCHEDULE = Schedule(learning_rate=0.01, batch_size=64, epochs=4, patience=10, shortest_window=3, seed=5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def windows() -> Windows:
    return cut(symbol_rows(num=1500))


def forecaster(cell: str = "GRU", *, seed: int = 1) -> RecurrentForecaster:
    torch.manual_seed(seed)
    return RecurrentForecaster(cell, is_level_F=IS_LEVEL, units=6, layers=1, head=HEAD, dropout=0.1)


def fitted(
    windows: Windows, schedule: Schedule, network: nn.Module | None = None
) -> tuple[Outcome, Recorder, nn.Module]:
    report = Recorder()
    network = network or forecaster()
    return fit(network, windows, schedule, device=CPU, report=report, objective=SquaredError()), report, network


def stop_loss(network: nn.Module, windows: Windows) -> float:
    """The validation part's error by plain numpy and one window at a time."""
    network.eval()
    errors = []
    for end in windows.parts["validation"]:
        rows_TNF = torch.from_numpy(windows.rows_RF[end + 1 - windows.lookback : end + 1][:, None])
        with torch.no_grad():
            errors.append((float(network(rows_TNF)[0, 0]) - float(windows.labels_RK[end, 0])) ** 2)
    return float(np.mean(errors))


def test_every_epoch_is_reported_with_its_losses_and_skill(windows: Windows) -> None:
    outcome, report, _ = fitted(windows, SCHEDULE)
    assert [(step, total) for step, total, _ in report.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    zero = float(np.mean(windows.labels_RK[windows.parts["validation"]] ** 2))
    for _, _, metrics in report.steps:
        assert set(metrics) == {"train_loss", "stop_loss", "stop_skill", "learning_rate"}
        assert metrics["stop_skill"] == pytest.approx(1 - metrics["stop_loss"] / zero, abs=1e-5)
    assert outcome.epochs_run == 4
    assert report.steps[-1][2]["train_loss"] < report.steps[0][2]["train_loss"]


def test_the_validation_parts_score_is_the_mean_over_its_windows(windows: Windows) -> None:
    network = forecaster()
    assert score(network, _OnDevice(windows, CPU), SquaredError()) == pytest.approx(
        stop_loss(network, windows), rel=1e-5
    )


def test_training_ends_when_the_validation_part_no_longer_improves_and_the_best_weights_stay(windows: Windows) -> None:
    """With a step far too long the loss soon gets worse, and after `patience` epochs it is enough."""
    schedule = replace(SCHEDULE, learning_rate=0.1, batch_size=16, epochs=60, patience=3)
    outcome, report, network = fitted(windows, schedule)
    losses = [metrics["stop_loss"] for _, _, metrics in report.steps]
    assert outcome.epochs_run == len(losses) < 60
    assert outcome.best_epoch == int(np.argmin(losses)) + 1 == outcome.epochs_run - 3
    assert outcome.stop_loss == min(losses) < losses[-1]
    assert stop_loss(network, windows) == pytest.approx(min(losses), rel=1e-5)


def test_only_train_and_stop_are_read(windows: Windows) -> None:
    """Rows and labels after the calibration border could be anything."""
    _, _, network = fitted(windows, SCHEDULE)
    later = windows.available_at_ms_R > windows.borders_ms["calibration"]
    rows, labels = windows.rows_RF.copy(), windows.labels_RK.copy()
    rows[later], labels[later] = 99.0, -99.0
    _, _, again = fitted(replace(windows, rows_RF=rows, labels_RK=labels), SCHEDULE)
    for mine, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_the_training_labels_do_reach_the_weights(windows: Windows) -> None:
    labels = windows.labels_RK.copy()
    labels[windows.parts["train"][0]] += 1.0
    _, _, network = fitted(windows, SCHEDULE)
    _, _, again = fitted(replace(windows, labels_RK=labels), SCHEDULE)
    assert not torch.equal(network.state_dict()["head.weight"], again.state_dict()["head.weight"])


def test_a_cancellation_is_seen_within_one_batch(windows: Windows) -> None:
    batches = -(-len(windows.parts["train"]) // SCHEDULE.batch_size)
    report = Recorder(cancel_at_check=batches + 3)  # the third batch of the second epoch
    with pytest.raises(JobCancelled):
        fit(forecaster(), windows, SCHEDULE, device=CPU, report=report, objective=SquaredError())
    assert report.num_checks == batches + 3
    assert len(report.steps) == 1


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_no_number_is_an_error_with_what_to_do(windows: Windows) -> None:
    labels = windows.labels_RK.copy()
    labels[windows.parts["train"][3]] = np.inf
    with pytest.raises(TrainingError, match="the loss of epoch 1 is not a number; lower `learning_rate`"):
        fitted(replace(windows, labels_RK=labels), SCHEDULE)


def test_a_batch_holds_the_windows_that_end_at_its_rows(windows: Windows) -> None:
    ends = windows.parts["train"][[4, 0, 9]]
    for length, by_window in product((3, 8), (False, True)):
        batch_TNF = _OnDevice(windows, CPU, by_window=by_window).batch(torch.from_numpy(ends), length)
        assert (batch_TNF.transpose(0, 1) if by_window else batch_TNF).is_contiguous()
        np.testing.assert_array_equal(batch_TNF.numpy().transpose(1, 0, 2), windows.gather(ends, length))


def test_a_fifth_of_the_batches_is_shorter_and_no_length_is_left_out() -> None:
    lengths = np.array(_lengths(20_000, 24, shortest=3, chance=torch.Generator().manual_seed(0)))
    assert (lengths.min(), lengths.max()) == (3, 24)
    assert np.mean(lengths < 24) == pytest.approx(0.2 * 21 / 22, abs=0.01)
    shorter = np.bincount(lengths[lengths < 24], minlength=24)[3:]
    assert shorter.min() > 0.7 * shorter.mean()


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("num_features", [1, 3])
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit_of_the_weights(cell: str, num_features: int, threads: int) -> None:
    """Which number is fastest the clock decides; what is learnt it must not."""
    table = symbol_rows(num=1100)
    windows = build(
        [replace(table, x_NF=table.x_NF[:, :num_features])], features=FEATURES[:num_features],
        is_level=IS_LEVEL[:num_features], lookback=24, split=0.4,
    )  # fmt: skip
    weights = []
    for number in (1, threads):
        torch.set_num_threads(number)
        torch.manual_seed(1)
        network = RecurrentForecaster(
            cell, is_level_F=IS_LEVEL[:num_features], units=8, layers=1, head=HEAD, dropout=0.2
        )
        fitted(windows, replace(SCHEDULE, batch_size=32, epochs=2), network)
        weights.append(torch.cat([value.reshape(-1) for value in network.state_dict().values()]))
    assert torch.equal(*weights)


def check_modes_agree(network: nn.Module, rows_TNF: torch.Tensor) -> None:
    """That training mode gives the answers and gradients of evaluation mode."""
    answers = []
    for mode in (True, False):
        network.train(mode)
        network.zero_grad()
        answer = network(rows_TNF)
        answer.square().sum().backward()
        answers.append((answer.detach(), [parameter.grad.clone() for parameter in network.parameters()]))
    (ours, our_gradients), (theirs, their_gradients) = answers
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [3, 8])
def test_the_window_stage_upon_the_weights_is_the_window_stage(length: int, windows: Windows) -> None:
    """The linear forecaster in training mode against evaluation mode, gradients included."""
    torch.manual_seed(3)
    network = LinearForecaster(is_level_F=IS_LEVEL, lookback=8, head=HEAD)
    data = _OnDevice(windows, CPU, by_window=network.joins_rows)
    rows_TNF = data.batch(torch.from_numpy(windows.parts["train"][:40]), length)
    check_modes_agree(network, rows_TNF)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_grus_own_kernel_trains_like_torchs(layers: int, windows: Windows) -> None:
    """The forecaster in training mode (our kernel) against evaluation mode (torch's), without dropout."""
    torch.manual_seed(2)
    network = RecurrentForecaster("GRU", is_level_F=IS_LEVEL, units=5, layers=layers, head=HEAD, dropout=0.0)
    rows_TNF = _OnDevice(windows, CPU).batch(torch.from_numpy(windows.parts["train"][:40]), 8)
    for mode in (True, False):
        network.train(mode)
        assert network._suits_kernel(rows_TNF) is mode
    check_modes_agree(network, rows_TNF)
