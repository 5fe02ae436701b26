"""Quantiles that never cross, in torch and in the graph; the pinball loss; the names of the outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.fitting.optimizer import ClippedAdam
from ml_workbench_service.learning.networks.heads import (
    PinballLoss,
    QuantileHead,
    forecast_head,
    quantile_names,
)
from ml_workbench_service.learning.networks.onnx_builder import Graph

pytestmark = pytest.mark.processor

CASES = [
    (1, (0.05, 0.5, 0.95)),
    (3, (0.025, 0.1, 0.5, 0.9, 0.975)),
    (2, (0.5, 0.9)),
    (2, (0.01, 0.05, 0.5)),
    (1, (0.5,)),
]
every_case = pytest.mark.parametrize(("num_targets", "quantiles"), CASES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def head_of(num_targets: int, quantiles: tuple[float, ...]) -> QuantileHead:
    return QuantileHead([f"target_{number}" for number in range(num_targets)], quantiles)


def graph_of(folder: Path, num_targets: int, quantiles: tuple[float, ...]) -> OnnxNetwork:
    """A graph whose raw values are the only row of each window."""
    head = head_of(num_targets, quantiles)
    graph = Graph((False,) * head.num_raw)
    graph.add("Flatten", ["rows"], ["raw"])
    head.add_to(graph, "raw")
    onnx.save(graph.model("quantiles", num_outputs=head.num_raw), folder / "model.onnx")
    return OnnxNetwork(folder / "model.onnx")


def raw_values(num: int) -> Floats32:
    """Ordinary, tiny and huge raw values, in one batch."""
    chance = np.random.default_rng(0)
    sizes = 10.0 ** chance.uniform(-6, 9, (200, 1))
    return (chance.standard_normal((200, num)) * sizes).astype(np.float32)


@every_case
def test_quantiles_never_cross_and_the_graph_gives_the_same(
    num_targets: int, quantiles: tuple[float, ...], tmp_path: Path
) -> None:
    head = head_of(num_targets, quantiles)
    raw_NR = raw_values(head.num_raw)
    in_torch = head.finish(torch.from_numpy(raw_NR)).numpy()
    in_graph = graph_of(tmp_path, num_targets, quantiles).predict(raw_NR[:, None]).outputs_NK
    for found in (in_torch, in_graph):
        found_NKQ = found.reshape(len(raw_NR), num_targets, len(quantiles))
        assert (np.diff(found_NKQ, axis=2) >= 0).all()
        medians = raw_NR.reshape(found_NKQ.shape)[:, :, quantiles.index(0.5)]
        np.testing.assert_array_equal(found_NKQ[:, :, quantiles.index(0.5)], medians)
    assert (np.abs(in_graph - in_torch).max(axis=1) <= 5e-7 * np.abs(raw_NR).max(axis=1).clip(min=1)).all()


@every_case
def test_an_answer_does_not_depend_on_its_neighbours(
    num_targets: int, quantiles: tuple[float, ...], tmp_path: Path
) -> None:
    graph = graph_of(tmp_path, num_targets, quantiles)
    raw_NTR = raw_values(num_targets * len(quantiles))[:, None]
    together = graph.predict(raw_NTR).outputs_NK
    alone = np.concatenate([graph.predict(each[None]).outputs_NK for each in raw_NTR])
    assert together.tobytes() == alone.tobytes()


def test_a_step_moves_its_own_quantile_and_those_beyond() -> None:
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    plain = torch.zeros(1, 5)
    head = head_of(1, quantiles)
    before = head.finish(plain)
    np.testing.assert_array_equal(before.numpy(), [[-2, -1, 0, 1, 2]])  # squareplus of zero is one
    moved = {}
    for place in range(5):
        raw = plain.clone()
        raw[0, place] = 1.5  # squareplus: 2
        moved[place] = (head.finish(raw) - before)[0].tolist()
    assert moved[0] == [-1, 0, 0, 0, 0]
    assert moved[1] == [-1, -1, 0, 0, 0]
    assert moved[2] == [1.5] * 5
    assert moved[3] == [0, 0, 0, 1, 1]
    assert moved[4] == [0, 0, 0, 0, 1]


class Constants(nn.Module):
    """The same quantiles for every window."""

    def __init__(self, num_targets: int, quantiles: tuple[float, ...]) -> None:
        super().__init__()
        self.head = head_of(num_targets, quantiles)
        self.raw_R = nn.Parameter(torch.zeros(self.head.num_raw))

    def forward(self, rows_TNF: Tensor) -> Tensor:
        return self.head.finish(self.raw_R.expand(rows_TNF.shape[1], -1))


def test_gradient_descent_finds_the_quantiles_of_any_distribution() -> None:
    quantiles = (0.05, 0.25, 0.5, 0.9)
    shares_N = (torch.arange(999) + 0.5) / 999
    labels_NK = torch.stack([torch.special.ndtri(shares_N).exp(), 3 - shares_N.square()], dim=1)  # skewed both ways
    network = Constants(2, quantiles)
    rows_TNF = torch.zeros(1, 999, 1)
    for learning_rate in (0.05, 0.01):
        optimizer = ClippedAdam(network, learning_rate=learning_rate)
        for _ in range(300):
            optimizer.zero_grad()
            network.head.objective.loss(network, rows_TNF, labels_NK).backward()
            optimizer.step()
    found_KQ = network(rows_TNF)[0].detach().view(2, 4)
    wanted_KQ = torch.quantile(labels_NK, torch.tensor(quantiles), dim=0).T
    torch.testing.assert_close(found_KQ, wanted_KQ, atol=0.05, rtol=0.02)
    loss = float(network.head.objective.loss(network, rows_TNF, labels_NK).detach())
    assert loss == pytest.approx(network.head.objective.baseline(labels_NK), rel=2e-3)


def test_the_loss_is_the_pinball_loss() -> None:
    quantiles = (0.1, 0.5, 0.8)
    answers_NR, labels_NK = torch.randn(7, 6), torch.randn(7, 2)
    found = PinballLoss(quantiles).loss(lambda rows: rows[-1], answers_NR[None], labels_NK)  # type: ignore[arg-type]
    wanted = [
        (quantile if label > answer else quantile - 1) * (label - answer)
        for answers, labels in zip(answers_NR.reshape(7, 2, 3).tolist(), labels_NK.tolist(), strict=True)
        for three, label in zip(answers, labels, strict=True)
        for answer, quantile in zip(three, quantiles, strict=True)
    ]
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-6)


def test_the_baseline_is_the_best_constant_there_is() -> None:
    quantiles = (0.1, 0.5, 0.8)
    objective = PinballLoss(quantiles)
    labels_NK = torch.stack([torch.randn(2000).exp(), torch.randn(2000)], dim=1)
    baseline = objective.baseline(labels_NK)
    own_R = torch.quantile(labels_NK, torch.tensor(quantiles), dim=0).T.reshape(-1)

    def loss_of(constants_R: Tensor) -> float:
        answers = constants_R.expand(1, 2000, 6)
        return float(objective.loss(lambda rows: rows[-1], answers, labels_NK))  # type: ignore[arg-type]

    assert baseline == pytest.approx(loss_of(own_R), rel=1e-4)
    for place in range(6):
        for step in (-0.3, 0.3):
            other = own_R.clone()
            other[place] += step
            assert loss_of(other) > baseline * 1.001


def test_outputs_are_named_by_target_and_decimals() -> None:
    assert quantile_names(["price_change_1h"], [0.05, 0.5, 0.95]) == (
        "price_change_1h_q05",
        "price_change_1h_q50",
        "price_change_1h_q95",
    )
    levels = [0.0001, 0.001, 0.01, 0.025, 0.1, 0.5, 0.9, 0.975, 0.999]
    names = quantile_names(["a", "b"], levels)
    endings = ["q0001", "q001", "q01", "q025", "q10", "q50", "q90", "q975", "q999"]
    assert list(names) == [f"{target}_{ending}" for target in "ab" for ending in endings]


def test_a_request_with_quantiles_gets_this_head() -> None:
    targets = [parse_target("price_change_1h"), parse_target("price_change_4h")]
    head = forecast_head(targets, (0.1, 0.5, 0.9))
    assert isinstance(head, QuantileHead)
    assert (head.num_raw, head.num_outputs) == (6, 6)
    assert head.names[:4] == (
        "price_change_1h_q10",
        "price_change_1h_q50",
        "price_change_1h_q90",
        "price_change_4h_q10",
    )
    assert isinstance(head.objective, PinballLoss)
