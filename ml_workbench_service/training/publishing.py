"""What a version is published with: its card, `recipe.json`, and the fingerprint of the data behind both."""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, utc_now
from ml_workbench_service.contracts.evaluation import Certificate
from ml_workbench_service.contracts.jobs import JobSpec
from ml_workbench_service.contracts.models import Lineage, ModelCard, SampleWeights, Split
from ml_workbench_service.evaluation.drift import InputReference
from ml_workbench_service.evaluation.forecast_metrics import headline
from ml_workbench_service.learning.bundle.manifest import RECIPE_FILE
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.windows import PARTS, Windows, describe_borders, evenly, to_wire
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Product
from ml_workbench_service.market.outcomes.live_metrics import bar_numbers
from ml_workbench_service.training.assessment import MOST_NOVELTY_WINDOWS, last_rows
from ml_workbench_service.training.data_warnings import data_warnings

VALIDITY = timedelta(days=365)
"""A model abstains this long after the last bar it saw. A convention: an FX regime rarely outlives a year."""
SELECTION_SAW_TEST = "feature_set_saw_test_part"
"""A feature set was selected on labels of this model's test part: its figures prove nothing about those features."""
LEAKAGE_UNPROVABLE = "leakage_unprovable"
"""Ready-made columns could not be recomputed from bars; nothing suspicious was found in them."""
LEAKAGE_FAILED = "leakage_certificate_failed"
LIBRARIES = (
    "torch", "onnxruntime", "onnx", "numpy", "TA-Lib", "scikit-learn", "lightgbm", "stable-baselines3", "numba",
    "polars",
)  # fmt: skip


def checkpoint(order: TrainingOrder, windows: Windows, folder: Path, *, warn: Callable[[str], None]) -> Checkpoint:
    """Where the training leaves what it needs to go on; a checkpoint of other data or libraries is not used."""
    about = {
        "job_id": order.job_id,
        "data": fingerprint(windows),
        "family": order.family.name,
        "hyperparameters": order.family.hyperparameters.model_dump(),
        "libraries": dict(_library_versions()),
    }
    return Checkpoint(folder, fingerprint=about, warn=warn)


@lru_cache(maxsize=1)
def _library_versions() -> Mapping[str, str]:
    """Of `LIBRARIES`, read once: a process keeps the libraries that it has loaded."""
    return {name: version(name) for name in LIBRARIES}


def write_recipe(draft: Path, spec: JobSpec, order: TrainingOrder, problem: TrainingProblem, product: Product) -> None:
    """`recipe.json`: the request and everything serving needs beside the network."""
    windows, derivation = problem.windows, product.derivation or order.derivation
    recipe = {
        "request": spec.request,
        "plan": spec.plan,
        "scaler": windows.scaler.to_json(),
        "expressions": dict(derivation.expressions),
        **product.recipe,
        "regimes": {symbol: rule.to_json() for symbol, rule in problem.regimes.items()},
        "seasonal_profiles": {symbol: profile.model_dump() for symbol, profile in problem.profiles.items()},
        "borders_ms": to_wire(windows.borders_ms),
        "last_known_ms": int(windows.available_at_ms_R.max()),
        "costs": {symbol: each.model_dump() for symbol, each in problem.costs.items()},
        "reference_price": {table.symbol: float(table.columns["close"][-1]) for table in problem.tables},
        "data_fingerprint": fingerprint(windows),
        "barrier_width": 1.0 if order.request.label is None else order.request.label.k,
        "reference": _reference(windows, product, problem.tables[0].timeframe),
    }
    (draft / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


def card(
    order: TrainingOrder,
    data: TrainingData,
    trained: Trained,
    product: Product,
    *,
    certificate: Certificate,
    parent: list[str],
) -> ModelCard:
    """The version's card; `parent` is the version before it, if there is one."""
    request, targets, tables, family = order.request, order.targets, data.tables, order.family
    derivation = product.derivation or order.derivation
    return ModelCard(
        id=order.model_id,
        name=request.name,
        type=request.model_type.value,
        version=order.version,
        created_at=utc_now(),
        metrics=headline(product.evaluation),
        family=family.name,
        symbols=tuple(request.symbols),
        timeframe=tables[0].timeframe,
        features=derivation.features,
        expressions=dict(derivation.expressions),
        base_columns=derivation.base_columns if derivation.expressions else (),
        history=derivation.history,
        target=targets[0].name if targets else None,
        targets=tuple(target.name for target in targets),
        quantiles=tuple(sorted(request.quantiles or ())),
        classes=targets[0].classes if targets else (),
        primary=None if order.primary is None else order.primary.reference,
        horizon=targets[0].horizon if targets else 1,
        label_start="fill" if targets and targets[0].delay else "close",
        lookback=family.lookback,
        min_window=family.min_window,
        outputs=product.outputs,
        precision=product.precision,
        quantization=product.quantization,
        evaluation=product.evaluation,
        certificate=certificate,
        split=_split(data.windows, data.labelling),
        data_source=tables[0].data_source,
        calendar=tables[0].calendar,
        fill=tables[0].fill,
        volatility_rule="seasonal_ewma" if data.labelling.profiles else "ewma",
        expires_at=_last_known(data.windows) + VALIDITY,
        hyperparameters=family.hyperparameters.model_dump(),
        epochs_run=trained.epochs_run,
        findings=dict(product.findings),
        warnings=_warnings(order, data, trained, product, certificate),
        notes=request.notes,
        readings=tuple(report for table in tables for report in table.reports),
        lineage=Lineage(
            job_id=order.job_id,
            data_fingerprint=fingerprint(data.windows),
            seeds=tuple(request.seeds),
            parent_version=parent[0] if parent else None,
            library_versions=dict(_library_versions()),
        ),
    )


def _last_known(windows: Windows) -> datetime:
    return datetime.fromtimestamp(int(windows.available_at_ms_R.max()) / 1000, tz=UTC)


def fingerprint(windows: Windows) -> str:
    """sha256 over the scaled rows, labels, prices and times that the training saw."""
    digest = hashlib.sha256()
    for array in (windows.rows_RF, windows.own_labels_RK, windows.close_R, windows.available_at_ms_R):
        digest.update(np.ascontiguousarray(array).tobytes())
    return "sha256:" + digest.hexdigest()


def _reference(windows: Windows, product: Product, timeframe: str) -> dict[str, Any] | None:
    """How the network's last inputs were distributed in training; None of a feature set, which has no network."""
    if product.derivation is not None:
        return None
    ends = evenly(windows.parts["train"], MOST_NOVELTY_WINDOWS)
    bars = bar_numbers(windows.available_at_ms_R[ends], TIMEFRAMES_MS[timeframe])
    return InputReference.fit(last_rows(windows, ends), bars, windows.features).to_json()


def _warnings(
    order: TrainingOrder, data: TrainingData, trained: Trained, product: Product, certificate: Certificate
) -> tuple[str, ...]:
    from_data = {warning for table in data.tables for warning in table.warnings}
    warnings = [*sorted(from_data | {*trained.warnings, *product.warnings}), *data_warnings(order, data)]
    if (product.derivation or order.derivation).selected_until_ms > data.windows.borders_ms["test"]:
        warnings.append(SELECTION_SAW_TEST)
    of_certificate = {"failed": LEAKAGE_FAILED, "unprovable": LEAKAGE_UNPROVABLE}.get(certificate.status)
    return (*warnings, *([of_certificate] if of_certificate else []))


def _split(windows: Windows, labelling: Labelling) -> Split:
    """Borders, counts, and what was purged or dropped."""
    return Split.model_validate(
        {
            "borders": describe_borders(windows.borders_ms),
            "num_windows": to_wire({part: len(windows.parts[part]) for part in PARTS}),
            "num_purged": windows.num_purged,
            "num_dropped": labelling.num_dropped | _untested(windows),
            "sample_weights": weights_report(windows),
        }
    )


def weights_report(windows: Windows) -> SampleWeights | None:
    """Of the training part; None where each row counts as much."""
    if windows.uniqueness_R is None:
        return None
    unique_N = windows.uniqueness_R[windows.parts["train"]]
    return SampleWeights(
        mean_uniqueness=float(unique_N.mean()),
        distinct_labels=float(unique_N.sum()),
        effective_windows=float(unique_N.sum() ** 2 / np.sum(unique_N**2)),
    )


def _untested(windows: Windows) -> dict[str, int]:
    """Labels that begin or end within an hour of the roll, of prices of one side: left out of the test part alone."""
    return {"test_label_near_roll": windows.num_untested} if windows.num_untested else {}
