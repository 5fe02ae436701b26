"""What is measured over many rows is what the decoder says of each; and what a forecasting task measures with it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.evaluation.distribution_metrics import DecodedRows, coverage_by_hour, volatility_terciles
from ml_workbench_service.learning.decoders.decoder import DecodingContext
from ml_workbench_service.learning.interfaces.differentials import pooled
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.significance import trailing_move
from ml_workbench_service.testing.synthetic import cut, problem, symbol_rows
from ml_workbench_service.training.tasks.time_series import Forecasting
from tests.learning.decoders.test_forecast import LABEL_SCALE, QUANTILES, banded, decoder_of, names_of, stormy

NUM = 80


def judged(kind: str, target: str, *, knows_volatility: bool) -> tuple[DecodedRows, Floats]:
    """Rows as their decoder reads them, every third without a volatility; and each row's volatility of one bar."""
    quantiles = QUANTILES if kind == "band" else ()

    def rows(seed: int) -> tuple[Floats, Floats, Floats]:
        forecasts, labels, deviation = stormy(NUM, seed=seed)
        labels = np.abs(labels) if target.startswith("volatility") else labels
        return banded(forecasts, deviation) if kind == "band" else forecasts[:, None], labels, deviation

    outputs, labels, deviation = rows(1)
    decoder = decoder_of(
        outputs, labels, deviation_N=deviation if knows_volatility else None, targets=[target], quantiles=quantiles
    )
    outputs, labels, deviation = rows(2)
    bars = np.where(np.arange(NUM) % 3 == 0, np.nan, deviation * LABEL_SCALE)
    ahead = bars * decoder.targets[0].horizon ** 0.5
    outputs = outputs.astype(np.float32).astype(np.float64)
    return DecodedRows(decoder, outputs, labels * LABEL_SCALE, np.full(NUM, LABEL_SCALE), ahead), bars


def told(rows: DecodedRows, bars: Floats, row: int, *, dead_zone: float = 0.0) -> Any:
    known = bars[row] if np.isfinite(bars[row]) else None
    context = DecodingContext(label_scale_K=np.array([LABEL_SCALE]), bar_volatility=known, dead_zone=dead_zone)
    return rows.decoder.decode(rows.outputs_NK[row].astype(np.float32), context)


@pytest.mark.parametrize("bars_an_hour", [1, 4])
def test_an_hour_fails_only_where_chance_cannot_excuse_it(bars_an_hour: int) -> None:
    """Nine in ten of every hour's rows but two: one that covers seven in ten, and one that does on three days alone."""
    days, bar_ms = 400, HOUR_MS // bars_an_hour
    moments = np.arange(0, days * DAY_MS, bar_ms)
    hours, day = moments % DAY_MS // HOUR_MS, moments // DAY_MS
    covered = (day * 7 + moments // bar_ms) % 10 > 0
    covered[hours == 9] = (day[hours == 9] % 10) < 7
    kept = (hours != 14) | (day < 3)
    covered[hours == 14] = day[hours == 14] < 2
    found = coverage_by_hour(covered[kept], moments[kept], level=0.9, horizon=1)
    assert [each.hour_utc for each in found] == list(range(24))
    assert [each.hour_utc for each in found if each.failed] == [9]
    assert found[9].coverage == pytest.approx(0.7)
    assert found[9].low < 0.7 < found[9].high < 0.85
    assert (found[14].num_rows, found[8].num_rows) == (3 * bars_an_hour, days * bars_an_hour)
    assert found[14].low < 0.66 < 0.9 < found[14].high
    assert found[8].coverage == pytest.approx(0.9, abs=0.01)


def test_overlapping_horizons_and_symbols_at_one_moment_are_no_more_evidence() -> None:
    moments = np.arange(0, 400 * DAY_MS, HOUR_MS)
    covered = np.arange(len(moments)) % 10 > 0
    alone, twice, long = (
        coverage_by_hour(np.tile(covered, num), np.tile(moments, num), level=0.9, horizon=horizon)[5]
        for num, horizon in ((1, 1), (2, 1), (1, 48))
    )
    assert (twice.low, twice.high, twice.num_rows) == (alone.low, alone.high, 2 * alone.num_rows)
    assert long.high - long.low > 1.3 * (alone.high - alone.low)
    assert coverage_by_hour(covered[:400], moments[:400] * 24, level=0.9, horizon=1) == ()


@pytest.mark.parametrize("knows_volatility", [True, False])
@pytest.mark.parametrize("target", ["price_change_1h", "volatility_4h"])
@pytest.mark.parametrize("kind", ["point", "band"])
def test_intervals_over_many_rows_are_those_that_each_is_told(kind: str, target: str, knows_volatility: bool) -> None:
    rows, bars = judged(kind, target, knows_volatility=knows_volatility)
    level, lower, upper = rows.bounds()
    for row in range(NUM):
        interval = told(rows, bars, row).interval
        assert (level, lower[row], upper[row]) == pytest.approx((interval.level, interval.lower, interval.upper))


@pytest.mark.parametrize("knows_volatility", [True, False])
def test_stated_confidence_is_compared_with_what_came_of_each_row(knows_volatility: bool) -> None:
    rows, bars = judged("point", "price_change_1h", knows_volatility=knows_volatility)
    zone = 0.2 * LABEL_SCALE
    bins: dict[int, list[float]] = {}
    for row in range(NUM):
        said = told(rows, bars, row, dead_zone=zone)
        label = rows.labels_N[row]
        came = "hold" if abs(label) <= zone else "buy" if label > 0 else "sell"
        place = int(np.ceil(said.confidence * 15)) - 1
        bins.setdefault(place, []).append(float(said.direction == came) - said.confidence)
    wanted = sum(abs(sum(each)) for each in bins.values()) / NUM
    assert rows.calibration_error(np.full(NUM, zone)) == pytest.approx(wanted)


def test_the_distribution_scores_better_than_its_point_and_worse_where_it_is_wrong() -> None:
    rows, _ = judged("point", "price_change_1h", knows_volatility=True)
    point = float(np.mean(np.abs(rows.labels_N - rows.predictions_N)))
    assert 0.5 * point < rows.crps() < point
    assert replace(rows, volatility_N=20 * rows.volatility_N).crps() > rows.crps()


def test_terciles_are_each_symbols_own() -> None:
    windows = cut(symbol_rows(num=900), symbol_rows("USD/JPY", num=900, seed=1, deviation=0.01))
    test = windows.parts["test"]
    found = volatility_terciles(windows, test)
    for number in (0, 1):
        own = windows.symbol_R[test] == number
        shares = np.bincount(found[own], minlength=3) / own.sum()
        assert shares == pytest.approx([1 / 3] * 3, abs=0.01)
        calm = trailing_move(windows.close_R[windows.symbol_R == number])
        rows = test[own] - int(np.argmax(windows.symbol_R == number))
        assert calm[rows][found[own] == 0].max() <= calm[rows][found[own] == 2].min()


def network(outputs_RK: Floats, work: Any, **more: Any) -> Trained:
    """Answers with these outputs, wherever it is asked: it knows a window by its last row."""
    windows = work.windows
    place = {windows.rows_RF[row].tobytes(): row for row in range(len(windows.rows_RF))}

    def predict(rows_NTF: Any, _: Any = None) -> RawPrediction:
        rows = [place[window[-1].tobytes()] for window in rows_NTF]
        return RawPrediction(outputs_RK[rows].astype(np.float32), rows_NTF[:, -1])

    names = names_of([each.name for each in work.targets], work.quantiles)
    return Trained(names, {}, more.pop("network", {}), lambda: None, predict, 1, 1, **more)


def measured(work: Any, outputs_RK: Floats, **more: Any) -> Evaluation:
    windows, task = work.windows, Forecasting()
    model = network(outputs_RK, work, **more)
    calibrate, test = windows.parts["calibration"], windows.parts["test"]
    decoder = task.calibrate(model, outputs_RK[calibrate], calibrate, work)
    found = task.evaluate(
        model, decoder, outputs_RK[test], test, work, is_simulated=False, predict=Predict(model, None)
    )
    folds = [
        task.differentials(model, decoder, outputs_RK[part], part, work, predict=Predict(model, None))
        for part in np.array_split(test, 2)
    ]
    assert [each.baseline for each in pooled(folds)] == [each.baseline for each in found.comparisons]
    assert pooled(folds)[0].comparison().decisive.p_value == pytest.approx(found.comparisons[0].decisive.p_value)
    return found


def test_a_price_forecast_is_measured_traded_and_compared() -> None:
    work = problem(cut(symbol_rows(num=1500, r2=0.3)))
    known = 0.3 * work.windows.labels_RK.astype(float)
    found = measured(work, known)
    assert [each.baseline for each in found.comparisons] == ["random_walk", "drift", "linear"]
    figures = found.test
    assert {"mase", "rmsse", "crps", "calibration_error", "direction_accuracy_low"} <= set(figures)
    assert figures["crps"] < figures["mae"]  # type: ignore[operator]
    assert found.backtest is not None
    assert found.backtest.hit_rate == 1.0
    assert found.interval is not None
    assert found.interval.coverage == figures["interval_coverage"]
    assert found.seeds is None
    itself = measured(work, known, network={"kind": "linear_forecaster"})
    assert [each.baseline for each in itself.comparisons] == ["random_walk", "drift"]


def test_a_volatility_forecast_is_compared_and_never_traded() -> None:
    rows = symbol_rows(num=1500)
    work = problem(cut(replace(rows, labels_NK=np.abs(rows.labels_NK))), "volatility_1h")
    found = measured(work, work.windows.labels_RK.astype(float))
    assert [each.baseline for each in found.comparisons] == [
        "seasonal_ewma",
        "seasonal_har",
        "seasonal_blend",
        "linear",
    ]
    assert found.backtest is None
    assert "calibration_error" not in found.test
    assert Forecasting().positions(Predict(None, None), work.windows.parts["validation"], work) is None


def test_seeds_are_measured_each_alone() -> None:
    work = problem(cut(symbol_rows(num=900)))
    labels = work.windows.labels_RK.astype(float)
    members = tuple(network(strength * labels, work) for strength in (1.0, 0.0, 0.5))
    found = measured(work, 0.5 * labels, members=members)
    assert found.seeds is not None
    spread = found.seeds["mse_against_random_walk"]
    assert (spread.minimum, spread.maximum) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert spread.mean == pytest.approx((1 + 0 + 0.75) / 3, abs=1e-6)


def test_the_signal_is_the_direction_beyond_its_costs() -> None:
    work = problem(cut(symbol_rows(num=900)))
    outputs, stop = 0.1 * np.random.default_rng(0).standard_normal((900, 1)), work.windows.parts["validation"]
    found = Forecasting().positions(Predict(network(outputs, work), None), stop, work)
    assert found is not None
    np.testing.assert_array_equal(found, Forecasting().decisions(outputs[stop].astype(np.float32), stop, work))
    assert set(found.tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("quantiles", [(), QUANTILES])
@pytest.mark.parametrize("target", ["price_change_1h", "volatility_1h"])
def test_a_trial_is_ranked_by_the_loss_that_is_gone(target: str, quantiles: tuple[float, ...]) -> None:
    rows = symbol_rows(num=900)
    rows = replace(rows, labels_NK=np.abs(rows.labels_NK)) if target.startswith("volatility") else rows
    work = problem(cut(rows), target, quantiles=quantiles)
    labels, stop = work.windows.labels_RK.astype(float), work.windows.parts["validation"]
    columns = max(len(quantiles), 1)

    def score(outputs_RK: Floats) -> float:
        return Forecasting().score(network(outputs_RK, work), stop, work)

    assert score(np.repeat(labels, columns, axis=1)) == pytest.approx(1.0, abs=1e-6)
    assert score(np.repeat(labels + 5.0, columns, axis=1)) < -1
    if quantiles:
        plain = np.quantile(labels[work.windows.parts["train"], 0], quantiles)
    else:
        train = work.windows.parts["train"]
        plain = np.array([0.0 if target.startswith("price") else labels[train].mean()])
    assert score(np.tile(plain, (len(labels), 1))) == pytest.approx(0.0, abs=0.05)
