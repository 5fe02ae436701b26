"""Weights of rows: a family that heeds them learns what the heavy rows say; one that cannot is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from ml_workbench_service.learning.data.windows import LEARNT, Windows
from ml_workbench_service.learning.interfaces.family import Family
from ml_workbench_service.learning.interfaces.task import task_for
from ml_workbench_service.testing.probes.probe import probe_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from ml_workbench_service.training import tasks as tasks  # registers them

QUICK = ("linear", "lightgbm", "linear_classifier", "lightgbm_classifier")
SLOW = ("lstm", "gru", "transformer", "lstm_classifier", "gru_classifier", "transformer_classifier")
LIGHT = 0.02
TARGETS = {
    ModelType.TIME_SERIES: "price_change_4h",
    ModelType.CLASSIFICATION: "direction_4h",
    ModelType.FEATURE_ENGINEERING: "price_change_4h",
}


def contradicted(windows: Windows, *, heavy: str | None) -> Windows:
    """Of the rows that are learnt from every other one says the opposite; the `true` or the `false` ones weigh more."""
    labels, own = windows.labels_RK.copy(), windows.own_labels_RK.copy()
    unique = np.full(len(own), np.nan)
    has_classes = set(np.unique(own[np.isfinite(own)])) <= {0.0, 1.0, 2.0}
    for part in LEARNT:
        ends = windows.parts[part]
        false = ends[np.random.default_rng(3).permutation(len(ends)) % 2 == 0]
        for array in (labels, own):
            array[false] = 2 - array[false] if has_classes else -array[false]
        unique[ends] = 1.0 if heavy == "true" else LIGHT
        unique[false] = 1.0 if heavy == "false" else LIGHT
    return replace(windows, labels_RK=labels, own_labels_RK=own, uniqueness_R=None if heavy is None else unique)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.more) for name in SLOW)])
def test_what_is_learnt_is_what_the_heavy_rows_say(name: str) -> None:
    kind = Family.known[name]
    assert kind.weighs_samples
    probe = probe_of(kind)
    windows = probe.windows(num=2000, r2=0.6)
    family = probe.family(kind)

    def quality(heavy: str | None) -> float:
        problem = probe.problem(contradicted(windows, heavy=heavy))
        trained = family.train(problem, accelerator=OneThread(), report=Recorder())
        return probe.quality(trained, windows)

    heeded, plain = quality("true"), quality(None)
    assert heeded > 0.2
    assert heeded > plain + 0.15
    if kind.model_type is ModelType.TIME_SERIES:  # a temperature cannot turn classes over
        assert quality("false") < plain - 0.15


def request(**changes: Any) -> TrainRequest:
    body = {
        "name": "weighed", "model_type": "time_series", "target": "price_change_4h", "features": ["rsi_14"],
        "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z", "end_date": "2024-01-01T00:00:00Z",
        "sample_weights": "uniqueness",
    }  # fmt: skip
    return TrainRequest.model_validate({**body, **changes})


def test_families_that_cannot_weigh_refuse_with_what_would_do() -> None:
    for name, kind in Family.known.items():
        asked = request(model_type=kind.model_type.value, family=name, target=TARGETS.get(kind.model_type))
        if kind.weighs_samples:
            assert task_for(kind.model_type).check(asked)
            continue
        with pytest.raises(DataValidationError, match=f"{name} has no loss that counts one row more") as caught:
            task_for(kind.model_type).check(asked)
        assert caught.value.details["errors"][0]["path"] == "body.sample_weights"
    assert {name for name, kind in Family.known.items() if kind.weighs_samples} == {*QUICK, *SLOW}
