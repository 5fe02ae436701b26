"""Conformance suite of model families: what every family keeps, whoever wrote it.

    from ml_workbench_service.testing.families import FamilyConformance

    class TestElasticNet(FamilyConformance):
        family = ElasticNet

pytest then trains the family some thirty times on a few thousand made-up rows, in which there is something to learn
(`probes/`, one a model type). It must learn that and nothing else, take nothing from after its validation part, give
the same bits for the same seed, answer in its graph as in its network and alone as in a batch, obey a cancellation, go
on after a kill, and refuse hyper-parameters that make no sense.

A feature search has no graph and answers no window; `AnyFamilyConformance` holds the checks that are left for it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.bundle.export import TOLERANCE, export
from ml_workbench_service.learning.bundle.manifest import CALIBRATION_FILE, INT8_FILE, MODEL_FILE, WEIGHTS_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.bundle.quantization import LEAST_AGREEMENT, LEAST_SPEEDUP, MOST_MEAN_DELTA
from ml_workbench_service.learning.data.windows import SymbolRows, Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained
from ml_workbench_service.testing.fresh_interpreter import heavy_libraries_after
from ml_workbench_service.testing.probes import Probe, probe_of
from ml_workbench_service.testing.probes.probe import PAIRS
from ml_workbench_service.testing.synthetic import OneThread, Recorder, symbol_rows, with_holes
from ml_workbench_service.training import tasks as tasks  # registers them

_windows: dict[ModelType, Windows] = {}


class AnyFamilyConformance:
    """What a family of any type keeps.

    Attributes:
        family: the family's class.
        hyperparameters: what makes it quick on few rows, where the suite's own (`Probe.quick`) does not fit; windows
            have eight rows.
        draws_numbers: whether its seed makes a difference; a closed form says False.
    """

    family: ClassVar[type[AnyFamily]]
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    draws_numbers: ClassVar[bool] = True

    @property
    def probe(self) -> Probe:
        """What a family of this type is given to learn."""
        return probe_of(self.family)

    @property
    def windows(self) -> Windows:
        """Windows in which there is something to learn, the same for all families of a type."""
        model_type = self.family.model_type
        if model_type not in _windows:
            _windows[model_type] = self.probe.windows()
        return _windows[model_type]

    def quick(self, **changes: Any) -> AnyFamily:
        """The family with few and small steps, but for these hyper-parameters."""
        return self.probe.family(self.family, **{**self.hyperparameters, **changes})

    def trained(self, family: AnyFamily | None = None, windows: Windows | None = None, **more: Any) -> Trained:
        """A training on one thread; of the quick family, on windows in which there is something to learn."""
        return self.probe.train(family or self.quick(), windows or self.windows, **more)

    def test_it_learns_an_injected_signal(self) -> None:
        """Else it cannot learn this type at all, or not in twelve epochs: see `hyperparameters`."""
        assert self.probe.quality(self.trained(), self.windows) > self.probe.injected

    def test_it_finds_nothing_where_nothing_is(self) -> None:
        """Else it sees labels, or knows too little restraint to be judged by its card."""
        noise = self.probe.windows(r2=0.0)
        assert self.probe.quality(self.trained(windows=noise), noise) < self.probe.chance

    def test_a_seed_decides_every_bit_of_the_weights(self) -> None:
        """Usual causes: numpy's global generator, an order of sets, a sum whose order threads decide."""
        first, again, other = (self.trained(self.quick(epochs=2, dropout=0.2), seed=seed) for seed in (3, 3, 4))
        assert are_equal(first, again)
        assert are_equal(first, other) is not self.draws_numbers

    def test_nothing_after_the_validation_part_reaches_the_weights(self) -> None:
        """Calibration and test part are there to judge it; only `train` and `validation` may be read."""
        windows = self.windows
        later = windows.available_at_ms_R > windows.borders_ms["calibration"]
        changed = {}
        for name in ("rows_RF", "labels_RK", "own_labels_RK", "bar_volatility_R", "close_R"):
            changed[name] = getattr(windows, name).copy()
            changed[name][later] = 7.0
        family = self.quick(epochs=2)
        assert are_equal(self.trained(family), self.trained(family, replace(windows, **changed)))

    def test_it_reports_its_progress(self) -> None:
        """Steps grow and stay within their total, figures are finite: the progress stream and MLflow show them."""
        report = Recorder()
        model = self.trained(report=report)
        steps = [step for step, _, _ in report.steps]
        assert steps
        assert steps == sorted(set(steps))
        assert all(0 < step <= total for step, total, _ in report.steps)
        assert all(np.isfinite(list(metrics.values())).all() and metrics for _, _, metrics in report.steps)
        assert 0 <= model.best_epoch <= model.epochs_run

    @pytest.mark.parametrize("at_check", [1, 9])
    def test_a_cancellation_ends_it_at_once(self, at_check: int) -> None:
        """`report.check()` raises: call it after every batch or two, nine times on these few rows, and let it through.

        Usual causes: an `except` around the loop, or one look an epoch.
        """
        report = Recorder(cancel_at_check=at_check)
        with pytest.raises(JobCancelled):
            self.trained(report=report)
        assert report.num_checks == at_check

    def test_a_misspelt_hyperparameter_is_refused_with_the_nearest(self) -> None:
        """A contract forbids what it does not know; its answer names the key and never repeats the value."""
        name = max(self.family.Hyperparameters.model_fields, key=len)
        misspelt = name[:3] + name[4:]
        with pytest.raises(DataValidationError, match=f"family {self.family.name}") as caught:
            self.family({misspelt: 7531})
        error = caught.value.details["errors"][0]
        assert error["path"] == f"body.hyperparameters.{misspelt}"
        assert f"did you mean {name}?" in error["message"]
        assert "7531" not in error["message"]

    def test_absurd_hyperparameters_are_refused(self) -> None:
        """Every number has a lower and an upper bound, so that no request asks for what cannot be computed."""
        num_refused = 0
        for name, schema in self.family.Hyperparameters.model_json_schema()["properties"].items():
            absurd: list[Any] = ["many", None, [1], float("nan"), float("inf")]
            absurd += [schema[bound] + sign for bound, sign in (("minimum", -1), ("maximum", 1)) if bound in schema]
            absurd += [schema[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in schema]
            is_counted = schema.keys().isdisjoint({"enum", "additionalProperties"})  # choices have no ends
            assert len(absurd) >= 7 or not is_counted, f"{name} needs a lower and an upper bound"
            for value in absurd:
                with pytest.raises(DataValidationError) as caught:
                    self.family({name: value})
                assert caught.value.details["errors"][0]["path"] == f"body.hyperparameters.{name}"
                num_refused += 1
        assert num_refused >= 7

    def test_its_defaults_are_usable_and_stand_in_its_schema(self) -> None:
        """`GET /model-types` shows the schema; a request without hyper-parameters trains with what it says."""
        family = self.family({})
        properties = self.family.Hyperparameters.model_json_schema()["properties"]
        assert {name: each["default"] for name, each in properties.items()} == family.hyperparameters.model_dump()
        assert all(each["description"].endswith(".") for each in properties.values())
        assert family.lookback == properties.get("lookback", {"default": 1})["default"]
        assert 1 <= family.min_window <= family.lookback

    def test_its_estimates_grow_with_the_work(self) -> None:
        """A training that would not fit into memory is refused by `memory_bytes`, before it begins."""
        family = self.family({})
        assert family.library_bytes >= 0
        assert 0 < family.memory_bytes(1000, 4) < family.memory_bytes(100_000, 4) < family.memory_bytes(100_000, 40)
        assert 0 < family.seconds(1000) < family.seconds(100_000)
        assert family.memory_bytes(100_000, 4) > 100_000 * 4 * 4, "the rows alone take more"

    def test_its_docstring_says_what_it_is_and_where_it_comes_from(self) -> None:
        """The first line is the summary in `GET /model-types`; the paper stands in it with its year."""
        text = self.family.__doc__ or ""
        assert re.search(r"\b(19|20)\d\d\b", text), "cite the paper with its year"
        assert len(text.splitlines()) > 1

    def test_its_module_loads_no_heavy_library(self) -> None:
        """Import torch and its like inside `train`: the service's own process loads the module at its start."""
        assert heavy_libraries_after("importlib.import_module(sys.argv[1])", self.family.__module__) == set()


def constant_column(r2: float) -> list[SymbolRows]:
    """A feature that never moves."""
    table = symbol_rows(num=1200, r2=r2)
    table.x_NF[:, 1] = 0.25
    return [table]


def constant_everything(r2: float) -> list[SymbolRows]:
    """Features none of which moves."""
    table = symbol_rows(num=1200, r2=r2)
    table.x_NF[:] = (0.0, 1e7, 1.0)
    return [table]


def missing_values(r2: float) -> list[SymbolRows]:
    """A feature with holes, and bars that are missing."""
    return [with_holes(symbol_rows(num=1500, r2=r2, gaps=[200, 700]), range(40, 1500, 50))]


def many_symbols(r2: float) -> list[SymbolRows]:
    """Three symbols whose moves are of different sizes, a thousandfold altogether."""
    return [symbol_rows(pair, num=700, seed=n, r2=r2, deviation=10.0**-n / 500) for n, pair in enumerate(PAIRS)]


class FamilyConformance(AnyFamilyConformance):
    """What a family keeps whose product is a network: it answers windows, and its ONNX graph serves them."""

    def exported(self, model: Trained, folder: Path) -> OnnxNetwork:
        """The graph, written and opened, after it was compared with the network at every length that it serves."""
        lengths = range(self.family.min_window, self.windows.lookback + 1)
        return export(model, folder, num_features=len(self.windows.features), lengths=lengths, seed=0)

    def test_its_float32_answers_do_not_depend_on_their_neighbours(self, tmp_path: Path) -> None:
        """To the last bit: replay, batch and single answers are one. Usual causes: MatMul, ReduceMean, Log, Softplus.

        `learning/networks/linear.py` shows a sum that does not depend on the batch: GlobalAveragePool.
        """
        graph = self.exported(self.trained(self.quick(epochs=1)), tmp_path)
        x_NTF = self.windows.gather(self.windows.parts["test"][:100])
        together = graph.predict(x_NTF).outputs_NK
        alone = np.concatenate([graph.predict(window[None]).outputs_NK for window in x_NTF])
        assert together.tobytes() == alone.tobytes()

    def test_its_graph_answers_like_its_network(self, tmp_path: Path) -> None:
        """On real windows of every length from `min_window` to the lookback, and in batches of any size."""
        model = self.trained(self.quick(epochs=1))
        graph = self.exported(model, tmp_path)
        ends = self.windows.parts["test"]
        for length in range(self.family.min_window, self.windows.lookback + 1):
            for batch in (1, 5, 64):
                x_NTF = self.windows.gather(ends[:batch], length)
                found, wanted = graph.predict(x_NTF), model.predict(x_NTF)
                np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=TOLERANCE)
                np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=TOLERANCE)
        assert json.loads(json.dumps(dict(model.network))) == dict(model.network)
        assert len(model.outputs) == found.outputs_NK.shape[1]

    def test_what_was_saved_answers_the_same(self, tmp_path: Path) -> None:
        """The bundle's graph, opened again, and its weights, read again."""
        model = self.trained(self.quick(epochs=1))
        first = self.exported(model, tmp_path)
        x_NTF = self.windows.gather(self.windows.parts["test"][:20])
        again = OnnxNetwork(tmp_path / MODEL_FILE)
        assert again.predict(x_NTF).outputs_NK.tobytes() == first.predict(x_NTF).outputs_NK.tobytes()
        weights = load_file(tmp_path / WEIGHTS_FILE)
        assert all(weights[name].tobytes() == value.tobytes() for name, value in model.weights.items())

    def test_its_int8_stays_within_its_bound_or_is_refused(self, tmp_path: Path) -> None:
        """int8 serves only where it is as good and faster; a family without matrices says `can_quantize=False`."""
        probe, family = self.probe, self.quick()
        problem = probe.problem(self.windows)
        model = family.train(problem, accelerator=OneThread(), report=Recorder())
        product = probe.task().package(model, tmp_path, problem, family=family, is_simulated=False, report=Recorder())
        measured = product.quantization
        assert measured.accepted == (tmp_path / INT8_FILE).exists() == (tmp_path / CALIBRATION_FILE).exists()
        assert measured.reason
        if measured.accepted:
            assert measured.mean_delta_std is not None
            assert measured.mean_delta_std <= MOST_MEAN_DELTA
            assert measured.direction_agreement is not None
            assert measured.direction_agreement >= LEAST_AGREEMENT
            assert measured.speedup is not None
            assert measured.speedup >= LEAST_SPEEDUP

    def test_a_short_window_is_answered_nearly_as_well(self) -> None:
        """The injected signal is in the last row, so that even the shortest window tells it."""
        assert self.family.min_window < self.windows.lookback
        found = self.probe.quality(self.trained(), self.windows, length=self.family.min_window)
        assert found > self.probe.injected * 2 / 3

    def test_a_killed_training_goes_on_to_the_same_weights(self, tmp_path: Path) -> None:
        """Save to `problem.checkpoint` when it is `due()`, and load first; what draws numbers goes on where it was."""
        family = self.quick(epochs=6, patience=6, dropout=0.2)
        whole = Recorder()
        uninterrupted = self.trained(family, report=whole)
        checkpoint = Checkpoint(tmp_path, fingerprint={}, period_s=0)
        for share in (0.4, 0.5):
            halfway = Recorder(cancel_at_check=max(2, int(whole.num_checks * share)))
            with pytest.raises(JobCancelled):
                self.trained(family, report=halfway, checkpoint=checkpoint)
        last = Recorder()
        resumed = self.trained(family, report=last, checkpoint=checkpoint)
        assert are_equal(uninterrupted, resumed)
        assert resumed.epochs_run == uninterrupted.epochs_run
        assert last.num_checks < whole.num_checks

    @pytest.mark.parametrize("make", [constant_column, constant_everything, missing_values, many_symbols])
    def test_it_survives_unusual_data(self, make: Callable[[float], list[SymbolRows]]) -> None:
        """Usual cause: a division by the deviation of a column that never moves."""
        unusual = self.probe.windows(*make(self.probe.r2))
        model = self.trained(windows=unusual)
        answers = model.predict(unusual.gather(unusual.parts["test"])).outputs_NK
        assert np.isfinite(answers).all()
        assert all(np.isfinite(each).all() for each in model.weights.values())
        if make is not constant_everything:
            assert self.probe.quality(model, unusual) > self.probe.injected * 2 / 3

    def test_each_symbol_is_learnt_in_its_own_unit(self) -> None:
        """Learn from `labels_RK`, which are in units of each symbol's typical move, not from `own_labels_RK`."""
        several = self.probe.windows(*many_symbols(self.probe.r2))
        model = self.trained(windows=several)
        for number in range(len(PAIRS)):
            assert self.probe.quality(model, several, symbols=[number]) > self.probe.injected / 2


def are_equal(first: Trained, second: Trained) -> bool:
    """Whether all weights are equal to the last bit, and everything else that was found."""
    assert set(first.weights) == set(second.weights)
    if repr(first.findings) != repr(second.findings):
        return False
    return all(first.weights[name].tobytes() == second.weights[name].tobytes() for name in first.weights)
