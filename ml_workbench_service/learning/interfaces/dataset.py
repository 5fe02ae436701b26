"""Data set assembly: from a training request to windows: what it orders, what was delivered, labelled and cut.

Everything goes through the modules' own names (`labelling.label_tables`, `windows.build`, the store's `fetch`), so that
the leakage certificate, which does it all again over altered bars, calls the very objects that made the training's
matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Costs, FeatureKind, FeatureStore, FeatureTable, FillRule, Ints
from ml_workbench_service.contracts.training import PrimaryReference, Target, TrainRequest
from ml_workbench_service.learning.data import labelling, windows
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.splits import Split
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import AnyFamily, TrainingProblem, family_for
from ml_workbench_service.learning.interfaces.primary import Primary
from ml_workbench_service.learning.interfaces.task import Task, task_of
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.features.derivation import Derivation, columns_of
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.fills import fetch_with_opens


@dataclass(frozen=True)
class TrainingOrder:
    """What a request means, decided once.

    Attributes:
        costs: resolved, of each symbol.
        derivation: the features, those of feature sets by their expressions.
        candidates: what a feature search chooses from; nothing else has any.
        primary: of meta-labelling, the version whose side is followed or skipped.
        sides: of meta-labelling, each symbol's sides where they are held fast, whatever the bars say; else the
            primary's own.
    """

    request: TrainRequest
    task: Task
    family: AnyFamily
    targets: tuple[Target, ...]
    costs: Mapping[str, Costs]
    derivation: Derivation
    candidates: tuple[Expression, ...]
    timeframe: str
    job_id: str
    model_id: str
    version: str
    primary: Primary | None = None
    sides: tuple[Ints, ...] = ()

    @classmethod
    def of(
        cls,
        request: TrainRequest,
        plan: Mapping[str, Any],
        *,
        job_id: str,
        store: FeatureStore,
        primary: Primary | None = None,
    ) -> "TrainingOrder":
        """From a checked request and the plan that was made for it.

        Args:
            primary: the version that `request.meta` names, opened.

        Raises:
            DataValidationError: the request is none that can be trained.
        """
        if primary is not None:
            request = followed_request(request, primary.reference)
        task = task_of(request)
        targets = task.check(request)
        family = family_for(request.model_type, request.family)(request.hyperparameters)
        if primary is not None:
            family = primary.followed_by(family)
        names = tuple(plan.get("features", request.features))
        return cls(
            request=request,
            task=task,
            family=family,
            targets=targets,
            costs={symbol: resolved_costs(symbol, request.costs) for symbol in request.symbols},
            # a search that names no feature cuts its windows by the close
            derivation=Derivation(names or ("close",), plan.get("expressions", {}), plan.get("selected_until_ms", 0)),
            candidates=task.candidates(request, family, store),
            timeframe=request.timeframe_for(targets),
            job_id=job_id,
            model_id=str(plan["model_id"]),
            version=str(plan["version"]),
            primary=primary,
        )

    @property
    def horizon(self) -> int:
        """Bars until the last of the labels is known; 1 where nothing is forecast."""
        return max((target.reach for target in self.targets), default=1)

    def filled(self, fill: FillRule) -> "TrainingOrder":
        """The order for bars whose decisions are filled so: their labels begin there."""
        return replace(self, targets=tuple(each.filled(fill, self.request.label) for each in self.targets))


@dataclass(frozen=True)
class TrainingData:
    """What was delivered, what was labelled, what was cut; in this order."""

    tables: tuple[FeatureTable, ...]
    labelling: Labelling
    windows: Windows

    @property
    def is_simulated(self) -> bool:
        """Whether the prices are simulated, so that skill would be chance."""
        return self.tables[0].data_source == "simulated"


def fetch(order: TrainingOrder, store: FeatureStore) -> list[FeatureTable]:
    """One table a symbol, with every column that features, candidates, labels and fills need."""
    request = order.request
    columns = [*order.derivation.base_columns, *columns_of(order.candidates), "close"]

    def ask(features: list[str]) -> list[FeatureTable]:
        return store.fetch(
            request.symbols,
            order.timeframe,
            start_ms=to_ms(request.start_date),
            end_ms=to_ms(request.end_date),
            features=features,
            as_of_ms=None if request.as_of is None else to_ms(request.as_of),
        )

    return fetch_with_opens(ask, columns)


def assemble(
    order: TrainingOrder, tables: Sequence[FeatureTable], *, kind_of: Callable[[str], FeatureKind]
) -> TrainingData:
    """Labels the tables and cuts the windows.

    Raises:
        DataValidationError: a feature has no value, or a part has too few windows.
    """
    labelled = label(order, tables)
    return TrainingData(tuple(tables), labelled, cut(order, labelled, kind_of=kind_of))


def label(order: TrainingOrder, tables: Sequence[FeatureTable]) -> Labelling:
    """Rows with labels; the rules that are fitted come with the windows."""
    request, order = order.request, order.filled(tables[0].fill)
    labelled = labelling.label_tables(
        tables,
        features=order.derivation.features,
        columns=[order.derivation.read_table(table) for table in tables],
        targets=order.targets,
        costs=order.costs,
        barrier_width=1.0 if request.label is None else request.label.k,
        by_uniqueness=request.sample_weights == "uniqueness",
    )
    if order.primary is not None:
        features, costs = order.derivation.features, order.costs
        labelled.follow(
            order.sides or [order.primary.sides_of(rows, features, costs[rows.symbol]) for rows in labelled.rows]
        )
    return labelled


def cut(
    order: TrainingOrder,
    labelled: Labelling,
    *,
    kind_of: Callable[[str], FeatureKind],
    split: Split | None = None,
) -> Windows:
    """Windows, parts and scaling; the parts of this split instead of the request's, where there is one."""
    built = windows.build(
        labelled.rows,
        features=order.derivation.features,
        is_level=[kind == "level" for kind in order.derivation.kinds(kind_of)],
        lookback=order.family.lookback,
        split=split or order.request.validation_split,
        scales_labels=[not target.classes for target in order.targets],
        finish_rows=labelled.finish,
    )
    return built if order.primary is None else _as_the_primary_reads(built, labelled, order.primary)


def _as_the_primary_reads(built: Windows, labelled: Labelling, primary: Primary) -> Windows:
    """The windows, the primary's features scaled as it was trained on them."""
    scaler = primary.scaler_over(built.scaler)
    rows_RF = np.concatenate([scaler.rows(rows.symbol, rows.x_NF) for rows in labelled.rows])
    return replace(built, scaler=scaler, rows_RF=np.ascontiguousarray(np.nan_to_num(rows_RF)))


def problem_for(
    order: TrainingOrder, data: TrainingData, *, seed: int | None = None, checkpoint: Checkpoint | None = None
) -> TrainingProblem:
    """What a family is asked to learn; the request's first seed unless another is named."""
    return TrainingProblem(
        windows=data.windows,
        targets=order.filled(data.tables[0].fill).targets,
        seed=order.request.seeds[0] if seed is None else seed,
        quantiles=tuple(sorted(order.request.quantiles or ())),
        costs=order.costs,
        fill=data.tables[0].fill,
        tables=data.tables,
        candidates=order.candidates,
        regimes=data.labelling.regimes,
        profiles=data.labelling.profiles,
        model_id=order.model_id,
        version=order.version,
        checkpoint=checkpoint,
        position_rules=order.request.position_rules,
        primary=order.primary,
    )


def followed_request(request: TrainRequest, reference: PrimaryReference) -> TrainRequest:
    """The request with what follows from its primary: the target, and no row that the primary was fitted on."""
    return request.model_copy(
        update={
            "target": reference.follow_target,
            "timeframe": reference.timeframe,
            "start_date": max(request.start_date, reference.fitted_until),
            "features": list(request.features or ["close"]),  # named by the plan, the primary's own among them
        }
    )
