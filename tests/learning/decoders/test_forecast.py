"""What a forecast's outputs say: the headline, its interval and direction, the same for one window as for many."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.training import TrainRequest, parse_target
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.decoders.decoder import Decoded, DecodingContext, load_decoder
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder, headline_column
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.interfaces.task import Predict, task_for
from ml_workbench_service.market.costs import resolved_costs, round_trip_cost
from ml_workbench_service.testing.synthetic import cut, problem, symbol_rows
from ml_workbench_service.training.tasks.time_series import Forecasting
from tests.integrations.model_cards import model_card
from tests.service_process import SEED_TRAIN

pytestmark = pytest.mark.processor

LABEL_SCALE = 0.002
QUANTILES = (0.05, 0.5, 0.95)
NUM = 6000


def names_of(targets: Sequence[str], quantiles: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{name}_q{share:g}" for name in targets for share in quantiles) if quantiles else tuple(targets)


def stormy(num: int = NUM, *, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Forecasts and labels in units of the label scale, and each row's deviation in that unit."""
    chance = np.random.default_rng(seed)
    deviation = np.exp(0.7 * chance.standard_normal(num))
    forecasts = 0.3 * chance.standard_normal(num)
    return forecasts, forecasts + deviation * chance.standard_t(4, num), deviation


def decoder_of(
    outputs_NK: Floats,
    labels_N: Floats,
    *,
    deviation_N: Floats | None = None,
    targets: Sequence[str] = ("price_change_1h",),
    quantiles: Sequence[float] = (),
) -> ForecastDecoder:
    """Fitted with everything in units of the label scale, which is the same for all rows."""
    num, horizon = len(labels_N), parse_target(targets[0]).horizon
    return ForecastDecoder.fit(
        outputs_NK,
        targets=[parse_target(name) for name in targets],
        names=names_of(targets, quantiles),
        quantiles=quantiles,
        labels_N=labels_N * LABEL_SCALE,
        label_scale_N=np.full(num, LABEL_SCALE),
        volatility_N=np.full(num, np.nan) if deviation_N is None else deviation_N * LABEL_SCALE * horizon**0.5,
    )


def context(deviation: float | None = None, *, dead_zone: float = 0.0, scales: Sequence[float] = ()) -> DecodingContext:
    bar_volatility = None if deviation is None else deviation * LABEL_SCALE
    return DecodingContext(np.array(scales or [LABEL_SCALE]), bar_volatility, dead_zone)


def asked(decoder: ForecastDecoder, outputs: Sequence[float], *of: float | None, **more: float) -> Decoded:
    scales = [LABEL_SCALE] * len(decoder.targets)
    return decoder.decode(np.array(outputs, dtype=np.float32), context(*of, scales=scales, **more))


def banded(forecasts_N: Floats, half_width: float | Floats) -> Floats:
    """Quantile outputs this far apart; one number knows nothing of storms."""
    return np.column_stack([forecasts_N - half_width, forecasts_N, forecasts_N + half_width])


def covers(
    decoder: ForecastDecoder, outputs_NK: Floats, labels_N: Floats, *, label_scale_N: Floats, volatility_N: Floats
) -> Bools:
    """Whether each realised value lies within its interval, whole arrays at once."""
    if len(decoder.quantiles) > 1:
        lower_N, upper_N = decoder.band(outputs_NK, label_scale_N, volatility_N)
        return (lower_N <= labels_N) & (labels_N <= upper_N)
    radius = decoder.unconditional.radius * label_scale_N
    if decoder.conditional is not None:
        radius = np.where(np.isfinite(volatility_N), decoder.conditional.radius * np.nan_to_num(volatility_N), radius)
    return np.abs(labels_N - outputs_NK[:, 0] * label_scale_N) <= radius


@pytest.mark.parametrize("half_width", [0.0, 0.4, 1.5, 9.0])
@pytest.mark.parametrize("level", [0.9, 0.5])
def test_a_quantile_band_covers_as_promised_however_wrong_the_network_is(half_width: float, level: float) -> None:
    quantiles = ((1 - level) / 2, 0.5, (1 + level) / 2)
    forecasts, labels, _ = stormy(seed=1)
    decoder = decoder_of(banded(forecasts, half_width), labels, quantiles=quantiles)
    forecasts, labels, deviation = stormy(seed=2)
    covered = covers(
        decoder, banded(forecasts, half_width), labels * LABEL_SCALE, label_scale_N=np.full(NUM, LABEL_SCALE),
        volatility_N=deviation,
    )  # fmt: skip
    assert np.mean(covered) == pytest.approx(level, abs=0.015)
    interval = asked(decoder, banded(forecasts[:1], half_width)[0]).interval
    assert interval is not None
    assert interval.level == level


def test_the_margin_is_the_conformal_rank_of_what_lies_beyond_the_band() -> None:
    """With 20 labels rank ceil(21 x 0.9) = 19: of 0, 0.5 … 18.5 that is 17.5."""
    labels = np.random.default_rng(0).permutation(np.append(np.arange(19) + 0.5, 0.0))
    decoder = decoder_of(banded(np.zeros(20), 1.0), labels, quantiles=QUANTILES)
    assert decoder.margin == pytest.approx(17.5 - 1.0)
    assert decoder_of(banded(np.zeros(20), 30.0), labels, quantiles=QUANTILES).margin == pytest.approx(17.5 - 30.0)
    assert decoder_of(np.zeros((20, 1)), labels).margin == 0.0
    assert decoder_of(np.zeros((20, 1)), labels, quantiles=[0.5]).margin == 0.0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    half_width=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    kind=st.sampled_from(["point", "median", "band"]),
    target=st.sampled_from(["price_change_1h", "log_return_4h", "volatility_4h"]),
    knows_volatility=st.booleans(),
)
def test_one_window_is_told_the_interval_that_the_score_counts(
    seed: int, half_width: float, kind: str, target: str, knows_volatility: bool
) -> None:
    """Training scores with `covers`, serving answers with `decoder`."""
    horizon = parse_target(target).horizon
    quantiles = {"point": (), "median": (0.5,), "band": QUANTILES}[kind]

    def rows(seed: int) -> tuple[Floats, Floats, Floats]:
        forecasts, labels, deviation = stormy(60, seed=seed)
        if target.startswith("volatility"):
            forecasts, labels = forecasts - 0.5, np.abs(labels)
        wide = half_width * deviation**2  # a margin below zero turns the calm ones round
        return (banded(forecasts, wide) if kind == "band" else forecasts[:, None]).astype(np.float32), labels, deviation

    outputs, labels, deviation = rows(seed)
    decoder = decoder_of(outputs, labels, deviation_N=deviation, targets=[target], quantiles=quantiles)
    outputs, labels, deviation = rows(seed + 1)  # others: a calibration row may lie on the very border
    ahead = deviation * LABEL_SCALE * horizon**0.5 if knows_volatility else np.full(60, np.nan)
    covered = covers(
        decoder, outputs.astype(float), labels * LABEL_SCALE, label_scale_N=np.full(60, LABEL_SCALE), volatility_N=ahead
    )
    for row in range(60):
        told = asked(decoder, outputs[row], deviation[row] if knows_volatility else None)
        assert told.interval is not None
        assert told.interval.lower <= told.interval.upper
        inside = told.interval.lower <= labels[row] * LABEL_SCALE <= told.interval.upper
        assert inside == covered[row]
        if target.startswith("volatility"):
            assert told.interval.lower >= 0
            assert (told.direction, told.confidence) == ("hold", None)


@pytest.mark.parametrize("horizon", [1, 4])
def test_the_interval_is_as_wide_as_the_volatility_over_the_horizon(horizon: int) -> None:
    forecasts, labels, deviation = stormy(400)
    decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviation, targets=[f"log_return_{horizon}"])
    assert decoder.conditional is not None
    for each in (0.5, 2.0):
        told = asked(decoder, [0.1], each)
        assert told.interval is not None
        assert told.volatility == pytest.approx(each * LABEL_SCALE * horizon**0.5)
        half = (told.interval.upper - told.interval.lower) / 2
        assert half == pytest.approx(decoder.conditional.radius * told.volatility)
        assert told.warnings == ()


@pytest.mark.parametrize("deviation", [None, 0.0])
def test_without_a_volatility_the_label_scale_stands_in_with_a_warning(deviation: float | None) -> None:
    forecasts, labels, deviations = stormy(400)
    decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviations)
    told = asked(decoder, [0.1], deviation)
    assert told.warnings == ("unconditional_interval",)
    assert told.volatility == LABEL_SCALE
    assert told.interval is not None
    assert (told.interval.upper - told.interval.lower) / 2 == pytest.approx(decoder.unconditional.radius * LABEL_SCALE)
    band = decoder_of(banded(forecasts, 1.0), labels, deviation_N=deviations, quantiles=QUANTILES)
    told = asked(band, [-1, 0.1, 1], deviation)
    assert told.warnings == ("unconditional_interval",)
    assert told.interval is not None
    ends = [(-1 - band.margin) * LABEL_SCALE, (1 + band.margin) * LABEL_SCALE]
    assert [told.interval.lower, told.interval.upper] == pytest.approx(ends)


def test_every_output_is_told_in_its_own_targets_unit_and_the_first_target_leads() -> None:
    targets = ("price_change_1h", "volatility_4h")
    forecasts, labels, _ = stormy(300)
    scales = (0.002, 0.5)
    decoder = decoder_of(np.column_stack([forecasts, forecasts]), labels, targets=targets)
    told = decoder.decode(np.array([2.0, 3.0], np.float32), context(scales=scales))
    assert told.outputs == {"price_change_1h": 0.004, "volatility_4h": 1.5}
    assert told.prediction == 0.004
    band = np.tile(banded(forecasts, 1.0), 2)
    decoder = decoder_of(band, labels, targets=targets, quantiles=QUANTILES)
    told = decoder.decode(np.array([1, 2, 3, 4, 5, 6], np.float32), context(scales=scales))
    assert list(told.outputs.values()) == pytest.approx([0.002, 0.004, 0.006, 2.0, 2.5, 3.0])
    assert list(told.outputs) == list(names_of(targets, QUANTILES))
    assert told.prediction == pytest.approx(0.004)
    assert told.interval is not None
    assert told.interval.upper == pytest.approx(0.006 + decoder.margin * 0.002)


def test_the_headline_is_the_median_wherever_it_stands() -> None:
    assert [headline_column(each) for each in ((), (0.5,), (0.1, 0.5), (0.5, 0.9), QUANTILES)] == [0, 0, 1, 0, 1]


def test_a_direction_must_be_worth_the_round_trip_and_its_probability_comes_true() -> None:
    forecasts, labels, deviation = stormy(5000, seed=3)
    decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviation)
    zone = 0.2 * LABEL_SCALE
    assert [asked(decoder, [each], 1.0, dead_zone=zone).direction for each in (0.3, -0.3, 0.1, -0.1)] == [
        "buy",
        "sell",
        "hold",
        "hold",
    ]
    forecasts, labels, deviation = stormy(4000, seed=4)
    stated, came_true = [], []
    for forecast, label, each in zip(forecasts, labels, deviation, strict=True):
        told = asked(decoder, [forecast], each, dead_zone=zone)
        assert told.confidence is not None
        stated.append(told.confidence)
        came_true.append({"buy": label > 0.2, "sell": label < -0.2, "hold": abs(label) <= 0.2}[told.direction])
    assert np.mean(stated) == pytest.approx(np.mean(came_true), abs=0.03)


@pytest.mark.parametrize("kind", ["point", "band"])
def test_an_interval_far_wider_than_usual_is_a_reason_to_abstain(kind: str) -> None:
    forecasts, labels, deviation = stormy(400)
    if kind == "point":
        decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviation)
        usual, wide = asked(decoder, [0.1], 1.0), asked(decoder, [0.1], 50.0)
    else:
        decoder = decoder_of(banded(forecasts, 1.0), labels, deviation_N=deviation, quantiles=QUANTILES)
        usual, wide = asked(decoder, [-1, 0.1, 1], 1.0), asked(decoder, [-1, 0.1, 1], 50.0)
        assert asked(decoder, [-90, 0.1, 1], None).reasons == ("interval_too_wide",)
    assert usual.reasons == ()
    assert wide.reasons == ("interval_too_wide",)


@pytest.mark.parametrize("quantiles", [(), QUANTILES])
@pytest.mark.parametrize("has_volatility", [True, False])
def test_a_judge_read_back_says_the_same_to_the_bit(quantiles: tuple[float, ...], has_volatility: bool) -> None:
    targets = ("price_change_1h", "volatility_4h")
    forecasts, labels, deviation = stormy(300)
    outputs = np.tile(banded(forecasts, 1.0) if quantiles else forecasts[:, None], 2)
    decoder = decoder_of(
        outputs, labels, deviation_N=deviation if has_volatility else None, targets=targets, quantiles=quantiles
    )
    assert (decoder.conditional is None) != has_volatility
    card = model_card(target=targets[0], targets=targets, quantiles=quantiles, outputs=decoder.names)
    again = load_decoder(json.loads(json.dumps(decoder.to_json())), card)
    assert isinstance(again, ForecastDecoder)
    assert again.to_json() == decoder.to_json()
    assert asked(again, outputs[0], 1.3, dead_zone=0.001) == asked(decoder, outputs[0], 1.3, dead_zone=0.001)


def test_a_recipe_older_than_the_names_of_the_kinds_is_a_forecasts() -> None:
    forecasts, labels, deviation = stormy(300)
    decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviation)
    old = {name: value for name, value in decoder.to_json().items() if name not in ("kind", "margin")}
    again = load_decoder(old, model_card())
    assert isinstance(again, ForecastDecoder)
    assert asked(again, [0.4], 1.3) == asked(decoder, [0.4], 1.3)


def test_int8_must_keep_each_symbols_direction_beyond_its_own_cost() -> None:
    windows = cut(symbol_rows(num=600), symbol_rows("USD/JPY", num=600, seed=1, deviation=0.0003))
    work, ends = problem(windows), windows.parts["calibration"]
    outputs = np.random.default_rng(0).normal(0, 0.3, (len(ends), 1))
    found = Forecasting().decisions(outputs, ends, work)
    for place, row in enumerate(ends):
        symbol = windows.symbols[windows.symbol_R[row]]
        value = outputs[place, 0] * windows.scaler.symbols[symbol].label_scale_K[0]
        zone = round_trip_cost(resolved_costs(symbol), symbol, float(windows.close_R[row]))
        assert found[place] == int(value > zone) - int(value < -zone)
    assert set(found.tolist()) == {-1, 0, 1}
    assert set(Forecasting().decisions(outputs, ends, problem(windows, "volatility_1h")).tolist()) == {-1, 1}


class Told(Predict):
    """A network that has said these outputs at every row."""

    def __init__(self, outputs_RK: np.ndarray) -> None:
        super().__init__(None, None)
        self._outputs_RK = outputs_RK

    def over(self, windows: Windows, ends: Ints) -> Floats:
        """Those of these windows."""
        return self._outputs_RK[ends]


def judged_on_two_targets(quantiles: tuple[float, ...]) -> tuple[ForecastDecoder, Evaluation]:
    """By outputs that are right about the first target and wrong about the second."""
    rows = symbol_rows(num=1200)
    windows = cut(replace(rows, labels_NK=rows.labels_NK * [1.0, 0.5]))
    work = problem(windows, "price_change_1h", "log_return_1", quantiles=quantiles)
    names = names_of(["price_change_1h", "log_return_1"], quantiles)
    trained = Trained(names, {}, {}, lambda: None, lambda *_: None, 1, 1)
    width = np.array([-0.1, 0.0, 0.1]) if quantiles else np.zeros(1)

    def outputs(rows: Ints) -> Floats:
        known = windows.labels_RK[rows].astype(float)
        right, wrong = 0.9 * known[:, :1] + width, -known[:, 1:] + width
        return np.column_stack([right, wrong])

    task = Forecasting()
    calibration, test = windows.parts["calibration"], windows.parts["test"]
    decoder = task.calibrate(trained, outputs(calibration), calibration, work)
    told = Told(outputs(np.arange(len(windows.close_R))))
    return decoder, task.evaluate(trained, decoder, outputs(test), test, work, is_simulated=False, predict=told)


@pytest.mark.parametrize("quantiles", [(), QUANTILES])
def test_the_card_has_the_figures_of_every_target(quantiles: tuple[float, ...]) -> None:
    decoder, evaluation = judged_on_two_targets(quantiles)
    assert set(evaluation.baselines) == {"random_walk", "drift", "linear", "log_return_1_random_walk"}
    assert [each.baseline for each in evaluation.comparisons] == ["random_walk", "drift", "linear"]
    figures = {**evaluation.test, **evaluation.skill}
    assert figures["mse_against_random_walk"] == pytest.approx(0.99, abs=1e-3)
    assert figures["log_return_1_mse_against_random_walk"] == pytest.approx(-3.0, abs=1e-3)
    assert (figures["direction_accuracy"], figures["log_return_1_direction_accuracy"]) == (1.0, 0.0)
    coverage = figures["interval_coverage"]
    assert coverage is not None
    assert 0.8 <= coverage <= 1.0
    assert "log_return_1_interval_coverage" not in figures  # it has no interval
    assert evaluation.interval is not None
    assert evaluation.interval.coverage == coverage
    assert [name for name in figures if "num_windows" in name] == ["num_windows"]
    if not quantiles:
        assert "pinball_loss" not in figures
        return
    assert decoder.margin != 0.0
    assert figures["share_below_q0.5"] == pytest.approx(0.5, abs=0.1)
    loss = figures["pinball_loss"]
    assert loss is not None
    assert loss > 0


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"target": None}, "body.target", "time_series needs a target, such as price_change_1h"),
        ({"target": "direction_1h"}, "body.target", "direction_1h is a class, not a number; send model_type"),
        ({"target": ["price_change_1h", "market_regime"]}, "body.target", "market_regime is a class"),
        ({"target": ["price_change_1h", "price_change_1"]}, "body.target", "a target stands twice"),
        ({"target": ["price_change_1h", "volatility_5d"]}, "body.target", "different timeframes (1d, 1h)"),
        ({"target": "price_chnge_1h"}, "body.target", "a target is price_change_<h>"),
        ({"quantiles": [0.1, 0.9]}, "body.quantiles", "quantiles need 0.5 among them"),
        ({"label": {"k": 2.0}}, "body.label", "`k` belongs to the target triple_barrier"),
        ({"features": []}, "body.features", "time_series needs features"),
    ],
)
def test_what_no_forecast_can_be_made_of_is_refused_with_what_to_send(
    changes: dict[str, object], path: str, hint: str
) -> None:
    request = TrainRequest.model_validate({**SEED_TRAIN, **changes})
    with pytest.raises(DataValidationError) as caught:
        task_for(request.model_type).check(request)
    (error,) = caught.value.details["errors"]
    assert error["path"] == path
    assert hint in error["message"]
    assert error["code"] == ("missing" if changes in ({"target": None}, {"features": []}) else "invalid")


def test_a_list_of_targets_is_checked_in_its_order() -> None:
    request = TrainRequest.model_validate({**SEED_TRAIN, "target": ["volatility_4h", "price_change_1h"]})
    assert [each.name for each in task_for(request.model_type).check(request)] == ["volatility_4h", "price_change_1h"]
