"""Log questions: the multiple-testing log as a worker elsewhere calls it, for evaluations and trials of its own job."""

from base64 import b64encode
from collections.abc import Callable, Mapping

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.multiple_testing import EvaluationResult, MultipleTestingLog, PartRead
from ml_workbench_service.contracts.work_elsewhere import LogAnswer, LogQuestion, PostedResult, PostedSeries
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint

Method = Callable[[LogQuestion, MultipleTestingLog], LogAnswer]


def answered(question: LogQuestion, log: MultipleTestingLog, job_id: str) -> LogAnswer:
    """What the log answers.

    Raises:
        DataValidationError: what the method takes is not there, or is another job's.
    """
    of_trial = None if question.trial is None else question.trial.read
    names = [each.id for each in (question.read, of_trial) if each is not None]
    for name in [*names, *([question.evaluation] if question.evaluation else [])]:
        if name.partition("/")[0] != job_id:
            raise DataValidationError.at("body.read.id", f"{name} is not of job {job_id}, whose token this is")
    return _METHODS[question.method](question, log)


def _read(question: LogQuestion) -> PartRead:
    if question.read is None:
        raise DataValidationError.at("body.read", f"{question.method} takes a `read`")
    return question.read


def _record_evaluation(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    series = [_fingerprint(each) for each in question.series]
    return LogAnswer(number=log.record_evaluation(_read(question), recipe=question.recipe, series=series))


def _record_result(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    if question.result is None:
        raise DataValidationError.at("body.result", "record_result takes a `result`")
    posted = question.result
    result = EvaluationResult(posted.p_value, posted.from_ms, posted.until_ms, posted.own_columns, posted.differentials)
    log.record_result(question.evaluation, result)
    return LogAnswer()


def _results(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    return LogAnswer(results=tuple(_posted(each) for each in log.results(question.recipe)))


def _other_p_values(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    return LogAnswer(p_values=tuple(log.other_p_values(question.evaluation)))


def _num_evaluations(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    return LogAnswer(number=log.num_evaluations(_read(question)))


def _record_trial(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    if question.trial is None:
        raise DataValidationError.at("body.trial", "record_trial takes a `trial`")
    log.record_trial(question.trial)
    return LogAnswer()


def _trials(question: LogQuestion, log: MultipleTestingLog) -> LogAnswer:
    return LogAnswer(trials=tuple(log.trials(_read(question))))


_METHODS: Mapping[str, Method] = {
    "record_evaluation": _record_evaluation,
    "record_result": _record_result,
    "results": _results,
    "other_p_values": _other_p_values,
    "num_evaluations": _num_evaluations,
    "record_trial": _record_trial,
    "trials": _trials,
}


def _fingerprint(posted: PostedSeries) -> ReturnFingerprint:
    steps_B = np.frombuffer(posted.steps, dtype="<i8").astype(np.int64)
    log_close_B = np.frombuffer(posted.log_close, dtype="<f8").astype(np.float64)
    if len(steps_B) != len(log_close_B):
        raise DataValidationError.at("body.series", "a series has a log close for each of its steps")
    return ReturnFingerprint(posted.symbol, posted.step_ms, steps_B, log_close_B)


def _posted(result: EvaluationResult) -> PostedResult:
    return PostedResult(
        p_value=result.p_value, from_ms=result.from_ms, until_ms=result.until_ms, own_columns=result.own_columns,
        differentials=b64encode(result.differentials),
    )  # fmt: skip
