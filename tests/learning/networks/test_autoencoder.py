"""What an autoencoder cannot tell back stands out, in the right feature, now rather than then; its graph agrees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common_lib.exceptions import JobCancelled
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.evaluation.injected_anomalies import KINDS, inject
from ml_workbench_service.learning.bundle.export import TOLERANCE, export
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks.autoencoder import Autoencoder, fit_activity, train_autoencoder
from ml_workbench_service.learning.networks.autoencoder_graph import (
    ACTIVITY_FLOOR,
    ACTIVITY_ROOTS,
    autoencoder_graph,
    recency,
)
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, OneThread, Recorder, cut, problem, symbol_rows

pytestmark = pytest.mark.processor

LOOKBACK = 12
SHORTEST = 3
QUICK = {
    "learning_rate": 0.01, "batch_size": 64, "epochs": 12, "patience": 12,
}  # fmt: skip


def related_windows(num: int = 1600) -> Windows:
    """Two features that move slowly and nearly together, and a price."""
    table = symbol_rows(num=num)
    chance = np.random.default_rng(8)
    slow = np.zeros(num)
    for row in range(1, num):
        slow[row] = 0.9 * slow[row - 1] + 0.4 * chance.standard_normal()
    x_NF = np.column_stack([slow, slow + 0.1 * chance.standard_normal(num), table.close_N])
    return cut(replace(table, x_NF=x_NF), lookback=LOOKBACK)


def trained(
    windows: Windows, *, report: Recorder | None = None, seed: int = 0, bottleneck: int = 6, **changes: float
) -> Trained:
    return train_autoencoder(
        problem(windows, seed=seed),
        NetworkHyperparameters(**(QUICK | changes)),
        units=16,
        bottleneck=bottleneck,
        accelerator=OneThread(),
        report=report or Recorder(),
    )


@pytest.fixture(scope="module")
def windows() -> Windows:
    return related_windows()


@pytest.fixture(scope="module")
def model(windows: Windows) -> Trained:
    return trained(windows)


@pytest.fixture(scope="module")
def graph(model: Trained, tmp_path_factory: pytest.TempPathFactory) -> OnnxNetwork:
    folder = tmp_path_factory.mktemp("autoencoder")
    return export(model, folder, num_features=3, lengths=range(SHORTEST, LOOKBACK + 1), seed=0)


def error(model: Trained, rows_NTF: Floats32) -> Floats:
    return model.predict(rows_NTF).outputs_NK[:, 0].astype(np.float64)


def test_its_graph_answers_like_its_network(windows: Windows, model: Trained, graph: OnnxNetwork) -> None:
    assert model.outputs == ("anomaly_error", *(f"error_{name}" for name in FEATURES))
    for batch in (1, 5, 64):
        for length in range(SHORTEST, LOOKBACK + 1):
            rows = windows.gather(windows.parts["test"][:batch], length)
            found, wanted = graph.predict(rows), model.predict(rows)
            assert found.outputs_NK.shape == (batch, 4)
            np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=TOLERANCE, rtol=TOLERANCE)
            np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=TOLERANCE)


@pytest.mark.parametrize("is_level", [IS_LEVEL, (False,), (True, False) * 8 + (True,)])
@pytest.mark.parametrize("units", [5, 64])
def test_float32_answers_do_not_depend_on_the_batch(is_level: tuple[bool, ...], units: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Autoencoder(is_level_F=is_level, units=units, bottleneck=7).eval()
    network.whitening_CC.copy_(torch.randn_like(network.whitening_CC))
    network.activity_center_F.fill_(0.9)
    weights = network.weights()
    trained = Trained(
        outputs=("anomaly_error", *map(str, is_level)), weights=weights, network={},
        graph=lambda: autoencoder_graph(weights, is_level_F=is_level), predict=network.answer, epochs_run=1,
        best_epoch=1,
    )  # fmt: skip
    graph = export(trained, tmp_path, num_features=len(is_level), lengths=[3, LOOKBACK], seed=0)
    for length in (3, LOOKBACK):
        rows = 5 + np.random.default_rng(0).standard_normal((100, length, len(is_level))).astype(np.float32)
        whole = graph.predict(rows)
        for batch in (1, 2, 5, 7, 33):
            for begin in range(0, 100, batch):
                part = graph.predict(rows[begin : begin + batch])
                assert part.outputs_NK.tobytes() == whole.outputs_NK[begin : begin + batch].tobytes()
                assert part.last_rows_NF.tobytes() == whole.last_rows_NF[begin : begin + batch].tobytes()


def test_the_windows_error_is_the_mean_of_its_features(windows: Windows, graph: OnnxNetwork) -> None:
    outputs = graph.predict(windows.gather(windows.parts["test"])).outputs_NK
    assert (outputs >= 0).all()
    np.testing.assert_allclose(outputs[:, 0], outputs[:, 1:].mean(axis=1), rtol=1e-5)
    assert np.ptp(outputs[:, 0]) > 0.5


def test_injected_anomalies_stand_out(windows: Windows, model: Trained) -> None:
    ends = windows.parts["test"]
    limit = float(np.quantile(error(model, windows.gather(ends)), 0.99))
    injected = inject(windows.rows_RF, ends, lookback=LOOKBACK, is_level_F=IS_LEVEL, seed=0, num_per_kind=60)
    found = {kind: float(np.mean(error(model, injected.windows_NTF[injected.of(kind)]) > limit)) for kind in KINDS}
    assert found["spike"] > 0.9
    assert found["stale_price"] > 0.9
    assert found["volatility_burst"] > 0.7
    assert found["broken_correlation"] > 0.3


@pytest.mark.parametrize("feature", range(3))
def test_the_error_is_that_of_the_feature_that_is_wrong(feature: int, windows: Windows, model: Trained) -> None:
    rows = windows.gather(windows.parts["test"][::10])
    rows[:, -1, feature] += 5
    assert np.mean(model.predict(rows).outputs_NK[:, 1:].argmax(axis=1) == feature) > 0.9


def test_two_features_that_part_are_stranger_than_two_that_move_together(windows: Windows, model: Trained) -> None:
    """The same step in both is a market; in one of them it is a fault, though each is as far off as before."""
    together, apart = (windows.gather(windows.parts["test"][::10]) for _ in range(2))
    together[:, -2:, :2] += 0.7
    apart[:, -2:, :2] += (0.7, -0.7)
    assert np.median(error(model, apart)) > 2 * np.median(error(model, together))


def test_a_price_that_stands_still_is_strange_although_it_is_easy_to_tell_back(
    windows: Windows, model: Trained
) -> None:
    rows = windows.gather(windows.parts["test"])
    usual = float(np.quantile(error(model, rows), 0.99))
    rows[:, -6:] = rows[:, -7:-6]
    assert np.mean(error(model, rows) > usual) > 0.95


def test_what_is_strange_now_counts_more_than_what_was_strange_then(windows: Windows, model: Trained) -> None:
    clean = windows.gather(windows.parts["test"][::10])
    added = []
    for age in (0, 3, 10):
        rows = clean.copy()
        rows[:, -1 - age, 0] += 5
        added.append(float(np.median(error(model, rows) - error(model, clean))))
    assert added[0] > 1.5 * added[1] > 4 * added[2] > 0


def test_weights_of_rows_halve_every_two_and_add_up_to_one() -> None:
    for length in (1, 3, 24, 1024):
        weights = recency(length)
        assert weights.sum() == pytest.approx(1.0, rel=1e-6)
        assert (np.diff(weights) >= 0).all()
    assert recency(24)[-1] == pytest.approx(2 * recency(24)[-3], rel=1e-6)


@pytest.mark.parametrize("seed", [0, 3])
def test_training_tells_back_most_of_what_there_is_and_reports_it(seed: int, windows: Windows) -> None:
    """At patience 2 a training in eight ends on a plateau after a few epochs; at 4 the worst of ten seeds has 0.6."""
    report = Recorder()
    model = trained(windows, report=report, patience=4, learning_rate=0.05, epochs=40, seed=seed)
    assert [step for step, _, _ in report.steps] == list(range(1, model.epochs_run + 1))
    losses = [metrics["stop_loss"] for _, _, metrics in report.steps]
    assert model.best_epoch == int(np.argmin(losses)) + 1
    assert model.epochs_run < 40
    assert report.steps[model.best_epoch - 1][2]["stop_skill"] > 0.5


def test_the_plainest_answer_is_the_loss_of_telling_back_zeros(windows: Windows) -> None:
    """`stop_skill` is 1 - loss ÷ that; by hand, from rows and activity alone."""
    report = Recorder()
    trained(windows, report=report, epochs=1)
    metrics = report.steps[0][2]
    network = Autoencoder(is_level_F=IS_LEVEL, units=2, bottleneck=1)
    fit_activity(network, windows)
    rows = windows.gather(windows.parts["validation"])
    stage = rows - rows.mean(axis=1, keepdims=True) * np.array(IS_LEVEL)
    moves = np.diff(rows.astype(np.float64), axis=1, prepend=rows[:, :1]) ** 2
    moves[:, 0] = moves[:, 1]
    padded = np.concatenate([np.repeat(moves[:, :1], 3, axis=1), moves], axis=1)
    mean = np.mean([padded[:, offset : offset + LOOKBACK] for offset in range(4)], axis=0)
    activity = (
        (mean + ACTIVITY_FLOOR) ** (1 / 2**ACTIVITY_ROOTS) - network.activity_center_F.numpy()
    ) / network.activity_scale_F.numpy()
    plainest = float(
        (np.concatenate([stage, activity], axis=2) ** 2).mean(axis=2) @ recency(LOOKBACK) @ np.ones(len(rows))
    )
    assert metrics["stop_loss"] / (1 - metrics["stop_skill"]) == pytest.approx(plainest / len(rows), rel=1e-3)


def test_a_seed_decides_every_bit_of_the_weights(windows: Windows) -> None:
    first, again, other = (trained(windows, epochs=1, seed=seed).weights for seed in (3, 3, 4))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert first["encoder.weight_hh_l0"].tobytes() != other["encoder.weight_hh_l0"].tobytes()


def test_nothing_after_the_validation_part_reaches_the_weights(windows: Windows) -> None:
    rows = windows.rows_RF.copy()
    rows[windows.available_at_ms_R > windows.borders_ms["calibration"]] = 7.0
    first, second = (trained(each, epochs=1).weights for each in (windows, replace(windows, rows_RF=rows)))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("at_check", [1, 20])
def test_a_cancellation_ends_it_at_once(at_check: int, windows: Windows) -> None:
    report = Recorder(cancel_at_check=at_check)
    with pytest.raises(JobCancelled):
        trained(windows, report=report)
    assert report.num_checks == at_check


def constant_features() -> Windows:
    table = symbol_rows(num=900)
    table.x_NF[:] = (0.0, 1e7, 1.0)
    return cut(table, lookback=LOOKBACK)


def twin_features() -> Windows:
    table = symbol_rows(num=900)
    table.x_NF[:, 1] = table.x_NF[:, 0]
    return cut(table, lookback=LOOKBACK)


@pytest.mark.parametrize("make", [constant_features, twin_features])
def test_features_that_never_move_or_always_together_are_no_trouble(
    make: Callable[[], Windows], tmp_path: Path
) -> None:
    unusual = make()
    model = trained(unusual, epochs=2)
    graph = export(model, tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    rows = unusual.gather(unusual.parts["test"][:50])
    usual = graph.predict(rows).outputs_NK
    assert np.isfinite(usual).all()
    rows[:, -1, 1] += 3
    assert (graph.predict(rows).outputs_NK[:, 0] > 2 * usual[:, 0]).all()


def test_a_bottleneck_that_could_copy_the_window_is_warned_of(windows: Windows, model: Trained) -> None:
    assert model.warnings == ()
    assert trained(windows, epochs=1, bottleneck=LOOKBACK * 3).warnings == ("bottleneck_too_wide",)


@pytest.mark.parametrize("size", [1e9, -1e9])
def test_the_largest_rows_there_can_be_have_a_finite_answer(size: float, graph: OnnxNetwork) -> None:
    rows = np.zeros((2, LOOKBACK, 3), np.float32)
    rows[:, -1] = np.float32(size)
    rows[1, 3, 2] = np.float32(-size)
    assert np.isfinite(graph.predict(rows).outputs_NK).all()
