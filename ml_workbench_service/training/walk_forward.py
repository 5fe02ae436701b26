"""Walk-forward validation: the same training on ever longer pasts, each measured on the segment of time that came next.

One test part is one segment of history; folds say whether what was found there was found before, too. They tile the
second half of the span before the test border, so that the first of five still learns from two fifths of it, and none
reads a bar of the untouched test part (Tashman, "Out-of-sample tests of forecasting accuracy", International Journal
of Forecasting 16, 2000). The past expands rather than slides: it is what a retraining at that moment would have had.

    |  train                 | validation | calibration |  fold 1  |
    |  train                              | validation | calibration |  fold 2  |   each of the two half a fold long

A fold starts from tables cut at its end: its features, labels, rules, scaling and network have been made of what was
known then, by the code that makes the training's own. Labels are purged at each border as long as they reach over it,
and `embargo` bars after each border belong to no part. One seed, the request's first, trains each fold: folds show how
much time matters, members of an ensemble how much luck does.

When it fails: folds share most of their training data, so that they are no independent proofs; the pooled comparison
counts their rows once, which is why it exists.

Legend: N rows of a fold's test part.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.evaluation import Evaluation, Fold, WalkForwardReport
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable
from ml_workbench_service.contracts.training import CrossValidation
from ml_workbench_service.learning.data.windows import Borders, Part
from ml_workbench_service.learning.fitting.progress import PartReport
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.learning.interfaces.differentials import Differentials, pooled
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.training.tasks.network_task import NetworkTask

KindOf = Callable[[str], FeatureKind]
FIRST_SHARE = 0.5
"""Of the span before the test border lies before the first fold."""
MOST_FOLDS = 20
"""Of a request."""

SELECTION_SAW_FOLDS = (
    "A feature set was selected on data that folds of the walk forward are judged on: their figures flatter its "
    "features. Train the feature set on data before the first fold to see what it is worth."
)


class Span(NamedTuple):
    """One fold's test part: what becomes known after `start_ms`, up to and with `end_ms`."""

    start_ms: int
    end_ms: int

    @property
    def borders_ms(self) -> dict[Part, int]:
        """Those of the fold's parts; validation and calibration are half as long as the fold."""
        length = self.end_ms - self.start_ms
        return {"validation": self.start_ms - length, "calibration": self.start_ms - length // 2, "test": self.start_ms}


def walk_forward(
    order: TrainingOrder,
    data: TrainingData,
    *,
    cv: CrossValidation,
    accelerator: Accelerator,
    report: Report,
    kind_of: KindOf,
    checkpoint: Checkpoint | None = None,
) -> WalkForwardReport:
    """Trains and measures every fold; nothing that becomes known after the test border of `data` is read.

    Args:
        order: what is trained.
        data: the whole training's; its windows say where the test part begins.
        cv: how many folds, and the embargo in bars.
        accelerator: where.
        report: hears which fold is trained, and is asked about cancellations; steps remain the training's own.
        kind_of: what kind a feature is.
        checkpoint: where folds leave what they need to go on after a kill; None: nowhere.

    Raises:
        DataValidationError: the data are too short for so many folds; the message says how many fit.
        TrainingError, JobCancelled: as the family's.
    """
    task = order.task
    if not isinstance(task, NetworkTask):
        raise DataValidationError.at(
            "body.cv", "a search for features forecasts nothing to walk forward with; leave `cv` out"
        )
    order, spans = order.filled(data.tables[0].fill), spans_of(data, num_folds=cv.folds)
    _check_all_fit(order, data, spans, embargo_bars=cv.embargo, kind_of=kind_of)
    if order.derivation.selected_until_ms > spans[0].start_ms:
        report.warn(SELECTION_SAW_FOLDS)
    folds, differentials = [], []
    for number, span in enumerate(spans, 1):
        name = f"fold {number} of {len(spans)}"
        report.say(f"walking forward, {name}")
        known = cut_at(order, data, span, embargo_bars=cv.embargo, kind_of=kind_of)
        stage = None if checkpoint is None else checkpoint.stage(f"fold-{number}", fold=span)
        heard = PartReport(report, name)
        evaluation, found = _judged(task, order, known, accelerator=accelerator, report=heard, checkpoint=stage)
        if stage is not None:
            stage.finish()
        folds.append(_fold(number, span, known, evaluation))
        differentials.append(found)
    return WalkForwardReport(
        folds=tuple(folds),
        purged_bars=order.horizon,
        embargo_bars=cv.embargo,
        pooled=tuple(each.comparison() for each in pooled(differentials)),
    )


def spans_of(data: TrainingData, *, num_folds: int) -> list[Span]:
    """Equal spans over the second half of the time before the test border, the last of which ends there."""
    first_ms = int(data.windows.available_at_ms_R[data.windows.parts["train"]].min())
    until_ms = data.windows.borders_ms["test"]
    length = int((until_ms - first_ms) * (1 - FIRST_SHARE)) // num_folds
    ends = [until_ms - length * left for left in reversed(range(num_folds))]
    return [Span(end_ms - length, end_ms) for end_ms in ends]


def cut_at(order: TrainingOrder, data: TrainingData, span: Span, *, embargo_bars: int, kind_of: KindOf) -> TrainingData:
    """What a training at the end of this span would have been given, its test part being the span.

    Raises:
        DataValidationError: a part has too few windows, a symbol or a feature no value yet.
    """
    tables = [until(table, span.end_ms) for table in data.tables]
    labelled = training_data.label(order, tables)
    windows = training_data.cut(order, labelled, kind_of=kind_of, split=Borders(span.borders_ms, embargo_bars))
    return TrainingData(tuple(tables), labelled, windows)


def until(table: FeatureTable, end_ms: int) -> FeatureTable:
    """The bars that are known by then."""
    known_N = table.available_at_ms <= end_ms
    if not known_N.any():
        raise DataValidationError.at("body.symbols", f"{table.symbol} has no bar yet")
    return replace(
        table,
        opened_ms=table.opened_ms[known_N],
        available_at_ms=table.available_at_ms[known_N],
        columns={name: np.asarray(values)[known_N] for name, values in table.columns.items()},
    )


def _check_all_fit(
    order: TrainingOrder, data: TrainingData, spans: Sequence[Span], *, embargo_bars: int, kind_of: KindOf
) -> None:
    """Before anything is trained; raises DataValidationError with the number of folds that would fit."""

    def misfit(several: Sequence[Span]) -> tuple[int, DataValidationError] | None:
        for number, span in enumerate(several, 1):
            try:
                cut_at(order, data, span, embargo_bars=embargo_bars, kind_of=kind_of)
            except DataValidationError as error:
                return number, error
        return None

    found = misfit(spans)
    if found is None:
        return
    asked = len(spans)
    others = [*range(asked - 1, 1, -1), *range(asked + 1, MOST_FOLDS + 1)]
    fitting = next((num for num in others if misfit(spans_of(data, num_folds=num)) is None), None)
    last_resort = "send a shorter `embargo`, or leave `cv` out" if embargo_bars else "leave `cv` out"
    hint = f"send {fitting}" if fitting else f"neither does any other number: {last_resort}"
    raise DataValidationError.at(
        "body.cv.folds",
        f"{asked} folds do not fit into these data; {hint}. In fold {found[0]} {found[1].message}",
        code="too_many_folds",
    ) from found[1]


def _judged(
    task: NetworkTask,
    order: TrainingOrder,
    known: TrainingData,
    *,
    accelerator: Accelerator,
    report: Report,
    checkpoint: Checkpoint | None,
) -> tuple[Evaluation, list[Differentials]]:
    """Trains on a fold's past, calibrates, and measures on what came next; in plain numpy, no graph is made."""
    problem = training_data.problem_for(order, known, checkpoint=checkpoint)
    trained = order.family.train(problem, accelerator=accelerator, report=report)
    predict = Predict(trained, None)
    report.check()
    ends = known.windows.parts["calibration"]
    decoder = task.calibrate(trained, predict.over(known.windows, ends), ends, problem)
    ends = known.windows.parts["test"]
    outputs_NK = predict.over(known.windows, ends)
    report.check()
    evaluation = task.evaluate(
        trained, decoder, outputs_NK, ends, problem, is_simulated=known.is_simulated, predict=predict
    )
    if not task.has_verdict:
        return evaluation, []
    return evaluation, task.differentials(trained, decoder, outputs_NK, ends, problem, predict=predict)


def _fold(number: int, span: Span, known: TrainingData, evaluation: Evaluation) -> Fold:
    return Fold(
        number=number,
        test_start=datetime.fromtimestamp(span.start_ms / 1000, tz=UTC),
        test_end=datetime.fromtimestamp(span.end_ms / 1000, tz=UTC),
        num_train=len(known.windows.parts["train"]),
        num_test=len(known.windows.parts["test"]),
        test=evaluation.test,
        skill=evaluation.skill,
    )
