"""Several targets in one model: heads alone, in their graphs, and through the whole workflow to a served answer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.families.linear import Linear
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.data.windows import Windows, build
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.learning.fitting.objectives import SquaredError
from ml_workbench_service.learning.interfaces.family import Family, Trained
from ml_workbench_service.learning.networks.heads import Head, forecast_head, head_for
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import SymbolHistory, columns_needed, read_history
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, OneThread, Recorder, problem, skill, symbol_rows
from tests.trained_models import InjectedBars, injected_bars, loaded, open_bench, train_model

pytestmark = pytest.mark.processor

TARGETS = ("price_change_1h", "log_return_2h", "volatility_4h")
QUICK = {"epochs": 12, "batch_size": 64, "lookback": 6, "learning_rate": 0.02, "patience": 4}
LIVE = Circumstances(role="champion")


def windows_of_three() -> Windows:
    """The signal, minus twice the noise feature's last value, and a size that no feature tells."""
    rows = symbol_rows(num=1500)
    chance = np.random.default_rng(7)
    second = -2e-3 * rows.x_NF[:, 1] + 1e-4 * chance.standard_normal(1500)
    third = 50.0 * np.abs(chance.standard_normal(1500))
    labels_NK = np.column_stack([rows.labels_NK[:, 0], second, third])
    return build([replace(rows, labels_NK=labels_NK)], features=FEATURES, is_level=IS_LEVEL, lookback=6, split=0.4)


def trained(windows: Windows, *names: str) -> Trained:
    family: Family = Linear(QUICK)
    return family.train(problem(windows, *names), accelerator=OneThread(), report=Recorder())


def test_a_point_forecasts_head_passes_the_raw_values_on() -> None:
    head = forecast_head([parse_target(name) for name in TARGETS], ())
    assert (head.names, head.num_raw, head.num_outputs) == (TARGETS, 3, 3)
    raw = torch.randn(4, 3)
    assert torch.equal(head.finish(raw), raw)


def test_the_squared_error_counts_every_window_and_target_alike() -> None:
    chance = np.random.default_rng(0)
    answers, labels = (torch.from_numpy(chance.standard_normal((5, 3)).astype(np.float32)) for _ in range(2))
    loss = SquaredError().loss(torch.nn.Flatten(), answers, labels)
    assert float(loss) == pytest.approx(float(np.mean((answers.numpy() - labels.numpy()) ** 2)))
    assert SquaredError().baseline(labels) == pytest.approx(float(np.mean(labels.numpy() ** 2)))


def test_each_target_is_learnt_in_its_own_output_and_unit() -> None:
    windows = windows_of_three()
    model = trained(windows, *TARGETS)
    assert model.outputs == TARGETS
    ends = windows.parts["test"]
    forecasts = model.predict(windows.gather(ends)).outputs_NK * windows.label_scale_RK[ends]
    own = windows.own_labels_RK[ends]
    assert skill(own[:, 0], forecasts[:, 0]) > 0.15
    assert skill(own[:, 1], forecasts[:, 1]) > 0.9
    assert np.median(forecasts[:, 2]) == pytest.approx(np.mean(own[:, 2]), rel=0.2)


@pytest.mark.parametrize("family", ["linear", "lstm", "gru"])
def test_the_graph_has_every_output_in_the_networks_order(family: str, tmp_path: Path) -> None:
    windows = windows_of_three()
    kind = Family.known[family]
    fields = kind.Hyperparameters.model_fields
    settings = {name: value for name, value in {**QUICK, "epochs": 1, f"{family}_units": 4}.items() if name in fields}
    model = kind(settings).train(problem(windows, *TARGETS), accelerator=OneThread(), report=Recorder())
    graph = export(model, tmp_path, num_features=3, lengths=[3, 6], seed=0)
    x_NTF = windows.gather(windows.parts["test"][:50])
    found, wanted = graph.predict(x_NTF).outputs_NK, model.predict(x_NTF).outputs_NK
    assert found.shape == (50, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted[:, 0] - wanted[:, 1]).max() > 1e-3  # outputs that change places would be seen


@dataclass(frozen=True)
class Grown:
    """A model of three targets, published and loaded, and the bars it is asked about."""

    card: ModelCard
    model: ServedModel
    history: SymbolHistory
    close: Floats


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    home = tmp_path_factory.mktemp("heads")
    bars = injected_bars(2000, seed=3, r2=0.3)
    bench = open_bench(home)
    bars.write(home / "bars", "EUR/USD")
    return grow(bench, bars, target=list(TARGETS))


def grow(bench: Workbench, bars: InjectedBars, **request: Any) -> Grown:
    """Trains, publishes and loads."""
    card = train_model(
        bench, "several", checkpoint=bench.state_dir, family="linear", features=["signal", "close"],
        symbols=["EUR/USD"], validation_split=0.4, hyperparameters=QUICK, **request,
    )  # fmt: skip
    model = loaded(bench, card)
    table = bench.feature_store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=columns_needed(model))[0]
    return Grown(card, model, read_history(model, table), bars.close)


def test_a_card_names_all_targets_and_the_first_leads(grown: Grown) -> None:
    card = grown.card
    assert (card.target, card.targets, card.outputs) == (TARGETS[0], TARGETS, TARGETS)
    assert card.target_names == TARGETS
    assert (card.horizon, card.quantiles, card.classes) == (1, (), ())
    assert {"mse", "interval_coverage", "log_return_2h_mse", "volatility_4h_mse"} <= set(card.evaluation.test)
    assert {"random_walk", "log_return_2h_random_walk", "volatility_4h_seasonal_ewma"} <= set(card.evaluation.baselines)
    assert card.metrics["log_return_2h_random_walk_mse"] is not None
    assert card.evaluation.skill["mse_against_random_walk"] > 0.1  # type: ignore[operator]


def test_a_record_has_every_output_in_its_targets_own_unit(grown: Grown) -> None:
    rows = range(1700, 1980)
    questions = [grown.history.question(row) for row in rows]
    together = answer_many(grown.model, [prepare(grown.model, each) for each in questions], LIVE)
    answered = [(row, record) for row, record in zip(rows, together, strict=True) if record.status == "ok"]
    assert len(answered) > 200
    moves, sizes = [], []
    close = grown.close
    for row, record in answered:
        assert list(record.outputs) == list(TARGETS)
        assert record.prediction == record.outputs["price_change_1h"]
        moves.append((record.outputs["price_change_1h"], close[row + 1] / close[row] - 1))
        sizes.append((record.outputs["volatility_4h"], np.sqrt(np.sum(np.diff(np.log(close[row : row + 5])) ** 2))))
    assert np.corrcoef(np.array(moves, dtype=float).T)[0, 1] > 0.3
    told, realised = np.array(sizes, dtype=float).T
    assert np.median(told) == pytest.approx(np.median(realised), rel=0.5)
    single = answer(grown.model, questions[0], LIVE)
    if grown.card.precision == "fp32":
        assert single.outputs == together[0].outputs


def test_an_abstention_names_every_output_without_a_value(grown: Grown) -> None:
    question = grown.history.question(1800)
    x_TF = question.x_TF.copy()
    x_TF[-1] *= 50
    record = answer(grown.model, replace(question, x_TF=x_TF), LIVE)
    assert record.abstain_reasons[0] == "novel_input"
    assert record.outputs == dict.fromkeys(TARGETS)


def test_quantiles_come_in_order_and_the_interval_is_as_wide_as_the_volatility(tmp_path: Path) -> None:
    bars = injected_bars(1500, seed=4, r2=0.3)
    bench = open_bench(tmp_path)
    bars.write(tmp_path / "bars", "EUR/USD")
    grown = grow(bench, bars, target=["price_change_1h", "volatility_4h"], quantiles=[0.95, 0.5, 0.05])
    assert grown.card.quantiles == (0.05, 0.5, 0.95)
    decoder = grown.model.decoder
    assert isinstance(decoder, ForecastDecoder)
    assert decoder.tails is not None
    num_answered = 0
    for row in range(1300, 1480):
        record = answer(grown.model, grown.history.question(row), LIVE)
        if record.status == "abstain":
            continue
        num_answered += 1
        low, middle, high, *volatilities = (value for value in record.outputs.values() if value is not None)
        assert low <= middle == record.prediction <= high
        assert volatilities == sorted(volatilities)
        assert record.interval is not None
        volatility = record.metadata.volatility
        assert volatility == pytest.approx(grown.history.bar_volatility_N[row])
        ends = [middle + tail * volatility for tail in decoder.tails]
        assert [record.interval.lower, record.interval.upper] == pytest.approx(ends)
        assert record.interval.level == 0.9
    assert num_answered > 100


def test_a_volatility_begins_at_its_training_mean_and_a_price_move_at_zero() -> None:
    windows = windows_of_three()
    head = head_for(problem(windows, *TARGETS))
    answered = head.finish(torch.zeros(2, 3))
    mean = windows.labels_RK[windows.parts["train"], 2].mean()
    assert mean > 0.5
    assert answered.tolist() == [[0.0, 0.0, pytest.approx(float(mean))]] * 2
    assert type(head_for(problem(windows, *TARGETS[:2]))) is Head
