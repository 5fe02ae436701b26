"""Train: fetch → label → split → learn → export → assess → publish. One straight line, run by a job's worker."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service import accelerators
from ml_workbench_service import families as families  # loading the packages registers every family and task
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.market import Costs, FeatureTable
from ml_workbench_service.contracts.models import Lineage, ModelCard, Split
from ml_workbench_service.contracts.training import Target, TrainRequest
from ml_workbench_service.learning import tasks as tasks
from ml_workbench_service.learning.assessment import part_sizes
from ml_workbench_service.learning.checkpoint import Checkpoint
from ml_workbench_service.learning.evaluation import headline
from ml_workbench_service.learning.family import Assignment, Family, Trained, family_for
from ml_workbench_service.learning.labelling import Labelling, label_tables
from ml_workbench_service.learning.manifest import NETWORK_FILE, RECIPE_FILE
from ml_workbench_service.learning.task import Product, task_for
from ml_workbench_service.learning.windows import Windows, build, describe_borders
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.derivation import Derivation, columns_of
from ml_workbench_service.workbench import Workbench

VALIDITY = timedelta(days=365)
"""A model abstains this long after the last bar it saw. A convention: an FX regime rarely outlives a year."""
SELECTION_SAW_TEST = "feature_set_saw_test_part"
"""A feature set was selected on labels of this model's test part: its figures prove nothing about those features."""
LIBRARIES = ("torch", "onnxruntime", "onnx", "numpy", "TA-Lib", "scikit-learn", "stable-baselines3", "numba", "polars")


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """Trains and publishes the version that the API reserved in `spec.plan`; the job's result.

    Raises:
        DataValidationError: the data are too short or unusable.
        TrainingError: the training went wrong.
        JobCancelled: somebody asked for it.
    """
    request = TrainRequest.model_validate(spec.request)
    model_id, version = spec.plan["model_id"], spec.plan["version"]
    result = {"model_id": model_id, "version": version, "href": f"/api/v1/models/{model_id}/versions/{version}"}
    if _is_published(spec, workbench):
        return result
    task = task_for(request.model_type)
    targets = task.check(request)
    family = family_for(request.model_type, request.family)(request.hyperparameters)
    costs = {symbol: resolved_costs(symbol, request.costs) for symbol in request.symbols}
    derivation = _derivation(spec, request)
    candidates = task.candidates(request, family, workbench.feature_store)
    report.say("fetching features")
    tables = _fetch(request, targets, [*derivation.base_columns, *columns_of(candidates)], workbench=workbench)
    report.say("cutting windows")
    labelling = _label(request, tables, targets, costs, derivation)
    windows = _cut(request, labelling, family, derivation, workbench=workbench)
    assignment = Assignment(
        windows=windows,
        targets=targets,
        seed=request.seeds[0],
        quantiles=tuple(sorted(request.quantiles or ())),
        costs=costs,
        fill=tables[0].fill,
        tables=tuple(tables),
        candidates=candidates,
        regimes=labelling.regimes,
        model_id=model_id,
        version=version,
        checkpoint=_checkpoint(checkpoint, spec, windows, family, report),
    )
    accelerator = accelerators.choose(workbench.accelerator)
    report.say("training")
    trained = family.train(assignment, accelerator=accelerator, report=report)
    is_simulated = tables[0].data_source == "simulated"
    draft = workbench.registry.draft(spec.id)
    try:
        product = task.package(trained, draft, assignment, family=family, is_simulated=is_simulated, report=report)
        derivation = product.derivation or derivation
        _write_recipe(draft, spec, assignment=assignment, product=product, derivation=derivation)
        (draft / NETWORK_FILE).write_text(json.dumps(dict(trained.network), indent=1) + "\n", encoding="utf-8")
        report.say("publishing")
        card = _card(
            spec, request, family=family, trained=trained, assignment=assignment, product=product,
            derivation=derivation, labelling=labelling, parent=workbench.registry.versions(model_id)[:1],
        )  # fmt: skip
        workbench.registry.publish(draft, card)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if assignment.checkpoint is not None:
        assignment.checkpoint.clear()
    return result


def _derivation(spec: JobSpec, request: TrainRequest) -> Derivation:
    """The features as the plan resolved them; a search that names none cuts its windows by the close."""
    names = tuple(spec.plan.get("features", request.features))
    return Derivation(names or ("close",), spec.plan.get("expressions", {}), spec.plan.get("selected_until_ms", 0))


def _is_published(spec: JobSpec, workbench: Workbench) -> bool:
    """Whether this very job published already, and was killed before it could say so."""
    model_id, version = spec.plan["model_id"], spec.plan["version"]
    if version not in workbench.registry.versions(model_id):
        return False
    return workbench.registry.card(model_id, version).lineage.job_id == spec.id


def _fetch(
    request: TrainRequest, targets: tuple[Target, ...], columns: Sequence[str], *, workbench: Workbench
) -> list[FeatureTable]:
    return workbench.feature_store.fetch(
        request.symbols,
        request.timeframe_for(targets),
        start_ms=to_ms(request.start_date),
        end_ms=to_ms(request.end_date),
        features=list(dict.fromkeys([*columns, "close"])),
        as_of_ms=None if request.as_of is None else to_ms(request.as_of),
    )


def _label(
    request: TrainRequest,
    tables: Sequence[FeatureTable],
    targets: tuple[Target, ...],
    costs: Mapping[str, Costs],
    derivation: Derivation,
) -> Labelling:
    return label_tables(
        tables,
        features=derivation.features,
        columns=[derivation.read_table(table) for table in tables],
        targets=targets,
        costs=costs,
        barrier_width=1.0 if request.label is None else request.label.k,
    )


def _cut(
    request: TrainRequest, labelling: Labelling, family: Family, derivation: Derivation, *, workbench: Workbench
) -> Windows:
    return build(
        labelling.rows,
        features=derivation.features,
        is_level=[kind == "level" for kind in derivation.kinds(workbench.feature_store.kind_of)],
        lookback=family.lookback,
        validation_split=request.validation_split,
        scales_labels=[not target.classes for target in labelling.targets],
        finish_labels=labelling.finish,
    )


def _checkpoint(folder: Path, spec: JobSpec, windows: Windows, family: Family, report: Report) -> Checkpoint:
    """Where the training leaves what it needs to go on; a checkpoint of other data or libraries is not used."""
    fingerprint = {
        "job_id": spec.id,
        "data": _fingerprint(windows),
        "family": family.name,
        "hyperparameters": family.hyperparameters.model_dump(),
        "libraries": {name: library_version(name) for name in LIBRARIES},
    }
    return Checkpoint(folder, fingerprint=fingerprint, warn=report.warn)


def _write_recipe(
    draft: Path, spec: JobSpec, *, assignment: Assignment, product: Product, derivation: Derivation
) -> None:
    """`recipe.json`: the request and everything serving needs beside the network."""
    windows = assignment.windows
    recipe = {
        "request": spec.request,
        "plan": spec.plan,
        "scaler": windows.scaler.to_json(),
        "expressions": dict(derivation.expressions),
        **product.recipe,
        "regimes": {symbol: rule.to_json() for symbol, rule in assignment.regimes.items()},
        "borders_ms": dict(windows.borders_ms),
        "last_known_ms": int(windows.known_ms_R.max()),
        "costs": {symbol: each.model_dump() for symbol, each in assignment.costs.items()},
        "reference_price": {table.symbol: float(table.columns["close"][-1]) for table in assignment.tables},
        "data_fingerprint": _fingerprint(windows),
    }
    (draft / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


def _card(
    spec: JobSpec,
    request: TrainRequest,
    *,
    family: Family,
    trained: Trained,
    assignment: Assignment,
    product: Product,
    derivation: Derivation,
    labelling: Labelling,
    parent: list[str],
) -> ModelCard:
    windows, targets, tables = assignment.windows, assignment.targets, assignment.tables
    last_known = datetime.fromtimestamp(int(windows.known_ms_R.max()) / 1000, tz=UTC)
    warnings = sorted(
        {warning for table in tables for warning in table.warnings} | {*trained.warnings, *product.warnings}
    )
    if derivation.selected_until_ms > windows.borders_ms["test"]:
        warnings.append(SELECTION_SAW_TEST)
    return ModelCard(
        id=spec.plan["model_id"],
        name=request.name,
        type=request.model_type.value,
        version=spec.plan["version"],
        created_at=utc_now(),
        metrics=headline(product.evaluation),
        family=family.name,
        symbols=tuple(request.symbols),
        timeframe=tables[0].timeframe,
        features=derivation.features,
        target=targets[0].name if targets else None,
        targets=tuple(target.name for target in targets),
        quantiles=assignment.quantiles,
        classes=targets[0].classes if targets else (),
        horizon=targets[0].horizon if targets else 1,
        lookback=family.lookback,
        min_window=family.min_window,
        outputs=product.outputs,
        precision=product.precision,
        quantization=product.quantization,
        evaluation=product.evaluation,
        split=_split(windows, labelling),
        data_source=tables[0].data_source,
        calendar=tables[0].calendar,
        fill=tables[0].fill,
        expires_at=last_known + VALIDITY,
        hyperparameters=family.hyperparameters.model_dump(),
        epochs_run=trained.epochs_run,
        findings=dict(product.findings),
        warnings=tuple(warnings),
        notes=request.notes,
        lineage=Lineage(
            job_id=spec.id,
            data_fingerprint=_fingerprint(windows),
            seeds=tuple(request.seeds),
            parent_version=parent[0] if parent else None,
            library_versions={name: library_version(name) for name in LIBRARIES},
        ),
    )


def _split(windows: Windows, labelling: Labelling) -> Split:
    """Borders, counts, and what was purged or dropped."""
    return Split.model_validate(
        {
            "borders": describe_borders(windows.borders_ms),
            "num_windows": part_sizes(windows),
            "num_purged": windows.num_purged,
            "num_dropped": labelling.num_dropped,
        }
    )


def _fingerprint(windows: Windows) -> str:
    """sha256 over the scaled rows, labels, prices and times that the training saw."""
    digest = hashlib.sha256()
    for array in (windows.rows_RF, windows.own_labels_RK, windows.close_R, windows.known_ms_R):
        digest.update(np.ascontiguousarray(array).tobytes())
    return "sha256:" + digest.hexdigest()
