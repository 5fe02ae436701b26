"""Logits begin at the frequencies, weights leave no trace in them, and the graph adds what torch adds."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights, class_counts, class_weights
from ml_workbench_service.learning.networks.heads import ClassHead, CrossEntropy, class_head
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.testing.probes.classification import ClassificationProbe

pytestmark = pytest.mark.processor

CLASSES = ("sell", "hold", "buy")
UNEVEN = np.array([0.25, 0.05, 0.7])


def drawn(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of two features a window, and a label that they tell something of."""
    chance = np.random.default_rng(seed)
    labels = chance.choice(3, size=num, p=UNEVEN)
    x = chance.standard_normal((num, 2)) + np.array([[-0.8, 0.0], [0.0, 0.8], [0.8, 0.0]])[labels]
    return torch.tensor(x[None], dtype=torch.float32), torch.tensor(labels[:, None], dtype=torch.float32)


class OneLayer(nn.Module):
    """The newest row through one linear layer and the head."""

    def __init__(self, head: ClassHead) -> None:
        super().__init__()
        self.layer = nn.Linear(2, head.num_raw)
        self.head = head
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, rows_TNF: torch.Tensor) -> torch.Tensor:
        return self.head.finish(self.layer(rows_TNF[-1]))


def loss_of(network: OneLayer, rows: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(network.head.objective.loss(network, rows, labels))


def fitted(scheme: ClassWeights) -> tuple[OneLayer, ClassHead]:
    rows, labels = drawn(4000)
    counts = class_counts(labels[:, 0].numpy(), 3)
    head = ClassHead(CLASSES, class_frequencies(labels[:, 0].numpy(), 3), class_weights(counts, scheme))
    network = OneLayer(head)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = head.objective.loss(network, rows, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return network, head


def test_an_untrained_network_answers_the_frequencies() -> None:
    head = ClassHead(CLASSES, UNEVEN, np.ones(3))
    rows, labels = drawn(50)
    network = OneLayer(head)
    answers = torch.softmax(network(rows), dim=1).detach().numpy()
    np.testing.assert_allclose(answers, np.tile(UNEVEN, (50, 1)), rtol=1e-5)
    assert loss_of(network, rows, labels) == pytest.approx(head.objective.baseline(labels), rel=1e-5)


@pytest.mark.parametrize("scheme", ["none", "balanced"])
def test_probabilities_match_the_frequencies_whatever_the_weights(scheme: ClassWeights) -> None:
    network, _ = fitted(scheme)
    rows, labels = drawn(4000, seed=1)
    answers = torch.softmax(network(rows), dim=1).detach().numpy()
    np.testing.assert_allclose(answers.mean(axis=0), np.bincount(labels[:, 0].int().numpy()) / 4000, atol=0.02)


def test_weights_do_change_what_is_learnt_from() -> None:
    """Without this, the test above would pass with weights that are never used."""
    rows, labels = drawn(400)
    plain = CrossEntropy(UNEVEN, np.ones(3))
    heavy = CrossEntropy(UNEVEN, np.array([1.0, 10.0, 1.0]))
    network = OneLayer(ClassHead(CLASSES, UNEVEN, np.ones(3)))
    (of_plain,) = torch.autograd.grad(plain.loss(network, rows, labels), [network.layer.weight])
    (of_heavy,) = torch.autograd.grad(heavy.loss(network, rows, labels), [network.layer.weight])
    assert float(of_heavy[1].norm()) > 3 * float(of_plain[1].norm())


def test_the_loss_is_the_weighted_mean_of_a_plain_loop() -> None:
    rows, labels = drawn(20)
    weights, logits = np.array([2.0, 0.5, 1.0]), np.log(UNEVEN)
    network = OneLayer(ClassHead(CLASSES, UNEVEN, weights))
    shifted = np.exp(logits) * weights
    wanted = [-weights[c] * np.log(shifted[c] / shifted.sum()) for c in labels[:, 0].int().tolist()]
    assert loss_of(network, rows, labels) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_batchs_loss_is_a_mean_so_that_batches_add_up() -> None:
    rows, labels = drawn(30)
    network = OneLayer(ClassHead(CLASSES, UNEVEN, np.array([2.0, 0.5, 1.0])))
    halves = [loss_of(network, rows[:, n : n + 15], labels[n : n + 15]) for n in (0, 15)]
    assert loss_of(network, rows, labels) == pytest.approx(np.mean(halves), rel=1e-5)


def test_the_graph_gives_the_networks_logits() -> None:
    head, graph = ClassHead(CLASSES, UNEVEN, np.ones(3)), Graph((False, False, False))
    head.add_to(graph, "last_rows")
    model = graph.model("head", num_outputs=head.num_outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    raw = np.random.default_rng(2).standard_normal((7, 3)).astype(np.float32)
    (found,) = session.run(["outputs"], {"rows": raw[:, None]})
    np.testing.assert_array_equal(found, head.finish(torch.from_numpy(raw)).numpy())


def test_a_head_knows_the_training_part_alone() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    train = windows.own_labels_RK[windows.parts["train"], 0]
    head = class_head(probe.problem(windows), "balanced")
    assert head.names == CLASSES
    np.testing.assert_allclose(head.finish(torch.zeros(1, 3)).exp().numpy()[0], class_frequencies(train, 3), rtol=1e-5)
