"""Feature engineering: the product is a feature set: later trainings name it, and it can be asked for its columns.

Legend: N windows, K outputs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.feature_names import is_column
from ml_workbench_service.contracts.feature_sets import FeatureSet, SelectionWindow, is_reference
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import FeatureDescription, FeatureKind, FeatureStore, Ints
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.contracts.training import ModelType, Target, TrainRequest
from ml_workbench_service.families.feature_search import FeatureSearchHyperparameters
from ml_workbench_service.learning.data.scaling import RawRows
from ml_workbench_service.learning.decoders.features import FeaturesDecoder
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Product, Task
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.tables import SYNTHETIC_RANGE

FEATURE_SET_FILE = "feature_set.json"


class FeatureEngineering(Task):
    """A search over expressions; what is kept is data in a small grammar, never code."""

    model_type: ClassVar[ModelType] = ModelType.FEATURE_ENGINEERING
    needs_features: ClassVar[bool] = False
    has_verdict: ClassVar[bool] = False
    averages_seeds: ClassVar[bool] = False

    def check(self, request: TrainRequest) -> tuple[Target, ...]:
        """As every task, and what is searched are the store's own columns, and expressions without a price's unit."""
        for number, feature in enumerate(request.features):
            if is_reference(feature):
                raise DataValidationError.at(
                    f"body.features.{number}",
                    "a search starts from the store's columns, not from another set; name columns, or leave "
                    "`features` out to search all",
                )
        return super().check(request)

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Exactly one: what the columns shall tell about."""
        if len(targets) != 1:
            raise DataValidationError.at(
                "body.target",
                "feature_engineering needs one target that its columns shall tell about, such as volatility_24h",
                code="missing" if not targets else "value_error",
            )

    def candidates(self, request: TrainRequest, family: AnyFamily, store: FeatureStore) -> tuple[Expression, ...]:
        """The expressions as they are written, then those made from the named columns; of everything that the store
        describes where nothing is named."""
        from ml_workbench_service.learning.feature_search.candidates import candidates

        available = store.describe()
        has_range = _has_range(store, request, available)
        written = [parse(feature) for feature in request.features if not is_column(feature)]
        if request.features:
            available = [
                FeatureDescription(name=name, example=name, kind=store.kind_of(name), description="")
                for name in request.features
                if is_column(name)
            ]
        hyper = family.hyperparameters
        assert isinstance(hyper, FeatureSearchHyperparameters), "families of feature engineering are searches"
        timeframe = request.timeframe_for(request.parsed_targets())
        made = candidates(available, timeframe=timeframe, has_range=has_range, max_candidates=hyper.max_candidates)
        return tuple({each.text: each for each in [*written, *made]}.values())[: hyper.max_candidates]

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """What the kept columns tell, held out, beyond what luck reaches, added up; the search has scored itself."""
        selection = trained.findings["selection"]
        chance = selection.chance_level or 0.0
        return float(sum(max(each.score - chance, 0.0) for each in selection.features(_kind_of)))

    def package(
        self, trained: Trained, draft: Path, problem: TrainingProblem, *, family: AnyFamily, is_simulated: bool,
        report: Report,
    ) -> Product:  # fmt: skip
        """Writes `feature_set.json`; there is no graph and nothing to calibrate."""
        report.say("writing the feature set")
        found = _feature_set(trained, problem)
        (draft / FEATURE_SET_FILE).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        derivation = Derivation(found.names, {each.name: each.expression for each in found.expressions})
        recipe = {
            "scaler": RawRows.of(found.names, found.symbols).to_json(),
            "uncertainty": FeaturesDecoder(found.names).to_json(),
        }
        return Product(
            outputs=found.names,
            quantization=Quantization(accepted=False, reason="a feature set has no network"),
            evaluation=_evaluation(found),
            recipe=recipe,
            derivation=derivation,
            findings={"feature_set": found.model_dump(mode="json")},
        )


def _has_range(store: FeatureStore, request: TrainRequest, available: Sequence[FeatureDescription]) -> bool:
    """Whether the bars' high and low were observed; the newest bar tells."""
    probe = next((each.example for each in available if each.needs_range), None)
    if probe is None:
        return True
    table = store.fetch(
        request.symbols[:1], request.timeframe_for(request.parsed_targets()), start_ms=to_ms(request.start_date),
        end_ms=to_ms(request.end_date), features=[probe], last=1,
    )[0]  # fmt: skip
    return SYNTHETIC_RANGE not in table.warnings


def _feature_set(trained: Trained, problem: TrainingProblem) -> FeatureSet:
    selection = trained.findings["selection"]
    windows = problem.windows
    derivation = Derivation(trained.outputs, {each.expression.name: each.expression.text for each in selection.chosen})
    return FeatureSet(
        id=problem.model_id,
        version=problem.version,
        symbols=windows.symbols,
        timeframe=problem.tables[0].timeframe,
        target=problem.targets[0].name,
        expressions=selection.features(_kind_of),
        base_columns=derivation.base_columns,
        history=derivation.history,
        selection=SelectionWindow(
            start=iso_of_ms(selection.start_ms),
            end=iso_of_ms(selection.end_ms),
            num_rows=selection.num_rows,
            num_candidates=selection.num_candidates,
            chance_level=selection.chance_level,
            seed=problem.seed,
        ),
        rejected=selection.rejected,
        warnings=selection.warnings,
    )


def _kind_of(column: str) -> FeatureKind:
    """By our table; a column of the user's own is stationary, as the store has it."""
    try:
        return indicators.kind_of(column)
    except DataValidationError:
        return "stationary"


def _evaluation(found: FeatureSet) -> Evaluation:
    scores = {each.name: each.score for each in found.expressions}
    return Evaluation(
        test={
            "num_features": float(len(found.expressions)),
            "num_candidates": float(found.selection.num_candidates),
            "best_score": max((score for score in scores.values() if score is not None), default=None),
        },
        baselines={"chance": {"best_score": found.selection.chance_level}},
        skill={},
        verdict="not_applicable",
        reason="columns forecast nothing by themselves; their held-out information stands beside what luck reaches",
    )
