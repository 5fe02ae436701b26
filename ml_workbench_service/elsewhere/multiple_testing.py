"""`MultipleTestingElsewhere`: the control plane's multiple-testing log; what it has not answered has not happened."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ml_workbench_service.contracts.multiple_testing import EvaluationResult, Fingerprint, PartRead, Trial
from ml_workbench_service.contracts.work_elsewhere import LogAnswer, LogQuestion, PostedResult
from ml_workbench_service.elsewhere.connection import JobConnection


class MultipleTestingElsewhere:
    """A `MultipleTestingLog`, for one job's evaluations and trials.

    Every method raises AttemptLostError where the control plane does not answer: an evaluation that was not noted is
    then not made.
    """

    def __init__(self, connection: JobConnection) -> None:
        self._connection = connection

    def record_evaluation(self, read: PartRead, *, recipe: str = "", series: Sequence[Fingerprint] = ()) -> int:
        """See `MultipleTestingLog`."""
        return self._ask(
            "record_evaluation", read=read, recipe=recipe, series=[_posted(each) for each in series]
        ).number

    def record_result(self, evaluation: str, result: EvaluationResult) -> None:
        """See `MultipleTestingLog`."""
        posted = {
            "p_value": result.p_value, "from_ms": result.from_ms, "until_ms": result.until_ms,
            "own_columns": result.own_columns, "differentials": b64encode(result.differentials),
        }  # fmt: skip
        self._ask("record_result", evaluation=evaluation, result=posted)

    def results(self, recipe: str) -> Sequence[EvaluationResult]:
        """See `MultipleTestingLog`."""
        return [told(each) for each in self._ask("results", recipe=recipe).results]

    def other_p_values(self, evaluation: str) -> Sequence[float | None]:
        """See `MultipleTestingLog`."""
        return self._ask("other_p_values", evaluation=evaluation).p_values

    def other_p_values_of(self, evaluations: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """See `MultipleTestingLog`."""
        return {each: self.other_p_values(each) for each in evaluations}

    def num_evaluations(self, read: PartRead) -> int:
        """See `MultipleTestingLog`."""
        return self._ask("num_evaluations", read=read).number

    def record_trial(self, trial: Trial) -> None:
        """See `MultipleTestingLog`."""
        self._ask("record_trial", trial=trial)

    def trials(self, read: PartRead) -> Sequence[Trial]:
        """See `MultipleTestingLog`."""
        return self._ask("trials", read=read).trials

    def _ask(self, method: str, **about: Any) -> LogAnswer:
        return self._connection.put("log", LogQuestion.model_validate({"method": method, **about}), LogAnswer)


def told(posted: PostedResult) -> EvaluationResult:
    """The result as the log has it."""
    return EvaluationResult(posted.p_value, posted.from_ms, posted.until_ms, posted.own_columns, posted.differentials)


def _posted(series: Fingerprint) -> dict[str, Any]:
    return {
        "symbol": series.symbol, "step_ms": series.step_ms,
        "steps": b64encode(np.ascontiguousarray(series.steps_B, dtype="<i8").tobytes()),
        "log_close": b64encode(np.ascontiguousarray(series.log_close_B, dtype="<f8").tobytes()),
    }  # fmt: skip
