"""One conformance suite for every model family: a new file in `families/` is under it without a line here."""

import json
import re
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.manifest import INT8_FILE, MODEL_FILE, WEIGHTS_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.windows import SymbolRows, Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Family, Trained, families_of, family_for
from ml_workbench_service.training import tasks as tasks  # registers them
from tests.families.probes import probe_of
from tests.families.probes.probe import PAIRS
from tests.learning.synthetic import OneThread, Recorder, symbol_rows, with_holes

every_family = pytest.mark.parametrize("kind", list(Family.known.values()), ids=list(Family.known))
every_network = pytest.mark.parametrize(
    "kind",
    [kind for kind in Family.known.values() if kind.model_type is not ModelType.FEATURE_ENGINEERING],
    ids=[name for name, kind in Family.known.items() if kind.model_type is not ModelType.FEATURE_ENGINEERING],
)
"""The families whose product is a network; that of feature engineering is a list of expressions."""
_injected: dict[ModelType, Windows] = {}


def injected(kind: type[Family]) -> Windows:
    """Windows in which there is something to learn for this family's type."""
    if kind.model_type not in _injected:
        _injected[kind.model_type] = probe_of(kind).windows()
    return _injected[kind.model_type]


def quick(kind: type[Family], **changes: Any) -> Family:
    return probe_of(kind).family(kind, **changes)


def trained(family: Family, windows: Windows, **more: Any) -> Trained:
    return probe_of(type(family)).train(family, windows, **more)


def same(first: Trained, second: Trained) -> bool:
    """Whether all weights are equal to the last bit, and everything else that was found."""
    assert set(first.weights) == set(second.weights)
    if repr(first.findings) != repr(second.findings):
        return False
    return all(first.weights[name].tobytes() == second.weights[name].tobytes() for name in first.weights)


@every_family
def test_it_learns_an_injected_signal(kind: type[Family]) -> None:
    probe, windows = probe_of(kind), injected(kind)
    assert probe.quality(trained(quick(kind), windows), windows) > probe.injected


@every_family
def test_it_finds_nothing_where_nothing_is(kind: type[Family]) -> None:
    probe = probe_of(kind)
    noise = probe.windows(r2=0.0)
    assert probe.quality(trained(quick(kind), noise), noise) < probe.chance


@every_network
def test_its_float32_answers_do_not_depend_on_their_neighbours(kind: type[Family], tmp_path: Path) -> None:
    family, windows = quick(kind, epochs=1), injected(kind)
    graph = export(
        trained(family, windows), tmp_path, num_features=len(windows.features), lengths=[family.lookback], seed=0
    )
    x_NTF = windows.gather(windows.parts["test"][:100])
    together = graph.predict(x_NTF).outputs_NK
    alone = np.concatenate([graph.predict(window[None]).outputs_NK for window in x_NTF])
    assert together.tobytes() == alone.tobytes()


@every_family
def test_a_seed_decides_every_bit_of_the_weights(kind: type[Family]) -> None:
    first, again, other = (trained(quick(kind, epochs=2, dropout=0.2), injected(kind), seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


@every_family
def test_nothing_after_the_validation_part_reaches_the_weights(kind: type[Family]) -> None:
    windows = injected(kind)
    later = windows.available_at_ms_R > windows.borders_ms["calibration"]
    changed = {}
    for name in ("rows_RF", "labels_RK", "own_labels_RK", "bar_volatility_R", "close_R"):
        changed[name] = getattr(windows, name).copy()
        changed[name][later] = 7.0
    family = quick(kind, epochs=2)
    assert same(trained(family, windows), trained(family, replace(windows, **changed)))


@every_network
def test_its_graph_answers_like_its_network(kind: type[Family], tmp_path: Path) -> None:
    family, windows = quick(kind, epochs=1), injected(kind)
    model = trained(family, windows)
    lengths = range(family.min_window, family.lookback + 1)
    graph = export(model, tmp_path, num_features=len(windows.features), lengths=lengths, seed=0)
    ends = windows.parts["test"]
    for length in lengths:
        for batch in (1, 5, 64):
            x_NTF = windows.gather(ends[:batch], length)
            found, wanted = graph.predict(x_NTF), model.predict(x_NTF)
            np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=1e-4)
            np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=1e-4)
    assert json.loads(json.dumps(dict(model.network))) == dict(model.network)
    assert len(model.outputs) == found.outputs_NK.shape[1]


@every_network
def test_what_was_saved_answers_the_same(kind: type[Family], tmp_path: Path) -> None:
    """The bundle's graph, opened again, and its weights, read again."""
    family, windows = quick(kind, epochs=1), injected(kind)
    model = trained(family, windows)
    first = export(model, tmp_path, num_features=len(windows.features), lengths=[family.lookback], seed=0)
    x_NTF = windows.gather(windows.parts["test"][:20])
    again = OnnxNetwork(tmp_path / MODEL_FILE)
    assert again.predict(x_NTF).outputs_NK.tobytes() == first.predict(x_NTF).outputs_NK.tobytes()
    weights = load_file(tmp_path / WEIGHTS_FILE)
    assert all(weights[name].tobytes() == value.tobytes() for name, value in model.weights.items())


@every_network
def test_its_int8_stays_within_its_bound_or_is_refused(kind: type[Family], tmp_path: Path) -> None:
    probe, family, windows = probe_of(kind), quick(kind), injected(kind)
    problem = probe.problem(windows)
    model = family.train(problem, accelerator=OneThread(), report=Recorder())
    product = probe.task().package(model, tmp_path, problem, family=family, is_simulated=False, report=Recorder())
    judged = product.quantization
    assert judged.accepted == (tmp_path / INT8_FILE).exists()
    assert judged.reason
    if judged.accepted:
        assert judged.mean_delta_std is not None
        assert judged.mean_delta_std <= 0.05
        assert judged.direction_agreement is not None
        assert judged.direction_agreement >= 0.98
        assert judged.speedup is not None
        assert judged.speedup >= 1.15


@every_network
def test_a_short_window_is_answered_nearly_as_well(kind: type[Family]) -> None:
    """The injected signal is in the last row, so that even the shortest window tells it."""
    probe, family, windows = probe_of(kind), quick(kind), injected(kind)
    assert family.min_window < family.lookback
    assert probe.quality(trained(family, windows), windows, length=family.min_window) > probe.injected * 2 / 3


@every_family
def test_it_reports_its_progress(kind: type[Family]) -> None:
    report = Recorder()
    model = trained(quick(kind), injected(kind), report=report)
    steps = [step for step, _, _ in report.steps]
    assert steps
    assert steps == sorted(set(steps))
    assert all(0 < step <= total for step, total, _ in report.steps)
    assert all(np.isfinite(list(metrics.values())).all() and metrics for _, _, metrics in report.steps)
    assert 0 <= model.best_epoch <= model.epochs_run


@every_family
@pytest.mark.parametrize("at_check", [1, 9])
def test_a_cancellation_ends_it_at_once(kind: type[Family], at_check: int) -> None:
    report = Recorder(cancel_at_check=at_check)
    with pytest.raises(JobCancelled):
        trained(quick(kind), injected(kind), report=report)
    assert report.num_checks == at_check


@every_network
def test_a_killed_training_goes_on_to_the_same_weights(kind: type[Family], tmp_path: Path) -> None:
    family, windows = quick(kind, epochs=6, patience=6, dropout=0.2), injected(kind)
    whole = Recorder()
    uninterrupted = trained(family, windows, report=whole)
    checkpoint = Checkpoint(tmp_path, fingerprint={}, period_s=0)
    for share in (0.4, 0.5):
        halfway = Recorder(cancel_at_check=max(2, int(whole.num_checks * share)))
        with pytest.raises(JobCancelled):
            trained(family, windows, report=halfway, checkpoint=checkpoint)
    last = Recorder()
    resumed = trained(family, windows, report=last, checkpoint=checkpoint)
    assert same(uninterrupted, resumed)
    assert resumed.epochs_run == uninterrupted.epochs_run
    assert last.num_checks < whole.num_checks


@every_family
def test_a_misspelt_hyperparameter_is_refused_with_the_nearest(kind: type[Family]) -> None:
    name = max(kind.Hyperparameters.model_fields, key=len)
    misspelt = name[:3] + name[4:]
    with pytest.raises(DataValidationError, match=f"family {kind.name}") as caught:
        kind({misspelt: 7531})
    error = caught.value.details["errors"][0]
    assert error["path"] == f"body.hyperparameters.{misspelt}"
    assert f"did you mean {name}?" in error["message"]
    assert "7531" not in error["message"]


@every_family
def test_absurd_hyperparameters_are_refused(kind: type[Family]) -> None:
    properties = kind.Hyperparameters.model_json_schema()["properties"]
    num_refused = 0
    for name, schema in properties.items():
        absurd: list[Any] = ["many", None, [1], float("nan"), float("inf")]
        absurd += [schema[bound] + sign for bound, sign in (("minimum", -1), ("maximum", 1)) if bound in schema]
        absurd += [schema[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in schema]
        assert len(absurd) >= 7 or "enum" in schema, f"{name} needs a lower and an upper bound"
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
    assert family.lookback == properties.get("lookback", {"default": 1})["default"]
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


def constant_column(r2: float) -> list[SymbolRows]:
    table = symbol_rows(num=1200, r2=r2)
    table.x_NF[:, 1] = 0.25
    return [table]


def constant_everything(r2: float) -> list[SymbolRows]:
    table = symbol_rows(num=1200, r2=r2)
    table.x_NF[:] = (0.0, 1e7, 1.0)
    return [table]


def missing_values(r2: float) -> list[SymbolRows]:
    return [with_holes(symbol_rows(num=1500, r2=r2, gaps=[200, 700]), range(40, 1500, 50))]


def many_symbols(r2: float) -> list[SymbolRows]:
    return [symbol_rows(pair, num=700, seed=n, r2=r2, deviation=10.0**-n / 500) for n, pair in enumerate(PAIRS)]


@every_network
@pytest.mark.parametrize("make", [constant_column, constant_everything, missing_values, many_symbols])
def test_it_survives_unusual_data(kind: type[Family], make: Any) -> None:
    probe = probe_of(kind)
    unusual = probe.windows(*make(probe.r2))
    model = trained(quick(kind), unusual)
    answers = model.predict(unusual.gather(unusual.parts["test"])).outputs_NK
    assert np.isfinite(answers).all()
    assert all(np.isfinite(each).all() for each in model.weights.values())
    if make is not constant_everything:
        assert probe.quality(model, unusual) > probe.injected * 2 / 3


@every_network
def test_each_symbol_is_learnt_in_its_own_unit(kind: type[Family]) -> None:
    probe = probe_of(kind)
    several = probe.windows(*many_symbols(probe.r2))
    model = trained(quick(kind), several)
    for number in range(len(PAIRS)):
        assert probe.quality(model, several, symbols=[number]) > probe.injected / 2


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


class NoLookback(Contract):
    """Hyper-parameters of no window."""


@pytest.mark.parametrize(
    "missing", ["name", "min_window", "Hyperparameters", "type argument", "docstring", "lookback", "two families"]
)
def test_an_ill_formed_family_fails_where_it_is_defined(missing: str) -> None:
    good = Family.known["linear"]
    base: Any = Family[NoLookback if missing == "lookback" else good.Hyperparameters]
    body: dict[str, Any] = {
        "name": good.name if missing == "two families" else "ill_formed",
        "model_type": good.model_type,
        "min_window": 3,
        "__doc__": "A family.",
        "__module__": __name__,
    }
    if missing == "Hyperparameters":
        base = Family
    if missing == "type argument":
        body["Hyperparameters"] = NoLookback
    body.pop("__doc__" if missing == "docstring" else missing, None)
    before = dict(Family.known)
    with pytest.raises(TypeError, match=missing):
        types.new_class("IllFormed", (base,), exec_body=lambda namespace: namespace.update(body))
    assert Family.known == before
