"""One conformance suite for every model family: a new file in `families/` is under it without a line here."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.export import export
from ml_workbench_service.learning.family import Family, Trained, families_of, family_for
from ml_workbench_service.learning.windows import Windows
from tests.learning.synthetic import OneThread, Recorder, cut, skill, symbol_rows

QUICK: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 64,
    "lookback": 8,
    "learning_rate": 0.02,
    "dropout": 0.0,
    "patience": 4,
}
SMALL_UNITS = 8
TARGETS = ("price_change_1h",)
R2 = 0.3

every_family = pytest.mark.parametrize("kind", list(Family.known.values()), ids=list(Family.known))


def quick(kind: type[Family], **changes: Any) -> Family:
    """The family with few and small steps, as far as it has these hyper-parameters."""
    fields = kind.Hyperparameters.model_fields
    chosen = {name: value for name, value in (QUICK | changes).items() if name in fields}
    return kind({name: SMALL_UNITS for name in fields if name.endswith("_units")} | chosen)


def trained(family: Family, windows: Windows, *, seed: int = 0, report: Recorder | None = None) -> Trained:
    return family.train(windows, targets=TARGETS, seed=seed, accelerator=OneThread(), report=report or Recorder())


def forecasts(model: Trained, windows: Windows, ends: Ints) -> Floats:
    return model.predict(windows.gather(ends)).outputs_NK[:, 0].astype(np.float64) * windows.label_scale_R[ends]


def skill_on(part: Any, model: Trained, windows: Windows) -> float:
    ends = windows.parts[part]
    return skill(windows.own_labels_R[ends], forecasts(model, windows, ends))


@pytest.fixture(scope="module")
def windows() -> Windows:
    return cut(symbol_rows(num=2000, r2=R2))


@every_family
def test_it_learns_a_planted_signal(kind: type[Family], windows: Windows) -> None:
    assert skill_on("test", trained(quick(kind), windows), windows) > R2 / 2


@every_family
def test_it_finds_nothing_where_nothing_is(kind: type[Family]) -> None:
    noise = cut(symbol_rows(num=2000, r2=0.0))
    assert skill_on("test", trained(quick(kind), noise), noise) < 0.02


@every_family
def test_its_float32_answers_do_not_depend_on_their_neighbours(
    kind: type[Family], windows: Windows, tmp_path: Path
) -> None:
    family = quick(kind, epochs=1)
    graph = export(trained(family, windows), tmp_path, num_features=3, lengths=[family.lookback], seed=0)
    x_NTF = windows.gather(windows.parts["test"][:100])
    together = graph.predict(x_NTF).outputs_NK
    alone = np.concatenate([graph.predict(window[None]).outputs_NK for window in x_NTF])
    assert together.tobytes() == alone.tobytes()


@every_family
def test_a_seed_decides_every_bit_of_the_weights(kind: type[Family], windows: Windows) -> None:
    first, again, other = (
        trained(quick(kind, epochs=2, dropout=0.2), windows, seed=seed).weights for seed in (3, 3, 4)
    )
    assert set(first) == set(again)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)


@every_family
def test_nothing_after_the_stopping_part_reaches_the_weights(kind: type[Family], windows: Windows) -> None:
    later = windows.known_ms_R > windows.borders_ms["calibrate"]
    changed = {}
    for name in ("rows_RF", "labels_R", "own_labels_R", "volatility_R", "close_R"):
        changed[name] = getattr(windows, name).copy()
        changed[name][later] = 7.0
    first = trained(quick(kind, epochs=2), windows).weights
    second = trained(quick(kind, epochs=2), replace(windows, **changed)).weights
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@every_family
def test_its_graph_answers_like_its_network(kind: type[Family], windows: Windows, tmp_path: Path) -> None:
    family = quick(kind, epochs=1)
    model = trained(family, windows)
    lengths = range(family.min_window, family.lookback + 1)
    graph = export(model, tmp_path, num_features=3, lengths=lengths, seed=0)
    ends = windows.parts["test"]
    for length in lengths:
        x_NTF = windows.gather(ends, length)
        found, wanted = graph.predict(x_NTF), model.predict(x_NTF)
        np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=1e-4)
        np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=1e-4)
    assert json.loads(json.dumps(dict(model.network))) == dict(model.network)
    assert model.outputs == TARGETS


@every_family
def test_a_short_window_is_answered_nearly_as_well(kind: type[Family], windows: Windows) -> None:
    """The planted signal is in the last row, so that even the shortest window tells it."""
    family = quick(kind)
    model = trained(family, windows)
    ends = windows.parts["test"]
    short = model.predict(windows.gather(ends, family.min_window)).outputs_NK[:, 0] * windows.label_scale_R[ends]
    assert family.min_window < family.lookback
    assert skill(windows.own_labels_R[ends], short) > R2 / 3


@every_family
def test_it_reports_every_epoch_and_keeps_the_best(kind: type[Family], windows: Windows) -> None:
    report = Recorder()
    family = quick(kind, learning_rate=0.1, batch_size=16, epochs=40, patience=2)
    model = trained(family, windows, report=report)
    assert [step for step, _, _ in report.steps] == list(range(1, model.epochs_run + 1))
    assert {total for _, total, _ in report.steps} == {40}
    losses = [metrics["stop_loss"] for _, _, metrics in report.steps]
    assert model.epochs_run < 40
    assert model.best_epoch == int(np.argmin(losses)) + 1
    ends = windows.parts["stop"]
    kept = model.predict(windows.gather(ends)).outputs_NK[:, 0] - windows.labels_R[ends]
    assert np.mean(kept**2) == pytest.approx(min(losses), rel=1e-4)


@every_family
@pytest.mark.parametrize("at_check", [1, 9])
def test_a_cancellation_ends_it_at_once(kind: type[Family], at_check: int, windows: Windows) -> None:
    report = Recorder(cancel_at_check=at_check)
    with pytest.raises(JobCancelled):
        trained(quick(kind), windows, report=report)
    assert report.num_checks == at_check


@every_family
def test_a_misspelt_hyperparameter_is_refused_with_the_nearest(kind: type[Family]) -> None:
    with pytest.raises(DataValidationError, match=f"family {kind.name}") as caught:
        kind({"lokback": 24})
    error = caught.value.details["errors"][0]
    assert error["path"] == "body.hyperparameters.lokback"
    assert "did you mean lookback?" in error["message"]
    assert "24" not in error["message"]


@every_family
def test_absurd_hyperparameters_are_refused(kind: type[Family]) -> None:
    properties = kind.Hyperparameters.model_json_schema()["properties"]
    num_refused = 0
    for name, schema in properties.items():
        absurd: list[Any] = ["many", None, [1], float("nan"), float("inf")]
        absurd += [schema[bound] + sign for bound, sign in (("minimum", -1), ("maximum", 1)) if bound in schema]
        absurd += [schema[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in schema]
        assert len(absurd) >= 7, f"{name} needs a lower and an upper bound"
        for value in absurd:
            with pytest.raises(DataValidationError) as caught:
                kind({name: value})
            assert caught.value.details["errors"][0]["path"] == f"body.hyperparameters.{name}"
            num_refused += 1
    assert num_refused >= 7


@every_family
def test_its_defaults_are_usable_and_said_in_its_schema(kind: type[Family]) -> None:
    family = kind({})
    properties = kind.Hyperparameters.model_json_schema()["properties"]
    assert {name: each["default"] for name, each in properties.items()} == family.hyperparameters.model_dump()
    assert all(each["description"].endswith(".") for each in properties.values())
    assert family.lookback == properties["lookback"]["default"]
    assert 1 <= family.min_window <= family.lookback


@every_family
def test_its_estimates_grow_with_the_work(kind: type[Family]) -> None:
    family = kind({})
    assert 0 < family.memory_bytes(1000, 4) < family.memory_bytes(100_000, 4) < family.memory_bytes(100_000, 40)
    assert 0 < family.seconds(1000) < family.seconds(100_000)
    assert family.memory_bytes(100_000, 4) > 100_000 * 4 * 4  # the rows alone


@every_family
def test_its_docstring_says_what_it_is_and_where_it_comes_from(kind: type[Family]) -> None:
    text = kind.__doc__ or ""
    assert re.search(r"\b(19|20)\d\d\b", text), "cite the paper with its year"
    assert len(text.splitlines()) > 1


def constant_column(seed: int = 0) -> Windows:
    table = symbol_rows(num=1200, r2=R2, seed=seed)
    table.x_NF[:, 1] = 0.25
    return cut(table)


def constant_everything() -> Windows:
    table = symbol_rows(num=1200, r2=R2)
    table.x_NF[:] = (0.0, 1e7, 1.0)
    return cut(table)


def missing_values() -> Windows:
    return cut(symbol_rows(num=1500, r2=R2, holes=range(40, 1500, 50), gaps=[200, 700]))


def many_symbols() -> Windows:
    pairs = ("EUR/USD", "GBP/USD", "USD/JPY")
    return cut(*(symbol_rows(pair, num=700, seed=n, r2=R2, deviation=10.0**-n / 500) for n, pair in enumerate(pairs)))


@every_family
@pytest.mark.parametrize("make", [constant_column, constant_everything, missing_values, many_symbols])
def test_it_survives_unusual_data(kind: type[Family], make: Any) -> None:
    unusual = make()
    model = trained(quick(kind), unusual)
    answers = forecasts(model, unusual, unusual.parts["test"])
    assert np.isfinite(answers).all()
    assert all(np.isfinite(each).all() for each in model.weights.values())
    if make is not constant_everything:
        assert skill_on("test", model, unusual) > R2 / 3


@every_family
def test_each_symbol_is_forecast_in_its_own_unit(kind: type[Family]) -> None:
    unusual = many_symbols()
    model = trained(quick(kind), unusual)
    for number in range(3):
        ends = unusual.parts["test"][unusual.symbol_R[unusual.parts["test"]] == number]
        assert skill(unusual.own_labels_R[ends], forecasts(model, unusual, ends)) > R2 / 4


def test_each_type_has_one_default_and_it_comes_first() -> None:
    for model_type in {kind.model_type for kind in Family.known.values()}:
        kinds = families_of(model_type)
        assert [kind.is_default for kind in kinds] == [True] + [False] * (len(kinds) - 1)
        assert family_for(model_type, None) is kinds[0]


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataValidationError, match=r"did you mean lstm\?"):
        family_for(ModelType.TIME_SERIES, "lsmt")
    with pytest.raises(DataValidationError, match="known: "):
        family_for(ModelType.TIME_SERIES, "?")


@pytest.mark.parametrize("missing", ["name", "min_window", "Hyperparameters", "docstring", "lookback", "twin"])
def test_an_ill_formed_family_fails_where_it_is_defined(missing: str) -> None:
    good = next(iter(Family.known.values()))
    body: dict[str, Any] = {
        "name": "ill_formed",
        "model_type": good.model_type,
        "min_window": 3,
        "Hyperparameters": good.Hyperparameters,
        "__doc__": "A family.",
        "__module__": __name__,
    }
    if missing == "twin":
        body["name"] = good.name
    elif missing == "lookback":
        body["Hyperparameters"] = type("None_", (good.Hyperparameters.__base__.__base__,), {"__module__": __name__})
    else:
        body.pop("__doc__" if missing == "docstring" else missing)
    before = dict(Family.known)
    with pytest.raises(TypeError, match=missing if missing not in ("twin",) else "two families"):
        type("IllFormed", (Family,), body)
    assert Family.known == before
