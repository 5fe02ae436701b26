"""The transformer against its formulas, its graph against it at every size, and its hyper-parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.special import erf, softmax

from common_lib.exceptions import DataValidationError, PredictionError
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.learning.bundle.export import INT8_FILE, TOLERANCE, export, quantize
from ml_workbench_service.learning.fitting.objectives import SquaredError
from ml_workbench_service.learning.fitting.optimizer import ClippedAdam
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.networks.heads import Head, QuantileHead
from ml_workbench_service.learning.networks.transformer import (
    TransformerEncoderNetwork,
    TransformerShape,
    rotary_angles,
    transformer_graph,
)
from ml_workbench_service.learning.networks.transformer_family import TransformerFamily, TransformerHyperparameters
from ml_workbench_service.testing.synthetic import IS_LEVEL, OneThread, Recorder, cut, problem, symbol_rows

pytestmark = pytest.mark.processor

LOOKBACK = 12
SHAPE = TransformerShape(units=12, heads=3, layers=2, feedforward_units=20, lookback=LOOKBACK)
NO_LEVEL = (False, False, False)
ONE = Head(["price_change_1h"], SquaredError())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)


def network_of(
    shape: TransformerShape = SHAPE, *, is_level: tuple[bool, ...] = IS_LEVEL, head: Head = ONE, dropout: float = 0.0
) -> TransformerEncoderNetwork:
    """An untrained network with lively weights, norms included."""
    network = TransformerEncoderNetwork(is_level, shape=shape, head=head, dropout=dropout).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return network


def trained_of(shape: TransformerShape = SHAPE, *, is_level: tuple[bool, ...] = IS_LEVEL, head: Head = ONE) -> Trained:
    """The same, as a family would hand it over."""
    network = network_of(shape, is_level=is_level, head=head)
    weights = network.weights()
    return Trained(
        outputs=head.names,
        weights=weights,
        network={},
        graph=lambda: transformer_graph(weights, shape=shape, is_level_F=is_level, head=head),
        predict=network.answer,
        epochs_run=1,
        best_epoch=1,
    )


def rows(batch: int, length: int, *, num_features: int = 3, seed: int = 0) -> Floats32:
    return np.random.default_rng(seed).standard_normal((batch, length, num_features)).astype(np.float32)


def by_the_papers(weights: dict[str, np.ndarray], shape: TransformerShape, window_TF: Floats) -> Floats:
    """The network's answer in numpy, one bar and one head at a time, with positions counted from the oldest bar.

    Attention as in Vaswani et al. 2017, equation 1; turns as in Su et al. 2021, equation 15.
    """
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    length, width = len(window_TF), shape.units // shape.heads

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turned(head_E: Floats, place: int) -> Floats:
        turn = np.zeros((width, width))
        for pair in range(width // 2):
            angle = place * 10_000.0 ** (-2 * pair / width)
            at = slice(2 * pair, 2 * pair + 2)
            turn[at, at] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return np.asarray(turn @ head_E)

    states = window_TF @ w["project.weight"].T + w["project.bias"]
    for block in (f"blocks.{layer}" for layer in range(shape.layers)):
        normed = norm(states, f"{block}.norm_attention")
        query, key, value = np.split(normed @ w[f"{block}.query_key_value.weight"].T, 3, axis=1)
        attended = np.zeros_like(states)
        for head in range(shape.heads):
            own = slice(head * width, (head + 1) * width)
            for place in range(length):
                mine = turned(query[place, own], place)
                scores = [mine @ turned(key[earlier, own], earlier) for earlier in range(place + 1)]
                attended[place, own] = softmax(np.array(scores) / np.sqrt(width)) @ value[: place + 1, own]
        states = states + attended @ w[f"{block}.merge.weight"].T
        hidden = norm(states, f"{block}.norm_feedforward") @ w[f"{block}.up.weight"].T
        states = states + (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ w[f"{block}.down.weight"].T
    return np.asarray(norm(states[-1], "norm") @ w["head.weight"].T + w["head.bias"])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_what_the_papers_say(layers: int) -> None:
    shape = replace(SHAPE, layers=layers)
    network = network_of(shape, is_level=NO_LEVEL)
    for length in (3, 7, LOOKBACK):
        x_NTF = rows(3, length)
        wanted = np.array([by_the_papers(network.weights(), shape, window) for window in x_NTF])
        np.testing.assert_allclose(network.answer(x_NTF).outputs_NK, wanted, atol=1e-4)


def test_the_newest_bar_alone_gets_what_all_bars_together_would_give_it() -> None:
    network = network_of()
    last: Any = network.blocks[-1]
    states_NTD, turns_T1P = torch.randn(5, 7, 12), network.turns_L1P[-7:]
    torch.testing.assert_close(last.newest(states_NTD, turns_T1P), last(states_NTD, turns_T1P)[:, -1])


def test_no_bar_sees_a_later_one() -> None:
    network = network_of()
    states_NTD, turns_T1P = torch.randn(2, 9, 12), network.turns_L1P[-9:]
    later = states_NTD.clone()
    later[:, 5:] += 1.0
    before, after = (network.blocks[0](each, turns_T1P) for each in (states_NTD, later))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).any(dim=-1).all()


def test_a_window_means_the_same_to_a_network_of_any_lookback() -> None:
    """Positions are distances to the newest bar: how far back others may reach makes no difference."""
    network, longer = network_of(), network_of(replace(SHAPE, lookback=40))
    longer.load_state_dict(network.state_dict())
    for length in (3, 8, LOOKBACK):
        x_NTF = rows(4, length)
        assert network.answer(x_NTF).outputs_NK.tobytes() == longer.answer(x_NTF).outputs_NK.tobytes()
    assert (rotary_angles(LOOKBACK, 4)[-1] == 0).all()


def test_the_order_of_earlier_bars_matters() -> None:
    network = network_of(replace(SHAPE, layers=1), is_level=NO_LEVEL)
    x_NTF = rows(4, LOOKBACK)
    swapped = x_NTF.copy()
    swapped[:, [2, 9]] = x_NTF[:, [9, 2]]
    moved = np.abs(network.answer(swapped).outputs_NK - network.answer(x_NTF).outputs_NK)
    network.turns_L1P = torch.ones_like(network.turns_L1P)  # no positions: then a set of bars is all it sees
    blind = np.abs(network.answer(swapped).outputs_NK - network.answer(x_NTF).outputs_NK)
    assert moved.min() > 1e-4
    assert blind.max() < 1e-5


def test_dropout_takes_the_same_units_from_all_bars_of_a_window_and_nothing_in_use() -> None:
    network = network_of(dropout=0.5)
    block: Any = network.blocks[0]
    branch_NTD = torch.ones(40, 5, 12)
    assert torch.equal(block._dropped(branch_NTD), branch_NTD)
    network.train()
    dropped = block._dropped(branch_NTD)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((dropped == 0).float().mean()) < 0.6


def test_it_learns_a_signal_of_an_older_bar_at_every_length() -> None:
    """What happened four bars ago, wherever the window begins: only relative positions make that one rule."""
    network = TransformerEncoderNetwork((False,), shape=replace(SHAPE, units=16, heads=2), head=ONE, dropout=0.0)
    optimizer = ClippedAdam(network, learning_rate=0.01)
    for step in range(250):
        rows_TNF = torch.randn(5 + step % 8, 64, 1)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(rows_TNF), rows_TNF[-5]).backward()
        optimizer.step()
    network.eval()
    for length in (5, 8, LOOKBACK):
        x_NTF = rows(300, length, num_features=1)
        assert np.mean((network.answer(x_NTF).outputs_NK - x_NTF[:, -5]) ** 2) < 0.15


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("is_level", [IS_LEVEL, NO_LEVEL])
def test_the_graph_answers_like_the_network(layers: int, is_level: tuple[bool, ...], tmp_path: Path) -> None:
    trained = trained_of(replace(SHAPE, layers=layers), is_level=is_level)
    lengths = range(3, LOOKBACK + 1)
    graph = export(trained, tmp_path, num_features=3, lengths=lengths, seed=0)
    for batch in (1, 5, 64):
        for length in lengths:
            x_NTF = 3 * rows(batch, length, seed=length)
            found, wanted = graph.predict(x_NTF), trained.predict(x_NTF)
            assert found.outputs_NK.shape == (batch, 1)
            np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=TOLERANCE)
            np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=TOLERANCE)
            assert np.ptp(wanted.outputs_NK) > 0.01 or batch == 1


def test_several_targets_with_quantiles_are_exported_and_never_cross(tmp_path: Path) -> None:
    head = QuantileHead(["price_change_1h", "price_change_4h"], (0.05, 0.25, 0.5, 0.95))
    trained = trained_of(head=head)
    graph = export(trained, tmp_path, num_features=3, lengths=(3, LOOKBACK), seed=0)
    found = graph.predict(rows(64, LOOKBACK)).outputs_NK
    assert found.shape == (64, 8)
    assert (np.diff(found.reshape(64, 2, 4), axis=2) > 0).all()


@pytest.mark.parametrize(
    ("units", "heads", "num_features", "num_outputs"), [(12, 3, 1, 1), (64, 4, 4, 3), (6, 1, 17, 1), (40, 2, 7, 5)]
)
def test_an_answer_is_the_same_to_the_bit_whatever_its_batch(
    units: int, heads: int, num_features: int, num_outputs: int, tmp_path: Path
) -> None:
    is_level = tuple(number % 3 == 0 for number in range(num_features))
    shape = TransformerShape(units=units, heads=heads, layers=2, feedforward_units=2 * units, lookback=LOOKBACK)
    head = Head([f"output_{number}" for number in range(num_outputs)], SquaredError())
    trained = trained_of(shape, is_level=is_level, head=head)
    graph = export(trained, tmp_path, num_features=num_features, lengths=[LOOKBACK], seed=0)
    for length in (3, 7, LOOKBACK):
        x_NTF = 5 + rows(64, length, num_features=num_features)
        whole = graph.predict(x_NTF)
        for batch in (1, 2, 5, 7, 33):
            for begin in range(0, 64, batch):
                part = graph.predict(x_NTF[begin : begin + batch])
                assert part.outputs_NK.tobytes() == whole.outputs_NK[begin : begin + batch].tobytes()
                assert part.last_rows_NF.tobytes() == whole.last_rows_NF[begin : begin + batch].tobytes()


@pytest.mark.parametrize("size", [1e9, -1e9])
def test_the_largest_rows_there_can_be_have_a_finite_answer(size: float, tmp_path: Path) -> None:
    graph = export(trained_of(), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    x_NTF = rows(2, LOOKBACK)
    x_NTF[:, -1] = np.float32(size)
    x_NTF[1, 3, 2] = np.float32(-size)
    assert np.isfinite(graph.predict(x_NTF).outputs_NK).all()


def test_a_window_longer_than_the_lookback_is_a_prediction_error(tmp_path: Path) -> None:
    graph = export(trained_of(), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    with pytest.raises(PredictionError, match="could not be run"):
        graph.predict(rows(1, LOOKBACK + 1))


def test_the_int8_graph_quantises_every_product_with_weights(tmp_path: Path) -> None:
    trained = trained_of()
    exact = export(trained, tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    rough = quantize(tmp_path)
    operators = [node.op_type for node in onnx.load(tmp_path / INT8_FILE).graph.node]
    assert operators.count("MatMulInteger") == 11  # projection, 4 and 5 in the blocks, last layer
    assert operators.count("MatMul") == 4  # queries with keys, scores with values
    windows = rows(50, LOOKBACK)
    found, wanted = (np.concatenate([each.predict(x[None]).outputs_NK for x in windows]) for each in (rough, exact))
    assert not np.array_equal(found, wanted)
    # Untrained networks suffer most: 2 to 5 % on every processor; clipped products were off by 14 %.
    assert np.abs(found - wanted).mean() < 0.1 * wanted.std()


class Probe(TransformerFamily[TransformerHyperparameters], abstract=True):
    """A family that nobody can ask for."""

    name = "probe"


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"transformer_units": 63}, "twice `heads`, 8; take 56 or 64"),
        ({"heads": 3}, "twice `heads`, 6; take 60 or 66"),
        ({"transformer_units": 2}, "twice `heads`, 8; take 8 or 16"),
    ],
)
def test_units_that_heads_cannot_share_are_refused_with_the_nearest_that_they_can(
    asked: dict[str, Any], advice: str
) -> None:
    with pytest.raises(DataValidationError) as caught:
        Probe(asked)
    (error,) = caught.value.details["errors"]
    assert error["path"] == "body.hyperparameters.transformer_units"
    assert advice in error["message"]
    assert Probe({"heads": 3, "transformer_units": 66}).shape().width == 22


def test_a_family_trains_every_output_of_its_targets_and_describes_the_network(tmp_path: Path) -> None:
    family = Probe({"transformer_units": 8, "heads": 2, "lookback": 8, "epochs": 1, "batch_size": 64})
    asked = problem(cut(symbol_rows(num=600)), "price_change_1h", quantiles=(0.1, 0.5, 0.9))
    trained = family.train(asked, accelerator=OneThread(), report=Recorder())
    assert trained.outputs == ("price_change_1h_q10", "price_change_1h_q50", "price_change_1h_q90")
    assert trained.network == {
        "kind": "transformer_encoder", "units": 8, "heads": 2, "layers": 2, "feedforward_units": 16, "lookback": 8,
        "num_features": 3, "num_outputs": 3,
    }  # fmt: skip
    export(trained, tmp_path, num_features=3, lengths=(3, 8), seed=0)


def test_estimates_tell_a_long_wait_from_a_short_one() -> None:
    def seconds(**asked: int) -> float:
        return Probe({"epochs": 20, **asked}).seconds(10_000)

    assert 20 < seconds() < 60  # measured: some 32 seconds for half of 20 epochs, and 5 to begin
    assert seconds(layers=1) < seconds() / 2
    assert seconds(lookback=240) > 8 * seconds()
    assert seconds(transformer_units=256) > 5 * seconds()
