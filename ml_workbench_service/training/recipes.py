"""Recipes: what is one hypothesis however often it is trained, and the rows that its versions were the first to judge.

A recipe is the hash of three things: the resolved request without dates, names and notes; the code that makes features,
labels and model; every own column's values on the rows that were judged already. Whoever changes any of them tries
something else, and it counts.

Its rows are pooled over its versions. Each moment is judged once, by the version that reached it first: a later one
adds what came after, so that nobody can train again over other dates until old rows look better, and a range that ends
earlier adds none. What was judged stays in the multiple-testing log when versions are purged.

    first version    |  train  | ... |  test  |                    tested whole
    second           |    train    | ... |    test    |            adds only what lies behind the first one's
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Comparison
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable, recomputing
from ml_workbench_service.contracts.multiple_testing import EvaluationResult
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.evaluation.growing_samples import last_stage
from ml_workbench_service.evaluation.leakage.certificate import PRICES
from ml_workbench_service.evaluation.verdict import TestedSample
from ml_workbench_service.learning.interfaces.dataset import TrainingOrder
from ml_workbench_service.learning.interfaces.differentials import Differentials, pack, pooled, unpack
from ml_workbench_service.market.features.derivation import leaves_of
from ml_workbench_service.market.features.indicators import resolve

NOT_PART = frozenset({"name", "model_id", "version", "notes", "force", "start_date", "end_date", "as_of", "priority"})
"""Of a request: what it is called, which range it reads, and whether it insists."""
RESOLVED = NOT_PART | {"features", "target", "timeframe", "family", "hyperparameters", "costs", "symbols", "position"}
"""What joins as it was understood, not as it was written."""
CODE = ("learning", "market", "reinforcement")
"""Folders of the package that make features, labels and models; the family's own file joins them."""
Results = Callable[[str], Sequence[EvaluationResult]]


@dataclass(frozen=True)
class PooledSample:
    """A recipe's rows, and those of them that this evaluation judges for the first time.

    Attributes:
        tested: None where there is nothing to test.
        added: one with each baseline; empty where this version adds none.
    """

    tested: TestedSample | None
    added: tuple[Differentials, ...]

    @classmethod
    def of(cls, own: Sequence[Differentials], earlier: Sequence[EvaluationResult]) -> "PooledSample":
        """From the version's own rows, and what the recipe's evaluations before it were the first to judge."""
        if not own:
            return cls(None, ())
        parts = [unpack(each.differentials) for each in earlier if each.differentials]
        if not all(_alike(part, own) for part in parts):
            parts = []  # other baselines: rules of an earlier release, whose rows cannot be set beside these
        last_ms = max((int(part[0].moments_T[-1]) for part in parts), default=None)
        added = list(own) if last_ms is None else [each.after(last_ms) for each in own]
        has_added = len(added[0].moments_T) > 0
        every = pooled([*parts, added] if has_added else parts)
        first = len(parts[0][0].moments_T) if parts else len(own[0].moments_T)
        stage = last_stage(len(every[0].moments_T), first=first)
        assert stage is not None, "the first version's rows are the first test's"
        comparisons: tuple[Comparison, ...] = tuple(each.between(0, stage.num_moments).comparison() for each in every)
        return cls(TestedSample(comparisons, stage), tuple(added) if has_added else ())

    def result(self, p_value: float | None, own_columns: str) -> EvaluationResult:
        """For the log."""
        if not self.added:
            return EvaluationResult(p_value, 0, 0, own_columns, b"")
        moments_T = self.added[0].moments_T
        return EvaluationResult(p_value, int(moments_T[0]), int(moments_T[-1]), own_columns, pack(self.added))


def recipe_of(order: TrainingOrder, tables: Sequence[FeatureTable], store: FeatureStore, *, results: Results) -> str:
    """The recipe's hash; with other values of own columns on rows that were judged it is another one.

    Args:
        order: what is trained.
        tables: what was delivered.
        store: where from.
        results: of the recipe's evaluations, by its hash.
    """
    recipe, own = _hash({"request": _request(order), "code": _code(order)}), own_columns(order, tables, store)
    while True:
        judged = [each for each in results(recipe) if each.differentials]
        now = [digest_of(own, tables, from_ms=each.from_ms, until_ms=each.until_ms) for each in judged]
        if now == [each.own_columns for each in judged]:
            return recipe
        recipe = _hash({"recipe": recipe, "own_columns": now})


def own_columns(order: TrainingOrder, tables: Sequence[FeatureTable], store: FeatureStore) -> list[str]:
    """Base columns of the features that the service did not make from bars, of whatever series."""
    delivered = {name for table in tables for name in table.columns} - PRICES
    wanted = sorted(delivered & set(order.derivation.base_columns))
    makes_columns = recomputing(store) is not None
    return [
        name for name in wanted if not makes_columns or not all(_is_indicator(leaf.name) for leaf in leaves_of(name))
    ]


def digest_of(names: Sequence[str], tables: Sequence[FeatureTable], *, from_ms: int, until_ms: int) -> str:
    """Of the columns' values on the rows that become known in this span, bounds included; "" of no columns."""
    if not names:
        return ""
    digest = hashlib.sha256()
    for table in sorted(tables, key=lambda each: each.symbol):
        within = (table.available_at_ms >= from_ms) & (table.available_at_ms <= until_ms)
        digest.update(f"{table.symbol} ".encode())
        digest.update(table.opened_ms[within].tobytes())
        for name in names:
            digest.update(np.ascontiguousarray(table.columns[name][within]).tobytes())
    return digest.hexdigest()


def _alike(part: Sequence[Differentials], own: Sequence[Differentials]) -> bool:
    return [(each.baseline, each.loss, each.horizon) for each in part] == [
        (each.baseline, each.loss, each.horizon) for each in own
    ]


def _request(order: TrainingOrder) -> dict[str, Any]:
    """With every default filled in."""
    asked = {name: value for name, value in order.request.model_dump(mode="json").items() if name not in RESOLVED}
    return {
        **asked,
        "symbols": sorted(order.request.symbols),
        "family": order.family.name,
        "hyperparameters": order.family.hyperparameters.model_dump(mode="json"),
        "timeframe": order.timeframe,
        "features": list(order.derivation.features),
        "expressions": dict(order.derivation.expressions),
        "targets": [each.name for each in order.targets],
        "costs": {symbol: each.model_dump(mode="json") for symbol, each in order.costs.items()},
        "position": [each.model_dump(mode="json") for each in order.request.position_rules or (PositionRule(),)],
    }


def _code(order: TrainingOrder) -> str:
    return _hash({"package": _package_code(), "family": _file_hash(Path(inspect.getfile(type(order.family))))})


@lru_cache(maxsize=1)
def _package_code() -> str:
    """Of the folders' files as they are on disk; read once a process, whose code they are."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for folder in CODE for file in (root / folder).rglob("*.py"))
    return _hash({str(file.relative_to(root)): _file_hash(file) for file in files})


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_indicator(name: str) -> bool:
    try:
        resolve(name)
    except DataValidationError:
        return False
    return True
