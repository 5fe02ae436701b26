"""Model monitoring: how versions fare live: their rows of the ledger, and their inputs against training's."""

import logging
from functools import lru_cache, partial
from pathlib import Path

from packaging.version import Version

from common_lib.exceptions import (
    BundleDamagedError,
    DataValidationError,
    PredictionError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.outcomes import Drift, LiveVerdict, MonitoringReport, VersionMonitoring
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation.drift import InputReference
from ml_workbench_service.evaluation.live_verdict import live_rules_of, live_verdict
from ml_workbench_service.integrations.prediction_ledger.reader import LedgerReader, RecordedVersion
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.learning.bundle.manifest import RECIPE_FILE
from ml_workbench_service.market.outcomes.live_metrics import (
    LiveFigures,
    LiveRows,
    bar_numbers,
    live_figures,
    warnings_of,
)
from ml_workbench_service.resources import Workbench

MOST_ROWS = 50_000
"""Rows behind a version's figures, the newest."""
NO_INPUTS = "no row of this range has kept its inputs"
NO_REFERENCE = (
    "this version was published without the distribution of its inputs (before it was kept, or it is a feature set): "
    "train it again"
)
OTHER_INPUTS = "the rows are of another bundle under this version's name"
log = logging.getLogger(__name__)
NOTHING = LiveFigures(None, None, None, None, None)


def monitor(
    workbench: Workbench,
    ledger: LedgerReader,
    model_id: str,
    *,
    version: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    most_rows: int = MOST_ROWS,
) -> MonitoringReport:
    """The report of the versions that have rows, or of the one that is named, newest first.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is none.
        UnavailableError: the ledger cannot be read.
    """
    recorded = {each.version: each for each in ledger.versions(model_id)}
    if version is not None:
        workbench.registry.card(model_id, version)
    elif not recorded:
        workbench.registry.served_card(model_id)
    wanted = sorted(recorded, key=Version, reverse=True) if version is None else [version]
    found = []
    for name in wanted:
        rows = ledger.live_rows(model_id, name, from_ms=from_ms, to_ms=to_ms, limit=most_rows)
        found.append(_version(workbench, ledger, model_id, name, recorded.get(name), rows, most_rows=most_rows))
    return MonitoringReport(model_id=model_id, versions=tuple(found))


def _version(
    workbench: Workbench,
    ledger: LedgerReader,
    model_id: str,
    version: str,
    recorded: RecordedVersion | None,
    rows: LiveRows,
    *,
    most_rows: int,
) -> VersionMonitoring:
    live = workbench.history.live(model_id)
    figures, drift, drift_reason = NOTHING, None, NO_INPUTS
    if recorded is not None:
        bar_ms = TIMEFRAMES_MS[recorded.timeframe]
        if recorded.foretells and recorded.target is not None:
            figures = live_figures(rows, parse_target(recorded.target), bar_ms=bar_ms)
        drift, drift_reason = _drift(workbench, model_id, version, rows, bar_ms)
    return VersionMonitoring(
        version=version,
        target=None if recorded is None else recorded.target,
        monitoring_level=live.monitoring_level if live is not None and live.version == version else None,
        num_predictions=len(rows),
        num_abstained=int(rows.abstains_N.sum()),
        num_outcomes=int(rows.is_known_N.sum()),
        num_open=int(rows.is_open_N.sum()),
        num_unavailable=int(rows.is_unavailable_N.sum()),
        num_not_live=0 if recorded is None else recorded.num_not_live,
        drift=drift,
        drift_reason=None if drift is not None else drift_reason,
        live_verdict=_live_verdict(workbench, ledger, model_id, version),
        warnings=tuple(warnings_of(rows, most=most_rows)),
        **vars(figures),
    )


def _live_verdict(workbench: Workbench, ledger: LedgerReader, model_id: str, version: str) -> LiveVerdict:
    """From evidence alone; where the store or the bundle does not give what it takes, it says so."""
    try:
        rules = live_rules_of(workbench.registry.recipe(model_id, version))
        answers_of = partial(ledger.live_answers, model_id, version)
        return live_verdict(workbench.registry.card(model_id, version), answers_of, workbench.feature_store, rules)
    except (BundleDamagedError, DataValidationError, UpstreamError, UpstreamTimeoutError, PredictionError) as error:
        log.warning("no live verdict on %s %s just now: %s", model_id, version, error.message)
        return LiveVerdict(verdict="insufficient_data", reason=f"not to be had just now: {error.message}")


def _drift(workbench: Workbench, model_id: str, version: str, rows: LiveRows, bar_ms: int) -> tuple[Drift | None, str]:
    """The rows' inputs against training's, or why they cannot be compared."""
    try:
        file = workbench.registry.file(model_id, version, RECIPE_FILE)
        reference = None if file is None else _reference(file, file.stat().st_mtime_ns)
    except BundleDamagedError as error:
        return None, error.message
    if reference is None:
        return None, NO_REFERENCE
    if not len(rows.inputs_ms_M):
        return None, NO_INPUTS
    if rows.inputs_MF.shape[1] != len(reference.features):
        return None, OTHER_INPUTS
    return reference.drift(rows.inputs_MF, bar_numbers(rows.inputs_ms_M, bar_ms)), ""


@lru_cache(maxsize=64)
def _reference(file: Path, _mtime_ns: int) -> InputReference | None:
    plain = json_object(file.read_bytes()).get("reference")
    return None if plain is None else InputReference.from_json(plain)
