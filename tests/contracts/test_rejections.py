"""Rejections: a few mistakes are told with what was meant, many cost no more than a few."""

import json
import time

import pytest
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.experiments import ExperimentRequest
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.rejections import MOST_ERRORS, MOST_SUGGESTIONS, of_pydantic


def told(body: object) -> DataValidationError:
    """What is said of a body of `/experiments`."""
    with pytest.raises(ValidationError) as caught:
        ExperimentRequest.model_validate_json(json.dumps(body))
    return of_pydantic(caught.value, ExperimentRequest, prefix="body")


def test_of_many_unknown_keys_the_first_are_compared_with_what_is_known() -> None:
    errors = told({f"features_{number:02}x": 1 for number in range(MOST_ERRORS)}).details["errors"]
    unknown = [each for each in errors if each["code"] == "extra_forbidden"]
    assert len(unknown) > 40
    for place, each in enumerate(unknown):
        near = "; did you mean features?" if place < MOST_SUGGESTIONS else ""
        assert each["message"] == f"this key is not known{near}"


def test_many_unknown_keys_are_told_in_the_time_of_a_few() -> None:
    body = {f"features_{number:02}x": 1 for number in range(MOST_ERRORS)}
    told(body)
    took_s = []
    for _ in range(5):
        begun = time.thread_time()
        told(body)
        took_s.append(time.thread_time() - begun)
    assert min(took_s) < 0.012, "comparing each of them took 25 ms"


def test_paths_name_keys_and_places_alone() -> None:
    body = {"symbol": "EUR/USD", "timeframe": "1h", "features": {"list[": ["x"]}}
    with pytest.raises(ValidationError) as caught:
        PredictRequest.model_validate_json(json.dumps(body))
    (error,) = of_pydantic(caught.value, PredictRequest, prefix="body").details["errors"]
    assert error["path"] == "body.features.list[.0"
