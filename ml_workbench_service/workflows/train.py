"""Train: fetch → label → split → learn → export → assess → publish. One straight line, run by a job's worker."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service import accelerators
from ml_workbench_service import families as families  # loading the package registers every family
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms, utc_now
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.market import Costs, FeatureTable
from ml_workbench_service.contracts.models import Lineage, ModelCard, Split
from ml_workbench_service.contracts.training import Target, TrainRequest, parse_target
from ml_workbench_service.learning.assessment import Assessment, assess, part_sizes
from ml_workbench_service.learning.evaluation import headline
from ml_workbench_service.learning.export import export
from ml_workbench_service.learning.family import Family, Trained, family_for
from ml_workbench_service.learning.manifest import NETWORK_FILE, RECIPE_FILE
from ml_workbench_service.learning.windows import SymbolRows, Windows, build, describe_borders
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.targets import Labels, ewma_volatility, label, target_volatility
from ml_workbench_service.workbench import Workbench

VALIDITY = timedelta(days=365)
"""A model abstains this long after the last bar it saw. A convention: an FX regime rarely outlives a year."""
LIBRARIES = ("torch", "onnxruntime", "onnx", "numpy", "TA-Lib")


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """Trains and publishes the version that the API reserved in `spec.plan`; the job's result.

    Raises:
        DataValidationError: the data are too short or unusable.
        TrainingError: the training went wrong.
        JobCancelled: somebody asked for it.
    """
    request = TrainRequest.model_validate(spec.request)
    model_id, version = spec.plan["model_id"], spec.plan["version"]
    family = family_for(request.model_type, request.family)(request.hyperparameters)
    target = parse_target(request.target, request.timeframe)
    timeframe = request.timeframe_for(target)
    report.say("fetching features")
    tables = _fetch(request, timeframe, workbench=workbench)
    report.say("cutting windows")
    costs = {symbol: resolved_costs(symbol, request.costs) for symbol in request.symbols}
    rows, labels = _label(tables, request.features, target)
    windows = build(
        rows,
        features=request.features,
        is_level=[workbench.feature_store.kind_of(name) == "level" for name in request.features],
        lookback=family.lookback,
        validation_split=request.validation_split,
    )
    report.say("training")
    trained = family.train(
        windows, targets=(target.name,), seed=request.seeds[0], accelerator=accelerators.choose(), report=report
    )
    draft = workbench.registry.draft()
    try:
        report.say("exporting and judging")
        lengths = sorted({family.min_window, (family.min_window + family.lookback) // 2, family.lookback})
        network = export(trained, draft, num_features=len(request.features), lengths=lengths, seed=request.seeds[0])
        reference = {table.symbol: float(table.columns["close"][-1]) for table in tables}
        assessment = assess(
            network, draft, windows, target=target, costs=costs, is_simulated=tables[0].data_source == "simulated"
        )
        _write_recipe(draft, spec, windows=windows, assessment=assessment, costs=costs, reference=reference)
        (draft / NETWORK_FILE).write_text(json.dumps(dict(trained.network), indent=1) + "\n", encoding="utf-8")
        report.say("publishing")
        card = _card(
            spec, request, family=family, trained=trained, windows=windows, assessment=assessment, tables=tables,
            labels=labels, target=target, parent=workbench.registry.versions(model_id)[:1],
        )  # fmt: skip
        workbench.registry.publish(draft, card)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"model_id": model_id, "version": version, "href": f"/api/v1/models/{model_id}/versions/{version}"}


def _fetch(request: TrainRequest, timeframe: str, *, workbench: Workbench) -> list[FeatureTable]:
    return workbench.feature_store.fetch(
        request.symbols,
        timeframe,
        start_ms=to_ms(request.start_date),
        end_ms=to_ms(request.end_date),
        features=list(dict.fromkeys([*request.features, "close"])),
        as_of_ms=None if request.as_of is None else to_ms(request.as_of),
    )


def _label(
    tables: Sequence[FeatureTable], features: Sequence[str], target: Target
) -> tuple[list[SymbolRows], list[Labels]]:
    rows, all_labels = [], []
    for table in tables:
        close = np.asarray(table.columns["close"])
        runs = calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar)
        labels = label(
            target, close=close, opened_ms=table.opened_ms, known_ms=table.known_ms, runs=runs,
            timeframe=table.timeframe,
        )  # fmt: skip
        rows.append(
            SymbolRows(
                symbol=table.symbol,
                x_NF=np.column_stack([table.columns[name] for name in features]),
                labels_N=labels.values,
                label_known_ms_N=labels.known_ms,
                known_ms_N=table.known_ms,
                runs_N=runs,
                volatility_N=target_volatility(ewma_volatility(close), target),
                close_N=close,
            )
        )
        all_labels.append(labels)
        if not np.isfinite(rows[-1].x_NF).any(axis=0).all():
            empty = features[int(np.argmin(np.isfinite(rows[-1].x_NF).any(axis=0)))]
            raise DataValidationError.at(
                "body.features", f"{empty} has no value for {table.symbol} in this range; leave it out"
            )
    return rows, all_labels


def _write_recipe(
    draft: Path,
    spec: JobSpec,
    *,
    windows: Windows,
    assessment: Assessment,
    costs: dict[str, Costs],
    reference: dict[str, float],
) -> None:
    """`recipe.json`: the request and everything serving needs beside the network."""
    recipe = {
        "request": spec.request,
        "plan": spec.plan,
        "scaler": windows.scaler.to_json(),
        "uncertainty": assessment.uncertainty.to_json(),
        "borders_ms": dict(windows.borders_ms),
        "last_known_ms": int(windows.known_ms_R.max()),
        "costs": {symbol: each.model_dump() for symbol, each in costs.items()},
        "reference_price": reference,
        "data_fingerprint": _fingerprint(windows),
    }
    (draft / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


def _card(
    spec: JobSpec,
    request: TrainRequest,
    *,
    family: Family,
    trained: Trained,
    windows: Windows,
    assessment: Assessment,
    tables: Sequence[FeatureTable],
    labels: Sequence[Labels],
    target: Target,
    parent: list[str],
) -> ModelCard:
    last_known = datetime.fromtimestamp(int(windows.known_ms_R.max()) / 1000, tz=UTC)
    warnings = sorted({warning for table in tables for warning in table.warnings} | set(trained.warnings))
    return ModelCard(
        id=spec.plan["model_id"],
        name=request.name,
        type=request.model_type.value,
        version=spec.plan["version"],
        created_at=utc_now(),
        metrics=headline(assessment.evaluation),
        family=family.name,
        symbols=tuple(request.symbols),
        timeframe=tables[0].timeframe,
        features=tuple(request.features),
        target=target.name,
        horizon=target.horizon,
        lookback=family.lookback,
        min_window=family.min_window,
        outputs=trained.outputs,
        precision="int8" if assessment.quantization.accepted else "fp32",
        quantization=assessment.quantization,
        evaluation=assessment.evaluation,
        split=_split(windows, labels),
        data_source=tables[0].data_source,
        calendar=tables[0].calendar,
        fill=tables[0].fill,
        expires_at=last_known + VALIDITY,
        hyperparameters=family.hyperparameters.model_dump(),
        epochs_run=trained.epochs_run,
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


def _split(windows: Windows, labels: Sequence[Labels]) -> Split:
    """Borders, counts, and what was purged or dropped."""
    return Split.model_validate(
        {
            "borders": describe_borders(windows.borders_ms),
            "num_windows": part_sizes(windows),
            "num_purged": windows.num_purged,
            "num_dropped": {
                "label_spans_closure": sum(each.num_spanning_closure for each in labels),
                "label_meets_missing_bar": sum(each.num_missing_bar for each in labels),
            },
        }
    )


def _fingerprint(windows: Windows) -> str:
    """sha256 over the scaled rows, labels, prices and times that the training saw."""
    digest = hashlib.sha256()
    for array in (windows.rows_RF, windows.own_labels_R, windows.close_R, windows.known_ms_R):
        digest.update(np.ascontiguousarray(array).tobytes())
    return "sha256:" + digest.hexdigest()
