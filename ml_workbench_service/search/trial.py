"""Trial of a search: data fetched once and cut once, a training that may be pruned, a score, and what is noted.

A trial is handed nothing that was known only after its validation part: rows after that border, and labels that reach
over it, are not in its arrays. Whatever is done with them, no trial can tell.

Legend: R rows of all symbols, N rows of one table.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from common_lib.exceptions import (
    JobCancelled,
    PlatformError,
    TrainingError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.contracts.multiple_testing import Trial
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.interfaces.dataset import (
    TrainingData,
    TrainingOrder,
    assemble,
    fetch,
    problem_for,
)
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.interfaces.primary import Primary
from ml_workbench_service.market.features.derivation import columns_of
from ml_workbench_service.market.performance import annual
from ml_workbench_service.search.space import FEATURES, choice_label, trial_request
from ml_workbench_service.training.pipeline import part_read, trial_of

MOST_KEPT = 4
"""Fetched tables, and cut windows, that are kept for further trials."""
MOST_POINTS = 500
"""Of a curve; longer ones are thinned evenly."""
CURVES = {"stop_skill": 1.0, "stop_net_log_return": 1.0, "stop_loss": -1.0}
"""Metrics that make a trial's curve, the first that is reported; times the factor, more is better."""
OUTAGES = (UnavailableError, UpstreamError, UpstreamTimeoutError)
"""No trial's fault, and no further one would go better."""

log = logging.getLogger(__name__)
Kept = TypeVar("Kept")
Point = TypeVar("Point")


class GivenUp(Exception):
    """Raised through a family's training by its report: the trial is not worth going on with."""


@dataclass(frozen=True)
class TrialEnd:
    """What came of a trial.

    Attributes:
        value: the score on the validation part, more is better; only of a complete one.
        curve: step and intermediate score; `curve_at_ms` says when each was reported.
        noted: for the ledger; None where the validation part was not read.
        sharpe: of daily net returns there, per year.
    """

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None
    message: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    curve_at_ms: tuple[int, ...] = ()
    noted: Trial | None = None

    @property
    def sharpe(self) -> float | None:
        """Per year."""
        return None if self.noted is None else annual(self.noted.sharpe)


class TrialReport(SilentReport):
    """A trial's `Report`: keeps its curve, asks whether to go on, and passes nothing on but the wish to cancel.

    Args:
        check: looks for a cancellation; cheap enough for every batch.
        hear: takes step and score; a sentence where the trial is to be given up, else the empty one.
    """

    def __init__(self, check: Callable[[], None], hear: Callable[[int, float], str]) -> None:
        super().__init__(check, lambda message: log.info("a trial warns: %s", message))  # the winner's says it again
        self._hear = hear
        self.curve: list[tuple[int, float]] = []
        self.at_ms: list[int] = []

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Records a step; raises GivenUp or JobCancelled."""
        name = next((each for each in CURVES if each in metrics), None)
        value = math.nan if name is None else CURVES[name] * float(metrics[name])
        if math.isfinite(value):
            self.curve.append((int(step), value))
            self.at_ms.append(int(time.time() * 1000))
            sentence = self._hear(int(step), value)
            if sentence and step < total:  # nothing is saved by giving up at the end
                raise GivenUp(sentence)
        self.check()

    def thinned(self) -> tuple[tuple[tuple[int, float], ...], tuple[int, ...]]:
        """Curve and moments, at most MOST_POINTS of them, the last one among them."""
        return tuple(thinned(self.curve)), tuple(thinned(self.at_ms))


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MOST_POINTS of a curve, evenly, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[each] for each in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]


class TrialMaker:
    """Makes the trials of one experiment, one after the other.

    Args:
        base: what every trial is a variation of.
        plan: what the API decided for the base, and for each choice of features.
        open_primary: opens the version that a plan pins, of meta-labelling; None where it pins none.
    """

    def __init__(
        self,
        base: TrainRequest,
        plan: Mapping[str, Any],
        *,
        job_id: str,
        store: FeatureStore,
        accelerator: Accelerator,
        open_primary: Callable[[Mapping[str, Any]], Primary | None],
    ) -> None:
        self._base, self._plan, self._job_id = base, plan, job_id
        self._open_primary = open_primary
        self._primaries: dict[object, Primary | None] = {}
        self._store, self._accelerator = store, accelerator
        self._tables: dict[object, list[FeatureTable]] = {}
        self._problems: dict[object, TrainingProblem] = {}

    def order(self, params: Mapping[str, Any]) -> TrainingOrder:
        """What these parameters mean; raises DataValidationError where they make no training together."""
        request, plan = trial_request(self._base, params), self.plan(params)
        # of one version with other features of its follower: what it is asked is the same, what is read beside is not
        primary = _kept(self._primaries, json.dumps(plan.get("primary")), lambda: self._open_primary(plan))
        return TrainingOrder.of(request, plan, job_id=self._job_id, store=self._store, primary=primary)

    def plan(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The base's plan with a trial's choice of features."""
        plan = dict(self._plan)
        choices = plan.pop("feature_choices", {})
        return plan | (choices[choice_label(params[FEATURES])] if FEATURES in params else {})

    def data(self, order: TrainingOrder) -> TrainingData:
        """All of an order's data, the test part included: for the winner alone."""
        return assemble(order, self._fetched(order), kind_of=self._store.kind_of)

    def make(self, number: int, params: Mapping[str, Any], report: TrialReport) -> TrialEnd:
        """Trains and scores; a trial that goes wrong is an end like any other.

        Raises:
            JobCancelled: somebody asked for it.
            UnavailableError, UpstreamError, UpstreamTimeoutError: the data cannot be had.
        """
        noted: Trial | None = None
        try:
            order = self.order(params)
            order.family.check_features(len(order.derivation.features))
            order.family.check_request(order.request, order.derivation.features)
            problem = self._blind(order)
            noted = Trial(read=part_read(order, problem, "validation", trial=str(number)))
            trained = order.family.train(problem, accelerator=self._accelerator, report=report)
            value = order.task.score(trained, problem.windows.parts["validation"], problem)
            noted = trial_of(order, trained, problem, trial=str(number))
            if not math.isfinite(value):
                raise TrainingError("the score of the validation part is not a number; narrow the search space")
            end = TrialEnd("complete", float(value))
        except (JobCancelled, *OUTAGES):
            raise
        except GivenUp as reason:
            end = TrialEnd("pruned", message=str(reason))
        except Exception as error:  # noted with its reason; the search goes on
            end = TrialEnd("failed", message=self._reason(error, number))
        curve, curve_at_ms = report.thinned()
        return replace(end, curve=curve, curve_at_ms=curve_at_ms, noted=noted)

    def _reason(self, error: Exception, number: int) -> str:
        """In a sentence; the traceback of what nobody foresaw goes into the worker's log."""
        if isinstance(error, PlatformError):
            return error.message
        log.warning("trial %d failed", number, exc_info=error)
        if isinstance(error, MemoryError):
            self._tables.clear()
            self._problems.clear()
            return "the machine had no memory left for this trial; narrow the search space or run fewer at a time"
        return f"{type(error).__name__}: {error}"[:500]

    def _fetched(self, order: TrainingOrder) -> list[FeatureTable]:
        columns = (*order.derivation.base_columns, *columns_of(order.candidates))
        return _kept(self._tables, columns, lambda: fetch(order, self._store))

    def _blind(self, order: TrainingOrder) -> TrainingProblem:
        derivation = order.derivation
        key = (
            derivation.features,
            tuple(derivation.expressions.items()),
            order.targets,
            order.family.lookback,
            order.candidates,
            None if order.primary is None else order.primary.reference.reads,
        )
        return _kept(self._problems, key, lambda: without_future(problem_for(order, self.data(order))))


def without_future(problem: TrainingProblem) -> TrainingProblem:
    """The same problem with nothing in it that was not known at the end of the validation part.

    Its calibration and test parts are empty.
    """
    windows, border_ms = problem.windows, problem.windows.borders_ms["calibration"]
    return replace(
        problem,
        windows=_cut_windows(windows, windows.available_at_ms_R <= border_ms, border_ms),
        tables=tuple(_cut_table(table, border_ms) for table in problem.tables),
    )


def _cut_windows(windows: Windows, keep_R: np.ndarray, border_ms: int) -> Windows:
    by_row = {
        each.name: values[keep_R]
        for each in dataclasses.fields(windows)
        if each.name.rpartition("_")[2] in ("R", "RF", "RK") and (values := getattr(windows, each.name)) is not None
    }
    reaches_over = by_row["label_available_at_ms_R"] > border_ms
    by_row["labels_RK"][reaches_over] = 0
    by_row["own_labels_RK"][reaches_over] = np.nan
    places_R = np.cumsum(keep_R) - 1
    nothing = np.zeros(0, dtype=np.int64)
    parts, decisions = (
        {name: places_R[rows] if name in ("train", "validation") else nothing for name, rows in by_part.items()}
        for by_part in (windows.parts, windows.decisions)
    )
    return replace(windows, parts=parts, decisions=decisions, **by_row)


def _cut_table(table: FeatureTable, border_ms: int) -> FeatureTable:
    keep_N = table.available_at_ms <= border_ms
    columns = {name: values[keep_N] for name, values in table.columns.items()}
    return replace(
        table, opened_ms=table.opened_ms[keep_N], available_at_ms=table.available_at_ms[keep_N], columns=columns
    )


def _kept(cache: dict[object, Kept], key: object, make: Callable[[], Kept]) -> Kept:
    """From the cache, whose least recently used entry gives way."""
    found = cache.pop(key, None)
    if found is None:
        while len(cache) >= MOST_KEPT:
            del cache[next(iter(cache))]
        found = make()
    cache[key] = found
    return found
