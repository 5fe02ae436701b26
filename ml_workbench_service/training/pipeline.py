"""Training pipeline, from data to a published version: certificate → train → test-set evaluation → verdict → publish.

What the workflows `train` and `run_experiment` share. The test part is read once, at the end, and this test-set
evaluation is logged before it happens: a kill in between counts as one, never as none. So are the position rules that
were tried on the calibration part.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.evaluation import Evaluation, PositionReport, ValidationReport
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.market import FeatureStore
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import (
    EvaluationResult,
    MultipleTestingLog,
    PartRead,
    Trial,
    subject_of,
)
from ml_workbench_service.evaluation.leakage.certificate import certify
from ml_workbench_service.evaluation.signal_backtest import daily_net
from ml_workbench_service.evaluation.verdict import apply_verdict, spent_p_value
from ml_workbench_service.learning.bundle.manifest import NETWORK_FILE
from ml_workbench_service.learning.data.windows import Part
from ml_workbench_service.learning.fitting.ensemble import train_seeds
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder, problem_for
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict, Product
from ml_workbench_service.market.performance import sharpe, validation_report
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint
from ml_workbench_service.training import publishing as publication
from ml_workbench_service.training.combinatorial import combinatorial, groups_of
from ml_workbench_service.training.data_warnings import data_warnings
from ml_workbench_service.training.recipes import PooledSample, digest_of, own_columns, recipe_of
from ml_workbench_service.training.walk_forward import spans_of, walk_forward


class Registry(Protocol):
    """What a training asks the model registry."""

    def draft(self, name: str) -> Path:
        """A fresh folder for files that are not published yet."""
        ...

    def publish(self, draft: Path, card: ModelCard, *, check: Callable[[], None]) -> ModelCard:
        """Puts them in place, never to change again; what `check` raises ends the waiting for it."""
        ...

    def versions(self, model_id: str) -> list[str]:
        """Published versions, newest first."""
        ...


@dataclass(frozen=True)
class TrainingDependencies:
    """What a training works with."""

    store: FeatureStore
    registry: Registry
    multiple_testing: MultipleTestingLog
    accelerator: Accelerator
    checkpoint: Path
    report: Report


def produce(order: TrainingOrder, data: TrainingData, spec: JobSpec, dependencies: TrainingDependencies) -> ModelCard:
    """Trains every seed, measures their mean, publishes it; the card as published.

    Raises:
        DataValidationError: the data are unusable.
        TrainingError: the training went wrong.
        JobCancelled: somebody asked for it.
    """
    report, registry = dependencies.report, dependencies.registry
    order = order.filled(data.tables[0].fill)
    for warning in data_warnings(order, data):
        report.warn(warning)
    report.say("looking for leaks")
    certificate = certify(order, data, dependencies.store, report=report)
    left = publication.checkpoint(order, data.windows, dependencies.checkpoint, warn=report.warn)
    validated = _validated_further(order, data, dependencies, left)
    problem = problem_for(order, data, checkpoint=left)
    report.say("training")
    trained = train_seeds(
        order.family, problem, order.request.seeds, accelerator=dependencies.accelerator, report=report
    )
    validation = _logged_trial(order, trained, problem, dependencies.multiple_testing)
    noted = _Noted.before(order, problem, dependencies) if order.task.has_verdict else _Noted()
    rules = _TriedRules(order, problem, dependencies.multiple_testing)
    problem = replace(problem, num_evaluations=len(noted.others) + 1, note_rules=rules.note)
    draft = registry.draft(order.job_id)
    try:
        product = order.task.package(
            trained, draft, problem, family=order.family, is_simulated=data.is_simulated, report=report
        )
        pooled = PooledSample.of(product.differentials, noted.earlier)
        position = rules.report(product)
        measured = product.evaluation.model_copy(update={"validation": validation, "position": position, **validated})
        evaluation = apply_verdict(
            measured, certificate=certificate, is_simulated=data.is_simulated, timeframe=order.timeframe,
            horizon=order.targets[0].horizon if order.targets else 1, others=noted.others, sample=pooled.tested,
        )  # fmt: skip
        noted.after(order, problem, evaluation, pooled, dependencies)
        product = replace(product, evaluation=evaluation)
        publication.write_recipe(draft, spec, order, problem, product)
        (draft / NETWORK_FILE).write_text(json.dumps(dict(trained.network), indent=1) + "\n", encoding="utf-8")
        report.say("publishing")
        card = publication.card(
            order, data, trained, product, certificate=certificate, parent=registry.versions(order.model_id)[:1]
        )
        card = registry.publish(draft, card, check=report.check)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    left.clear()
    return card


def part_read(
    order: TrainingOrder, problem: TrainingProblem, part: Part, *, trial: str = "", target: int = 0
) -> PartRead:
    """The reading of a part by this job, or by one of its trials, as the ledgers keep it; of the headline target."""
    windows = problem.windows
    borders = windows.borders_ms
    ends = {"train": borders["validation"], "validation": borders["calibration"], "calibration": borders["test"]}
    return PartRead(
        id=f"{order.job_id}/{trial}" if trial else order.job_id,
        subject=subject_of(order.targets[target:], is_simulated=problem.tables[0].data_source == "simulated"),
        symbols=tuple(sorted(windows.symbols)),
        start_ms=borders.get(part, int(windows.available_at_ms_R.min())),
        end_ms=ends.get(part, int(windows.label_available_at_ms_R.max()) + 1),
        at=utc_now(),
        model_id=order.model_id,
    )


def trial_of(order: TrainingOrder, trained: Trained, problem: TrainingProblem, *, trial: str = "") -> Trial:
    """What a trained network's signal earned on the validation part, day by day."""
    ends = problem.windows.decisions["validation"]
    positions = order.task.positions(Predict(trained, None), ends, problem)
    daily = {} if positions is None else daily_net(positions, ends, problem)
    return Trial(
        read=part_read(order, problem, "validation", trial=trial),
        sharpe=sharpe(np.array(list(daily.values()))),
        daily_returns=daily,
    )


def _validated_further(
    order: TrainingOrder, data: TrainingData, dependencies: TrainingDependencies, left: Checkpoint
) -> dict[str, Any]:
    """What more splits of the time before the test part say, by the evaluation's field; empty where none is asked for.

    They tell what would have been found there: an evaluation of that time, for whoever tests there.
    """
    cv = order.request.cv
    if cv is None or cv.scheme == "none":
        return {}
    is_walk = cv.scheme == "walk_forward"
    first = spans_of(data, num_folds=cv.folds)[0] if is_walk else groups_of(data, num_groups=cv.groups)[0]
    if order.task.has_verdict:
        read = part_read(order, problem_for(order, data), "test", trial="walk" if is_walk else "combinations")
        until_ms = data.windows.borders_ms["test"]
        dependencies.multiple_testing.record_evaluation(
            read.model_copy(update={"start_ms": first.start_ms, "end_ms": until_ms})
        )
    dependencies.report.say("walking forward" if is_walk else "validating every combination")
    field, validate = ("walk_forward", walk_forward) if is_walk else ("combinatorial", combinatorial)
    found = validate(
        order, data, cv=cv, accelerator=dependencies.accelerator, report=dependencies.report,
        kind_of=dependencies.store.kind_of, checkpoint=left,
    )  # fmt: skip
    return {field: found}


def _logged_trial(
    order: TrainingOrder, trained: Trained, problem: TrainingProblem, multiple_testing: MultipleTestingLog
) -> ValidationReport | None:
    """Notes this training as a trial on its validation part; what all the trials there leave of its figures."""
    if not order.task.has_verdict:
        return None
    own = trial_of(order, trained, problem)
    multiple_testing.record_trial(own)
    trials: Sequence[Trial] = multiple_testing.trials(own.read)
    return validation_report(trials, own.read.id)


@dataclass(frozen=True)
class _TriedRules:
    """The position rules of a training: each is a trial on the calibration part, noted before the test part is read."""

    order: TrainingOrder
    problem: TrainingProblem
    multiple_testing: MultipleTestingLog

    def note(self, daily: Sequence[Mapping[str, float]]) -> None:
        """What each earned, day by day; without an answer from the log the test part is not read."""
        for number, each in enumerate(daily):
            ratio = sharpe(np.array(list(each.values())))
            self.multiple_testing.record_trial(Trial(read=self._read(number), sharpe=ratio, daily_returns=dict(each)))

    def report(self, product: Product) -> PositionReport | None:
        """What the rules that were tried leave of the chosen one's figures."""
        position, sized = product.evaluation.position, product.sized
        if position is None or sized is None:
            return position
        read = self._read(sized.chosen)
        found = validation_report(self.multiple_testing.trials(read), read.id)
        return position.model_copy(update={"tried": sized.tried, "calibration": found})

    def _read(self, number: int) -> PartRead:
        return part_read(self.order, self.problem, "calibration", trial=f"position/{number}")


@dataclass(frozen=True)
class _Noted:
    """What the log said as this test-set evaluation was noted, before it happened.

    Attributes:
        recipe: "" where nothing is bet on.
        own_columns: columns that are part of it.
        others: p-values of the other hypotheses of its family.
        earlier: what its own evaluations before this one told.
    """

    recipe: str = ""
    own_columns: tuple[str, ...] = ()
    others: tuple[float | None, ...] = ()
    earlier: tuple[EvaluationResult, ...] = ()

    @classmethod
    def before(cls, order: TrainingOrder, problem: TrainingProblem, dependencies: TrainingDependencies) -> "_Noted":
        """Notes this evaluation and what else it reads.

        Figures of further targets stand on the card too: who forecasts a volatility beside a price has evaluated both.
        """
        log, read = dependencies.multiple_testing, part_read(order, problem, "test")
        for number in range(1, len(order.targets)):
            further = part_read(order, problem, "test", target=number)
            if further.subject != read.subject:
                log.record_evaluation(further.model_copy(update={"id": f"{further.id}/{further.subject}"}))
        recipe = recipe_of(order, problem.tables, dependencies.store, results=log.results)
        earlier = tuple(log.results(recipe))
        series = [
            ReturnFingerprint.of(table.symbol, table.available_at_ms, np.asarray(table.columns["close"]))
            for table in problem.tables
        ]
        log.record_evaluation(read, recipe=recipe, series=series)
        own = tuple(own_columns(order, problem.tables, dependencies.store))
        return cls(recipe, own, tuple(log.other_p_values(read.id)), earlier)

    def after(
        self,
        order: TrainingOrder,
        problem: TrainingProblem,
        evaluation: Evaluation,
        pooled: PooledSample,
        dependencies: TrainingDependencies,
    ) -> None:
        """Notes what it told; in a job that is resumed the first answer holds."""
        if not self.recipe or (not pooled.added and pooled.tested is None):
            return
        result = pooled.result(spent_p_value(evaluation.significance), "")
        own = digest_of(self.own_columns, problem.tables, from_ms=result.from_ms, until_ms=result.until_ms)
        dependencies.multiple_testing.record_result(order.job_id, replace(result, own_columns=own))
